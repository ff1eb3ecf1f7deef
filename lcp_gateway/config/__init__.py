"""Configuration: one model of settings, loaded from flags, environment and file, with the origin of each value."""

from lcp_gateway.config.addresses import NODE_CONNECT_PATH, HostPort, parse_host_port, without_password
from lcp_gateway.config.derived import (
    all_nodes,
    auth_mode,
    console_problem,
    is_open_to_others,
    known_hosts,
    local_models,
    markups,
    may_use_proxy,
    model_limits,
    openclaw_id,
    reachable_nodes,
    serves_console,
    worker_count,
)
from lcp_gateway.config.dialin import DialinNodeConfig, JoinBackendConfig
from lcp_gateway.config.docs import docs_markdown, written
from lcp_gateway.config.loading import ConfigError, Loaded, load
from lcp_gateway.config.models import ModelConfig
from lcp_gateway.config.nodes import LOCAL_NODE, LOCAL_URL, NodeConfig
from lcp_gateway.config.paths import journal_place, models_folder
from lcp_gateway.config.setting import Group, Spec
from lcp_gateway.config.settings import Settings, specs
from lcp_gateway.config.sources import SourceKind, others_may_read
from lcp_gateway.config.validation import fee_warnings, spending_warnings

__all__ = [
    "LOCAL_NODE",
    "LOCAL_URL",
    "NODE_CONNECT_PATH",
    "ConfigError",
    "DialinNodeConfig",
    "Group",
    "HostPort",
    "JoinBackendConfig",
    "Loaded",
    "ModelConfig",
    "NodeConfig",
    "Settings",
    "SourceKind",
    "Spec",
    "all_nodes",
    "auth_mode",
    "console_problem",
    "docs_markdown",
    "fee_warnings",
    "is_open_to_others",
    "journal_place",
    "known_hosts",
    "load",
    "local_models",
    "markups",
    "may_use_proxy",
    "model_limits",
    "models_folder",
    "openclaw_id",
    "others_may_read",
    "parse_host_port",
    "reachable_nodes",
    "serves_console",
    "specs",
    "spending_warnings",
    "without_password",
    "worker_count",
    "written",
]
