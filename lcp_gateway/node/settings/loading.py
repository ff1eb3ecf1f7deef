"""The settings of a node from all of their sources: flags before the TOML file, and that before lcpd-grpcd's environment."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from lcp_gateway.node.settings.model import BackendSettings, NodeSettings
from lcp_gateway.node.settings.provider_yaml import read_provider_yaml
from lcp_gateway.node.toml import ConfigError, read_dataclass, read_toml

_LONGEST_KEY_BYTES = 16_384
_OPENAI_URL: Final = "https://api.openai.com/v1"
_LOG_LEVELS: Final = {"debug": "debug", "info": "info", "warn": "warning", "error": "error"}
_DEFAULT_YAML: Final = "config.yaml"

_DURATION: Final = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:ns|us|µs|μs|ms|s|m|h))+|[+-]?0")  # noqa: RUF001 - both signs of micro
_PART: Final = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")  # noqa: RUF001 - as above
_UNITS_S: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}  # noqa: RUF001 - as above


def load_settings(
    file: Path | None, environ: Mapping[str, str], flags: Mapping[str, Any], *, folder: Path | None = None
) -> NodeSettings:
    """Read the settings of a node. ``flags`` are keys of the TOML file, tables nested as there.

    A table ``lnd`` in the file or in flags leaves the environment's lnd unread as a whole: its certificate and macaroon belong to
    its address. Models and backends that are set there do so likewise. ``folder`` (the working directory) is where lcpd-grpcd
    looks for its provider YAML, ``config.yaml``; not looked for where there is a TOML file.

    Raises:
        ConfigError: a file cannot be read, or a value is wrong; the text begins with the key, the variable or the file.
    """
    given = _merged(read_toml(file) if file is not None else {}, flags)
    sell = given.get("sell", {})
    in_sell = sell if isinstance(sell, Mapping) else {}
    inherited = _read_environment(
        environ,
        lnd="lnd" not in given,
        backends="backends" not in in_sell,
        models="models" not in in_sell,
        folder=folder if file is None else None,
    )
    return read_dataclass(NodeSettings, _merged(inherited, given))


def read_api_key(backend: BackendSettings) -> str:
    """Return a backend's API key, from its file where one is named; empty where there is none.

    Raises:
        ConfigError: the file cannot be read, or holds no key.
    """
    if backend.api_key_file is None:
        return backend.api_key
    at = f'sell.backends "{backend.name}": api_key_file'
    try:
        with backend.api_key_file.open("rb") as file:
            key = file.read(_LONGEST_KEY_BYTES).decode("ascii").strip()
    except OSError as error:
        raise ConfigError(f"{at}: {backend.api_key_file}: {error.strerror}") from error
    except UnicodeDecodeError:
        key = ""
    if not key or not key.isprintable():
        raise ConfigError(f"{at}: {backend.api_key_file}: must hold one line of ASCII")
    return key


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return two documents in one: tables key by key, any other value from ``over`` where it is there."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _read_environment(
    environ: Mapping[str, str], *, lnd: bool, backends: bool, models: bool, folder: Path | None
) -> dict[str, Any]:
    """Return the settings that lcpd-grpcd's variables and its provider YAML hold, in the form of the TOML file.

    An operator swaps the daemon and nothing else. An empty variable is as good as none.

    ``lnd``, ``backends`` and ``models`` say whether those are wanted: what is set elsewhere is not read, and not judged.
    ``folder`` is where ``config.yaml`` is looked for if no variable names a file; None: nowhere.

    Raises:
        ConfigError: a value is wrong, or the provider YAML is; the text begins with the variable or the file.
    """
    document: dict[str, Any] = {}
    if lnd:
        document |= _lnd(environ)
    if level := _LOG_LEVELS.get(environ.get("LCPD_LOG_LEVEL", "").lower()):
        document["log_level"] = level
    sell: dict[str, Any] = {}
    if models and (path := _provider_file(environ, folder)) is not None:
        sell = read_provider_yaml(path)
    if backends and (backend := _backend(environ)) is not None:
        sell["backends"] = [backend]
    for variable in ("LCP_INVOICE_EXPIRY_SLACK_SECONDS", "LCP_ALLOWED_CLOCK_SKEW_SECONDS"):
        if (text := environ.get(variable, "").strip()).isdecimal():
            sell["invoice_slack_s"] = int(text)
            break
    if sell:
        document["sell"] = sell
    return document


def _lnd(environ: Mapping[str, str]) -> dict[str, Any]:
    names = {
        "grpc_addr": ("LCPD_LND_RPC_ADDR",),
        "tls_cert": ("LCPD_LND_TLS_CERT_PATH",),
        "macaroon_file": ("LCPD_LND_ADMIN_MACAROON_PATH", "LCPD_LND_MACAROON_PATH"),
    }
    found = {key: next(filter(None, map(environ.get, variables)), None) for key, variables in names.items()}
    document: dict[str, Any] = {"lnd": {key: value for key, value in found.items() if value is not None}}
    variable = "LCPD_LND_MANIFEST_RESEND_INTERVAL"
    if text := environ.get(variable, "").strip():
        try:
            document["manifest_resend_s"] = max(0.0, _duration_s(text))
        except ValueError:
            raise ConfigError(f'{variable}: must be a duration such as "10s" or "1m30s"') from None
    return document


def _provider_file(environ: Mapping[str, str], folder: Path | None) -> Path | None:
    if named := environ.get("LCPD_PROVIDER_CONFIG_PATH", "").strip():
        return Path(named)
    found = folder / _DEFAULT_YAML if folder is not None else None
    return found if found is not None and found.is_file() else None


def _backend(environ: Mapping[str, str]) -> dict[str, Any] | None:
    match kind := environ.get("LCPD_BACKEND", "").strip().lower():
        case "" | "none" | "disabled":
            return None
        case "openai":
            key = environ.get("LCPD_OPENAI_API_KEY") or environ.get("OPENAI_API_KEY")
            if not key:
                raise ConfigError('LCPD_OPENAI_API_KEY: missing: the backend "openai" needs a key')
            url = (environ.get("LCPD_OPENAI_BASE_URL", "").strip() or _OPENAI_URL).rstrip("/")
            return {"kind": kind, "url": url if url.endswith("/v1") else f"{url}/v1", "api_key": key}
        case "deterministic":
            return {"kind": kind, "output_base64": environ.get("LCPD_DETERMINISTIC_OUTPUT_BASE64", "").strip()}
        case _:
            raise ConfigError('LCPD_BACKEND: must be "openai", "deterministic" or "disabled"')


def _duration_s(text: str) -> float:
    """Return the seconds of a duration as Go writes it.

    Raises:
        ValueError: it is none.
    """
    if not _DURATION.fullmatch(text):
        raise ValueError("no duration")
    seconds = math.fsum(float(number) * _UNITS_S[unit] for number, unit in _PART.findall(text))
    return -seconds if text.startswith("-") else seconds
