"""A configuration file to begin with: every setting with its default, its meaning and its other names, commented out."""

import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Final

from lcp_gateway.config.declare import Group, Spec
from lcp_gateway.config.docs import written
from lcp_gateway.config.settings import specs
from lcp_gateway.config.tables import Column, columns

COLUMNS: Final = 100
"""How wide the lines of prose are."""

_HEAD = (
    "Configuration of lcp-gateway.",
    (
        'Every setting stands here with its default. What begins with "#" and no blank is a setting: take the "#" away to '
        "change it. Flags and environment variables go before what stands here. `lcp-gateway config show` tells what is in "
        "force and why, `lcp-gateway config check` whether it can be used."
    ),
    (
        'A duration is a number of seconds, or a text with units: 5, 0.5, "500ms", "1m30s". A size is a number of bytes, or '
        'a text with a unit: 65536, "64KiB", "10MB". Amounts whose name ends in _msat are in millisatoshi: 1000 are one sat.'
    ),
    "Secrets may stand here as long as nobody else can read the file (chmod 600), or come from the environment.",
)
_TABLES_TITLE = "Tables"
_TABLES_WORDS = "They stand last: whatever follows a table belongs to it."

# What a table is shown with where a field has no default that could stand in a file, or where one tells more.
_EXAMPLES: Mapping[str, object] = MappingProxyType(
    {
        "nodes.name": "ollama",
        "nodes.base_url": "http://127.0.0.1:11434/v1",
        "models.type": "chat",
        "models.context_length": 32_768,
        "models.capabilities": ("tools", "json_schema"),
        "models.default_temperature": 0.7,
        "models.default_max_tokens": 1_024,
        "models.markup_percent": 10,
        "models.markup_msat": 0,
    }
)
_EXAMPLE_NAME = "some-model"


def sample_file() -> str:
    """Give the text of the file: valid TOML as it is, and with any of its settings uncommented."""
    plain: dict[Group, list[Spec]] = {group: [] for group in Group}
    tables: list[Spec] = []
    for spec in specs().values():
        if spec.form.row:
            tables.append(spec)
        else:
            plain[spec.group].append(spec)
    lines: list[str] = []
    for paragraph in _HEAD:
        lines += [*_prose(paragraph), "#"]
    # Where a comment would go on, a blank line ends it.
    lines[-1] = ""
    for group, found in plain.items():
        elsewhere = [spec.name for spec in tables if spec.group is group]
        lines += _title(group)
        if elsewhere:
            lines += _prose(f"{' and '.join(elsewhere)} are tables: see the end of this file.")
            lines.append("")
        for spec in found:
            lines += _entry(spec)
    lines += [*_title(_TABLES_TITLE), *_prose(_TABLES_WORDS), ""]
    for spec in tables:
        lines += _table(spec)
    return "\n".join(lines).rstrip() + "\n"


def _title(text: str) -> Iterator[str]:
    yield f"# {'=' * 3} {text} {'=' * (COLUMNS - len(text) - 7)}"
    yield ""


def _prose(text: str) -> list[str]:
    return textwrap.wrap(
        text,
        COLUMNS,
        initial_indent="# ",
        subsequent_indent="# ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _entry(spec: Spec) -> Iterator[str]:
    yield from _about(spec)
    yield f"#{spec.name} = {written(spec.default)}"
    yield ""


def _about(spec: Spec) -> Iterator[str]:
    yield from _prose(spec.description)
    names = [spec.environment, *filter(None, (spec.openai_serve, spec.openclaw))]
    yield from _prose(f"Type: {spec.form.name}. Environment: {', '.join(names)}.")
    if spec.secret:
        yield from _prose("A secret: better in the environment, or nobody else may read this file.")
    elif spec.may_hold_password:
        yield from _prose("With a password in it, it is a secret: nobody else may read this file.")


def _table(spec: Spec) -> Iterator[str]:
    row = spec.form.row
    if row is None:
        return
    yield from _about(spec)
    yield from _prose("For example:")
    # A setting that starts out empty as a mapping is a table of tables, each under a name.
    named = isinstance(spec.default, Mapping)
    yield f"#[{spec.name}.{json.dumps(_EXAMPLE_NAME)}]" if named else f"#[[{spec.name}]]"
    yield from _fields(spec.name, columns(row))
    yield ""


def _fields(setting: str, found: Iterable[Column]) -> Iterator[str]:
    for column in found:
        example = _EXAMPLES.get(f"{setting}.{column.name}", column.default)
        words = column.description
        if column.required:
            words += " Required."
        if column.secret:
            words += " A secret."
        yield from _prose(f"{words} ({column.form.name})")
        yield f"#{column.name} = {written(example)}"
