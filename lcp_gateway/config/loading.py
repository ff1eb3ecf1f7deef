"""Loading: the layers put over each other, checked as a whole, with every problem reported at once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from pydantic import ValidationError

from lcp_gateway.config.cautions import cautions, contradictions
from lcp_gateway.config.declare import Spec
from lcp_gateway.config.settings import Settings, specs
from lcp_gateway.config.sources import (
    DEFAULT_SOURCE,
    Given,
    Source,
    file_to_read,
    from_environment,
    from_file,
    from_flags,
    from_openai_serve,
)

_SHOWN_CHARACTERS = 80


class ConfigError(Exception):
    """The configuration cannot be used. Each of ``problems`` names a key and its source, and no secret."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = list(problems)


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings in force, where they came from, and what the operator should hear about them."""

    settings: Settings
    warnings: tuple[str, ...]
    config_file: Path | None
    """The file that was read, if any."""
    _sources: Mapping[str, Source]

    def source_of(self, name: str) -> Source:
        """Tell where the value of a setting came from."""
        return self._sources.get(name, DEFAULT_SOURCE)


def load(
    *,
    flags: Mapping[str, object],
    environ: Mapping[str, str],
    config_path: Path | None = None,
    flag_names: Mapping[str, str] = MappingProxyType({}),
) -> Loaded:
    """Read every source; a flag beats the environment, that beats openai-serve's, that the file, that the default.

    ``flags`` go by the names of the settings, with ``None`` for those that were not given; ``flag_names`` says how a
    command calls a flag that is not named after its setting.

    Raises:
        ConfigError: something is unknown, malformed or contradictory; it lists all that was found.
    """
    known = specs()
    path, named_by = file_to_read(environ, config_path)
    layers = [
        from_flags(flags, known, flag_names=flag_names),
        from_environment(environ, known),
        from_openai_serve(environ, known),
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
    warnings += cautions(settings, sources)
    return Loaded(settings, tuple(warnings), path, sources)


def _bad_values(
    error: ValidationError, given: Mapping[str, Given], known: Mapping[str, Spec]
) -> Iterator[str]:
    for detail in error.errors(include_url=False, include_input=False, include_context=False):
        name = str(detail["loc"][0])
        reason = detail["msg"].removeprefix("Value error, ")
        spec, value = known[name], given[name].value
        shown = "" if spec.is_secret_when(value) else f" (got {_shortened(value)})"
        yield f"{given[name].source}: {reason[:1].lower()}{reason[1:]}{shown}"


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."
