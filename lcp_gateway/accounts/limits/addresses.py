"""How often clients of one address may ask for what costs the gateway something: a token bucket for each network.

An IPv6 address means little, since an internet provider gives each customer at least a /64 and often a /48. A client counts
in both; the wider network may have a few times as many.
"""

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

HOST_BITS_V6: Final = 64
SITE_BITS_V6: Final = 48
SITE_FACTOR: Final = 8
"""The limit of a whole site as a multiple of an address's."""

_MAX_BUCKETS = 20_000
_S_PER_MINUTE = 60.0


@dataclass(slots=True)
class _Bucket:
    """The rest of a limit, and the time of that."""

    left: float
    at: float


class AddressLimits:
    """Counts by address. A bucket begins full and fills within ``period_s``; the least recently used are dropped."""

    def __init__(
        self,
        *,
        max_buckets: int = _MAX_BUCKETS,
        period_s: float = _S_PER_MINUTE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._period_s = period_s
        self._max_buckets = max_buckets
        self._clock = clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, address: str | None, limit: int) -> float:
        """Count one request of an address and return 0, or return the seconds until one fits and count nothing."""
        bounds = [(self._bucket(network, bound), bound) for network, bound in networks_of(address, limit)]
        wait_s = max((1 - bucket.left) * self._period_s / bound for bucket, bound in bounds)
        if wait_s > 0:
            return wait_s
        for bucket, _ in bounds:
            bucket.left -= 1
        return 0.0

    def _bucket(self, network: str, limit: int) -> _Bucket:
        now = self._clock()
        bucket = self._buckets.get(network)
        if bucket is None:
            while len(self._buckets) >= self._max_buckets:
                self._buckets.popitem(last=False)
            bucket = self._buckets[network] = _Bucket(limit, now)
        self._buckets.move_to_end(network)
        filled = bucket.left + (now - bucket.at) * limit / self._period_s
        bucket.left, bucket.at = min(filled, limit), now
        return bucket


def networks_of(address: str | None, limit: int) -> list[tuple[str, int]]:
    """Return the networks in which an address counts, with the limit of each; a text that is no address counts as one."""
    try:
        ip = ipaddress.ip_address(address or "")
    except ValueError:
        return [(address or "", limit)]
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return [(str(ip.ipv4_mapped), limit)]
        value = int(ip)
        return [
            (f"{value >> (128 - HOST_BITS_V6):x}/{HOST_BITS_V6}", limit),
            (f"{value >> (128 - SITE_BITS_V6):x}/{SITE_BITS_V6}", limit * SITE_FACTOR),
        ]
    return [(str(ip), limit)]
