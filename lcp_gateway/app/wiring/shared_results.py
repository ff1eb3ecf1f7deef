"""What several gateways or workers share in Redis: results of repeated requests, held quotes, stored objects, messages."""

from datetime import datetime
from typing import TYPE_CHECKING

from structlog.typing import FilteringBoundLogger

from lcp_gateway.accounts.shared.outage import Outage
from lcp_gateway.app.wiring import WiringError
from lcp_gateway.app.wiring.journal import JournalParts
from lcp_gateway.config import Settings
from lcp_gateway.purchase.idempotency import CacheLimits
from lcp_gateway.purchase.journal import JournalUnavailable
from lcp_gateway.purchase.ports import StartTask
from lcp_gateway.purchase.shared_purchases import SharedPurchases
from lcp_gateway.purchase.states import State
from lcp_gateway.responses.store import StoreLimits
from lcp_gateway.store.database.engines import DatabaseUnavailable
from lcp_gateway.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from lcp_gateway.accounts.shared.calls import RedisCalls
    from lcp_gateway.accounts.shared.claims import RedisClaims
    from lcp_gateway.accounts.shared.events import RedisEvents
    from lcp_gateway.accounts.shared.orders import RedisOrders
    from lcp_gateway.app.wiring.shared_items import SharedItems
    from lcp_gateway.encryption import Encryption

_JOBS = "jobs"


def memory_limits(settings: Settings) -> CacheLimits:
    """Return the limits of kept answers."""
    return CacheLimits(
        bytes_in_all=settings.answers_max_bytes,
        bytes_for_s=settings.answers_keep_s,
        repeats_for_s=settings.retry_window_s,
    )


class SharedResults:
    """The results of repeated requests that several gateways share in Redis; a single gateway shares none."""

    def __init__(
        self,
        redis: "RedisCalls | None",
        run_secret: str,
        journal: JournalParts,
        metrics: Metrics,
        start_task: StartTask,
        log: FilteringBoundLogger,
    ) -> None:
        """``start_task`` starts the task that renews a claim. ``run_secret`` is one that the workers of this run share, if any."""
        self._run_secret = run_secret
        self._start_task = start_task
        self._redis = redis
        self._journal = journal
        self._metrics = metrics
        self._log = log
        self._claims: RedisClaims | None = None
        self._orders: RedisOrders | None = None
        self._encryption: Encryption | None = None

    def results(self, settings: Settings) -> SharedPurchases | None:
        """Return the shared results; None without a Redis, or without a secret to encrypt them with.

        Raises:
            WiringError: Redis cannot be used as the settings say.
        """
        redis = self._redis
        if redis is None:
            return None
        # Imported where they are used: few gateways share results.
        from lcp_gateway.accounts.shared.claims import RedisClaims  # noqa: PLC0415 - see above
        from lcp_gateway.accounts.shared.orders import RedisOrders  # noqa: PLC0415 - see above
        from lcp_gateway.accounts.shared.results import LEASE_S, RedisResults  # noqa: PLC0415 - see above
        from lcp_gateway.encryption import MIN_SECRET_BYTES, Encryption, EncryptionNotInstalled  # noqa: PLC0415 - as above

        secrets = (settings.l402_secret.encode(), settings.admin_key.encode(), self._run_secret.encode())
        secret = next((one for one in secrets if len(one) >= MIN_SECRET_BYTES), None)
        if secret is None:
            self._log.warning(
                "repeated requests, quotes and stored responses are known only to the gateway that got them",
                problem="to share them, give all gateways the same l402_secret or admin_key, "
                f"of {MIN_SECRET_BYTES} characters at least",
            )
            return None
        try:
            self._encryption = encryption = Encryption(secret)
        except (EncryptionNotInstalled, ValueError) as error:
            raise WiringError(f"Redis cannot be used: {error}") from error
        self._claims = self._claims or RedisClaims(redis, self._outage(), LEASE_S)
        self._orders = self._orders or RedisOrders(redis, self._outage())
        return RedisResults(
            self._claims,
            self._orders,
            encryption,
            state_of=RequestStates(self._journal),
            limits=memory_limits(settings),
            wait_s=settings.timeout_quote_s + settings.timeout_execute_s,
            on_joined=self._metrics.joined,
            start_task=self._start_task,
        )

    def items(self, limits: StoreLimits) -> "SharedItems | None":
        """Return the store of all gateways; None where they share none. After ``results``.

        Raises:
            WiringError: Redis cannot be used as the settings say.
        """
        if self._redis is None or self._encryption is None:
            return None
        from lcp_gateway.accounts.shared.objects import RedisObjects  # noqa: PLC0415 - as in ``results``
        from lcp_gateway.app.wiring.shared_items import SharedItems  # noqa: PLC0415 - as above

        return SharedItems(RedisObjects(self._redis, self._outage()), self._current_encryption, limits, self._metrics)

    def job_events(self) -> "RedisEvents | None":
        """Return the channel about background jobs; None where the gateways share nothing. After ``results``."""
        if self._redis is None or self._encryption is None:
            return None
        from lcp_gateway.accounts.shared.events import RedisEvents  # noqa: PLC0415 - as in ``results``

        return RedisEvents(self._redis, _JOBS, self._encryption, self._outage())

    def _current_encryption(self) -> "Encryption":
        assert self._encryption is not None  # noqa: S101 - set before there is a store
        return self._encryption

    def _outage(self) -> Outage:
        log = self._log
        return Outage(report=lambda error: log.warning("Redis is away", problem=error))


class RequestStates:
    """Looks up in the journal the purchase of another gateway's request."""

    def __init__(self, journal: JournalParts) -> None:
        self._journal = journal

    async def __call__(self, key_id: str, request_id: str, since: datetime) -> State | None:
        """Return the state of its purchase, or None where nothing was paid; unknown without a journal.

        Raises:
            JournalUnavailable: the journal cannot be read.
        """
        if self._journal.database is None:
            return State.UNKNOWN
        from lcp_gateway.store.journal.recovery import state_of_request  # noqa: PLC0415 - needed for gateways that ended only

        try:
            return await state_of_request(self._journal.database, key_id, request_id, since)
        except DatabaseUnavailable as error:
            raise JournalUnavailable(f"the journal cannot be read ({error.reason}); nothing was paid here") from error
