"""Access as the settings say: authentication, the limits of a request, the customers' accounts and their payments."""

import contextlib
import hashlib
import secrets
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from lcp_gateway.accounts.key_sync import KeySync
from lcp_gateway.accounts.keys import KeyCache
from lcp_gateway.accounts.limits.addresses import AddressLimits
from lcp_gateway.accounts.limits.concurrency import (
    ConcurrencyLimits,
    Leases,
    MemoryLeases,
    RedisLeases,
)
from lcp_gateway.accounts.limits.rates import (
    MemoryCounters,
    RateCounters,
    RateLimits,
    Rates,
    RedisCounters,
)
from lcp_gateway.accounts.models import Credit
from lcp_gateway.accounts.repositories import (
    AccountRepository,
    AdminLogRepository,
    InvoiceService,
    KeyRepository,
    LedgerRepository,
    RefundRepository,
    TopupRepository,
)
from lcp_gateway.accounts.settlements import Settlements
from lcp_gateway.accounts.shared.outage import Outage, RedisNotInstalled, ShieldedCalls
from lcp_gateway.accounts.wallet import InvoiceNotPaid, TopupRules, Wallet
from lcp_gateway.app.background_tasks import BackgroundTask, BackgroundTasks
from lcp_gateway.app.till import open_till
from lcp_gateway.app.wiring import WiringError
from lcp_gateway.app.wiring.journal import Ledgers
from lcp_gateway.app.workers import measure_accounts
from lcp_gateway.config import Settings, auth_mode, journal_place, known_hosts
from lcp_gateway.http.authentication import (
    ANONYMOUS,
    AccountAuthenticator,
    Authenticator,
    L402Authenticator,
    OpenAuthenticator,
    StaticKeyAuthenticator,
    StaticKeys,
)
from lcp_gateway.http.browser_guard import BrowserGuard
from lcp_gateway.http.cors import Cors
from lcp_gateway.http.gateway.admin import AdminRoutes
from lcp_gateway.http.gateway.api_limits import ApiLimits
from lcp_gateway.http.gateway.keys import KeyRoutes
from lcp_gateway.http.gateway.refunds import RefundRoutes
from lcp_gateway.http.gateway.wallet import WalletRoutes
from lcp_gateway.http.openai.admission import Admission
from lcp_gateway.http.openai.response import ChargeReport
from lcp_gateway.purchase.money import RefundDecision
from lcp_gateway.purchase.ports import StartTask
from lcp_gateway.routing.model_registry import ModelRegistry
from lcp_gateway.store.database.engines import Database, DatabaseUnavailable
from lcp_gateway.telemetry.metrics import Metrics

_SECRET_BYTES = 32


def l402_secret(settings: Settings) -> bytes:
    """Give the secret that tokens are made with; the first time it is made, and kept beside the journal.

    Raises:
        WiringError: there is none, and none can be made.
    """
    if settings.l402_secret:
        return hashlib.sha256(settings.l402_secret.encode()).digest()
    place = journal_place(settings)
    if not isinstance(place, Path):
        raise WiringError(
            "l402 with a database server needs l402_secret, the same for all gateways"
        )
    file = place.with_suffix(".l402")
    with contextlib.suppress(FileExistsError):
        file.touch(mode=0o600, exist_ok=False)
        file.write_bytes(secrets.token_bytes(_SECRET_BYTES))
    secret = file.read_bytes()
    if len(secret) < _SECRET_BYTES:
        # Another gateway is just writing it, or one ended in the middle of that.
        raise WiringError(f"{file} holds no secret for L402: start again, or delete it")
    return secret


class Limits:
    """Counts in this process, or in a Redis for several. It lasts: a limit that is changed does not forget what runs.

    Raises:
        WiringError: Redis cannot be used as the settings say.
    """

    def __init__(self, redis_url: str, start_task: StartTask, log: FilteringBoundLogger) -> None:
        """``start_task`` starts what renews the lease of a running job."""
        self._start_task = start_task
        self._redis_url = redis_url
        self._outage = Outage(report=lambda error: log.warning("Redis is away", problem=error))
        self._redis_leases: RedisLeases | None = None
        self._redis_counters: RedisCounters | None = None
        if redis_url:
            try:
                self._redis_leases = RedisLeases(redis_url)
                self._redis_counters = RedisCounters(redis_url)
            except (RedisNotInstalled, ValueError) as error:
                raise WiringError(f"Redis cannot be used: {error}") from error
        self._shielded = ShieldedCalls() if redis_url else None
        self._leases: Leases = self._redis_leases or MemoryLeases()
        self._rate_counters: RateCounters = self._redis_counters or MemoryCounters()

    def admission(self, settings: Settings, registry: ModelRegistry) -> Admission:
        """Give the limits of the settings."""
        return Admission(
            self._rate_limits(settings),
            ConcurrencyLimits(
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
        for redis in (self._redis_leases, self._redis_counters):
            if redis is not None:
                await redis.aclose()

    def _rate_limits(self, settings: Settings) -> RateLimits | None:
        gateway = Rates(settings.max_requests_per_minute, settings.max_tokens_per_minute)
        account = Rates(settings.account_requests_per_minute, settings.account_tokens_per_minute)
        key = Rates(settings.key_requests_per_minute, settings.key_tokens_per_minute)
        if gateway == account == key == Rates() and auth_mode(settings) != "accounts":
            # No key can have a limit of its own, so nothing is ever counted.
            return None
        return RateLimits(
            self._rate_counters, gateway=gateway, account=account, key=key, outage=self._outage
        )


@dataclass(frozen=True, slots=True)
class Customers:
    """The books, opened for as long as the gateway runs; ``till`` is None where nobody can pay in.

    ``credited`` is told of what was paid in.
    """

    accounts: AccountRepository
    keys: KeyRepository
    ledger: LedgerRepository
    topups: TopupRepository
    acts: AdminLogRepository
    refunds: RefundRepository
    refund_decided: Callable[[RefundDecision], None]
    keeper: KeySync
    till: InvoiceService | None
    credited: Callable[[Credit], None]
    tasks: tuple[BackgroundTask, ...]


@contextlib.asynccontextmanager
async def open_customers(
    settings: Settings, ledgers: Ledgers, metrics: Metrics, log: FilteringBoundLogger
) -> AsyncIterator[Customers]:
    """Open the books.

    Raises:
        WiringError: something that the settings ask for cannot be had.
    """
    # Imported where they are used: most gateways keep no accounts.
    from lcp_gateway.store.accounts.accounts import Accounts  # noqa: PLC0415 - see above
    from lcp_gateway.store.accounts.admin_log import AdminLog  # noqa: PLC0415 - see above
    from lcp_gateway.store.accounts.keys import Keys  # noqa: PLC0415 - see above
    from lcp_gateway.store.accounts.ledger import Ledger  # noqa: PLC0415 - see above
    from lcp_gateway.store.accounts.refunds import Refunds  # noqa: PLC0415 - see above
    from lcp_gateway.store.accounts.topups import Topups  # noqa: PLC0415 - see above

    database = ledgers.database
    if database is None:
        raise WiringError("accounts need a journal")
    topups, keys, ledger = Topups(database), Keys(database), Ledger(database)
    cache = KeyCache(settings.api_keys, ANONYMOUS.rules)
    keeper = KeySync(
        keys, cache, log, unavailable=(DatabaseUnavailable,), stale_s=settings.keys_stale_s
    )
    try:
        await keeper.load()
    except DatabaseUnavailable as error:
        raise WiringError(f"the keys cannot be read: {error}") from error
    metrics.watch_keys(lambda: keeper.age_s, lambda: keeper.is_stale)
    credited = credit_observer(metrics, log)
    tasks = [
        BackgroundTask("keys", keeper.run),
        BackgroundTask("solvency", lambda: measure_accounts(ledger, metrics)),
    ]
    async with contextlib.AsyncExitStack() as stack:
        till = await open_till(settings, stack)
        if till is not None:
            settlements = _settlements(till, topups, database, stack, credited, metrics, log)
            tasks += [
                BackgroundTask("settlements_lead", settlements.lead),
                BackgroundTask("settlements", settlements.follow),
                BackgroundTask("topups", settlements.look_up),
            ]
        yield Customers(
            accounts=Accounts(database),
            keys=keys,
            ledger=ledger,
            topups=topups,
            acts=AdminLog(database),
            refunds=Refunds(database),
            refund_decided=ledgers.on_refund,
            keeper=keeper,
            till=till,
            credited=credited,
            tasks=tuple(tasks),
        )


def credit_observer(metrics: Metrics, log: FilteringBoundLogger) -> Callable[[Credit], None]:
    """Give what counts and logs a top-up that was paid."""

    def credited(credit: Credit) -> None:
        metrics.topup(credit.topup.received_msat or 0)
        log.info(
            "a top-up was paid",
            topup_id=credit.topup.id,
            account_id=credit.topup.account_id,
            amount_msat=credit.topup.received_msat,
        )

    return credited


def _settlements(
    till: InvoiceService,
    topups: TopupRepository,
    database: Database,
    stack: contextlib.AsyncExitStack,
    credited: Callable[[Credit], None],
    metrics: Metrics,
    log: FilteringBoundLogger,
) -> Settlements:
    from lcp_gateway.store.database.leader import Leadership  # noqa: PLC0415 - few gateways sell

    metrics.settlements_leader(False)
    leadership = Leadership(database, "settlements")
    stack.push_async_callback(leadership.release)

    return Settlements(
        till,
        topups,
        leadership,
        on_credit=credited,
        on_trouble=lambda problem: log.warning("settlements cannot be followed", problem=problem),
        on_lead=metrics.settlements_leader,
        away=(DatabaseUnavailable,),
    )


@dataclass(frozen=True, slots=True)
class AccessParts:
    """Who is let in, what a request must pass, and what customers are told; as one configuration says it."""

    door: Authenticator
    admission: Admission
    charging: ChargeReport
    wallet_routes: WalletRoutes | None = None
    admin_routes: AdminRoutes | None = None
    key_routes: KeyRoutes | None = None
    refund_routes: RefundRoutes | None = None


class Access:
    """What lasts of access while settings change: the customers' books, if there are any, and what was counted."""

    def __init__(
        self,
        counting: Limits,
        customers: Customers | None,
        api_limits: ApiLimits,
        log: FilteringBoundLogger,
    ) -> None:
        self._counting = counting
        self._customers = customers
        self._log = log
        self._l402_limits = AddressLimits()
        self.api_limits = api_limits
        """What bounds the requests of one caller, and of all, that ask the database and buy nothing."""

    @property
    def tasks(self) -> tuple[BackgroundTask, ...]:
        """What has to run beside the requests."""
        return () if self._customers is None else self._customers.tasks

    def problems(self) -> Iterable[str]:
        """Yield why no customer can buy now."""
        return () if self._customers is None else self._customers.keeper.problems()

    def parts(self, settings: Settings, registry: ModelRegistry) -> AccessParts:
        """Make the parts. Settings of another kind of access than the shop was opened for need another shop.

        Raises:
            WiringError: something that the settings ask for cannot be had.
        """
        admission = self._counting.admission(settings, registry)
        customers = self._customers
        if customers is not None:
            return self._for_customers(settings, customers, admission)
        charging = ChargeReport(None, self._log)
        if auth_mode(settings) == "none":
            return AccessParts(OpenAuthenticator(), admission, charging)
        return AccessParts(
            StaticKeyAuthenticator(StaticKeys(settings.api_keys)), admission, charging
        )

    def use(self, settings: Settings) -> None:
        """Accept the static keys of the settings from now on, beside those of customers."""
        self.api_limits.use(settings.api_concurrent_per_caller, settings.api_concurrent)
        if self._customers is not None:
            self._customers.keeper.use(settings.api_keys, settings.keys_stale_s)

    def _for_customers(
        self, settings: Settings, customers: Customers, admission: Admission
    ) -> AccessParts:
        rules = TopupRules(
            settings.topup_min_msat,
            settings.topup_max_msat,
            max(1, round(settings.topup_expiry_s)),
            settings.topups_open_max,
        )
        wallet = Wallet(
            customers.ledger,
            customers.topups,
            customers.till,
            rules,
            on_credit=customers.credited,
        )
        l402 = None
        if settings.l402 and customers.till is not None:
            l402 = _l402_door(settings, customers, wallet, self._l402_limits, self.api_limits)
        return AccessParts(
            door=AccountAuthenticator(
                find=customers.keeper.find,
                check_fresh=customers.keeper.check,
                admin_key=settings.admin_key,
                l402=l402,
            ),
            admission=admission,
            charging=ChargeReport(wallet, self._log, self.api_limits),
            wallet_routes=WalletRoutes(
                wallet,
                read_timeout_s=settings.request_read_timeout_s,
                api_limits=self.api_limits,
                pay_for_demo=partial(_pay_for_demo, settings.lcpd_grpc_addr)
                if settings.embedded
                else None,
            ),
            admin_routes=AdminRoutes(
                accounts=customers.accounts,
                ledger=customers.ledger,
                actions=customers.acts,
                on_key_change=customers.keeper.refresh,
                read_timeout_s=settings.request_read_timeout_s,
            ),
            key_routes=KeyRoutes(
                customers.keys,
                on_change=customers.keeper.refresh,
                read_timeout_s=settings.request_read_timeout_s,
            ),
            refund_routes=RefundRoutes(
                customers.refunds,
                on_decision=customers.refund_decided,
                read_timeout_s=settings.request_read_timeout_s,
            ),
        )


@contextlib.asynccontextmanager
async def open_access(
    settings: Settings,
    ledgers: Ledgers,
    metrics: Metrics,
    tasks: BackgroundTasks,
    log: FilteringBoundLogger,
) -> AsyncIterator[Access]:
    """Open what lasts.

    Raises:
        WiringError: something that the settings ask for cannot be had.
    """
    async with contextlib.AsyncExitStack() as stack:
        counting = Limits(settings.redis_url, tasks.starter("leases"), log)
        stack.push_async_callback(counting.close)
        customers = None
        if auth_mode(settings) == "accounts":
            customers = await stack.enter_async_context(
                open_customers(settings, ledgers, metrics, log)
            )
        api_limits = ApiLimits(settings.api_concurrent_per_caller, settings.api_concurrent)
        yield Access(counting, customers, api_limits, log)


def _l402_door(
    settings: Settings,
    customers: Customers,
    wallet: Wallet,
    limits: AddressLimits,
    api_limits: ApiLimits,
) -> L402Authenticator:
    from lcp_gateway.accounts.l402 import Issuer  # noqa: PLC0415 - few gateways sell like this
    from lcp_gateway.http.gateway.l402 import L402Routes  # noqa: PLC0415 - as above

    try:
        issuer = Issuer(l402_secret(settings))
    except OSError as error:
        raise WiringError(f"the secret for L402 cannot be kept: {error}") from error
    return L402Routes(
        wallet,
        customers.topups,
        issuer,
        amount_msat=settings.l402_msat,
        lasts=timedelta(seconds=settings.l402_expiry_s),
        guard=BrowserGuard(Cors(settings.cors_origins), known_hosts(settings)),
        limits=limits,
        api_limits=api_limits,
        per_minute=settings.l402_invoices_per_minute,
    )


async def _pay_for_demo(node_address: str, payment_request: str) -> None:
    from lcp_gateway.lightning.lnd.demo import DemoPaymentFailed, pay  # noqa: PLC0415 - for demos only
    from lcp_gateway.lightning.lnd.records import LndError  # noqa: PLC0415 - as above

    try:
        await pay(node_address, payment_request)
    except DemoPaymentFailed as error:
        raise InvoiceNotPaid(error.reason, is_final=True) from error
    except LndError as error:
        reason = "the node does not answer" if error.retryable else error.message
        raise InvoiceNotPaid(reason, is_final=not error.retryable) from error
