"""The journal as the settings say, its tasks, and the histories of peers that it holds."""

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from structlog.typing import FilteringBoundLogger

from lcp_gateway.app import workers
from lcp_gateway.app.background_tasks import BackgroundTask
from lcp_gateway.app.wiring import WiringError
from lcp_gateway.config import Settings, journal_place
from lcp_gateway.purchase.journal import PurchaseJournal
from lcp_gateway.purchase.money import NO_REFUND_LIMITS, Budget, RefundDecision, RefundLimits
from lcp_gateway.purchase.ports import StartTask
from lcp_gateway.purchase.records import PurchaseRecord, Resolutions
from lcp_gateway.purchase.states import State
from lcp_gateway.routing.peer_models import LISTS_NO_MODELS, PeerModels
from lcp_gateway.routing.peer_trust import LOSSES_COUNT_FOR, PeerHistory, PeerTrust
from lcp_gateway.store.background_responses import BackgroundRows
from lcp_gateway.store.database.engines import BadDatabaseUrl, Database, DatabaseUnavailable, open_database
from lcp_gateway.store.database.schema import TooNew
from lcp_gateway.store.journal.queries import Books
from lcp_gateway.store.journal.recovery import SweepResult, sweep
from lcp_gateway.store.journal.resolutions import ManualResolutions
from lcp_gateway.store.journal.transaction import JournalProblem
from lcp_gateway.store.journal.writer import JournalWriter, NullJournal
from lcp_gateway.telemetry.metrics import Metrics
from lcp_gateway.telemetry.observers import RefundObserver, record_resolution

_ALL_OPEN = 10_000


@dataclass(slots=True)
class JournalParts:
    """The journal and the queries of it; without a journal, the null journal.

    ``network`` is the prefix of the invoices that lnd pays, once lnd has been asked. ``on_refund`` gets every decision
    about a refund.
    """

    purchases: PurchaseJournal
    books: Books | None = None
    database: Database | None = None
    writer: JournalWriter | None = None
    network: str | None = None
    on_refund: Callable[[RefundDecision], None] = lambda _decision: None

    @property
    def refund_limits(self) -> RefundLimits:
        """The refunds that need no decision of the operator."""
        return NO_REFUND_LIMITS if self.writer is None else self.writer.refunds

    def use(self, settings: Settings) -> None:
        """Refund within other limits from now on."""
        if self.writer is not None:
            self.writer.refunds = refund_limits(settings)

    @property
    def trouble(self) -> str | None:
        """Why the journal cannot be written, or is not the one that was opened; None where all is well."""
        found = None if self.writer is None else self.writer.trouble
        return found or (None if self.database is None else self.database.trouble)

    @property
    def repeat_secret(self) -> bytes:
        """The secret with which repeat keys are hashed."""
        return b"" if self.database is None else self.database.secret

    def problems(self) -> Iterable[str]:
        """Yield the reason why the gateway cannot pay now, if there is one."""
        if self.trouble is not None:
            yield f"the journal cannot be written: {self.trouble}"


def write_receipt(record: PurchaseRecord) -> Mapping[str, object]:
    """Return the receipt of a purchase from a peer."""
    # Loaded with the first request: few clients ask for receipts.
    from lcp_gateway.lightning.receipts import document  # noqa: PLC0415 - see above
    from lcp_gateway.store.journal.receipts import receipt_of  # noqa: PLC0415 - see above

    return document(receipt_of(record))


def manual_resolutions(
    journal: JournalParts, trust: PeerTrust, metrics: Metrics, log: FilteringBoundLogger
) -> Resolutions | None:
    """Return the recorder of an operator's decisions on unknown payments; None without a journal."""
    if journal.database is None or journal.books is None:
        return None

    def resolved(record: PurchaseRecord, state: State) -> None:
        bought = record.peer_id, record.price_msat
        record_resolution(metrics, trust, log, job_id=record.job_id, state=state, evidence="operator", bought=bought)

    return ManualResolutions(
        journal.database,
        journal.books,
        refund_limits=lambda: journal.refund_limits,
        on_refund=journal.on_refund,
        on_resolved=resolved,
    )


@contextlib.asynccontextmanager
async def open_journal(
    settings: Settings, metrics: Metrics, start_task: StartTask, log: FilteringBoundLogger
) -> AsyncIterator[JournalParts]:
    """Open the journal, bring its tables up to date, and move on the purchases of gateways that ended.

    ``start_task`` starts the task that writes it.

    Raises:
        WiringError: it cannot be opened.
    """
    place = journal_place(settings)
    if place is None:
        log.warning("the journal is off: after a crash it is unknown what was paid")
        yield JournalParts(NullJournal())
        return
    try:
        database = await open_database(place)
        now = datetime.now(UTC)
        limits = refund_limits(settings)
        swept = await sweep(database, now, limits)
        # Older responses would have been dropped from the store by now.
        await BackgroundRows(database).forget_older(now - timedelta(seconds=settings.stored_for_s))
    except (DatabaseUnavailable, BadDatabaseUrl, TooNew) as error:
        raise WiringError(f"the journal cannot be used: {error}") from error
    if database.replaced is not None:
        log.error("the journal is another one than before", problem=database.replaced)
    refunds = RefundObserver(metrics, log)
    record_swept(swept, metrics, refunds, log)

    def report(problem: JournalProblem) -> None:
        job_id = problem.job_id.hex() if problem.job_id else ""
        write = log.error if problem.kind.is_grave else log.info
        write("journal", problem=problem.kind.value, detail=problem.detail, job_id=job_id)

    writer = JournalWriter(
        database,
        on_problem=report,
        on_commit=metrics.journal_commit,
        on_refund=refunds,
        on_earning=lambda it: metrics.earning(it.earned_msat, it.commission_msat),
    )
    writer.refunds = limits
    journal = JournalParts(writer, Books(database), database, writer, on_refund=refunds)
    # Read at each scrape: the task that reads the books may itself wait for the database.
    metrics.watch_journal(lambda: journal.trouble is not None)
    writer.start(start_task)
    try:
        yield journal
    finally:
        await writer.close()
        await database.close()


def refund_limits(settings: Settings) -> RefundLimits:
    """Return the limits of refunds a day."""
    return RefundLimits(settings.refund_account_day_msat, settings.refund_day_msat)


def record_swept(
    swept: SweepResult, metrics: Metrics, on_refund: Callable[[RefundDecision], None], log: FilteringBoundLogger
) -> None:
    """Count and log the result of a sweep."""
    if len(swept):
        log.warning(
            "purchases of a gateway that ended were moved on", unknown=swept.unknown, undelivered=len(swept.lost)
        )
    for lost in swept.lost:
        metrics.undelivered(lost.peer_id, lost.price_msat)
    for decision in swept.refunds:
        on_refund(decision)


async def load_trust(journal: JournalParts, trust: PeerTrust) -> None:
    """Load the peers' histories from the journal, so that a restart does not forgive losses.

    Raises:
        WiringError: the journal cannot be read.
    """
    books = journal.books
    if books is None:
        return
    now = datetime.now(UTC)
    try:
        unknown: dict[str, dict[bytes, int]] = {}
        for record in await books.unknowns(limit=_ALL_OPEN):
            unknown.setdefault(record.peer_id, {})[record.job_id] = record.price_msat
        recent, today = [
            {peer.peer_id: peer.lost_msat for peer in await books.peers(since=now - age)}
            for age in (LOSSES_COUNT_FOR, timedelta(days=1))
        ]
        peers = await books.peers()
    except DatabaseUnavailable as error:
        raise WiringError(f"the journal cannot be read: {error}") from error
    trust.load(
        PeerHistory(
            peer.peer_id,
            delivered_msat=peer.delivered_msat,
            delivered_count=peer.delivered,
            undelivered_msat=recent.get(peer.peer_id, 0),
            lost_today_msat=today.get(peer.peer_id, 0),
            unknown=unknown.get(peer.peer_id, {}),
        )
        for peer in peers
    )


async def load_peer_models(journal: JournalParts, models: PeerModels) -> None:
    """Load the models that peers which list none have delivered before.

    Raises:
        WiringError: the journal cannot be read.
    """
    if journal.books is None:
        return
    try:
        for peer_id, kind, model in await journal.books.models_of_peers(LISTS_NO_MODELS):
            models.bought(peer_id, kind, model)
    except DatabaseUnavailable as error:
        raise WiringError(f"the journal cannot be read: {error}") from error


def journal_tasks(
    journal: JournalParts,
    budgets: Callable[[], Iterable[Budget]],
    trust: PeerTrust,
    metrics: Metrics,
    log: FilteringBoundLogger,
) -> Iterable[BackgroundTask]:
    """Yield the tasks that have to run for the journal, where there is one."""
    books, database, writer = journal.books, journal.database, journal.writer
    if books is None or database is None or writer is None:
        return

    def on_swept(swept: SweepResult) -> None:
        record_swept(swept, metrics, journal.on_refund, log)
        for state, found in ((State.UNKNOWN, swept.unsettled), (State.UNDELIVERED, swept.lost)):
            for one in found:
                trust.resolved(one.peer_id, one.job_id, one.price_msat, state)

    yield BackgroundTask("owner_lock", lambda: workers.keep_alive(database, writer, log))
    yield BackgroundTask(
        "sweep",
        lambda: workers.sweep_regularly(database, writer, limits=lambda: journal.refund_limits, on_swept=on_swept),
    )
    yield BackgroundTask("books", lambda: workers.measure_books(books, budgets, metrics))
