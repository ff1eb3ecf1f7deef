"""The places a setting may come from, each read into a layer that records the origin of every value."""

import difflib
import enum
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

from lcp_gateway.config.paths import default_file
from lcp_gateway.config.setting import ENVIRONMENT_PREFIX, OPENAI_SERVE_PREFIX, OPENCLAW_PREFIX, Spec

_HOST: Final = re.compile(r"[0-9A-Za-z.:\[\]_-]+")
_URL: Final = re.compile(r"(?:tcp|udp|sctp)://\S+")
_NUMBER: Final = re.compile(r"[0-9]{1,5}")
_PROTOCOL: Final = re.compile(r"tcp|udp|sctp")
_LINK_NAME: Final = re.compile(r"/[^/\s]+/[^/\s]+")
# Between the prefix and the ending: the rest of a service's name, as in lcp-gateway-metrics.
_NAME: Final = r"(?:[A-Z0-9_]+_)?"
_ENDINGS: Final = tuple(
    (re.compile(_NAME + ending), value)
    for ending, value in (
        (r"SERVICE_HOST", _HOST),
        (r"SERVICE_PORT(?:_[A-Z0-9_]+)?", _NUMBER),
        (r"PORT", _URL),
        (r"PORT_[0-9]+_(?:TCP|UDP|SCTP)(?:_START|_END)?", _URL),
        (r"PORT_[0-9]+_(?:TCP|UDP|SCTP)_PROTO", _PROTOCOL),
        (r"PORT_[0-9]+_(?:TCP|UDP|SCTP)_PORT(?:_START|_END)?", _NUMBER),
        (r"PORT_[0-9]+_(?:TCP|UDP|SCTP)_ADDR", _HOST),
    )
)
_DOCKER_NAME: Final = re.compile(_NAME + r"NAME")
_DOCKER_VARIABLE: Final = re.compile(r"((?:[A-Z0-9_]+_)?)ENV_.+")


def _is_service_link(variable: str, environ: Mapping[str, str], prefix: str) -> bool:
    """Whether a variable that begins with ``prefix`` was made for a service, by its name and its value.

    Kubernetes adds such variables to every container of a namespace for each Service there, and ``docker --link`` for each
    link; for a service called ``lcp-gateway`` they begin like the gateway's own, and set nothing. ``docker --link`` also
    copies the other container's variables (``…_ENV_PATH``); these count where the link's own ``…_NAME`` is present.
    """
    rest, value = variable.removeprefix(prefix), environ[variable].strip()
    if any(name.fullmatch(rest) and form.fullmatch(value) for name, form in _ENDINGS):
        return True
    if _DOCKER_NAME.fullmatch(rest):
        return _LINK_NAME.fullmatch(value) is not None
    copied = _DOCKER_VARIABLE.fullmatch(rest)
    return copied is not None and _LINK_NAME.fullmatch(environ.get(f"{prefix}{copied[1]}NAME", "").strip()) is not None


CONFIG_VARIABLE = ENVIRONMENT_PREFIX + "CONFIG"

# Codex and other clients read this one (`env_key`); it is no setting of the gateway.
_CLIENT_VARIABLES = frozenset({"OPENAI_SERVE_API_KEY"})
_RETIRED_VARIABLES = frozenset({"OPENAI_SERVE_MAX_PROMPT_BYTES"})
_GROUP_AND_OTHERS_READ = 0o044


class SourceKind(enum.StrEnum):
    """The kinds of source, strongest first."""

    FLAG = "flag"
    ENVIRONMENT = "environment"
    OPENAI_SERVE = "openai-serve environment"
    OPENCLAW = "OpenClaw environment"
    FILE = "file"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Source:
    """The origin of a value: ``where`` names the flag, the variable, or the file and key."""

    kind: SourceKind
    where: str

    def __str__(self) -> str:
        """Return the flag, variable or place in the file."""
        return self.where or self.kind.value


DEFAULT_SOURCE = Source(SourceKind.DEFAULT, "")


@dataclass(frozen=True, slots=True)
class Given:
    """An unparsed value with its origin."""

    value: object
    source: Source


@dataclass(slots=True)
class Layer:
    """The values of one source, with its problems and warnings."""

    given: dict[str, Given] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def from_flags(
    flags: Mapping[str, object], specs: Mapping[str, Spec], *, flag_names: Mapping[str, str] = MappingProxyType({})
) -> Layer:
    """Read flags by the name of their setting; ``None`` means that the flag was not given.

    ``flag_names`` are the flags of a command that are not named after their setting.
    """
    layer = Layer()
    for name, value in flags.items():
        if value is None:
            continue
        spec = specs.get(name)
        flag = flag_names.get(name) or "--" + name.replace("_", "-")
        if spec is None or not spec.flag:
            known = (known_spec.flag for known_spec in specs.values() if known_spec.flag)
            layer.problems.append(f"{flag}: unknown flag{nearest(flag, known)}")
            continue
        if spec.is_secret_when(value):
            layer.problems.append(
                f"{flag}: other users can read a password on a command line; "
                f"give it in {spec.environment}, a file, or PGPASSFILE"
            )
            continue
        if value is False:
            flag = "--no-" + flag.removeprefix("--")
        layer.given[name] = Given(value, Source(SourceKind.FLAG, flag))
    return layer


def from_environment(environ: Mapping[str, str], specs: Mapping[str, Spec]) -> Layer:
    """Read the gateway's own variables. Empty ones count as unset."""
    known = {spec.environment: name for name, spec in specs.items()}
    layer, unknown = _from_variables(environ, ENVIRONMENT_PREFIX, known, SourceKind.ENVIRONMENT)
    layer.problems += [
        _unknown_variable(variable, [*known, CONFIG_VARIABLE]) for variable in unknown if variable != CONFIG_VARIABLE
    ]
    return layer


def from_openai_serve(environ: Mapping[str, str], specs: Mapping[str, Spec]) -> Layer:
    """Read the variables of the Go program that the gateway replaces. Empty ones count as unset."""
    known = {spec.openai_serve: name for name, spec in specs.items() if spec.openai_serve}
    layer, unknown = _from_variables(environ, OPENAI_SERVE_PREFIX, known, SourceKind.OPENAI_SERVE)
    for variable in unknown:
        if variable in _RETIRED_VARIABLES:
            layer.warnings.append(f"{variable} is no longer used and has no effect; see max_body_bytes")
        elif variable not in _CLIENT_VARIABLES:
            layer.problems.append(_unknown_variable(variable, known))
    return layer


def from_openclaw(environ: Mapping[str, str], specs: Mapping[str, Spec]) -> Layer:
    """Read the variables that make OpenClaw a node. Empty ones count as unset, unknown ones are OpenClaw's own."""
    known = {spec.openclaw: name for name, spec in specs.items() if spec.openclaw}
    return _from_variables(environ, OPENCLAW_PREFIX, known, SourceKind.OPENCLAW)[0]


def from_file(path: Path, specs: Mapping[str, Spec], *, named_by: str = "") -> Layer:
    """Read a TOML file whose keys are the names of the settings; ``named_by`` is the flag or variable that names it."""
    layer = Layer()
    try:
        # Some editors put a byte order mark first, which TOML does not know.
        text = path.read_text(encoding="utf-8-sig")
        mode = path.stat().st_mode
    except UnicodeDecodeError:
        layer.problems.append(f"{path}: the file is not UTF-8 text")
        return layer
    except OSError as error:
        reason = error.strerror or type(error).__name__
        asked = f" (from {named_by})" if named_by else ""
        layer.problems.append(f"{path}{asked}: cannot be read: {reason}")
        return layer
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        layer.problems.append(f"{path}: not valid TOML: {error}")
        return layer
    for key, value in table.items():
        if key in specs:
            layer.given[key] = Given(value, Source(SourceKind.FILE, f"{path}: {key}"))
        else:
            layer.problems.append(f"{path}: {key}: unknown key{nearest(key, specs)}")
    secret = any(specs[name].is_secret_when(found.value) for name, found in layer.given.items())
    if mode & _GROUP_AND_OTHERS_READ and secret:
        layer.warnings.append(f"{path} holds a secret and other users may read it: chmod 600")
    return layer


def file_to_read(environ: Mapping[str, str], chosen: Path | None) -> tuple[Path | None, str]:
    """Find the TOML file: the chosen one, the one that the environment names, or the user's own if it exists.

    Returns the path, or ``None`` where there is no file, and the flag or variable that named it.
    """
    if chosen is not None:
        return chosen.expanduser(), "--config"
    if named := environ.get(CONFIG_VARIABLE):
        return Path(named).expanduser(), CONFIG_VARIABLE
    usual = default_file(environ)
    try:
        is_there = usual.exists()
    except OSError:
        # In a folder that cannot be entered: reading the file reports it.
        is_there = True
    return (usual if is_there else None), ""


def others_may_read(path: Path) -> bool:
    """Whether users other than its owner may read a file; false where its mode cannot be read."""
    try:
        return bool(path.stat().st_mode & _GROUP_AND_OTHERS_READ)
    except OSError:
        return False


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean X?`` for the closest known name, or an empty text."""
    folded = {candidate.lower().replace("-", "_"): candidate for candidate in known}
    found = difflib.get_close_matches(name.lower().replace("-", "_"), folded, n=1, cutoff=0.6)
    return f"; did you mean {folded[found[0]]}?" if found else ""


def _from_variables(
    environ: Mapping[str, str], prefix: str, known: Mapping[str, str], kind: SourceKind
) -> tuple[Layer, list[str]]:
    """Return the settings of a prefix's variables, and the unknown variables; ``known`` maps variables to settings."""
    layer, unknown = Layer(), []
    for variable, value in sorted(environ.items()):
        if not variable.startswith(prefix) or not value.strip() or _is_service_link(variable, environ, prefix):
            continue
        if name := known.get(variable):
            layer.given[name] = Given(value, Source(kind, variable))
        else:
            unknown.append(variable)
    return layer, unknown


def _unknown_variable(variable: str, known: Iterable[str]) -> str:
    return f"{variable}: unknown environment variable{nearest(variable, known)}"
