"""A job of a key and its request counted in one call of Redis: both, or neither."""

import secrets
from typing import Final

from lcp_gateway.accounts.callers import Caller
from lcp_gateway.accounts.limits.concurrency import (
    ConcurrencyLimits,
    Lease,
    RedisLeases,
    TooManyConcurrentJobs,
    lease_key,
)
from lcp_gateway.accounts.limits.rates import COUNT_WINDOWS, Allowance, RateLimits, windows_of
from lcp_gateway.accounts.shared.calls import RedisCalls
from lcp_gateway.accounts.shared.outage import Outage

_ID_BYTES: Final = 12
_MS_PER_S: Final = 1_000

# KEYS: the key's jobs, then the windows. ARGV: the lease's id, the most jobs, the lease; then as for the windows alone. Returns
# nothing where as many jobs run as may.
_TAKE = f"""{COUNT_WINDOWS}
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now_ms)
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then return {{}} end
local counted = count(2, 4)
if counted[1] == 1 then
  redis.call('ZADD', KEYS[1], now_ms + tonumber(ARGV[3]), ARGV[1])
  redis.call('PEXPIRE', KEYS[1], tonumber(ARGV[3]))
end
return counted
"""


class JointLimits:
    """Takes a key's lease and counts its request against the rates, where both are limited: one round trip in place of two."""

    def __init__(
        self, calls: RedisCalls, leases: RedisLeases, jobs: ConcurrencyLimits, rates: RateLimits, outage: Outage
    ) -> None:
        """``leases`` are those that ``jobs`` counts with."""
        self._errors = calls.errors
        self._take = calls.script(_TAKE)
        self._leases = leases
        self._jobs = jobs
        self._rates = rates
        self._outage = outage

    def apply_to(self, caller: Caller | None) -> bool:
        """Return whether a caller's jobs and its rates are limited, both."""
        return bool(self._jobs.limit_of(caller)) and self._rates.apply_to(caller)

    async def take(self, caller: Caller, tokens: int) -> tuple[Lease, Allowance]:
        """Let a job run, and count its request of about so many tokens; of a caller to whom this applies.

        Raises:
            TooManyConcurrentJobs: as many as may run do.
            RateLimited: a limit is reached. In both cases nothing is counted.
            LimitsUnavailable: Redis is unreachable, and no job may run uncounted.
        """
        if self._outage.is_on:
            return await self._take_each(caller, tokens)
        most, limits = self._jobs.limit_of(caller), self._rates.limits_of(caller, tokens)
        lease_id = secrets.token_hex(_ID_BYTES)
        keys, values = windows_of(limits)
        allowance = Allowance()
        try:
            counted = await self._take(
                [lease_key(caller.key_id), *keys], [lease_id, most, round(self._leases.lease_s * _MS_PER_S), *values]
            )
        except self._errors as error:
            self._outage.begin(error)
            self._outage.admit_or_refuse()
            # It may have been counted, and only the answer was lost: the lease is renewed and released.
        else:
            if not counted:
                raise TooManyConcurrentJobs(most)
            allowance = self._rates.allowance(limits, tokens, counted)
        return self._jobs.lease(caller, lease_id), allowance

    async def _take_each(self, caller: Caller, tokens: int) -> tuple[Lease, Allowance]:
        lease = await self._jobs.take(caller)
        try:
            return lease, await self._rates.check(caller, tokens)
        except BaseException:
            # The outage can end between the two calls: then the lease was counted, and would be renewed for ever.
            await lease.release()
            raise
