"""Configuration: one model of settings, loaded from flags, environment and file, with the origin of each value."""

from lcp_gateway.config.docs import docs_markdown, written
from lcp_gateway.config.forms import HostPort, parse_host_port
from lcp_gateway.config.loading import ConfigError, Loaded, load
from lcp_gateway.config.settings import Group, Settings, Spec, specs
from lcp_gateway.config.sources import Source, SourceKind

__all__ = [
    "ConfigError",
    "Group",
    "HostPort",
    "Loaded",
    "Settings",
    "Source",
    "SourceKind",
    "Spec",
    "docs_markdown",
    "load",
    "parse_host_port",
    "specs",
    "written",
]
