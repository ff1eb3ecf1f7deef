"""Claims in a Redis: who buys what now, and what came of it; told from one another by names that say nothing."""

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from lcp_gateway.accounts.shared.outage import REDIS_KEY_PREFIX, Outage, ShieldedCalls, connect

_ID_BYTES: Final = 16
_CLAIMS: Final = f"{REDIS_KEY_PREFIX}:claim:".encode()
_ANSWERS: Final = f"{REDIS_KEY_PREFIX}:answer:".encode()
_NAMES: Final = f"{REDIS_KEY_PREFIX}:repeat:".encode()

# A name holds the id of a claim. A claim is a hash: its state is running, ended or taken (by another, after it ran out).
# Times are those of Redis's own clock.
_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""
# KEYS: the names to look at, then all names. ARGV: how many to look at, the claim's id, its lease, how long it is kept,
# its fingerprint, its seal, the id of a claim that has run out and may be taken over, the prefix of claims, and how long
# each name is kept.
_CLAIM = f"""{_NOW}
local looks, id, dead, prefix = tonumber(ARGV[1]), ARGV[2], ARGV[7], ARGV[8]
for i = 1, looks do
  local other = redis.call('GET', KEYS[i])
  if other then
    local found = redis.call('HMGET', prefix .. other, 'state', 'until', 'mark', 'claim', 'facts')
    local left = tonumber(found[2] or now) - now
    local is_over = other == dead and found[1] == 'running' and left <= 0
    if found[1] and found[1] ~= 'taken' and not is_over then
      return {{other, found[1], left, found[3], found[4] or '', found[5] or ''}}
    end
  end
end
if dead ~= '' and redis.call('EXISTS', prefix .. dead) == 1 then
  redis.call('HSET', prefix .. dead, 'state', 'taken')
end
redis.call('HSET', prefix .. id, 'state', 'running', 'until', now + ARGV[3], 'mark', ARGV[5], 'claim', ARGV[6])
redis.call('PEXPIRE', prefix .. id, ARGV[4])
for i = looks + 1, #KEYS do redis.call('SET', KEYS[i], id, 'PX', ARGV[8 + i - looks]) end
return {{}}
"""
# KEYS: the claim, then its names. ARGV: its id, its lease, how long it is kept, its fingerprint, its seal, and how long
# each name is kept. A claim that Redis has forgotten is made again, unless somebody else has one of its names.
_RENEW = f"""{_NOW}
local id = ARGV[1]
local state = redis.call('HGET', KEYS[1], 'state')
if state and state ~= 'running' then return 0 end
if not state then
  for i = 2, #KEYS do
    local other = redis.call('GET', KEYS[i])
    if other and other ~= id then return 0 end
  end
  redis.call('HSET', KEYS[1], 'state', 'running', 'mark', ARGV[4], 'claim', ARGV[5])
end
redis.call('HSET', KEYS[1], 'until', now + ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
for i = 2, #KEYS do
  local other = redis.call('GET', KEYS[i])
  if not other or other == id then redis.call('SET', KEYS[i], id, 'PX', ARGV[4 + i]) end
end
return 1
"""
# KEYS: the claim, its answer, then its names. ARGV: its id, its fingerprint, how long it is kept, its facts, how long the
# answer's bytes are (0: not at all), these, and how long each name is kept.
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
  if redis.call('GET', KEYS[i]) == ARGV[1] then redis.call('DEL', KEYS[i]) end
end
redis.call('DEL', KEYS[1])
"""


@dataclass(frozen=True, slots=True)
class ClaimNames:
    """The names of an order: those that are looked at before it is bought, and all with the time that each is kept.

    ``mark`` tells the order from another of the same name.
    """

    mark: bytes
    looked_at: Sequence[bytes]
    all: Sequence[bytes]
    keep_ms: Sequence[int]

    @property
    def most_ms(self) -> int:
        """How long what they lead to is kept."""
        return max(self.keep_ms)


@dataclass(frozen=True, slots=True)
class FoundClaim:
    """What is there under one of the names: a claim that runs, for another ``left_ms``, or that has ended."""

    claim_id: bytes
    state: bytes
    left_ms: int
    mark: bytes
    about: bytes
    facts: bytes

    @property
    def has_ended(self) -> bool:
        """Tell whether something came of it."""
        return self.state == b"ended"

    @property
    def ran_out(self) -> bool:
        """Tell whether its gateway has not renewed it: it is gone, or cannot be heard of."""
        return not self.has_ended and self.left_ms <= 0


class ClaimsUnavailable(Exception):
    """Redis is away."""


@dataclass(slots=True, eq=False)
class OwnClaim:
    """A claim as its own gateway sees it. ``about`` is what others shall know of it, sealed; ``in_order`` keeps calls apart."""

    names: ClaimNames
    id: bytes = field(default_factory=lambda: secrets.token_hex(_ID_BYTES).encode())
    about: bytes = b""
    renewed_at: float = -float("inf")
    is_lost: bool = False
    in_order: asyncio.Lock = field(default_factory=asyncio.Lock)


class RedisClaims:
    """The claims that all gateways on one Redis see. While it is away, as ``outage`` remembers, nothing is tried.

    Raises:
        RedisNotInstalled: the extra is not there.
        ValueError: the URL is none of Redis.
    """

    def __init__(self, url: str, outage: Outage, lease_s: float) -> None:
        self._pool: Any = connect(url)
        from redis.asyncio import Redis  # noqa: PLC0415 - an optional extra, and connect() has it
        from redis.exceptions import RedisError  # noqa: PLC0415 - as above

        self.lease_s = lease_s
        self._lease_ms = int(lease_s * 1_000)
        self._away = (RedisError, OSError)
        self._outage = outage
        self._redis = Redis(connection_pool=self._pool)
        self._take: Any = self._redis.register_script(_CLAIM)
        self._renew: Any = self._redis.register_script(_RENEW)
        self._end: Any = self._redis.register_script(_END)
        self._release: Any = self._redis.register_script(_RELEASE)
        self._calls = ShieldedCalls()

    async def take(self, stand: OwnClaim, dead: bytes) -> FoundClaim | None:
        """Make a claim, unless there is one already, which is given; ``dead`` is one that ran out and does not count.

        Raises:
            ClaimsAway: neither; whether it was made is not known.
        """
        names = stand.names
        asked_at = time.monotonic()
        asking = self._ask(
            stand.in_order,
            self._take,
            [*_keys(names.looked_at), *_keys(names.all)],
            [
                *(len(names.looked_at), stand.id, self._lease_ms, names.most_ms, names.mark),
                *(stand.about, dead, _CLAIMS, *names.keep_ms),
            ],
        )
        try:
            found = await asyncio.shield(asking)
        except asyncio.CancelledError:
            # It will have been made, and nobody would end it.
            self._calls.start(self.release(stand))
            raise
        if found:
            return FoundClaim(*found)
        stand.renewed_at = asked_at
        return None

    async def renew(self, stand: OwnClaim) -> None:
        """Let a claim stand for another whole lease, unless somebody took it over. Where Redis is away, it is let be."""
        names = stand.names
        asked_at = time.monotonic()
        try:
            stands = await asyncio.shield(
                self._ask(
                    stand.in_order,
                    self._renew,
                    [_CLAIMS + stand.id, *_keys(names.all)],
                    [
                        *(stand.id, self._lease_ms, names.most_ms, names.mark, stand.about),
                        *names.keep_ms,
                    ],
                )
            )
        except ClaimsUnavailable:
            return
        if stands:
            stand.renewed_at = asked_at
        else:
            stand.is_lost = True

    async def end(self, stand: OwnClaim, facts: bytes, body: bytes, keep_body_s: float) -> None:
        """Keep what came of it; with no ``body`` only the facts.

        Raises:
            ClaimsAway: it is not kept.
        """
        names = stand.names
        keep_ms = int(keep_body_s * 1_000) if body else 0
        await asyncio.shield(
            self._ask(
                stand.in_order,
                self._end,
                [_CLAIMS + stand.id, _ANSWERS + stand.id, *_keys(names.all)],
                [stand.id, names.mark, names.most_ms, facts, keep_ms, body, *names.keep_ms],
            )
        )

    async def release(self, stand: OwnClaim) -> None:
        """Let anybody claim it. Where Redis is away, it runs out."""
        try:
            await asyncio.shield(
                self._ask(
                    stand.in_order,
                    self._release,
                    [_CLAIMS + stand.id, *_keys(stand.names.all)],
                    [stand.id],
                )
            )
        except ClaimsUnavailable:
            return

    async def body(self, claim_id: bytes) -> bytes | None:
        """Give the bytes that were kept, as long as they are.

        Raises:
            ClaimsAway: they cannot be had now.
        """
        body: bytes | None = await asyncio.shield(
            self._ask(
                asyncio.Lock(), lambda _keys, _values: self._redis.get(_ANSWERS + claim_id), [], []
            )
        )
        return body

    async def aclose(self) -> None:
        """Close the connections."""
        await self._calls.close()
        await self._pool.disconnect()

    def _ask(
        self,
        in_order: asyncio.Lock,
        script: Callable[..., Any],
        keys: Sequence[bytes],
        values: Sequence[object],
    ) -> asyncio.Task[Any]:
        """Ask in a task of its own, to be shielded: the client of Redis takes a cancellation for a lost connection.

        What was asked of a claim and left goes on, so that the next thing waits for it.
        """

        async def ask() -> Any:
            if self._outage.is_on:
                raise ClaimsUnavailable
            try:
                async with in_order:
                    return await script(keys, values)
            except self._away as error:
                self._outage.begin(error)
                raise ClaimsUnavailable from error

        return self._calls.start(ask())


def _keys(names: Sequence[bytes]) -> Sequence[bytes]:
    return [_NAMES + name.hex().encode() for name in names]
