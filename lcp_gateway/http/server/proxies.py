"""The client's address behind reverse proxies: X-Forwarded-* of trusted proxies only."""

import ipaddress
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final

from aiohttp import web

_FOR: Final = "X-Forwarded-For"
_PROTO: Final = "X-Forwarded-Proto"
_HOST: Final = "X-Forwarded-Host"
_SCHEMES = frozenset({"http", "https"})
# No chain of proxies is longer; a header that is was made to keep us busy.
_MOST_HOPS = 32
_LONGEST_ADDRESS = 48

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class TrustedProxies:
    """The proxies whose word is believed, by their addresses or networks."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = tuple(ipaddress.ip_network(network) for network in networks)

    def seen_through(self, request: web.BaseRequest) -> web.BaseRequest:
        """Give a request whose ``remote``, ``scheme`` and ``host`` are those that the client saw.

        It is left as it is where it comes from no such proxy.
        """
        if not self._networks or request.remote is None:
            return request
        peer = read_address(request.remote)
        if peer is None or not self._trusts(peer):
            return request
        client = self.client(peer, request.headers.getall(_FOR, ()))
        scheme = _last(request, _PROTO).lower()
        return request.clone(
            remote=str(client),
            scheme=scheme if scheme in _SCHEMES else request.scheme,
            host=_last(request, _HOST) or request.host,
        )

    def client(self, peer: _Address, forwarded: Sequence[str]) -> _Address:
        """Give the nearest address that is not one of ours, from the peer on, which is, to what the headers say.

        Each proxy writes whom it heard from at the right end, so that what stands left of a stranger's address is that
        stranger's word. What is no address ends the walk.
        """
        found = peer
        for text in reversed(",".join(forwarded).split(",")[-_MOST_HOPS:]):
            address = read_address(text.strip())
            if address is None:
                break
            found = address
            if not self._trusts(address):
                break
        return found

    def _trusts(self, address: _Address) -> bool:
        return any(address in network for network in self._networks)


def _last(request: web.BaseRequest, header: str) -> str:
    """Give the last value of a list in a header, which is that of the proxy nearest to us."""
    return ",".join(request.headers.getall(header, ())).rpartition(",")[2].strip()


def read_address(text: str) -> _Address | None:
    """Read an address as proxies write it, with or without a port; None for what is none."""
    if len(text) > _LONGEST_ADDRESS or "%" in text:
        # A zone may be any text, and is nobody's business but its own machine's.
        return None
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


# Clients send many requests from one address, which is worth more than what it costs to remember it.
@lru_cache(maxsize=1024)
def display_address(remote: str | None) -> str:
    """Give a client's address as it stands in the log; empty for one on this machine, which tells nothing."""
    address = None if remote is None else read_address(remote)
    return "" if address is None or address.is_loopback else str(address)
