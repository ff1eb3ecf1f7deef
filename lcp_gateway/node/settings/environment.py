"""The environment of lcpd-grpcd, read into the form of the node's own TOML: an operator swaps the daemon and nothing else.

An empty variable is as good as none.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from lcp_gateway.node.settings.provider_yaml import read_provider_yaml
from lcp_gateway.node.toml import ConfigError

_OPENAI_URL: Final = "https://api.openai.com/v1"
_LOG_LEVELS: Final = {"debug": "debug", "info": "info", "warn": "warning", "error": "error"}
_DEFAULT_YAML: Final = "config.yaml"

_DURATION: Final = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:ns|us|µs|μs|ms|s|m|h))+|[+-]?0")  # noqa: RUF001 - both signs of micro
_PART: Final = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")  # noqa: RUF001 - as above
_UNITS_S: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}  # noqa: RUF001 - as above


def read_environment(
    environ: Mapping[str, str], *, lnd: bool, backends: bool, models: bool, folder: Path | None
) -> dict[str, Any]:
    """Return the settings that variables and the provider YAML hold, in the form of the TOML file.

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
