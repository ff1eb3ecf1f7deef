"""Which connections may go through the proxy that the environment names (``http_proxy`` and its like)."""

import ipaddress
from urllib.parse import urlsplit

from lcp_gateway.config.settings import Settings


def may_use_proxy(settings: Settings, target: str) -> bool:
    """Tell whether a connection may go through the environment's proxy: only if the settings say so, never on this machine.

    ``target`` is a URL, or what gRPC dials.
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
