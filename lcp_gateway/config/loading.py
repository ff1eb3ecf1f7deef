"""Loading: the layers put over each other, checked as a whole, with every problem reported at once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from pydantic import ValidationError

from lcp_gateway.config.forms import parse_host_port
from lcp_gateway.config.settings import Settings, Spec, specs
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
_LOOPBACK_HOSTS = frozenset({"localhost", "::1"})


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
    problems += _contradictions(settings, sources)
    if problems:
        raise ConfigError(problems)
    warnings += _cautions(settings, sources)
    return Loaded(settings, tuple(warnings), path, sources)


def _bad_values(
    error: ValidationError, given: Mapping[str, Given], known: Mapping[str, Spec]
) -> Iterator[str]:
    for detail in error.errors(include_url=False, include_input=False, include_context=False):
        name = str(detail["loc"][0])
        reason = detail["msg"].removeprefix("Value error, ")
        shown = "" if known[name].secret else f" (got {_shortened(given[name].value)})"
        yield f"{given[name].source}: {reason[:1].lower()}{reason[1:]}{shown}"


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


def _contradictions(settings: Settings, sources: Mapping[str, Source]) -> Iterator[str]:
    """Find settings that are right one by one and wrong together."""
    tls = ("lcpd_tls_ca", "lcpd_tls_cert", "lcpd_tls_key", "lcpd_tls_server_name")
    if not settings.lcpd_tls:
        for name in tls:
            if getattr(settings, name):
                # Whoever names a certificate believes that the connection is encrypted.
                yield f"{sources[name]}: has no effect while lcpd_tls is false"
    if settings.lcpd_tls_cert and not settings.lcpd_tls_key:
        yield f"{sources['lcpd_tls_cert']}: a client certificate needs lcpd_tls_key too"
    if settings.lcpd_tls_key and not settings.lcpd_tls_cert:
        yield f"{sources['lcpd_tls_key']}: a client key needs lcpd_tls_cert too"
    for name in ("lcpd_tls_ca", "lcpd_tls_cert", "lcpd_tls_key", "node_peers_file"):
        path = getattr(settings, name)
        if path is not None and not path.is_file():
            yield f"{sources[name]}: no such file: {path}"
    if settings.embedded and settings.node_listen.endswith(":0"):
        yield f"{sources['node_listen']}: the embedded node needs a port of its own, not 0"
    if settings.peers_stale_s < settings.peers_refresh_s:
        source = sources.get("peers_stale_s") or sources["peers_refresh_s"]
        yield (
            f"{source}: peers_stale_s ({settings.peers_stale_s:g} s) must not be shorter than "
            f"peers_refresh_s ({settings.peers_refresh_s:g} s)"
        )


def _cautions(settings: Settings, sources: Mapping[str, Source]) -> Iterator[str]:
    host = parse_host_port(settings.http_addr).host
    local = host in _LOOPBACK_HOSTS or host.startswith("127.")
    if not local and not settings.api_keys and not settings.embedded:
        yield (
            f"{settings.http_addr} can be reached by other machines and no api_keys are set: "
            "whoever reaches it spends your money"
        )
    if settings.embedded and "lcpd_grpc_addr" in sources:
        yield f"{sources['lcpd_grpc_addr']} has no effect: the embedded node is used"
