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
# No real chain of proxies is longer; a longer header is an attempt to cost time.
_MOST_HOPS = 32
_LONGEST_ADDRESS = 48

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class TrustedProxies:
    """The proxies whose headers are believed, by their addresses or networks."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = tuple(ipaddress.ip_network(network) for network in networks)

    def seen_through(self, request: web.BaseRequest) -> web.BaseRequest:
        """Return a request whose ``remote``, ``scheme`` and ``host`` are the client's; unchanged if no trusted proxy sent it."""
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
        """Return the nearest address that is no trusted proxy, from ``peer``, which is one, along the header's addresses.

        Each proxy adds the address of its client at the right end, so everything left of an untrusted address was
        written by that client. A text that is no address ends the search.
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
    """Return the last value of a list in a header, which is that of the nearest proxy."""
    return ",".join(request.headers.getall(header, ())).rpartition(",")[2].strip()


def read_address(text: str) -> _Address | None:
    """Return an address as proxies write it, with or without a port; None for any other text."""
    if len(text) > _LONGEST_ADDRESS or "%" in text:
        # A zone may be any text, and has a meaning on its own machine only.
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


# Clients send many requests from one address.
@lru_cache(maxsize=1024)
def display_address(remote: str | None) -> str:
    """Return a client's address for the log; empty for one on this machine."""
    address = None if remote is None else read_address(remote)
    return "" if address is None or address.is_loopback else str(address)
