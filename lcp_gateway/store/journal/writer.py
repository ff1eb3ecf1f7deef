"""The journal's writer task: everything that waits is written together, in one transaction and one commit."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from time import monotonic
from typing import TypeAlias

from sqlalchemy.exc import IntegrityError

from lcp_gateway.purchase.errors import Refused
from lcp_gateway.purchase.journal import EarlierPurchase, Intent, JournalUnavailable, PurchaseUpdate
from lcp_gateway.purchase.money import NO_REFUND_LIMITS, Budget, Refund, RefundDecision
from lcp_gateway.purchase.ports import StartTask, start_unsupervised
from lcp_gateway.purchase.states import State
from lcp_gateway.store.accounts.balances import LARGEST_AMOUNT
from lcp_gateway.store.database.engines import Database, DatabaseUnavailable
from lcp_gateway.store.journal.repeats import find_job
from lcp_gateway.store.journal.transaction import (
    NOTHING_NEW,
    IntentEntry,
    JournalProblem,
    JournalProblemKind,
    JournalTransaction,
    NoteEntry,
    TransactionResult,
    write_for_nothing,
)


@dataclass(slots=True, eq=False)
class _Waiting:
    """An intent whose caller waits. ``since`` is by the monotonic clock; ``collided`` says that its repeat key was taken."""

    entry: IntentEntry
    done: asyncio.Future[None]
    since: float
    collided: bool = False


_Item: TypeAlias = _Waiting | NoteEntry


@dataclass(frozen=True, slots=True)
class JournalLimits:
    """What bounds the journal's waiting and its memory.

    ``wait_s`` is how long an intent may wait for its commit, ``close_s`` how long the notes may at the end.
    ``retry_s`` and ``retry_most_s`` are the first and the longest pause between tries to write notes while the database
    is away. ``note_s`` is how long the note of a good delivery may wait for an intent to share its commit.
    """

    wait_s: float = 5.0
    close_s: float = 5.0
    retry_s: float = 0.1
    retry_most_s: float = 2.0
    note_s: float = 0.01
    intents: int = 1_024
    notes: int = 100_000
    batch: int = 128


DEFAULT_LIMITS = JournalLimits()

# What follows an intent when all goes well: should it be lost in a crash, evidence tells it again.
_CAN_WAIT = frozenset({State.SETTLED, State.DELIVERED})


def _ignore_commit(_entries: int, _seconds: float) -> None:
    """Nobody measures."""


def _ignore_refund(_decision: RefundDecision) -> None:
    """Nothing is counted."""


class JournalWriter:
    """A ``PurchaseJournal`` in a database.

    While one transaction is being committed, what comes meanwhile gathers for the next: many purchases share a commit,
    and a single one waits for no other. Notes of good deliveries, for which no caller waits, are written with the next
    intent, or a few milliseconds later. To be used on one event loop: ``start`` it there, and ``close`` it at the end.

    ``on_problem`` hears of what nobody waits for, ``on_refund`` of each charge that was given back or withheld, by
    ``refunds``. ``on_commit`` is given the number of entries and the seconds that each transaction took.
    """

    def __init__(
        self,
        database: Database,
        *,
        on_problem: Callable[[JournalProblem], None],
        on_commit: Callable[[int, float], None] = _ignore_commit,
        on_refund: Callable[[RefundDecision], None] = _ignore_refund,
        limits: JournalLimits = DEFAULT_LIMITS,
    ) -> None:
        self._database = database
        self._on_refund = on_refund
        self.refunds = NO_REFUND_LIMITS
        self._on_problem = on_problem
        self._on_commit = on_commit
        self._limits = limits
        self._queue: deque[_Item] = deque()
        self._overdue: deque[_Waiting] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._notes = 0
        self._intents = 0
        self._numbers = 0
        self._singly = 0
        self._wake = asyncio.Event()
        self._notes_due: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._trouble: str | None = None

    @property
    def trouble(self) -> str | None:
        """Why the journal cannot be written at present; None where the last try went well."""
        return self._trouble

    def start(self, start_task: StartTask = start_unsupervised) -> None:
        """Begin to write, on the running event loop. The task returns once the journal is closed."""
        self._task = start_task(self._run, may_return=lambda: self._closing)

    async def close(self) -> None:
        """Write what waits, within bounds. What cannot be written is reported, note by note."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=self._limits.close_s)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for timer in (self._timer, self._notes_due):
            if timer is not None:
                timer.cancel()
        for item in self._queue:
            if isinstance(item, _Waiting):
                _refuse(item, JournalUnavailable("the journal is closed; nothing was paid"))
            else:
                self._lose(item, "the journal was closed")
        self._queue.clear()

    def suspect(self, reason: str) -> None:
        """Take the word of another writer that the database cannot be written, and find out when it can be again.

        So that a gateway without requests is not taken for one that can pay.
        """
        if self._trouble is None and not self._closing:
            self._trouble = reason
            self._tell(JournalProblem(JournalProblemKind.UNAVAILABLE, reason))
            self._wake.set()

    async def intend(self, intent: Intent, budgets: Sequence[Budget] = ()) -> None:
        """Reserve the amount in every budget and write the intent; durable when this returns.

        Raises:
            BudgetExceeded: a budget has no room; nothing was written.
            InsufficientBalance: the account cannot pay the charge; nothing was written.
            DuplicateIntent: the journal has an intent for this job.
            RequestRepeated: the journal has a purchase of the same request.
            JournalUnavailable: it cannot be made durable, or not in time; nothing is to be paid.
        """
        quote = intent.quote
        if any(budget.key_id not in {None, intent.key_id} for budget in budgets):
            raise ValueError("a budget of another key")
        if self._closing or self._task is None or self._task.done():
            raise JournalUnavailable("the journal is closed; nothing was paid", quote=quote)
        if self._intents >= self._limits.intents or self._notes >= self._limits.notes:
            raise JournalUnavailable(
                "too much waits for the journal; nothing was paid", quote=quote
            )
        charge_msat = intent.charge.amount_msat if intent.charge is not None else 0
        if any(
            not 0 <= amount_msat < LARGEST_AMOUNT
            for amount_msat in (quote.price_msat, intent.fee_cap_msat, charge_msat)
        ):
            raise JournalUnavailable("an amount that nobody has; nothing was paid", quote=quote)
        self._numbers += 1
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(IntentEntry(self._numbers, intent, budgets), done, monotonic())
        self._intents += 1
        self._queue.append(waiting)
        self._overdue.append(waiting)
        if self._timer is None:
            self._timer = done.get_loop().call_later(self._limits.wait_s, self._give_up)
        self._wake.set()
        # A caller that leaves cancels the future; the writer sees that and takes the intent back.
        await done

    async def find(self, job_id: bytes) -> EarlierPurchase | None:
        """Return the purchase of a job, or None where the journal has none.

        Raises:
            JournalUnavailable: the journal cannot be read.
        """
        try:
            return await self._database.read(lambda connection: find_job(connection, job_id))
        except DatabaseUnavailable as error:
            raise JournalUnavailable(f"the journal cannot be read ({error.reason})") from error

    def note(
        self,
        job_id: bytes,
        state: State,
        at: datetime,
        learnt: PurchaseUpdate = NOTHING_NEW,
        on_refund: Callable[[Refund], None] | None = None,
    ) -> None:
        """Write a later state soon, in order; ``not_paid`` gives its reservation back.

        ``on_refund`` hears, once it is durable, whether a charge that is to be given back was.
        """
        self._add(NoteEntry(job_id, state, at, learnt, on_refund=on_refund))

    def learn(self, job_id: bytes, at: datetime, learnt: PurchaseUpdate) -> None:
        """Write what became known of a purchase without its state changing: its real fee, say."""
        self._add(NoteEntry(job_id, None, at, learnt))

    def _add(self, note: NoteEntry) -> None:
        if self._closing and (self._task is None or self._task.done()):
            self._lose(note, "the journal is closed")
        elif self._notes >= self._limits.notes:
            self._lose(note, "too many notes wait")
        else:
            self._notes += 1
            self._queue.append(note)
            if note.state not in _CAN_WAIT or note.on_refund is not None or self._closing:
                self._wake.set()
            elif self._notes_due is None:
                loop = asyncio.get_running_loop()
                self._notes_due = loop.call_later(self._limits.note_s, self._write_notes)

    def _write_notes(self) -> None:
        self._notes_due = None
        self._wake.set()

    async def _run(self) -> None:
        pause_s = self._limits.retry_s
        while True:
            notes, intents = self._take()
            if not notes and not intents:
                if self._closing:
                    return
                if self._trouble is not None:
                    await self._pause(self._limits.retry_most_s)
                    await self._probe()
                    continue
                self._wake.clear()
                await self._wake.wait()
                continue
            unavailable = await self._write(notes, intents)
            if unavailable is None:
                pause_s = self._limits.retry_s
                if self._trouble is not None:
                    self._trouble = None
                    self._tell(
                        JournalProblem(JournalProblemKind.AVAILABLE, "the journal can be written")
                    )
                continue
            if self._trouble is None:
                self._tell(JournalProblem(JournalProblemKind.UNAVAILABLE, unavailable.reason))
            self._trouble = unavailable.reason
            self._turn_away(unavailable)
            if self._queue:
                await self._pause(pause_s)
                pause_s = min(pause_s * 2, self._limits.retry_most_s)

    async def _probe(self) -> None:
        """Find out whether the database can be written again while nobody writes, so that it is told to who waits."""
        if self._queue:
            return
        with suppress(DatabaseUnavailable):
            await self._database.write(write_for_nothing)
            self._trouble = None
            self._tell(JournalProblem(JournalProblemKind.AVAILABLE, "the journal can be written"))

    def _turn_away(self, unavailable: DatabaseUnavailable) -> None:
        """Refuse the intents that came during a try that failed: nobody waits behind notes for the next."""
        intents = [item for item in self._queue if isinstance(item, _Waiting)]
        if intents:
            self._queue = deque(item for item in self._queue if isinstance(item, NoteEntry))
            self._put_back([], intents, DatabaseUnavailable(unavailable.reason))

    async def _pause(self, seconds: float) -> None:
        """Wait before the next try; somebody who comes meanwhile is told at once how it stands."""
        self._wake.clear()
        loop = asyncio.get_running_loop()
        timer = loop.call_later(seconds, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()

    def _take(self) -> tuple[list[NoteEntry], list[_Waiting]]:
        """Take what waits, in order, up to a note whose intent is in the same batch."""
        notes: list[NoteEntry] = []
        intents: list[_Waiting] = []
        jobs: set[bytes] = set()
        at_most = 1 if self._singly else self._limits.batch
        while self._queue and len(notes) + len(intents) < at_most:
            item = self._queue[0]
            if isinstance(item, NoteEntry):
                if item.job_id in jobs:
                    break
                notes.append(item)
            elif item.done.done():
                # Its caller left, or waited too long: it was not written and will not be.
                self._intents -= 1
            else:
                intents.append(item)
                jobs.add(item.entry.intent.quote.job_id)
            self._queue.popleft()
            self._singly = max(0, self._singly - 1)
        return notes, intents

    async def _write(
        self, notes: list[NoteEntry], intents: list[_Waiting]
    ) -> DatabaseUnavailable | None:
        batch = JournalTransaction(
            self._database.owner, notes, [waiting.entry for waiting in intents], self.refunds
        )
        begun = monotonic()
        try:
            outcome = await self._database.write(batch.write)
        except DatabaseUnavailable as unavailable:
            self._put_back(notes, intents, unavailable)
            return unavailable
        except asyncio.CancelledError:
            self._put_back(notes, intents, DatabaseUnavailable("it was closed", unsure=True))
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, one entry caused it, and must not take the others along
            self._single_out(notes, intents, error)
            return None
        with suppress(Exception):
            self._on_commit(len(notes) + len(intents), monotonic() - begun)
        self._finish(notes, intents, outcome)
        return None

    def _single_out(
        self, notes: list[NoteEntry], intents: list[_Waiting], error: Exception
    ) -> None:
        """Have the entries of a failed batch written each by itself: only the one that caused it fails."""
        if len(notes) + len(intents) > 1:
            self._queue.extendleft(reversed([*notes, *intents]))
            self._singly = len(notes) + len(intents)
            return
        if intents and isinstance(error, IntegrityError) and not intents[0].collided:
            # Another process wrote an intent for the same request at the same time: now it is found.
            intents[0].collided = True
            self._queue.extendleft(intents)
            self._singly = 1
            return
        # The kind of error only: its text may quote the values.
        reason = f"the journal refused the entry ({type(error).__name__})"
        self._notes -= len(notes)
        self._intents -= len(intents)
        for note in notes:
            self._tell(
                JournalProblem(JournalProblemKind.NOTE_REFUSED, reason, note.job_id, note.state)
            )
        for waiting in intents:
            _refuse(waiting, JournalUnavailable(f"{reason}; nothing was paid"))

    def _finish(
        self, notes: list[NoteEntry], intents: list[_Waiting], outcome: TransactionResult
    ) -> None:
        self._notes -= len(notes)
        self._intents -= len(intents)
        for waiting, refusal in zip(intents, outcome.refusals, strict=True):
            if refusal is not None:
                _refuse(waiting, refusal)
            elif waiting.done.done():
                self._withdraw(waiting)
            else:
                waiting.done.set_result(None)
        while self._overdue and self._overdue[0].done.done():
            self._overdue.popleft()
        for problem in outcome.problems:
            self._tell(problem)
        if outcome.refunds:
            self._tell_refunds(notes, outcome.refunds)

    def _put_back(
        self, notes: list[NoteEntry], intents: list[_Waiting], unavailable: DatabaseUnavailable
    ) -> None:
        """Keep the notes for the next try, in their order; the intents are refused."""
        self._queue.extendleft(reversed(notes))
        self._intents -= len(intents)
        for waiting in intents:
            if unavailable.unsure:
                self._withdraw(waiting)
            _refuse(
                waiting,
                JournalUnavailable(
                    f"the journal cannot be written ({unavailable.reason}); nothing was paid"
                ),
            )

    def _withdraw(self, waiting: _Waiting) -> None:
        """Take back an intent that was written, or may have been, though its caller was not told so and did not pay."""
        intent = waiting.entry.intent
        self._add(
            NoteEntry(
                intent.quote.job_id, State.NOT_PAID, intent.at, withdraws=waiting.entry.number
            )
        )

    def _lose(self, note: NoteEntry, why: str) -> None:
        if note.withdraws is None:
            self._tell(JournalProblem(JournalProblemKind.NOTE_LOST, why, note.job_id, note.state))

    def _tell(self, problem: JournalProblem) -> None:
        # An error in somebody's ear must not stop the pen.
        with suppress(Exception):
            self._on_problem(problem)

    def _tell_refunds(
        self, notes: Sequence[NoteEntry], decisions: Sequence[RefundDecision]
    ) -> None:
        listening = {note.job_id: note.on_refund for note in notes if note.on_refund is not None}
        for decision in decisions:
            with suppress(Exception):
                self._on_refund(decision)
            if (hear := listening.get(decision.job_id)) is not None:
                with suppress(Exception):
                    hear(decision.refund)

    def _give_up(self) -> None:
        """Refuse the intents that waited too long; one timer serves them all."""
        self._timer = None
        now = monotonic()
        while self._overdue:
            oldest = self._overdue[0]
            left_s = oldest.since + self._limits.wait_s - now
            if not oldest.done.done() and left_s > 0:
                self._timer = oldest.done.get_loop().call_later(left_s, self._give_up)
                return
            self._overdue.popleft()
            _refuse(oldest, JournalUnavailable("the journal took too long; nothing was paid"))


def _refuse(waiting: _Waiting, refusal: Refused) -> None:
    if not waiting.done.done():
        refusal.quote = waiting.entry.intent.quote
        waiting.done.set_exception(refusal)


class NullJournal:
    """A ``PurchaseJournal`` that writes nothing and keeps no budget: budgets need a journal that is on."""

    async def intend(self, intent: Intent, budgets: Sequence[Budget] = ()) -> None:
        """Let it be paid."""

    async def find(self, job_id: bytes) -> EarlierPurchase | None:  # noqa: ARG002 - the protocol's signature
        """Return None: nothing is known."""
        return None

    def note(
        self,
        job_id: bytes,
        state: State,
        at: datetime,
        learnt: PurchaseUpdate = NOTHING_NEW,
        on_refund: Callable[[Refund], None] | None = None,
    ) -> None:
        """Forget it."""
