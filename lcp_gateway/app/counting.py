"""Where requests and jobs are counted, and the limits that the settings put on them."""

from typing import TYPE_CHECKING

from structlog.typing import FilteringBoundLogger

from lcp_gateway.accounts.jobs_per_key import JobsPerKey, Leases, MemoryLeases, RedisLeases
from lcp_gateway.accounts.rates import Rates
from lcp_gateway.accounts.replicas import Outage, RedisNotInstalled, ShieldedCalls
from lcp_gateway.app.ledgers import LedgerError
from lcp_gateway.config import Settings, auth_mode
from lcp_gateway.http.admission import Admission
from lcp_gateway.purchase.ports import StartTask
from lcp_gateway.routing.registry import Registry

if TYPE_CHECKING:
    from lcp_gateway.accounts.rate_limits import RateLimits
    from lcp_gateway.accounts.windows import MemoryWindows, RedisWindows


class Counting:
    """Counts in this process, or in a Redis for several. It lasts: a limit that is changed does not forget what runs.

    Raises:
        LedgerError: Redis cannot be used as the settings say.
    """

    def __init__(self, redis_url: str, start_task: StartTask, log: FilteringBoundLogger) -> None:
        """``start_task`` starts what renews the lease of a running job."""
        self._start_task = start_task
        self._redis_url = redis_url
        self._outage = Outage(report=lambda error: log.warning("Redis is away", problem=error))
        self._windows: MemoryWindows | RedisWindows | None = None
        self._redis_leases: RedisLeases | None = None
        if redis_url:
            try:
                self._redis_leases = RedisLeases(redis_url)
            except (RedisNotInstalled, ValueError) as error:
                raise LedgerError(f"Redis cannot be used: {error}") from error
        self._shielded = ShieldedCalls() if redis_url else None
        self._leases: Leases = self._redis_leases or MemoryLeases()

    def admission(self, settings: Settings, registry: Registry) -> Admission:
        """Give the limits of the settings."""
        return Admission(
            self._rate_limits(settings),
            JobsPerKey(
                self._leases,
                default=settings.key_concurrent_jobs,
                outage=self._outage,
                start_task=self._start_task,
            ),
            registry.resolve,
            shielded=self._shielded,
        )

    async def close(self) -> None:
        """Close the connections."""
        if self._shielded is not None:
            await self._shielded.close()
        # Imported with them: they are there only if it is.
        if self._redis_leases is not None:
            await self._redis_leases.aclose()
        if self._windows is not None and self._redis_url:
            from lcp_gateway.accounts.windows import RedisWindows  # noqa: PLC0415 - loaded already

            assert isinstance(self._windows, RedisWindows)  # noqa: S101 - made where there is a URL
            await self._windows.aclose()

    def _rate_limits(self, settings: Settings) -> "RateLimits | None":
        gateway = Rates(settings.max_requests_per_minute, settings.max_tokens_per_minute)
        account = Rates(settings.account_requests_per_minute, settings.account_tokens_per_minute)
        key = Rates(settings.key_requests_per_minute, settings.key_tokens_per_minute)
        if gateway == account == key == Rates() and auth_mode(settings) != "accounts":
            # No key can have a limit of its own, so nothing is ever counted.
            return None
        # Imported where they are used: the library takes as long to load as the rest of the gateway's accounts.
        from lcp_gateway.accounts.rate_limits import RateLimits  # noqa: PLC0415 - see above
        from lcp_gateway.accounts.windows import MemoryWindows, RedisWindows  # noqa: PLC0415 - see above

        if self._windows is None:
            self._windows = RedisWindows(self._redis_url) if self._redis_url else MemoryWindows()
        return RateLimits(
            self._windows, gateway=gateway, account=account, key=key, outage=self._outage
        )
