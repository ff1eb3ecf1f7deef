"""What is out with each peer, exactly, for all workers of a gateway: two of them cannot use the rest of a limit both."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final

from lcp_gateway.accounts.shared.calls import NOW, RedisCalls, RedisUnavailable, unawaited
from lcp_gateway.accounts.shared.outage import REDIS_KEY_PREFIX, Outage
from lcp_gateway.encryption import Encryption
from lcp_gateway.purchase.errors import PeerNotTrusted
from lcp_gateway.purchase.quote import Quote
from lcp_gateway.purchase.states import State

_PRICES: Final = f"{REDIS_KEY_PREFIX}:out:"
_ENDS: Final = f"{REDIS_KEY_PREFIX}:out-until:"
# Those that ended before and are many go a part at a time: no check takes long.
_ENDED_AT_ONCE: Final = 1_000
_MS_PER_S: Final = 1_000
# What is known of an ended job reaches the other workers by message; until then it counts here.
_SETTLES_MS: Final = 2_000
# The journal knows of it, and a gateway that starts counts it again.
_UNKNOWN_S: Final = 30 * 86_400.0
_STRANGERS: Final = ""
_ENDINGS: Final = frozenset({"resolved", "released"})
_UNKNOWN: Final = frozenset({State.UNKNOWN.value, State.PAYING.value})

# Of each group a hash holds the prices that are out, by job, and their sum; a sorted set holds when each ends to count, by
# Redis's own clock. A check reads the sum: its cost does not grow with the number of jobs that are out.
_READ = f"""{NOW}
local function lasts_at_least(key, lasts)
  if redis.call('PTTL', key) < lasts then redis.call('PEXPIRE', key, lasts + 86400000) end
end
local function set_end(prices, ends, job, lasts)
  redis.call('ZADD', ends, now + lasts, job)
  lasts_at_least(prices, lasts)
  lasts_at_least(ends, lasts)
end
"""
# KEYS: of each group the prices, then the ends. ARGV: the job, its price, how long it counts, then for each group what may
# be out in all, -1 for no limit. Returns 0, or the place of the first group that is too full, and what is out there with others.
_RESERVE = f"""{_READ}
local job, price, lasts = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local own = {{}}
for at = 1, #KEYS, 2 do
  local prices, ends, place = KEYS[at], KEYS[at + 1], (at + 1) / 2
  local gone = redis.call('ZRANGEBYSCORE', ends, '-inf', now, 'LIMIT', 0, {_ENDED_AT_ONCE})
  for _, ended in ipairs(gone) do
    redis.call('HINCRBY', prices, 'sum', -(redis.call('HGET', prices, ended) or 0))
    redis.call('HDEL', prices, ended)
    redis.call('ZREM', ends, ended)
  end
  own[at] = tonumber(redis.call('HGET', prices, job) or 0)
  local out, most = tonumber(redis.call('HGET', prices, 'sum') or 0) - own[at], tonumber(ARGV[3 + place])
  if most >= 0 and out + price > most then return {{place, out}} end
end
for at = 1, #KEYS, 2 do
  local prices, ends = KEYS[at], KEYS[at + 1]
  redis.call('HSET', prices, job, string.format('%d', price))
  redis.call('HINCRBY', prices, 'sum', string.format('%d', price - own[at]))
  set_end(prices, ends, job, lasts)
end
return {{0, 0}}
"""
# What ended within this time goes to Redis in one call.
_TOGETHER_S: Final = 0.05

# KEYS: of each group the prices, then the ends. ARGV: for each its job, and how long that counts from now.
_UNTIL = f"""{_READ}
for at = 1, #KEYS, 2 do
  local job, lasts = ARGV[at], tonumber(ARGV[at + 1])
  if redis.call('HEXISTS', KEYS[at], job) == 1 then set_end(KEYS[at], KEYS[at + 1], job, lasts) end
end
"""


class ExposureFull(Exception):
    """``out_msat`` are out already in the group at ``place``, and the price does not fit."""

    def __init__(self, place: int, out_msat: int) -> None:
        super().__init__()
        self.place = place
        self.out_msat = out_msat


class RedisExposure:
    """What is out with groups of peers. Names of groups and jobs are keyed hashes."""

    def __init__(self, calls: RedisCalls, run_id: str, encryption: Encryption, outage: Outage) -> None:
        """``run_id`` names the run of the gateway, which begins with what its journal holds."""
        self._run_id = run_id.encode()
        self._encryption = encryption
        self._calls = calls
        self._outage = outage
        self._reserve = calls.script(_RESERVE)
        self._until = calls.script(_UNTIL)
        self._ended: list[tuple[str, str, bytes, int]] = []
        self._flushing: asyncio.TimerHandle | None = None

    async def reserve(
        self, groups: Sequence[str], most_msat: Sequence[int], job_id: bytes, price_msat: int, lasts_s: float
    ) -> None:
        """Count a price as out for a time, if it fits into every group; -1 sets no limit.

        Raises:
            ExposureFull: it does not fit; nothing is counted.
            RedisUnavailable: it is not known.
        """
        arguments = [self._job(job_id), price_msat, round(lasts_s * _MS_PER_S), *most_msat]
        keys = [key for group in groups for key in self._keys(group)]
        place, out_msat = await self._calls.reply(self._outage, self._reserve, keys, arguments)
        if place:
            raise ExposureFull(place - 1, out_msat)

    def keep(self, groups: Sequence[str], job_id: bytes, lasts_s: float) -> None:
        """Count a job as out for so long from now, without waiting."""
        self._set_until(groups, job_id, round(lasts_s * _MS_PER_S))

    def release(self, groups: Sequence[str], job_id: bytes) -> None:
        """Count a job as out no longer than others need to hear of its end, without waiting."""
        self._set_until(groups, job_id, _SETTLES_MS)

    def close(self) -> None:
        """Send what has ended and was not sent yet."""
        if self._flushing is not None:
            self._flushing.cancel()
            self._flush()

    def _set_until(self, groups: Sequence[str], job_id: bytes, lasts_ms: int) -> None:
        job = self._job(job_id)
        self._ended.extend((prices, ends, job, lasts_ms) for prices, ends in map(self._keys, groups))
        if self._flushing is None:
            self._flushing = asyncio.get_running_loop().call_later(_TOGETHER_S, self._flush)

    def _flush(self) -> None:
        ended, self._ended, self._flushing = self._ended, [], None
        if not self._outage.is_on:
            keys = [key for prices, ends, _, _ in ended for key in (prices, ends)]
            unawaited(self._until(keys, [value for _, _, *values in ended for value in values]), self._outage)

    def _keys(self, group: str) -> tuple[str, str]:
        name = self._encryption.keyed_name(b"out", self._run_id, group.encode()).hex()
        return _PRICES + name, _ENDS + name

    def _job(self, job_id: bytes) -> bytes:
        return self._encryption.keyed_name(b"out job", job_id)


class SharedExposure:
    """Checks right before a payment that its price fits into what may be out with its peer, over all workers together.

    ``allowance`` returns what may be out with a peer, and with all unproven peers where it is one of them; None is no limit.
    While Redis is unreachable each worker's own check stands alone.
    """

    def __init__(
        self, redis: RedisExposure, allowance: Callable[[str], tuple[int | None, int | None]], lasts_s: float
    ) -> None:
        """``lasts_s`` is longer than a purchase takes from its reservation to its end."""
        self._redis = redis
        self._allowance = allowance
        self._lasts_s = lasts_s

    async def reserve(self, quote: Quote) -> None:
        """Count a price as out, until ``ended``.

        Raises:
            PeerNotTrusted: it does not fit with what other workers are paying right now.
        """
        peer_msat, strangers_msat = self._allowance(quote.peer_id)
        groups, most_msat = [quote.peer_id], [-1 if peer_msat is None else peer_msat]
        if strangers_msat is not None:
            groups.append(_STRANGERS)
            most_msat.append(strangers_msat)
        if peer_msat is None and strangers_msat is None:
            return
        try:
            await self._redis.reserve(groups, most_msat, quote.job_id, quote.price_msat, self._lasts_s)
        except ExposureFull as full:
            whom = "the peer is" if not full.place else "all peers that have not proven themselves are"
            raise PeerNotTrusted(
                f"{whom} trusted with {most_msat[full.place]} msat now; {full.out_msat} msat are out, and the quote asks "
                f"{quote.price_msat} msat; nothing was paid",
                quote=quote,
            ) from None
        except RedisUnavailable:
            return

    async def load(self, jobs: Iterable[tuple[str, bytes, int]]) -> None:
        """Count what is out already, by peer, job and price: unknown payments of the journal."""
        with suppress(RedisUnavailable):
            for peer_id, job_id, price_msat in jobs:
                await self._redis.reserve([peer_id], [-1], job_id, price_msat, _UNKNOWN_S)

    def apply(self, what: str, peer_id: str, job_id: str, state: str) -> None:
        """Count a job no longer once it is released or resolved, or for long where its payment is unknown.

        ``job_id`` is in hex, ``state`` a value of ``State``; ``what`` else changes nothing.
        """
        if what not in _ENDINGS:
            return
        groups, job = [peer_id, _STRANGERS], bytes.fromhex(job_id)
        if state in _UNKNOWN:
            self._redis.keep(groups, job, _UNKNOWN_S)
        else:
            self._redis.release(groups, job)
