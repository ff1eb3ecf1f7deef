"""Values that follow from several settings together: the journal's place, host names, nodes, the use of a proxy."""

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from lcp_gateway.config.addresses import JOURNAL_OFF, parse_host_port
from lcp_gateway.config.nodes import NodeConfig
from lcp_gateway.config.settings import Settings


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


def state_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder for files that outlive the process, by the XDG rules or those of the platform."""
    base = environ.get("XDG_STATE_HOME", "")
    # The XDG specification says to ignore a relative path.
    if base and Path(base).is_absolute():
        return Path(base) / "lcp-gateway"
    import platformdirs  # noqa: PLC0415 - costs 20 ms

    return platformdirs.user_state_path("lcp-gateway", appauthor=False)


def known_hosts(settings: Settings) -> tuple[str, ...]:
    """Return the names by which clients without a credential may reach the gateway: ``allowed_hosts``, and those it listens on."""
    listening = [
        parse_host_port(address).host
        for address in (settings.http_addr, settings.metrics_addr)
        if address
    ]
    return (*settings.allowed_hosts, *filter(None, listening))


def all_nodes(settings: Settings) -> tuple[NodeConfig, ...]:
    """Return every node of the settings; OpenClaw's is the last where it is enabled."""
    if not settings.openclaw_enabled:
        return settings.nodes
    openclaw = NodeConfig(
        name=settings.openclaw_node_name,
        base_url=settings.openclaw_base_url,
        api_key=settings.openclaw_api_key,
        price_per_minute_sat=settings.openclaw_price,
        timeout_s=settings.openclaw_timeout,
        owned_by=settings.openclaw_node_name,
        endpoints=("chat",),
    )
    return (*settings.nodes, openclaw)


def may_use_proxy(settings: Settings, target: str) -> bool:
    """Whether a connection may go through the environment's proxy; one to this machine never may.

    ``target`` is a URL or a gRPC target.
    """
    return settings.proxy_from_environment and not _is_local(target)


def _is_local(target: str) -> bool:
    scheme, mark, rest = target.partition(":")
    if scheme == "unix":
        return True
    if mark and scheme in {"dns", "ipv4", "ipv6"} and not rest.isdigit():
        target = rest.removeprefix("///")
    try:
        host = urlsplit(target if "://" in target else f"//{target}").hostname or ""
    except ValueError:
        return False
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified
