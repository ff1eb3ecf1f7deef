"""Claims in a Redis: the orders that gateways are buying now, and their results, under names that are keyed hashes.

A claim counts its order for the loop brake, which holds for all gateways together.
"""

import asyncio
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from lcp_gateway.accounts.shared.calls import NOW, RedisCalls, RedisUnavailable, unawaited
from lcp_gateway.accounts.shared.outage import REDIS_KEY_PREFIX, Outage

_ID_BYTES: Final = 16
_CLAIMS: Final = f"{REDIS_KEY_PREFIX}:claim:".encode()
_BODIES: Final = f"{REDIS_KEY_PREFIX}:answer:".encode()
_NAMES: Final = f"{REDIS_KEY_PREFIX}:repeat:".encode()
_ORDERS: Final = f"{REDIS_KEY_PREFIX}:orders:".encode()
_MS_PER_S: Final = 1_000

# A name holds the id of a claim; with ":missed" after it, that of the last repeat that looked for it, found nothing and buys: a
# like order that comes later takes the name, and not this. A claim is a hash: its state is running, ended or taken (by another
# gateway, after it ran out). Times are those of Redis's own clock.
# KEYS: the names to look up, then all names, and the times of the orders of one body where these are counted. ARGV: how many
# to look up, the claim's id, its lease, how long it is kept, the order's fingerprint, its encrypted description, the id of a
# claim that has run out and may be taken over, the prefix of claims, the most orders of one body (0: not counted) within a
# window and how long that is, and how long each name is kept. Returns nothing where the claim is made, the claim that one of
# the names leads to, or the time until another order of this body fits.
_CLAIM = f"""{NOW}
local looks, id, dead, prefix = tonumber(ARGV[1]), ARGV[2], ARGV[7], ARGV[8]
for i = 1, looks do
  local other = redis.call('GET', KEYS[i])
  if other then
    local found = redis.call('HMGET', prefix .. other, 'state', 'until', 'mark', 'claim', 'facts')
    local left = tonumber(found[2] or now) - now
    local is_over = other == dead and found[1] == 'running' and left <= 0
    if other ~= id and found[1] and found[1] ~= 'taken' and not is_over then
      return {{other, found[1], left, found[3], found[4] or '', found[5] or ''}}
    end
  end
end
local most, window, orders = tonumber(ARGV[9]), tonumber(ARGV[10]), KEYS[#KEYS]
if most > 0 then
  while redis.call('LLEN', orders) >= most do
    local wait = redis.call('LINDEX', orders, 0) + window - now
    if wait > 0 then return {{wait}} end
    redis.call('LPOP', orders)
  end
  redis.call('RPUSH', orders, now)
  redis.call('PEXPIRE', orders, window)
end
if dead ~= '' and redis.call('EXISTS', prefix .. dead) == 1 then
  redis.call('HSET', prefix .. dead, 'state', 'taken')
end
redis.call('HSET', prefix .. id, 'state', 'running', 'until', now + ARGV[3], 'mark', ARGV[5], 'claim', ARGV[6])
redis.call('PEXPIRE', prefix .. id, ARGV[4])
for i = 1, looks do redis.call('SET', KEYS[i] .. ':missed', id, 'PX', ARGV[4]) end
for i = 11, #ARGV do redis.call('SET', KEYS[looks + i - 10], id, 'PX', ARGV[i]) end
return {{}}
"""
# KEYS: the claim, the names that it looks up, then all its names. ARGV: its id, its lease, how long it is kept, the order's
# fingerprint, its encrypted description, how many names it looks up, and how long each name is kept. A claim that Redis does not
# have is made, unless it would have found another, or a repeat would have found it.
_RENEW = f"""{NOW}
local id, looks = ARGV[1], tonumber(ARGV[6])
local state = redis.call('HGET', KEYS[1], 'state')
if state and state ~= 'running' then return 0 end
if not state then
  for i = 2, #KEYS do
    local other = redis.call('GET', i < 2 + looks and KEYS[i] or KEYS[i] .. ':missed')
    if other and other ~= id then return 0 end
  end
  redis.call('HSET', KEYS[1], 'state', 'running', 'mark', ARGV[4], 'claim', ARGV[5])
  for i = 2, 1 + looks do redis.call('SET', KEYS[i] .. ':missed', id, 'PX', ARGV[3]) end
end
redis.call('HSET', KEYS[1], 'until', now + ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
for i = 2 + looks, #KEYS do
  local other = redis.call('GET', KEYS[i])
  if not other or other == id then redis.call('SET', KEYS[i], id, 'PX', ARGV[5 + i - looks]) end
end
return 1
"""
# KEYS: the claim, its result, then its names. ARGV: its id, the order's fingerprint, how long it is kept, its facts, how long
# the result's bytes are (0: not at all), these, and how long each name is kept.
_END = """
local id = ARGV[1]
if redis.call('HGET', KEYS[1], 'state') == 'taken' then return 0 end
redis.call('HSET', KEYS[1], 'state', 'ended', 'mark', ARGV[2], 'facts', ARGV[4])
redis.call('HDEL', KEYS[1], 'until', 'claim')
redis.call('PEXPIRE', KEYS[1], ARGV[3])
if tonumber(ARGV[5]) > 0 then redis.call('SET', KEYS[2], ARGV[6], 'PX', ARGV[5]) end
for i = 3, #KEYS do
  local other = redis.call('GET', KEYS[i])
  if not other or other == id then redis.call('SET', KEYS[i], id, 'PX', ARGV[4 + i]) end
end
return 1
"""
# KEYS: the claim, then its names. ARGV: its id.
_RELEASE = """
for i = 2, #KEYS do
  for _, key in ipairs({KEYS[i], KEYS[i] .. ':missed'}) do
    if redis.call('GET', key) == ARGV[1] then redis.call('DEL', key) end
  end
end
redis.call('DEL', KEYS[1])
"""


@dataclass(frozen=True, slots=True)
class ClaimNames:
    """The names of an order: those that are looked up before it is bought, and all with the time that each is kept.

    ``fingerprint`` tells the order from another of the same name.
    """

    fingerprint: bytes
    looked_up: Sequence[bytes]
    all: Sequence[bytes]
    keep_ms: Sequence[int]

    @property
    def claim_ms(self) -> int:
        """How long the claim itself is kept."""
        return max(self.keep_ms)


@dataclass(frozen=True, slots=True)
class FoundClaim:
    """The claim that one of the names leads to: it runs, for another ``left_ms``, or has ended."""

    claim_id: bytes
    state: bytes
    left_ms: int
    fingerprint: bytes
    description: bytes
    facts: bytes

    @property
    def has_ended(self) -> bool:
        """Whether there is a result."""
        return self.state == b"ended"

    @property
    def ran_out(self) -> bool:
        """Whether its gateway has not renewed it: that one is down, or cut off from Redis."""
        return not self.has_ended and self.left_ms <= 0


class TooManyOrders(Exception):
    """Another order of this body fits in ``wait_s``; no claim was made."""

    def __init__(self, wait_s: float) -> None:
        super().__init__()
        self.wait_s = wait_s


@dataclass(frozen=True, slots=True)
class OrderCount:
    """How many orders of one body may come within a window; ``name`` is that body's."""

    name: bytes
    most: int
    window_s: float


@dataclass(slots=True, eq=False)
class OwnClaim:
    """A claim of this gateway. ``description`` is encrypted; ``made`` is the reply of Redis to a claim that was not waited for."""

    names: ClaimNames
    id: bytes = field(default_factory=lambda: secrets.token_hex(_ID_BYTES).encode())
    description: bytes = b""
    renewed_at: float = -float("inf")
    is_lost: bool = False
    made: asyncio.Future[Any] | None = None


class RedisClaims:
    """The claims that all gateways on one Redis see. While it is unreachable, as ``outage`` remembers, it is not called.

    The calls for one claim reach Redis in the order in which they were made.
    """

    def __init__(self, calls: RedisCalls, outage: Outage, lease_s: float) -> None:
        self.lease_s = lease_s
        self._lease_ms = int(lease_s * _MS_PER_S)
        self._calls = calls
        self._outage = outage
        self._take = calls.script(_CLAIM)
        self._renew = calls.script(_RENEW)
        self._end = calls.script(_END)
        self._release = calls.script(_RELEASE)

    def make(self, claim: OwnClaim) -> None:
        """Make a claim none of whose names is looked up, without waiting; ``until_made`` waits."""
        if self._outage.is_on:
            return
        called_at = time.monotonic()

        def made(reply: asyncio.Future[Any]) -> None:
            if not reply.cancelled() and reply.exception() is None:
                claim.renewed_at = called_at

        claim.made = self._take(*self._to_take(claim, b"", None))
        claim.made.add_done_callback(made)
        unawaited(claim.made, self._outage)

    async def until_made(self, claim: OwnClaim) -> None:
        """Wait until Redis has made a claim, or cannot be reached."""
        if claim.made is not None and not claim.made.done():
            await asyncio.wait([claim.made])

    async def take(self, claim: OwnClaim, expired_id: bytes, count: OrderCount | None = None) -> FoundClaim | None:
        """Make a claim, or return the one that exists already; that of ``expired_id`` ran out, and is taken over.

        Raises:
            TooManyOrders: it was not made, since there were as many orders as ``count`` allows.
            RedisUnavailable: whether the claim was made is not known.
        """
        called_at = time.monotonic()
        try:
            found = await self._calls.reply(self._outage, self._take, *self._to_take(claim, expired_id, count))
        except asyncio.CancelledError:
            # The claim is made nevertheless, and no purchase would end it.
            self.release(claim)
            raise
        if len(found) == 1:
            raise TooManyOrders(found[0] / _MS_PER_S)
        if found:
            return FoundClaim(*found)
        claim.renewed_at = called_at
        return None

    async def renew(self, claim: OwnClaim) -> None:
        """Let a claim run for another whole lease, unless another gateway took it over; no error while Redis is down."""
        names = claim.names
        called_at = time.monotonic()
        keys = [_CLAIMS + claim.id, *_keys(names.looked_up), *_keys(names.all)]
        values = [
            *(claim.id, self._lease_ms, names.claim_ms, names.fingerprint, claim.description),
            *(len(names.looked_up), *names.keep_ms),
        ]
        try:
            is_held = await self._calls.reply(self._outage, self._renew, keys, values)
        except RedisUnavailable:
            return
        if is_held:
            claim.renewed_at = called_at
        else:
            claim.is_lost = True

    def end(self, claim: OwnClaim, facts: bytes, body: bytes, keep_body_s: float) -> None:
        """Store a result without waiting; without ``body`` the facts alone. While Redis is unreachable nothing is stored."""
        names = claim.names
        keep_ms = int(keep_body_s * _MS_PER_S) if body else 0
        if not self._outage.is_on:
            keys = [_CLAIMS + claim.id, _BODIES + claim.id, *_keys(names.all)]
            values = [claim.id, names.fingerprint, names.claim_ms, facts, keep_ms, body, *names.keep_ms]
            unawaited(self._end(keys, values), self._outage)

    def release(self, claim: OwnClaim) -> None:
        """Let another gateway buy, without waiting. While Redis is unreachable, the claim runs out there."""
        if not self._outage.is_on:
            unawaited(self._release([_CLAIMS + claim.id, *_keys(claim.names.all)], [claim.id]), self._outage)

    async def body(self, claim_id: bytes) -> bytes | None:
        """Return the bytes of a result, or None when they are no longer kept.

        Raises:
            RedisUnavailable: they cannot be read now.
        """
        command = partial(self._calls.command, alone=True)
        body: bytes | None = await self._calls.reply(self._outage, command, "GET", _BODIES + claim_id)
        return body

    def _to_take(
        self, claim: OwnClaim, expired_id: bytes, count: OrderCount | None
    ) -> tuple[Sequence[bytes], Sequence[object]]:
        names = claim.names
        keys = [*_keys(names.looked_up), *_keys(names.all)]
        most = window_ms = 0
        if count is not None:
            keys.append(_ORDERS + count.name.hex().encode())
            most, window_ms = count.most, round(count.window_s * _MS_PER_S)
        return keys, [
            *(len(names.looked_up), claim.id, self._lease_ms, names.claim_ms),
            *(names.fingerprint, claim.description, expired_id, _CLAIMS, most, window_ms, *names.keep_ms),
        ]


def _keys(names: Sequence[bytes]) -> Sequence[bytes]:
    return [_NAMES + name.hex().encode() for name in names]
