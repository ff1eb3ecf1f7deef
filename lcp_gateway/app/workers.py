"""The loops that run beside the requests; the supervisor (``background_tasks``) restarts them."""

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Protocol

from structlog.typing import FilteringBoundLogger

from lcp_gateway.accounts.invites import UNFUNDED_FOR
from lcp_gateway.accounts.payouts import FOLLOW_UP_S, Payouts
from lcp_gateway.accounts.repositories import LedgerRepository, RegistrationRepository, SessionRepository
from lcp_gateway.accounts.withdrawal_states import OPEN_STATES
from lcp_gateway.accounts.withdrawals import WithdrawalRepository
from lcp_gateway.purchase.money import Budget, Period, RefundLimits
from lcp_gateway.responses.store import ResponseStore
from lcp_gateway.store.database.engines import Database, DatabaseUnavailable
from lcp_gateway.store.journal.queries import Books
from lcp_gateway.store.journal.recovery import SweepResult, sweep
from lcp_gateway.store.journal.retention import forget_repeat_keys
from lcp_gateway.store.journal.writer import JournalWriter
from lcp_gateway.telemetry.metrics import Metrics

_GAUGES_EVERY_S = 5.0
# Together with the time-out of a write, a database that hangs is reported within ten seconds while nothing is bought.
_SWEEP_EVERY_S = 2.0
_ALIVE_EVERY_S = 1.0
_PURGE_EVERY_S = 60.0
_TIDY_EVERY_S = 600.0
# The most transactions in a row that remove repeat keys: other writers wait meanwhile.
_MOST_CHUNKS = 10


async def keep_alive(database: Database, writer: JournalWriter, log: FilteringBoundLogger) -> None:
    """Show the other gateways that this one is alive: they end and refund the purchases of a dead one."""
    while True:
        try:
            if await database.keep_alive():
                log.warning("the database session that shows that this gateway lives was lost and replaced")
        except DatabaseUnavailable as error:
            writer.suspect(error.reason)
        await asyncio.sleep(_ALIVE_EVERY_S)


async def sweep_regularly(
    database: Database,
    writer: JournalWriter,
    *,
    limits: Callable[[], RefundLimits],
    on_swept: Callable[[SweepResult], None],
) -> None:
    """Move on the purchases of gateways that ended, and remove old repeat keys."""
    while True:
        now = datetime.now(UTC)
        try:
            on_swept(await sweep(database, now, limits()))
            for _ in range(_MOST_CHUNKS):
                if not await forget_repeat_keys(database, now):
                    break
        except DatabaseUnavailable as error:
            # Without requests this is the first write to fail, and `/readyz` has to report it.
            writer.suspect(error.reason)
        await asyncio.sleep(_SWEEP_EVERY_S)


async def measure_books(books: Books, budgets: Callable[[], Iterable[Budget]], metrics: Metrics) -> None:
    """Keep the gauges of unknown payments, losses, refunds and budgets up to date."""
    while True:
        with contextlib.suppress(DatabaseUnavailable):
            now = datetime.now(UTC)
            outstanding = await books.outstanding()
            oldest = outstanding.oldest_at
            metrics.outstanding(
                outstanding.unknown_msat, outstanding.unknown, 0.0 if oldest is None else (now - oldest).total_seconds()
            )
            for peer in await books.peers():
                metrics.peer_undelivered_msat(peer.peer_id, peer.lost_msat)
            metrics.refunds_withheld(*await books.withheld())
            found = await books.budgets(tuple(budgets()), now)
            for state in found:
                metrics.budget(state.budget.period.value, state.budget.limit_msat, state.spent_msat)
            for period in set(Period).difference(state.budget.period for state in found):
                # The settings before a reload may have had one.
                metrics.budget(period.value, 0, 0)
        await asyncio.sleep(_GAUGES_EVERY_S)


async def measure_accounts(ledger: LedgerRepository, metrics: Metrics) -> None:
    """Keep the gauges of the customers' balances up to date."""
    while True:
        with contextlib.suppress(DatabaseUnavailable):
            totals = await ledger.totals()
            metrics.customers(totals.accounts, totals.balance_msat, totals.held_msat)
        await asyncio.sleep(_GAUGES_EVERY_S)


async def tidy_console(sessions: SessionRepository, registrations: RegistrationRepository) -> None:
    """Delete the sessions that are over, and accounts that were opened freely and never topped up."""
    while True:
        now = datetime.now(UTC)
        with contextlib.suppress(DatabaseUnavailable):
            await sessions.forget_ended(now)
            await registrations.forget_unfunded(now - UNFUNDED_FOR, now)
        await asyncio.sleep(_TIDY_EVERY_S)


async def let_go_of_withdrawals(payouts: Payouts) -> None:
    """Find the withdrawals that this process has begun and does not pay."""
    while True:
        with contextlib.suppress(DatabaseUnavailable):
            await payouts.let_go()
        await asyncio.sleep(FOLLOW_UP_S)


async def measure_withdrawals(withdrawals: WithdrawalRepository, metrics: Metrics) -> None:
    """Keep the gauges of open withdrawals up to date."""
    while True:
        with contextlib.suppress(DatabaseUnavailable):
            found = await withdrawals.outstanding()
            for state in OPEN_STATES:
                metrics.withdrawals_open(state.value, *found.counts.get(state, (0, 0)))
            oldest = found.oldest_unknown_at
            metrics.withdrawal_unknown_age(0.0 if oldest is None else (datetime.now(UTC) - oldest).total_seconds())
        await asyncio.sleep(_GAUGES_EVERY_S)


class Purged(Protocol):
    """A store of several gateways."""

    async def purge(self) -> None:
        """Drop objects that are too old, and show how much is stored."""
        ...


async def purge(store: ResponseStore, shared: Purged | None = None) -> None:
    """Drop stored objects that are too old, even without requests."""
    while True:
        if shared is not None:
            # Often enough for its gauges, which other gateways change too.
            await asyncio.sleep(_GAUGES_EVERY_S)
            await shared.purge()
        else:
            await asyncio.sleep(_PURGE_EVERY_S)
            store.purge()
