"""How often something may be tried, by client address and in all: in this process, or in the Redis that gateways share.

Both count by the same rule: a bucket holds ``limit`` attempts at first and fills evenly within ``period_s``.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from lcp_gateway.accounts.limits.addresses import AddressLimits, networks_of
from lcp_gateway.accounts.shared.calls import RedisCalls
from lcp_gateway.accounts.shared.outage import REDIS_KEY_PREFIX, Outage

_MS_PER_S = 1_000
# Enough of a hash to tell networks apart; an address itself is not stored.
_NAME_CHARS = 24
_EVERYONE = "all clients together"


class AttemptLimit(NamedTuple):
    """A limit of attempts; ``name`` says of what."""

    name: str
    limit: int
    period_s: float


# For each bucket the time at which it will be full again (Redis's clock, in ms).
# KEYS: the buckets. ARGV: for each the limit, then for each its period in ms.
_TAKE: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
local wait, full = 0, {}
for i, key in ipairs(KEYS) do
  local limit, period = tonumber(ARGV[i]), tonumber(ARGV[#KEYS + i])
  local each = period / limit
  local at = math.max(now, tonumber(redis.call('GET', key) or now)) + each
  wait = math.max(wait, at - now - period)
  full[i] = at
end
if wait > 0.5 then return math.ceil(wait) end
for i, key in ipairs(KEYS) do
  redis.call('SET', key, string.format('%.3f', full[i]), 'PX', math.ceil(full[i] - now) + 1)
end
return 0
"""


class RedisBuckets:
    """The buckets of all gateways that share a Redis."""

    def __init__(self, calls: RedisCalls) -> None:
        self.calls = calls
        self._take = calls.script(_TAKE)

    async def take(self, buckets: Sequence[AttemptLimit]) -> float:
        """Count an attempt in every bucket and return 0, or return the seconds until it fits and count nothing."""
        keys = [f"{REDIS_KEY_PREFIX}:attempts:{bucket.name}" for bucket in buckets]
        limits = [bucket.limit for bucket in buckets]
        periods_ms = [round(bucket.period_s * _MS_PER_S) for bucket in buckets]
        return int(await self._take(keys, [*limits, *periods_ms])) / _MS_PER_S


class Attempts:
    """Counts attempts: in Redis where there is one, and in this process without it and while it is unreachable."""

    def __init__(
        self,
        shared: RedisBuckets | None = None,
        *,
        outage: Outage | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shared = shared
        self._outage = outage or Outage()
        self._clock = clock
        self._own: dict[str, AddressLimits] = {}

    async def take(self, address: str | None, limit: AttemptLimit) -> float:
        """Count an attempt of an address (of IPv6: of its networks) and return 0, or return the seconds until one fits."""
        if self._shared is not None and not self._outage.is_on:
            buckets = [
                AttemptLimit(f"{limit.name}:{_digest(network)}", bound, limit.period_s)
                for network, bound in networks_of(address, limit.limit)
            ]
            try:
                # Counted also where the client leaves meanwhile.
                return await self._shared.take(buckets)
            except self._shared.calls.errors as error:
                self._outage.begin(error)
        own = self._own.get(limit.name)
        if own is None:
            own = self._own[limit.name] = AddressLimits(period_s=limit.period_s, clock=self._clock)
        return own.take(address, limit.limit)

    async def take_of_all(self, limit: AttemptLimit) -> float:
        """Count an attempt of any client, as ``take``."""
        return await self.take(_EVERYONE, limit)


def _digest(network: str) -> str:
    return hashlib.sha256(network.encode("utf-8", "surrogateescape")).hexdigest()[:_NAME_CHARS]
