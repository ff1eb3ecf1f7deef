"""Makes what the settings say of access: who is let in, what a request must pass, what customers are told."""

import contextlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from structlog.typing import FilteringBoundLogger

from lcp_gateway.accounts.address_limits import AddressLimits
from lcp_gateway.accounts.wallet import InvoiceNotPaid, TopupRules, Wallet
from lcp_gateway.app.background_tasks import BackgroundTask, BackgroundTasks
from lcp_gateway.app.counting import Counting
from lcp_gateway.app.customers import Customers, open_customers
from lcp_gateway.app.l402 import l402_secret
from lcp_gateway.app.ledgers import LedgerError, Ledgers
from lcp_gateway.config import Settings, auth_mode, known_hosts
from lcp_gateway.http.admin import AdminRoutes
from lcp_gateway.http.admission import Admission
from lcp_gateway.http.api_limits import ApiLimits
from lcp_gateway.http.auth import BearerKeys
from lcp_gateway.http.browser_guard import BrowserGuard
from lcp_gateway.http.charging import Charging
from lcp_gateway.http.cors import Cors
from lcp_gateway.http.door import AccountDoor, Door, KeyDoor, L402Door, OpenDoor
from lcp_gateway.http.refunds import RefundRoutes
from lcp_gateway.http.wallet import WalletRoutes
from lcp_gateway.routing.registry import Registry
from lcp_gateway.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class SellingParts:
    """Who is let in, what a request must pass, and what customers are told; as one configuration says it."""

    door: Door
    admission: Admission
    charging: Charging
    wallet_routes: WalletRoutes | None = None
    admin_routes: AdminRoutes | None = None
    refund_routes: RefundRoutes | None = None


class Shop:
    """What lasts of access while settings change: the customers' books, if there are any, and what was counted."""

    def __init__(
        self,
        counting: Counting,
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

    def parts(self, settings: Settings, registry: Registry) -> SellingParts:
        """Make the parts. Settings of another kind of access than the shop was opened for need another shop.

        Raises:
            LedgerError: something that the settings ask for cannot be had.
        """
        admission = self._counting.admission(settings, registry)
        customers = self._customers
        if customers is not None:
            return self._for_customers(settings, customers, admission)
        charging = Charging(None, self._log)
        if auth_mode(settings) == "none":
            return SellingParts(OpenDoor(), admission, charging)
        return SellingParts(KeyDoor(BearerKeys(settings.api_keys)), admission, charging)

    def use(self, settings: Settings) -> None:
        """Accept the static keys of the settings from now on, beside those of customers."""
        self.api_limits.use(settings.api_concurrent_per_caller, settings.api_concurrent)
        if self._customers is not None:
            self._customers.keeper.use(settings.api_keys, settings.keys_stale_s)

    def _for_customers(
        self, settings: Settings, customers: Customers, admission: Admission
    ) -> SellingParts:
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
        return SellingParts(
            door=AccountDoor(
                find=customers.keeper.find,
                check_fresh=customers.keeper.check,
                admin_key=settings.admin_key,
                l402=l402,
            ),
            admission=admission,
            charging=Charging(wallet, self._log, self.api_limits),
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
                keys=customers.keys,
                ledger=customers.ledger,
                acts=customers.acts,
                on_key_change=customers.keeper.refresh,
                read_timeout_s=settings.request_read_timeout_s,
            ),
            refund_routes=RefundRoutes(
                customers.refunds,
                on_decision=customers.refund_decided,
                read_timeout_s=settings.request_read_timeout_s,
            ),
        )


@contextlib.asynccontextmanager
async def open_shop(
    settings: Settings,
    ledgers: Ledgers,
    metrics: Metrics,
    tasks: BackgroundTasks,
    log: FilteringBoundLogger,
) -> AsyncIterator[Shop]:
    """Open what lasts.

    Raises:
        LedgerError: something that the settings ask for cannot be had.
    """
    async with contextlib.AsyncExitStack() as stack:
        counting = Counting(settings.redis_url, tasks.starter("leases"), log)
        stack.push_async_callback(counting.close)
        customers = None
        if auth_mode(settings) == "accounts":
            customers = await stack.enter_async_context(
                open_customers(settings, ledgers, metrics, log)
            )
        api_limits = ApiLimits(settings.api_concurrent_per_caller, settings.api_concurrent)
        yield Shop(counting, customers, api_limits, log)


def _l402_door(
    settings: Settings,
    customers: Customers,
    wallet: Wallet,
    limits: AddressLimits,
    api_limits: ApiLimits,
) -> L402Door:
    from lcp_gateway.accounts.l402 import Issuer  # noqa: PLC0415 - few gateways sell like this
    from lcp_gateway.http.l402 import L402Routes  # noqa: PLC0415 - as above

    try:
        issuer = Issuer(l402_secret(settings))
    except OSError as error:
        raise LedgerError(f"the secret for L402 cannot be kept: {error}") from error
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
    from lcp_gateway.lightning.demo import PaymentFailed, pay  # noqa: PLC0415 - for demos only
    from lcp_gateway.lightning.payments import LndError  # noqa: PLC0415 - as above

    try:
        await pay(node_address, payment_request)
    except PaymentFailed as error:
        raise InvoiceNotPaid(error.reason, is_final=True) from error
    except LndError as error:
        reason = "the node does not answer" if error.retryable else error.message
        raise InvoiceNotPaid(reason, is_final=not error.retryable) from error
