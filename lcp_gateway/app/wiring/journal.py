"""The journal and its books, opened for as long as the gateway runs."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from structlog.typing import FilteringBoundLogger

from lcp_gateway.app.background_tasks import BackgroundTask
from lcp_gateway.app.wiring import WiringError
from lcp_gateway.config import Settings, journal_place
from lcp_gateway.purchase.journal import PurchaseJournal
from lcp_gateway.purchase.money import (
    NO_REFUND_LIMITS,
    Budget,
    Period,
    Refund,
    RefundDecision,
    RefundLimits,
)
from lcp_gateway.purchase.ports import StartTask
from lcp_gateway.purchase.quote import ProviderSource
from lcp_gateway.purchase.states import State
from lcp_gateway.routing.peer_trust import PeerHistory, PeerTrust
from lcp_gateway.store.background_responses import BackgroundRows
from lcp_gateway.store.database.engines import (
    BadDatabaseUrl,
    Database,
    DatabaseUnavailable,
    open_database,
)
from lcp_gateway.store.database.schema import TooNew
from lcp_gateway.store.journal.queries import Books
from lcp_gateway.store.journal.recovery import SweepResult, sweep
from lcp_gateway.store.journal.retention import forget_repeat_keys
from lcp_gateway.store.journal.transaction import JournalProblem, JournalProblemKind
from lcp_gateway.store.journal.writer import JournalWriter, NullJournal
from lcp_gateway.telemetry.metrics import Metrics

_WATCH_S = 5.0
# With the time-out of a write, a database that hangs is told of within ten seconds while nothing is bought.
_SWEEP_S = 2.0
_BEAT_S = 1.0
_LOSSES_COUNT_FOR = timedelta(days=7)
_A_DAY = timedelta(days=1)
_ALL_OPEN = 10_000
# So many short transactions in a row, at most: others want to write too.
_MOST_CHUNKS = 10
# The rest is a note that came to nothing, such as one about an intent that was taken back.
_GRAVE = frozenset(
    {
        JournalProblemKind.NOTE_LOST,
        JournalProblemKind.NOTE_REFUSED,
        JournalProblemKind.SWEPT,
        JournalProblemKind.UNAVAILABLE,
    }
)


@dataclass(slots=True)
class Ledgers:
    """What is known of past purchases. Without a journal there are no books.

    ``network`` is the prefix of the invoices that lnd pays, once lnd has been asked.
    """

    journal: PurchaseJournal
    books: Books | None = None
    database: Database | None = None
    stored: JournalWriter | None = None
    network: str | None = None
    refund_notes: "RefundObserver | None" = None

    @property
    def refund_limits(self) -> RefundLimits:
        """What is given back without the operator looking."""
        return NO_REFUND_LIMITS if self.stored is None else self.stored.refunds

    def use(self, settings: Settings) -> None:
        """Give back within other limits from now on."""
        if self.stored is not None:
            self.stored.refunds = refund_limits(settings)

    @property
    def trouble(self) -> str | None:
        """Why the journal cannot be written, or is not the one that was opened; None where all is well."""
        found = None if self.stored is None else self.stored.trouble
        return found or (None if self.database is None else self.database.trouble)

    @property
    def repeat_secret(self) -> bytes:
        """What repeat keys are hashed with."""
        return b"" if self.database is None else self.database.secret

    def problems(self) -> Iterable[str]:
        """Say, in words, what keeps the gateway from paying now."""
        if self.trouble is not None:
            yield f"the journal cannot be written: {self.trouble}"

    async def receipt(self, job_id: bytes, key_id: str) -> Mapping[str, object] | None:
        """Give the receipt of a job that this credential bought."""
        if self.books is None:
            return None
        record = await self.books.purchase(job_id)
        if record is None or record.key_id != key_id or record.kind != ProviderSource.LCP:
            # A node gives no invoice, and so nothing that a receipt could prove.
            return None
        # Few ask for one, so what makes it is loaded with the first.
        from lcp_gateway.lightning.receipts import document  # noqa: PLC0415 - see above
        from lcp_gateway.store.journal.receipts import receipt_of  # noqa: PLC0415 - see above

        return document(receipt_of(record, await self.books.steps(job_id)))


@contextlib.asynccontextmanager
async def open_ledgers(
    settings: Settings, metrics: Metrics, start_task: StartTask, log: FilteringBoundLogger
) -> AsyncIterator[Ledgers]:
    """Open the journal, bring its tables up to date, and turn what a dead gateway left paying into unknown.

    ``start_task`` starts the task that writes it.

    Raises:
        WiringError: it cannot be opened.
    """
    place = journal_place(settings)
    if place is None:
        log.warning("the journal is off: after a crash nobody knows what was paid")
        yield Ledgers(NullJournal())
        return
    try:
        database = await open_database(place)
        now = datetime.now(UTC)
        limits = refund_limits(settings)
        swept = await sweep(database, now, limits)
        # Nobody asks for these any more: what they came to would not be stored either.
        await BackgroundRows(database).forget_older(now - timedelta(seconds=settings.stored_for_s))
    except (DatabaseUnavailable, BadDatabaseUrl, TooNew) as error:
        raise WiringError(f"the journal cannot be used: {error}") from error
    if database.replaced is not None:
        log.error("the journal is another one than before", problem=database.replaced)
    refunds = RefundObserver(metrics, log)
    record_swept(swept, metrics, refunds, log)

    def report(problem: JournalProblem) -> None:
        job_id = problem.job_id.hex() if problem.job_id else ""
        tell = log.error if problem.kind in _GRAVE else log.info
        tell("journal", problem=problem.kind.value, detail=problem.detail, job_id=job_id)

    stored = JournalWriter(
        database, on_problem=report, on_commit=metrics.journal_commit, on_refund=refunds
    )
    stored.refunds = limits
    ledgers = Ledgers(stored, Books(database), database, stored, refund_notes=refunds)
    # Asked at each scrape: what reads the books may itself be waiting for the database.
    metrics.watch_journal(lambda: ledgers.trouble is not None)
    stored.start(start_task)
    try:
        yield ledgers
    finally:
        await stored.close()
        await database.close()


def refund_limits(settings: Settings) -> RefundLimits:
    """What the settings say may be given back in a day."""
    return RefundLimits(settings.refund_account_day_msat, settings.refund_day_msat)


class RefundObserver:
    """Counts and logs what became of charges that were to be given back."""

    def __init__(self, metrics: Metrics, log: FilteringBoundLogger) -> None:
        self._metrics = metrics
        self._log = log

    def __call__(self, decision: RefundDecision) -> None:
        """Note one."""
        self._metrics.refund(decision.refund.value, decision.amount_msat)
        if decision.refund is Refund.DENIED:
            # It was left out while it was to be given back.
            self._metrics.charged(decision.amount_msat)
        if decision.refund is Refund.WITHHELD:
            self._log.warning(
                "a refund is withheld: a limit is reached",
                job_id=decision.job_id.hex(),
                account_id=decision.account_id,
                amount_msat=decision.amount_msat,
            )


def record_swept(
    swept: SweepResult, metrics: Metrics, refunds: RefundObserver | None, log: FilteringBoundLogger
) -> None:
    """Count and log what a sweep found."""
    if len(swept):
        log.warning(
            "purchases of a gateway that ended were moved on",
            unknown=swept.unknown,
            undelivered=len(swept.lost),
        )
    for lost in swept.lost:
        metrics.undelivered(lost.peer_id, lost.price_msat)
    if refunds is not None:
        for decision in swept.refunds:
            refunds(decision)


async def remember_peers(ledgers: Ledgers, standings: PeerTrust) -> None:
    """Begin with what the journal knows of the peers, so that a restart forgives nobody."""
    if ledgers.books is None:
        return
    try:
        unknown: dict[str, dict[bytes, int]] = {}
        for record in await ledgers.books.unknowns(limit=_ALL_OPEN):
            unknown.setdefault(record.peer_id, {})[record.job_id] = record.price_msat
        now, books = datetime.now(UTC), ledgers.books
        recent, today = [
            {peer.peer_id: peer.lost_msat for peer in await books.peers(since=now - age)}
            for age in (_LOSSES_COUNT_FOR, _A_DAY)
        ]
        standings.load(
            PeerHistory(
                peer.peer_id,
                delivered_msat=peer.delivered_msat,
                delivered_count=peer.delivered,
                undelivered_msat=recent.get(peer.peer_id, 0),
                lost_today_msat=today.get(peer.peer_id, 0),
                unknown=unknown.get(peer.peer_id, {}),
            )
            for peer in await ledgers.books.peers()
        )
    except DatabaseUnavailable as error:
        raise WiringError(f"the journal cannot be read: {error}") from error


def book_tasks(
    ledgers: Ledgers,
    budgets: Callable[[], Iterable[Budget]],
    standings: PeerTrust,
    metrics: Metrics,
    log: FilteringBoundLogger,
) -> Iterable[BackgroundTask]:
    """Yield what has to run for the journal, where there is one."""
    books, database, stored = ledgers.books, ledgers.database, ledgers.stored
    if books is None or database is None or stored is None:
        return
    yield BackgroundTask("owner_lock", lambda: _keep_alive(database, stored, log))
    yield BackgroundTask(
        "sweep", lambda: _sweep(ledgers, database, stored, standings, metrics, log)
    )
    yield BackgroundTask("books", lambda: _watch_books(books, budgets, metrics))


async def _keep_alive(database: Database, stored: JournalWriter, log: FilteringBoundLogger) -> None:
    """Show other gateways that this one lives, until cancelled: what a dead one has under way they end and refund."""
    while True:
        try:
            if await database.keep_alive():
                log.warning(
                    "the database session that shows that this gateway lives was lost and replaced"
                )
        except DatabaseUnavailable as error:
            stored.suspect(error.reason)
        await asyncio.sleep(_BEAT_S)


async def _sweep(
    ledgers: Ledgers,
    database: Database,
    stored: JournalWriter,
    standings: PeerTrust,
    metrics: Metrics,
    log: FilteringBoundLogger,
) -> None:
    """Move on what gateways that ended left behind, and remove old repeat keys, until cancelled."""
    while True:
        now = datetime.now(UTC)
        try:
            swept = await sweep(database, now, ledgers.refund_limits)
            record_swept(swept, metrics, ledgers.refund_notes, log)
            for state, found in (
                (State.UNKNOWN, swept.unsettled),
                (State.UNDELIVERED, swept.lost),
            ):
                for one in found:
                    standings.resolved(one.peer_id, one.job_id, one.price_msat, state)
            for _ in range(_MOST_CHUNKS):
                if not await forget_repeat_keys(database, now):
                    break
        except DatabaseUnavailable as error:
            # While no request comes this is the first write to find out, and `/readyz` has to say so.
            stored.suspect(error.reason)
        await asyncio.sleep(_SWEEP_S)


async def _watch_books(
    books: Books, budgets: Callable[[], Iterable[Budget]], metrics: Metrics
) -> None:
    """Keep the gauges of what is open and what is left of the budgets true, until cancelled."""
    while True:
        with contextlib.suppress(DatabaseUnavailable):
            now = datetime.now(UTC)
            outstanding = await books.outstanding()
            oldest = outstanding.oldest_at
            metrics.outstanding(
                outstanding.unknown_msat,
                outstanding.unknown,
                0.0 if oldest is None else (now - oldest).total_seconds(),
            )
            for peer in await books.peers():
                metrics.peer_undelivered_msat(peer.peer_id, peer.lost_msat)
            metrics.refunds_withheld(*await books.withheld())
            found = await books.budgets(tuple(budgets()), now)
            for state in found:
                metrics.budget(state.budget.period.value, state.budget.limit_msat, state.spent_msat)
            for period in set(Period).difference(state.budget.period for state in found):
                # There may have been one, before the settings were changed.
                metrics.budget(period.value, 0, 0)
        await asyncio.sleep(_WATCH_S)
