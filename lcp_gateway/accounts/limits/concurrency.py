"""How many jobs of one key may run at once."""

import asyncio
import contextlib
import secrets
from collections import Counter
from types import TracebackType
from typing import Final, Protocol, Self

from lcp_gateway.accounts.callers import Caller
from lcp_gateway.accounts.shared.calls import NOW, RedisCalls
from lcp_gateway.accounts.shared.outage import REDIS_KEY_PREFIX, Outage
from lcp_gateway.purchase.errors import Refused
from lcp_gateway.purchase.ports import StartTask, start_unsupervised

_LEASE_S: Final = 60.0
# Longer than Redis's time-out, tried twice; a call that takes longer is not a renewal under way.
_RENEWAL_S: Final = 2.0
_MS_PER_S = 1_000
_ID_BYTES = 12

# A key's jobs are a sorted set of their ids by the time, on Redis's own clock, at which each lease runs out.
_TAKE = f"""{NOW}
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[3]), ARGV[1])
redis.call('PEXPIRE', KEYS[1], tonumber(ARGV[3]))
return 1
"""
_RENEW = f"""{NOW}
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), ARGV[1])
redis.call('PEXPIRE', KEYS[1], tonumber(ARGV[2]))
"""


class TooManyConcurrentJobs(Refused):
    """The key has as many jobs running as it may."""

    code = "rate_limit_exceeded"
    may_pass_later = True

    def __init__(self, limit: int) -> None:
        super().__init__(f"this key may run {limit} jobs at once; nothing was paid")


class Leases(Protocol):
    """Where running jobs are counted. A lease that is not renewed for ``lease_s`` runs out; None is never.

    ``errors`` are those of a counter that cannot be reached.
    """

    errors: tuple[type[Exception], ...]

    @property
    def lease_s(self) -> float | None:
        """How long a lease runs that is not renewed, in seconds."""
        ...

    async def take(self, key_id: str, lease_id: str, limit: int) -> bool:
        """Take a lease if the key has fewer than the limit; return whether it was taken."""
        ...

    async def renew(self, key_id: str, lease_id: str) -> None:
        """Let a lease run for another whole time."""
        ...

    async def release(self, key_id: str, lease_id: str) -> None:
        """End a lease that was taken; one that has run out is no error."""
        ...


class MemoryLeases:
    """Counts the jobs of this process; they end with it."""

    lease_s: float | None = None
    errors: tuple[type[Exception], ...] = ()

    def __init__(self) -> None:
        self._running: Counter[str] = Counter()

    async def take(self, key_id: str, lease_id: str, limit: int) -> bool:  # noqa: ARG002 - a count needs no ids
        """Take a lease if the key has fewer than the limit."""
        if self._running[key_id] >= limit:
            return False
        self._running[key_id] += 1
        return True

    async def renew(self, key_id: str, lease_id: str) -> None:
        """Do nothing: no lease runs out here."""

    async def release(self, key_id: str, lease_id: str) -> None:  # noqa: ARG002 - a count needs no ids
        """End a lease that was taken."""
        self._running[key_id] -= 1
        if not self._running[key_id]:
            del self._running[key_id]


class RedisLeases:
    """Counts the jobs of all gateways; those of a gateway that died run out by themselves."""

    def __init__(self, calls: RedisCalls, *, lease_s: float = _LEASE_S) -> None:
        self.lease_s: float = lease_s
        self.errors = calls.errors
        self._lease_ms = int(lease_s * _MS_PER_S)
        self._calls = calls
        self._take = calls.script(_TAKE)
        self._renew = calls.script(_RENEW)

    async def take(self, key_id: str, lease_id: str, limit: int) -> bool:
        """Take a lease if the key has fewer than the limit, on all gateways together."""
        return bool(await self._take([lease_key(key_id)], [lease_id, limit, self._lease_ms]))

    async def renew(self, key_id: str, lease_id: str) -> None:
        """Let a lease run for another whole time."""
        await self._renew([lease_key(key_id)], [lease_id, self._lease_ms])

    async def release(self, key_id: str, lease_id: str) -> None:
        """End a lease; one that has run out is no error."""
        await self._calls.command("ZREM", lease_key(key_id), lease_id)


class Lease:
    """A job that may run; it is counted until it is released, once, at the end of the ``async with``."""

    def __init__(
        self, leases: Leases | None, key_id: str, lease_id: str, start_task: StartTask = start_unsupervised
    ) -> None:
        self._leases = leases
        self._key_id = key_id
        self._lease_id = lease_id
        self._renewing: asyncio.Task[None] | None = None
        if leases is not None and leases.lease_s is not None:
            every_s = leases.lease_s / 3
            self._has_ended = asyncio.Event()
            self._renewing = start_task(lambda: self._renew(leases, every_s), may_return=self._has_ended.is_set)

    @property
    def is_counted(self) -> bool:
        """Whether it was counted, and not released since."""
        return self._leases is not None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.release()

    async def release(self) -> None:
        """Release the lease; a second time does nothing. While Redis is unreachable it runs out there."""
        leases, self._leases = self._leases, None
        if leases is None:
            return
        if self._renewing is not None:
            # Not cancelled: a renewal under way could swallow that and go on, or be written after the lease's end.
            self._has_ended.set()
            _, unfinished = await asyncio.wait([self._renewing], timeout=_RENEWAL_S)
            for renewing in unfinished:
                renewing.cancel()
        with contextlib.suppress(*leases.errors):
            await leases.release(self._key_id, self._lease_id)

    async def _renew(self, leases: Leases, every_s: float) -> None:
        while not await self._ends_within(every_s):
            # One that was missed is made up for by the next; two fit into a lease.
            with contextlib.suppress(*leases.errors):
                await leases.renew(self._key_id, self._lease_id)

    async def _ends_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._has_ended.wait()
        return self._has_ended.is_set()


UNCOUNTED: Final = Lease(None, "", "")
"""The lease of a job that is not counted."""


class ConcurrencyLimits:
    """Lets a key run as many jobs at once as its rules allow, or ``default`` where they set no limit; 0 is no limit.

    While a Redis that counts them is unreachable, ``outage`` decides; by default jobs run uncounted, and it is reported.
    """

    def __init__(
        self,
        leases: Leases,
        *,
        default: int = 0,
        outage: Outage | None = None,
        start_task: StartTask = start_unsupervised,
    ) -> None:
        """``start_task`` starts the task that renews a lease for as long as its job runs."""
        self._leases = leases
        self._start_task = start_task
        self._default = default
        self._outage = outage or Outage()

    def limit_of(self, caller: Caller | None) -> int:
        """Return how many jobs of a caller may run at once; 0 is no limit."""
        return 0 if caller is None else caller.rules.concurrent_jobs or self._default

    async def take(self, caller: Caller | None) -> Lease:
        """Let a job run, and count it until its lease is released.

        Raises:
            TooManyConcurrentJobs: as many as may run do.
            LimitsUnavailable: Redis is unreachable, and no job may run uncounted.
        """
        limit = self.limit_of(caller)
        if caller is None or not limit:
            return UNCOUNTED
        if self._outage.is_on:
            self._outage.admit_or_refuse()
            return UNCOUNTED
        lease_id = secrets.token_hex(_ID_BYTES)
        try:
            if not await self._leases.take(caller.key_id, lease_id, limit):
                raise TooManyConcurrentJobs(limit)
        except self._leases.errors as error:
            self._outage.begin(error)
            self._outage.admit_or_refuse()
            # It may have been counted, and only the answer was lost: it is renewed and released.
        return self.lease(caller, lease_id)

    def lease(self, caller: Caller, lease_id: str) -> Lease:
        """Return a lease that was taken, or may have been; it is renewed until it is released."""
        return Lease(self._leases, caller.key_id, lease_id, self._start_task)


def lease_key(key_id: str) -> str:
    """Return the key of a key's jobs in Redis."""
    return f"{REDIS_KEY_PREFIX}:jobs:{key_id}"
