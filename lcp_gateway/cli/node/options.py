"""The settings of a node over lnd as commands read them: a TOML file, the environment of lcpd-grpcd, and flags."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lcp_gateway.cli.output import USAGE_ERROR, CommandFailed
from lcp_gateway.config.paths import state_folder
from lcp_gateway.node.settings.loading import load_settings
from lcp_gateway.node.settings.model import NodeSettings
from lcp_gateway.node.toml import ConfigError


def load_node_settings(config: Path | None, flags: Mapping[str, Any] | None = None) -> NodeSettings:
    """Return the settings of a node; ``flags`` is a document of the file's form, whose values replace the file's.

    Without a file, lcpd-grpcd's ``config.yaml`` in the working directory is read as that daemon reads it.

    Raises:
        CommandFailed: a setting cannot be used.
    """
    try:
        return load_settings(config, os.environ, flags or {}, folder=Path())
    except ConfigError as error:
        raise CommandFailed(f"node: {error}", exit_code=USAGE_ERROR) from None


def store_path(settings: NodeSettings) -> Path:
    """Return the file of the node's store."""
    return settings.store.path or state_folder(os.environ) / "node.db"
