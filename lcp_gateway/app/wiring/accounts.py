"""Access as the settings say: authentication, the limits of a request, and the customers' routes."""

import contextlib
import hashlib
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from structlog.typing import FilteringBoundLogger

from lcp_gateway.accounts.keys import KeysStale
from lcp_gateway.accounts.limits.addresses import AddressLimits
from lcp_gateway.accounts.limits.concurrency import ConcurrencyLimits, Leases, MemoryLeases, RedisLeases
from lcp_gateway.accounts.limits.joint import JointLimits
from lcp_gateway.accounts.limits.rates import MemoryCounters, RateCounters, RateLimits, Rates, RedisCounters
from lcp_gateway.accounts.repositories import KeyRepository, LedgerRepository
from lcp_gateway.accounts.shared.calls import RedisCalls
from lcp_gateway.accounts.shared.outage import Outage, ShieldedCalls
from lcp_gateway.accounts.wallet import InvoiceNotPaid, TopupRules, Wallet
from lcp_gateway.app.background_tasks import BackgroundTask, BackgroundTasks
from lcp_gateway.app.wiring import WiringError
from lcp_gateway.app.wiring.customers import CustomerParts, open_customers, withdrawal_rules
from lcp_gateway.app.wiring.journal import JournalParts
from lcp_gateway.app.wiring.shared_trust import SharedTrust
from lcp_gateway.config import Settings, auth_mode, is_open_to_others, journal_place, known_hosts
from lcp_gateway.http.authentication import (
    AccountAuthenticator,
    Authenticator,
    OpenAuthenticator,
    StaticKeyAuthenticator,
    StaticKeys,
)
from lcp_gateway.http.browser_guard import BrowserGuard
from lcp_gateway.http.cors import Cors
from lcp_gateway.http.gateway.admin import AdminRoutes
from lcp_gateway.http.gateway.api_limits import ApiLimits
from lcp_gateway.http.gateway.keys import KeyRoutes
from lcp_gateway.http.gateway.nodes import NodeConnection, NodeRoutes
from lcp_gateway.http.gateway.refunds import RefundRoutes
from lcp_gateway.http.gateway.wallet import WalletRoutes
from lcp_gateway.http.gateway.withdrawals import WithdrawalRoutes
from lcp_gateway.http.openai.admission import Admission
from lcp_gateway.http.openai.charges import ChargeReport
from lcp_gateway.http.openai.payment_required import PaymentRequired
from lcp_gateway.purchase.money import to_ppm
from lcp_gateway.purchase.ports import StartTask
from lcp_gateway.routing.model_registry import ModelRegistry
from lcp_gateway.store.database.engines import DatabaseUnavailable
from lcp_gateway.telemetry.metrics import Metrics
from lcp_gateway.upstreams.dialin.grants import AccountNodes, StoredOwners

if TYPE_CHECKING:
    from lcp_gateway.http.gateway.l402 import L402Routes

_SECRET_BYTES = 32


def l402_secret(settings: Settings) -> bytes:
    """Return the secret of L402's tokens: the setting, or one that is created once and kept beside the journal.

    Raises:
        WiringError: there is none, and none can be created.
    """
    if settings.l402_secret:
        return hashlib.sha256(settings.l402_secret.encode()).digest()
    place = journal_place(settings)
    if not isinstance(place, Path):
        raise WiringError("l402 with a database server needs l402_secret, the same for all gateways")
    file = place.with_suffix(".l402")
    with contextlib.suppress(FileExistsError):
        file.touch(mode=0o600, exist_ok=False)
        file.write_bytes(secrets.token_bytes(_SECRET_BYTES))
    secret = file.read_bytes()
    if len(secret) < _SECRET_BYTES:
        # Another gateway is writing it right now, or ended while it did.
        raise WiringError(f"{file} holds no secret for L402: start again, or delete it")
    return secret


class Limits:
    """The counters of rates and jobs, in this process or in Redis; they outlive a change of the limits."""

    def __init__(self, redis: RedisCalls | None, start_task: StartTask, log: FilteringBoundLogger) -> None:
        """``start_task`` starts the task that renews the lease of a running job."""
        self._start_task = start_task
        self._outage = Outage(report=lambda error: log.warning("Redis is away", problem=error))
        self._shielded = None if redis is None else ShieldedCalls()
        self._redis = None if redis is None else (redis, RedisLeases(redis))
        self._leases: Leases = MemoryLeases() if self._redis is None else self._redis[1]
        self._rate_counters: RateCounters = MemoryCounters() if redis is None else RedisCounters(redis)

    def admission(self, settings: Settings, registry: ModelRegistry) -> Admission:
        """Return the admission of requests within the limits of the settings."""
        rates = self._rate_limits(settings)
        jobs = ConcurrencyLimits(
            self._leases, default=settings.key_concurrent_jobs, outage=self._outage, start_task=self._start_task
        )
        joint = None
        if self._redis is not None and rates is not None:
            joint = JointLimits(*self._redis, jobs, rates, self._outage)
        return Admission(rates, jobs, registry.resolve, shielded=self._shielded, joint=joint)

    async def close(self) -> None:
        """Wait for the calls under way."""
        if self._shielded is not None:
            await self._shielded.close()

    def _rate_limits(self, settings: Settings) -> RateLimits | None:
        gateway = Rates(settings.max_requests_per_minute, settings.max_tokens_per_minute)
        account = Rates(settings.account_requests_per_minute, settings.account_tokens_per_minute)
        key = Rates(settings.key_requests_per_minute, settings.key_tokens_per_minute)
        if gateway == account == key == Rates() and auth_mode(settings) != "accounts":
            # Without accounts no key has a limit of its own, so there is nothing to count.
            return None
        return RateLimits(self._rate_counters, gateway=gateway, account=account, key=key, outage=self._outage)


@dataclass(frozen=True, slots=True)
class AccessParts:
    """Authentication, admission, the report of charges, and the customers' routes, by one configuration."""

    authenticator: Authenticator
    admission: Admission
    charges: ChargeReport
    payment_required: PaymentRequired
    wallet_routes: WalletRoutes | None = None
    admin_routes: AdminRoutes | None = None
    key_routes: KeyRoutes | None = None
    refund_routes: RefundRoutes | None = None
    withdrawal_routes: WithdrawalRoutes | None = None
    node_routes: NodeRoutes | None = None


class Access:
    """The customers' accounts, if there are any, and the counters of limits; both outlive a change of settings."""

    def __init__(
        self, limits: Limits, customers: CustomerParts | None, api_limits: ApiLimits, log: FilteringBoundLogger
    ) -> None:
        self._limits = limits
        self._customers = customers
        self._log = log
        self._l402_limits = AddressLimits()
        self.api_limits = api_limits
        """The limits of requests that query the database and buy nothing."""
        self.node_connections: Callable[[], Mapping[str, NodeConnection]] = dict
        """Returns the nodes that dialled in, by their ids."""

    @property
    def customers(self) -> CustomerParts | None:
        """The customers' accounts; None without ``auth = "accounts"``."""
        return self._customers

    @property
    def tasks(self) -> tuple[BackgroundTask, ...]:
        """The tasks that have to run beside the requests."""
        return () if self._customers is None else self._customers.tasks

    @property
    def keys(self) -> KeyRepository | None:
        """The customers' keys; None without accounts."""
        return None if self._customers is None else self._customers.keys

    @property
    def ledger(self) -> LedgerRepository | None:
        """The customers' balances; None without accounts."""
        return None if self._customers is None else self._customers.ledger

    def _connected_nodes(self) -> Mapping[str, NodeConnection]:
        return self.node_connections()

    def nodes(self) -> AccountNodes | None:
        """Return the nodes of accounts; None where no accounts are kept."""
        customers = self._customers
        if customers is None:
            return None
        owners = StoredOwners(customers.node_terms)
        return AccountNodes(find_caller=customers.key_sync.find, owners=owners, stale=(KeysStale, DatabaseUnavailable))

    def share_keys(self, shared: SharedTrust) -> None:
        """Read changed keys at once when another worker has changed one, and tell the others of changes made here."""
        if self._customers is not None:
            shared.on_keys.append(self._customers.key_sync.refresh_soon)
            self._customers.key_sync.on_change = shared.keys_changed

    def problems(self) -> Iterable[str]:
        """Yield why no customer can buy now."""
        return () if self._customers is None else self._customers.key_sync.problems()

    def parts(self, settings: Settings, registry: ModelRegistry) -> AccessParts:
        """Make the parts of a configuration, whose ``auth`` is the one that this was opened with.

        Raises:
            WiringError: a part cannot be made as the settings say.
        """
        admission = self._limits.admission(settings, registry)
        customers = self._customers
        if customers is not None:
            return self._for_customers(settings, customers, admission)
        charges, payment_required = ChargeReport(None, self._log), PaymentRequired(None, self._log)
        if auth_mode(settings) == "none":
            return AccessParts(
                OpenAuthenticator(is_local=not is_open_to_others(settings)), admission, charges, payment_required
            )
        return AccessParts(StaticKeyAuthenticator(StaticKeys(settings.api_keys)), admission, charges, payment_required)

    def use(self, settings: Settings) -> None:
        """Accept the static keys of the settings from now on, beside those of customers, within other limits."""
        self.api_limits.use(settings.api_concurrent_per_caller, settings.api_concurrent)
        if self._customers is not None:
            self._customers.key_sync.use(settings.api_keys, settings.keys_stale_s)
            self._customers.payouts.rules = withdrawal_rules(settings)
            self._customers.node_terms.usual_commission_ppm = to_ppm(settings.node_commission_percent)

    def _for_customers(self, settings: Settings, customers: CustomerParts, admission: Admission) -> AccessParts:
        rules = TopupRules(
            settings.topup_min_msat,
            settings.topup_max_msat,
            max(1, round(settings.topup_expiry_s)),
            settings.topups_open_max,
        )
        wallet = Wallet(customers.ledger, customers.topups, customers.invoices, rules, on_credit=customers.on_credit)
        l402 = None
        if settings.l402 and customers.invoices is not None:
            l402 = _l402_authenticator(settings, customers, wallet, self._l402_limits, self.api_limits)
        return AccessParts(
            authenticator=AccountAuthenticator(
                find=customers.key_sync.find,
                check_fresh=customers.key_sync.check,
                admin_key=settings.admin_key,
                l402=l402,
            ),
            admission=admission,
            charges=ChargeReport(wallet, self._log),
            payment_required=PaymentRequired(wallet, self._log, self.api_limits),
            wallet_routes=WalletRoutes(
                wallet,
                read_timeout_s=settings.request_read_timeout_s,
                api_limits=self.api_limits,
                pay_for_demo=partial(_pay_for_demo, settings.lcpd_grpc_addr) if settings.embedded else None,
            ),
            admin_routes=AdminRoutes(
                accounts=customers.accounts,
                ledger=customers.ledger,
                actions=customers.admin_log,
                on_key_change=customers.key_sync.changed,
                read_timeout_s=settings.request_read_timeout_s,
            ),
            key_routes=KeyRoutes(
                customers.keys,
                books=customers.books,
                on_change=customers.key_sync.changed,
                read_timeout_s=settings.request_read_timeout_s,
            ),
            refund_routes=RefundRoutes(
                customers.refunds, on_decision=customers.on_refund, read_timeout_s=settings.request_read_timeout_s
            ),
            node_routes=NodeRoutes(
                customers.nodes,
                terms=customers.node_terms,
                connections=self._connected_nodes,
                read_timeout_s=settings.request_read_timeout_s,
            ),
            withdrawal_routes=WithdrawalRoutes(
                customers.payouts,
                customers.withdrawals,
                read_timeout_s=settings.request_read_timeout_s,
                api_limits=self.api_limits,
                make_demo_invoice=partial(_demo_invoice, settings.lcpd_grpc_addr) if settings.embedded else None,
            ),
        )


@contextlib.asynccontextmanager
async def open_access(
    settings: Settings,
    journal: JournalParts,
    metrics: Metrics,
    tasks: BackgroundTasks,
    log: FilteringBoundLogger,
    redis: RedisCalls | None = None,
) -> AsyncIterator[Access]:
    """Open the counters and, with ``auth = "accounts"``, the accounts. ``redis`` counts for several gateways together.

    Raises:
        WiringError: a part cannot be made as the settings say.
    """
    async with contextlib.AsyncExitStack() as stack:
        limits = Limits(redis, tasks.starter("leases"), log)
        stack.push_async_callback(limits.close)
        customers = None
        if auth_mode(settings) == "accounts":
            customers = await stack.enter_async_context(
                open_customers(settings, journal, metrics, tasks.starter("withdrawals"), log)
            )
        api_limits = ApiLimits(settings.api_concurrent_per_caller, settings.api_concurrent)
        yield Access(limits, customers, api_limits, log)


def _l402_authenticator(
    settings: Settings, customers: CustomerParts, wallet: Wallet, limits: AddressLimits, api_limits: ApiLimits
) -> "L402Routes":
    from lcp_gateway.accounts.l402 import Issuer  # noqa: PLC0415 - few gateways sell like this
    from lcp_gateway.http.gateway.l402 import L402Routes  # noqa: PLC0415 - as above

    try:
        issuer = Issuer(l402_secret(settings))
    except OSError as error:
        raise WiringError(f"the secret for L402 cannot be stored: {error}") from error
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


async def _demo_invoice(node_address: str, amount_msat: int) -> str:
    from lcp_gateway.lightning.lnd.demo import make_invoice  # noqa: PLC0415 - for demos only
    from lcp_gateway.lightning.lnd.records import LndError  # noqa: PLC0415 - as above

    try:
        return await make_invoice(node_address, amount_msat)
    except LndError as error:
        raise InvoiceNotPaid(error.message, is_final=not error.retryable) from error
