"""Loading: the sources in their order of precedence, checked as a whole, with every problem reported at once."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from pydantic import ValidationError

from lcp_gateway.config.setting import Spec
from lcp_gateway.config.settings import Settings, specs
from lcp_gateway.config.sources import (
    DEFAULT_SOURCE,
    Given,
    Source,
    SourceKind,
    file_to_read,
    from_environment,
    from_file,
    from_flags,
    from_openai_serve,
    from_openclaw,
    nearest,
)
from lcp_gateway.config.tables import columns, place
from lcp_gateway.config.validation import contradictions, setting_warnings

_SHOWN_CHARACTERS = 80
# Pydantic marks the location of a mapping's key with this, as opposed to its value.
_OF_A_KEY = "[key]"
# As far as the last "@": a key that stands in a URL by mistake is not repeated.
_USER_IN_URL = re.compile(r"(?<=://).*@", re.DOTALL)


class ConfigError(Exception):
    """The configuration cannot be used. Each of ``problems`` names a key and its source, and no secret."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = list(problems)


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings in force, their sources, and the warnings for the operator."""

    settings: Settings
    warnings: tuple[str, ...]
    config_file: Path | None
    """The file that was read, if any."""
    _sources: Mapping[str, Source]

    def source_of(self, name: str) -> Source:
        """Return where the value of a setting came from."""
        return self._sources.get(name, DEFAULT_SOURCE)

    def keeping(self, before: Settings, names: Collection[str]) -> Settings:
        """Return the settings, with the named ones as they were before.

        Raises:
            ConfigError: the old values contradict the others.
        """
        if not names:
            return self.settings
        settings = self.settings.model_copy(update={name: getattr(before, name) for name in names})
        kept = {name: Source(SourceKind.DEFAULT, f"{name} as it was") for name in specs()}
        if problems := list(contradictions(settings, {**kept, **self._sources})):
            listed = ", ".join(sorted(names))
            raise ConfigError([*problems, f"settings that need a restart keep their old values: {listed}"])
        return settings


def load(
    *,
    flags: Mapping[str, object],
    environ: Mapping[str, str],
    config_path: Path | None = None,
    flag_names: Mapping[str, str] = MappingProxyType({}),
) -> Loaded:
    """Read every source. Precedence: flags, the environment, openai-serve's and OpenClaw's variables, the file, defaults.

    ``flags`` are keyed by setting, with ``None`` for those that were not given; ``flag_names`` are the flags of a command
    that are not named after their setting.

    Raises:
        ConfigError: with all that is unknown, malformed or contradictory.
    """
    known = specs()
    path, named_by = file_to_read(environ, config_path)
    layers = [
        from_flags(flags, known, flag_names=flag_names),
        from_environment(environ, known),
        from_openai_serve(environ, known),
        from_openclaw(environ, known),
    ]
    if path is not None:
        layers.append(from_file(path, known, named_by=named_by))
    given: dict[str, Given] = {}
    for layer in reversed(layers):
        given |= layer.given
    problems = [problem for layer in layers for problem in layer.problems]
    warnings = [warning for layer in layers for warning in layer.warnings]
    sources = {name: found.source for name, found in given.items()}
    try:
        settings = Settings.model_validate({name: found.value for name, found in given.items()})
    except ValidationError as error:
        raise ConfigError(problems + list(_bad_values(error, given, known))) from None
    problems += contradictions(settings, sources)
    if problems:
        raise ConfigError(problems)
    warnings += setting_warnings(settings, sources)
    return Loaded(settings, tuple(warnings), path, sources)


def _bad_values(error: ValidationError, given: Mapping[str, Given], known: Mapping[str, Spec]) -> Iterator[str]:
    for detail in error.errors(include_url=False, include_input=False, include_context=False):
        location = detail["loc"]
        name = str(location[0])
        reason = detail["msg"].removeprefix("Value error, ")
        spec, value, source = known[name], given[name].value, given[name].source
        if row := spec.form.row:
            yield f"{source}: {_table_problem(location, detail['type'], reason, row)}"
            continue
        shown = "" if spec.is_secret_when(value) else f" (got {_shortened(value)})"
        yield f"{source}: {_lower_first(reason)}{shown}"


def _table_problem(location: tuple[int | str, ...], kind: str, reason: str, row: type) -> str:
    """Return the problem of a setting made of tables: its place, and no value."""
    if len(location) == 1:
        return _lower_first(reason)
    if location[-1] == _OF_A_KEY:
        location = location[:-1]
    elif kind == "unexpected_keyword_argument":
        names = (column.name for column in columns(row))
        reason = f"unknown key{nearest(str(location[-1]), names)}"
    elif kind == "missing":
        reason = "is missing"
    return f"{place(location)}: {_lower_first(reason)}"


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def _shortened(value: object) -> str:
    text = _USER_IN_URL.sub("***@", repr(value))
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."
