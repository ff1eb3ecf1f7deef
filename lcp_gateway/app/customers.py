"""The customers of a gateway that sells access: their books, their keys, and what has to run for them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from structlog.typing import FilteringBoundLogger

from lcp_gateway.accounts.keys import KeyCache
from lcp_gateway.accounts.ports import (
    AccountBook,
    ActBook,
    KeyBook,
    LedgerBook,
    RefundBook,
    Till,
    TopupBook,
)
from lcp_gateway.accounts.records import Credit
from lcp_gateway.accounts.settlements import Settlements
from lcp_gateway.app.background_tasks import BackgroundTask
from lcp_gateway.app.keys import KeyKeeper
from lcp_gateway.app.ledgers import LedgerError, Ledgers
from lcp_gateway.app.till import open_till
from lcp_gateway.config import Settings
from lcp_gateway.http.door import EVERYONE
from lcp_gateway.purchase.refunds import RefundDecision
from lcp_gateway.store.database import Database, DatabaseUnavailable
from lcp_gateway.telemetry.metrics import Metrics

_SOLVENCY_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Customers:
    """The books, opened for as long as the gateway runs; ``till`` is None where nobody can pay in.

    ``credited`` is told of what was paid in.
    """

    accounts: AccountBook
    keys: KeyBook
    ledger: LedgerBook
    topups: TopupBook
    acts: ActBook
    refunds: RefundBook
    refund_decided: Callable[[RefundDecision], None]
    keeper: KeyKeeper
    till: Till | None
    credited: Callable[[Credit], None]
    tasks: tuple[BackgroundTask, ...]


@contextlib.asynccontextmanager
async def open_customers(
    settings: Settings, ledgers: Ledgers, metrics: Metrics, log: FilteringBoundLogger
) -> AsyncIterator[Customers]:
    """Open the books.

    Raises:
        LedgerError: something that the settings ask for cannot be had.
    """
    # Imported where they are used: most gateways keep no accounts.
    from lcp_gateway.store.accounts import Accounts  # noqa: PLC0415 - see above
    from lcp_gateway.store.admin_log import AdminLog  # noqa: PLC0415 - see above
    from lcp_gateway.store.keys import Keys  # noqa: PLC0415 - see above
    from lcp_gateway.store.ledger import Ledger  # noqa: PLC0415 - see above
    from lcp_gateway.store.refunds import Refunds  # noqa: PLC0415 - see above
    from lcp_gateway.store.topups import Topups  # noqa: PLC0415 - see above

    database = ledgers.database
    if database is None:
        raise LedgerError("accounts need a journal")
    topups, keys, ledger = Topups(database), Keys(database), Ledger(database)
    cache = KeyCache(settings.api_keys, EVERYONE.rules)
    keeper = KeyKeeper(keys, cache, log, stale_s=settings.keys_stale_s)
    try:
        await keeper.load()
    except DatabaseUnavailable as error:
        raise LedgerError(f"the keys cannot be read: {error}") from error
    metrics.watch_keys(lambda: keeper.age_s, lambda: keeper.is_stale)
    credited = tell_credit(metrics, log)
    tasks = [
        BackgroundTask("keys", keeper.run),
        BackgroundTask("solvency", lambda: _watch_solvency(ledger, metrics)),
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
            refund_decided=ledgers.refund_notes or _ignore,
            keeper=keeper,
            till=till,
            credited=credited,
            tasks=tuple(tasks),
        )


def _ignore(_decision: RefundDecision) -> None:
    """Nothing is counted."""


def tell_credit(metrics: Metrics, log: FilteringBoundLogger) -> Callable[[Credit], None]:
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
    till: Till,
    topups: TopupBook,
    database: Database,
    stack: contextlib.AsyncExitStack,
    credited: Callable[[Credit], None],
    metrics: Metrics,
    log: FilteringBoundLogger,
) -> Settlements:
    from lcp_gateway.store.leader import Leadership  # noqa: PLC0415 - few gateways sell

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


async def _watch_solvency(ledger: LedgerBook, metrics: Metrics) -> None:
    while True:
        with contextlib.suppress(DatabaseUnavailable):
            totals = await ledger.totals()
            metrics.customers(totals.accounts, totals.balance_msat, totals.held_msat)
        await asyncio.sleep(_SOLVENCY_EVERY_S)
