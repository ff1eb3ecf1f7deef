"""A few settings, read by commands that look for a gateway and do not run one.

What is wrong with the others is not theirs to judge: a gateway that runs can be found and stopped whatever has become of
the file that it was started with, and from a shell that does not have its keys.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from lcp_gateway.config import Settings, SourceKind, specs
from lcp_gateway.config.sources import (
    Given,
    Layer,
    file_to_read,
    from_environment,
    from_file,
    from_flags,
    from_openai_serve,
)


@dataclass(frozen=True, slots=True)
class SomeSettings:
    """Settings of which only those asked for are as they were given, the others by default.

    ``given`` are the names of those that were given at all. ``problems`` tell what of them could not be used, or that the
    file could not be read.
    """

    settings: Settings
    given: frozenset[str]
    problems: tuple[str, ...]


def some_settings(
    names: Collection[str],
    *,
    flags: Mapping[str, object],
    environ: Mapping[str, str],
    config: Path | None,
) -> SomeSettings:
    """Read the settings of these names from where ``serve`` reads them, and none besides.

    Raises:
        ValueError: a flag cannot be used; the message says why.
    """
    known = specs()
    path, named_by = file_to_read(environ, config)
    file = from_file(path, known, named_by=named_by) if path is not None else Layer()
    found: dict[str, Given] = {}
    for layer in (
        file,
        from_openai_serve(environ, known),
        from_environment(environ, known),
        from_flags(flags, known),
    ):
        found |= {name: given for name, given in layer.given.items() if name in names}
    # A file of which nothing could be read might have said where to look.
    problems = list(file.problems) if not file.given else []
    values: dict[str, object] = {}
    for name, given in found.items():
        try:
            values[name] = getattr(Settings.model_validate({name: given.value}), name)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            problem = f"{given.source}: {reason}"
            if given.source.kind is SourceKind.FLAG:
                raise ValueError(problem) from None
            problems.append(problem)
    return SomeSettings(Settings.model_validate(values), frozenset(values), tuple(problems))
