"""The settings of a node from all of their sources: flags before the TOML file, and that before lcpd-grpcd's environment."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lcp_gateway.node.settings.environment import read_environment
from lcp_gateway.node.settings.model import BackendSettings, NodeSettings
from lcp_gateway.node.toml import ConfigError, read_dataclass, read_toml

_LONGEST_KEY_BYTES = 16_384


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
    inherited = read_environment(
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
