"""YAML whose scalars are all text, for a reader that knows which kind each key wants."""

import re
from typing import Any, Final

import yaml

from lcp_gateway.node.toml import ConfigError

_MERGE: Final = "tag:yaml.org,2002:merge"


def _construct(loader: yaml.SafeLoader, node: yaml.Node) -> object:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return node.value


class _TextLoader(yaml.SafeLoader):
    """Makes mappings, lists and texts, whatever the tags, and refuses a key that comes twice, as Go's reader does."""

    yaml_constructors = {None: _construct}  # noqa: RUF012 - its type is the base's
    # No scalar is resolved but the merge key.
    yaml_implicit_resolvers = {"<": [(_MERGE, re.compile("^<<$"))]}  # noqa: RUF012 - its type is the base's

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            name = key.value
            if key.tag == _MERGE or not isinstance(name, str):
                continue
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f'key "{name}" comes twice', key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def read_yaml(content: bytes) -> object:
    """Return a document of mappings, lists and texts; an empty one is None.

    Raises:
        ConfigError: it is no YAML; the text names the line, and quotes nothing.
    """
    try:
        return yaml.load(content, _TextLoader)  # noqa: S506 - a child of the safe loader
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"no YAML{line}: {getattr(error, 'problem', None) or 'it cannot be read'}") from None
