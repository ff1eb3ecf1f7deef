"""How often something may be tried, by client address and in all: in this process, or in the Redis that gateways share.

Both count by the same rule: a bucket holds ``limit`` attempts at first and fills evenly within ``period_s``.
"""

import hashlib
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NamedTuple

from lcp_gateway.accounts.limits.addresses import AddressLimits, networks_of
from lcp_gateway.accounts.shared.calls import RedisCalls, RedisUnavailable
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


class Attempts:
    """Counts attempts: in Redis where there is one, and in this process without it and while it is unreachable."""

    def __init__(
        self,
        calls: RedisCalls | None = None,
        *,
        outage: Outage | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._calls = calls
        if calls is not None:
            self._count = calls.script(_TAKE)
        self._outage = outage or Outage()
        self._clock = clock
        self._own: dict[str, AddressLimits] = {}

    async def take(self, address: str | None, limit: AttemptLimit) -> float:
        """Count an attempt of an address (of IPv6: of its networks) and return 0, or return the seconds until one fits."""
        if self._calls is not None:
            networks = networks_of(address, limit.limit)
            keys = [f"{REDIS_KEY_PREFIX}:attempts:{limit.name}:{_digest(network)}" for network, _ in networks]
            period_ms = round(limit.period_s * _MS_PER_S)
            values = [*(bound for _, bound in networks), *(period_ms for _ in networks)]
            with suppress(RedisUnavailable):
                # Counted also where the client leaves meanwhile.
                return int(await self._calls.reply(self._outage, self._count, keys, values)) / _MS_PER_S
        own = self._own.get(limit.name)
        if own is None:
            own = self._own[limit.name] = AddressLimits(period_s=limit.period_s, clock=self._clock)
        return own.take(address, limit.limit)

    async def take_of_all(self, limit: AttemptLimit) -> float:
        """Count an attempt of any client, as ``take``."""
        return await self.take(_EVERYONE, limit)


def _digest(network: str) -> str:
    return hashlib.sha256(network.encode("utf-8", "surrogateescape")).hexdigest()[:_NAME_CHARS]
