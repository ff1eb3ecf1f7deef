"""The customers' accounts, opened as the settings say: their keys, payments, withdrawals and nodes."""

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta

from structlog.typing import FilteringBoundLogger

from lcp_gateway.accounts.key_sync import KeySync
from lcp_gateway.accounts.keys import KeyCache
from lcp_gateway.accounts.models import Credit
from lcp_gateway.accounts.nodes import NodeRepository, NodeTermsCache
from lcp_gateway.accounts.payouts import FOLLOW_UP_S, Payouts
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
from lcp_gateway.accounts.withdrawals import Withdrawal, WithdrawalRepository, WithdrawalRules
from lcp_gateway.app.background_tasks import BackgroundTask
from lcp_gateway.app.wiring import WiringError
from lcp_gateway.app.wiring.journal import JournalParts
from lcp_gateway.app.wiring.lnd import open_invoice_issuer, open_payouts
from lcp_gateway.app.workers import let_go_of_withdrawals, measure_accounts, measure_withdrawals
from lcp_gateway.config import Settings
from lcp_gateway.http.authentication import ANONYMOUS
from lcp_gateway.purchase.money import RefundDecision, to_ppm
from lcp_gateway.purchase.ports import StartTask
from lcp_gateway.purchase.records import PurchaseBooks
from lcp_gateway.store.database.engines import Database, DatabaseUnavailable
from lcp_gateway.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class CustomerParts:
    """The customers' accounts, opened for as long as the gateway runs.

    ``invoices`` is None where customers cannot top up. ``on_credit`` is called for every paid top-up.
    """

    accounts: AccountRepository
    keys: KeyRepository
    ledger: LedgerRepository
    topups: TopupRepository
    books: PurchaseBooks
    admin_log: AdminLogRepository
    refunds: RefundRepository
    on_refund: Callable[[RefundDecision], None]
    key_sync: KeySync
    withdrawals: WithdrawalRepository
    payouts: Payouts
    nodes: NodeRepository
    node_terms: NodeTermsCache
    invoices: InvoiceService | None
    on_credit: Callable[[Credit], None]
    tasks: tuple[BackgroundTask, ...]


@contextlib.asynccontextmanager
async def open_customers(
    settings: Settings, journal: JournalParts, metrics: Metrics, start_task: StartTask, log: FilteringBoundLogger
) -> AsyncIterator[CustomerParts]:
    """Open the customers' accounts. ``start_task`` starts the task that pays a withdrawal.

    Raises:
        WiringError: a part cannot be made as the settings say.
    """
    # Imported where they are used: most gateways keep no accounts.
    from lcp_gateway.store.accounts.accounts import Accounts  # noqa: PLC0415 - see above
    from lcp_gateway.store.accounts.admin_log import AdminLog  # noqa: PLC0415 - see above
    from lcp_gateway.store.accounts.keys import Keys  # noqa: PLC0415 - see above
    from lcp_gateway.store.accounts.ledger import Ledger  # noqa: PLC0415 - see above
    from lcp_gateway.store.accounts.nodes import Nodes  # noqa: PLC0415 - see above
    from lcp_gateway.store.accounts.refunds import Refunds  # noqa: PLC0415 - see above
    from lcp_gateway.store.accounts.topups import Topups  # noqa: PLC0415 - see above
    from lcp_gateway.store.accounts.withdrawals import Withdrawals  # noqa: PLC0415 - see above
    from lcp_gateway.store.journal.queries import Books  # noqa: PLC0415 - see above

    database = journal.database
    if database is None:
        raise WiringError("accounts need a journal")
    topups, keys, ledger = Topups(database), Keys(database), Ledger(database)
    cache = KeyCache(settings.api_keys, ANONYMOUS.rules)
    key_sync = KeySync(keys, cache, log, unavailable=(DatabaseUnavailable,), stale_s=settings.keys_stale_s)
    try:
        await key_sync.load()
    except DatabaseUnavailable as error:
        raise WiringError(f"the keys cannot be read: {error}") from error
    metrics.watch_keys(lambda: key_sync.age_s, lambda: key_sync.is_stale)
    on_credit = credit_observer(metrics, log)
    tasks = [
        BackgroundTask("keys", key_sync.run),
        BackgroundTask("solvency", lambda: measure_accounts(ledger, metrics)),
    ]
    async with contextlib.AsyncExitStack() as stack:
        invoices = await stack.enter_async_context(open_invoice_issuer(settings))
        payer = await stack.enter_async_context(open_payouts(settings))
        withdrawals = Withdrawals(database)
        payouts = Payouts(
            withdrawals,
            payer,
            withdrawal_rules(settings),
            start_task=start_task,
            unavailable=(DatabaseUnavailable,),
            on_end=withdrawal_observer(metrics, log),
            on_trouble=lambda problem: log.warning("withdrawals", problem=problem),
        )
        nodes = Nodes(database)
        node_terms = NodeTermsCache(nodes, to_ppm(settings.node_commission_percent), unavailable=(DatabaseUnavailable,))
        tasks.append(BackgroundTask("node_terms", node_terms.run))
        tasks.append(BackgroundTask("withdrawals_begun", lambda: let_go_of_withdrawals(payouts)))
        tasks.append(BackgroundTask("withdrawals_open", lambda: measure_withdrawals(withdrawals, metrics)))
        if invoices is not None:
            settlements = _settlements(invoices, topups, database, stack, on_credit, metrics, log)
            tasks += [
                BackgroundTask("settlements_lead", settlements.lead),
                BackgroundTask("settlements", settlements.follow),
                BackgroundTask("topups", settlements.look_up),
                BackgroundTask("payouts", lambda: settlements.while_leading(payouts.catch_up, FOLLOW_UP_S)),
            ]
        yield CustomerParts(
            accounts=Accounts(database),
            keys=keys,
            ledger=ledger,
            topups=topups,
            books=journal.books or Books(database),
            admin_log=AdminLog(database),
            refunds=Refunds(database),
            on_refund=journal.on_refund,
            key_sync=key_sync,
            withdrawals=withdrawals,
            payouts=payouts,
            nodes=nodes,
            node_terms=node_terms,
            invoices=invoices,
            on_credit=on_credit,
            tasks=tuple(tasks),
        )


def withdrawal_rules(settings: Settings) -> WithdrawalRules:
    """Return the rules of withdrawals."""
    return WithdrawalRules(
        enabled=settings.withdrawals,
        min_msat=settings.withdrawal_min_msat,
        max_msat=settings.withdrawal_max_msat,
        account_day_msat=settings.withdrawal_account_day_msat,
        day_msat=settings.withdrawal_day_msat,
        approval_msat=settings.withdrawal_approval_msat,
        fee_ppm=to_ppm(settings.withdrawal_fee_percent),
        fee_base_msat=settings.withdrawal_fee_base_msat,
        frozen_for=timedelta(seconds=settings.withdrawal_freeze_s),
        reserve_msat=settings.withdrawal_reserve_msat,
        timeout_s=max(1, round(settings.withdrawal_timeout_s)),
    )


def withdrawal_observer(metrics: Metrics, log: FilteringBoundLogger) -> Callable[[Withdrawal], None]:
    """Return the observer that counts and logs withdrawals that ended."""

    def ended(withdrawal: Withdrawal) -> None:
        metrics.withdrawal(withdrawal.state.value, withdrawal.amount_msat, withdrawal.fee_msat or 0)
        log.info(
            "a withdrawal ended",
            withdrawal_id=withdrawal.id,
            account_id=withdrawal.account_id,
            state=withdrawal.state.value,
            reason=withdrawal.reason,
            amount_msat=withdrawal.amount_msat,
            fee_msat=withdrawal.fee_msat,
        )

    return ended


def credit_observer(metrics: Metrics, log: FilteringBoundLogger) -> Callable[[Credit], None]:
    """Return the observer that counts and logs paid top-ups."""

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
    invoices: InvoiceService,
    topups: TopupRepository,
    database: Database,
    stack: contextlib.AsyncExitStack,
    on_credit: Callable[[Credit], None],
    metrics: Metrics,
    log: FilteringBoundLogger,
) -> Settlements:
    from lcp_gateway.store.database.leader import Leadership  # noqa: PLC0415 - few gateways sell

    metrics.settlements_leader(False)
    leadership = Leadership(database, "settlements")
    stack.push_async_callback(leadership.release)

    return Settlements(
        invoices,
        topups,
        leadership,
        on_credit=on_credit,
        on_trouble=lambda problem: log.warning("settlements cannot be followed", problem=problem),
        on_lead=metrics.settlements_leader,
        unavailable=(DatabaseUnavailable,),
    )
