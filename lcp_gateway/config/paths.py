"""Where files are kept: the configuration, the state, the journal."""

import os
from collections.abc import Mapping
from pathlib import Path

from lcp_gateway.config.addresses import JOURNAL_OFF
from lcp_gateway.config.settings import Settings

_PROGRAM = "lcp-gateway"


def default_file(environ: Mapping[str, str]) -> Path:
    """Return the place of the user's own configuration, by the XDG rules or those of the platform."""
    return _folder(environ, "XDG_CONFIG_HOME", "user_config_path") / "config.toml"


def state_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder for files that outlive the process, by the XDG rules or those of the platform."""
    return _folder(environ, "XDG_STATE_HOME", "user_state_path")


def _folder(environ: Mapping[str, str], variable: str, otherwise: str) -> Path:
    base = environ.get(variable, "")
    # The XDG specification says to ignore a relative path.
    if base and Path(base).is_absolute():
        return Path(base) / _PROGRAM
    import platformdirs  # noqa: PLC0415 - costs 20 ms

    found: Path = getattr(platformdirs, otherwise)(_PROGRAM, appauthor=False)
    return found


def models_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of what was fetched for local models, and of their logs."""
    return state_folder(environ) / "models"


def journal_place(settings: Settings, environ: Mapping[str, str] = os.environ) -> Path | str | None:
    """Return the journal's place: a file's path, a database URL (perhaps with a password), or ``None`` where it is off."""
    match settings.journal_url:
        case "":
            name = "embedded.db" if settings.embedded else "journal.db"
            return state_folder(environ) / name
        case place if place == JOURNAL_OFF:
            return None
        case place:
            return place if "://" in place else Path(place)
