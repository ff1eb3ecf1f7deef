"""The settings of a gateway that runs, read again as they are now."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from lcp_gateway.config import Loaded, Settings, load

# With an embedded node these are not what was configured, but where that node is.
_OF_THE_DAEMON = (
    "lcpd_grpc_addr",
    "lcpd_tls",
    "lcpd_tls_ca",
    "lcpd_tls_cert",
    "lcpd_tls_key",
    "lcpd_tls_server_name",
    "lcpd_metadata",
)


def reading_anew(
    settings: Settings, flags: Mapping[str, object], config: Path | None
) -> Callable[[], Loaded]:
    """Give what reads the same flags, the environment and the file as it is then; ``settings`` are those in force.

    It raises ``ConfigError`` where they cannot be used.
    """
    kept = {name: getattr(settings, name) for name in _OF_THE_DAEMON} if settings.embedded else {}

    def read() -> Loaded:
        loaded = load(flags=flags, environ=os.environ, config_path=config)
        return dataclasses.replace(loaded, settings=loaded.settings.model_copy(update=kept))

    return read
