"""The journal's writer task: all entries that wait are written together, in one transaction and one commit."""

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from time import monotonic
from typing import TypeAlias

from sqlalchemy.exc import IntegrityError

from lcp_gateway.purchase.errors import Refused
from lcp_gateway.purchase.journal import NOTHING_NEW, EarlierPurchase, Intent, JournalUnavailable, PurchaseUpdate
from lcp_gateway.purchase.money import NO_REFUND_LIMITS, Budget, Refund, RefundDecision
from lcp_gateway.purchase.ports import StartTask, start_unsupervised
from lcp_gateway.purchase.quote import Earning
from lcp_gateway.purchase.states import State
from lcp_gateway.store.accounts.balances import LARGEST_AMOUNT
from lcp_gateway.store.database.engines import Database, DatabaseUnavailable
from lcp_gateway.store.journal.repeats import find_job
from lcp_gateway.store.journal.transaction import (
    IntentEntry,
    JournalProblem,
    JournalProblemKind,
    JournalTransaction,
    TransactionResult,
    UpdateEntry,
    write_probe,
)


@dataclass(slots=True, eq=False)
class _Waiting:
    """An intent whose caller waits. ``since`` is by the monotonic clock.

    ``collided`` says that a job or a repeat key of its transaction was known: the next try looks for them.
    """

    entry: IntentEntry
    done: asyncio.Future[None]
    since: float
    collided: bool = False


_Item: TypeAlias = _Waiting | UpdateEntry


@dataclass(frozen=True, slots=True)
class JournalLimits:
    """Bounds of the journal's waiting and its memory.

    ``wait_s`` is how long an intent may wait for its commit, ``close_s`` how long the updates may at the end.
    ``retry_s`` and ``retry_most_s`` are the first and the longest pause between tries to write updates while the database
    is unavailable. ``update_s`` is how long the update of a good delivery may wait for an intent to share its commit: a
    client that asks again within that time costs one commit a purchase, not two.
    """

    wait_s: float = 5.0
    close_s: float = 5.0
    retry_s: float = 0.1
    retry_most_s: float = 2.0
    update_s: float = 0.05
    intents: int = 1_024
    updates: int = 100_000
    batch: int = 128


DEFAULT_LIMITS = JournalLimits()

# Of both kinds of database: SQLite's driver is called directly.
_COLLISIONS = (IntegrityError, sqlite3.IntegrityError)

# The states of a purchase that goes well: after a crash that loses one, evidence shows it again.
_CAN_WAIT = frozenset({State.SETTLED, State.DELIVERED})


class JournalWriter:
    """A ``PurchaseJournal`` in a database.

    While one transaction is being committed, new entries gather for the next: many purchases share a commit, and a
    single one waits for no other. Updates of good deliveries, for which no caller waits, are written with the next
    intent, or 50 ms later. To be used on one event loop: ``start`` it there, and ``close`` it at the end.

    ``on_problem`` is called with each problem that no caller waits for, ``on_refund`` with each charge that was refunded
    or withheld by the limits in ``refunds``, ``on_earning`` with what each node of an account earned, ``on_commit`` with the entries and the seconds of each transaction.
    """

    def __init__(
        self,
        database: Database,
        *,
        on_problem: Callable[[JournalProblem], None],
        on_commit: Callable[[int, float], None] = lambda _entries, _seconds: None,
        on_refund: Callable[[RefundDecision], None] = lambda _decision: None,
        on_earning: Callable[[Earning], None] = lambda _earning: None,
        limits: JournalLimits = DEFAULT_LIMITS,
    ) -> None:
        self._database = database
        self._on_refund = on_refund
        self._on_earning = on_earning
        self.refunds = NO_REFUND_LIMITS
        self._on_problem = on_problem
        self._on_commit = on_commit
        self._limits = limits
        self._queue: deque[_Item] = deque()
        self._overdue: deque[_Waiting] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._updates = 0
        self._intents = 0
        self._numbers = 0
        self._singly = 0
        self._wake = asyncio.Event()
        self._updates_due: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._trouble: str | None = None

    @property
    def trouble(self) -> str | None:
        """Why the journal cannot be written at present; None where the last try went well."""
        return self._trouble

    def start(self, start_task: StartTask = start_unsupervised) -> None:
        """Start the writer task on the running event loop. It returns once the journal is closed."""
        self._task = start_task(self._run, may_return=lambda: self._closing)

    async def close(self) -> None:
        """Write the entries that wait, for at most ``close_s``; report each update that cannot be written."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=self._limits.close_s)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for timer in (self._timer, self._updates_due):
            if timer is not None:
                timer.cancel()
        for item in self._queue:
            if isinstance(item, _Waiting):
                _refuse(item, JournalUnavailable("the journal is closed; nothing was paid"))
            else:
                self._lose(item, "the journal was closed")
        self._queue.clear()

    def suspect(self, reason: str) -> None:
        """Record another writer's error, and probe until the database can be written again.

        Otherwise a gateway without requests would still report that it can pay.
        """
        if self._trouble is None and not self._closing:
            self._set_trouble(reason)
            self._wake.set()

    def _set_trouble(self, reason: str | None) -> None:
        """Change ``trouble``; report when it begins and when it ends."""
        before, self._trouble = self._trouble, reason
        if reason is not None and before is None:
            self._report(JournalProblem(JournalProblemKind.UNAVAILABLE, reason))
        elif reason is None and before is not None:
            self._report(JournalProblem(JournalProblemKind.AVAILABLE, "the journal can be written"))

    async def intend(self, intent: Intent, budgets: Sequence[Budget] = ()) -> None:
        """Reserve the amount in every budget and write the intent; durable when this returns.

        Raises:
            Refused: as ``PurchaseJournal`` says; ``JournalUnavailable`` also where it is not durable in time.
        """
        quote = intent.quote
        if budgets and any(budget.key_id not in {None, intent.key_id} for budget in budgets):
            raise ValueError("a budget of another key")
        if self._closing or self._task is None or self._task.done():
            raise JournalUnavailable("the journal is closed; nothing was paid", quote=quote)
        if self._intents >= self._limits.intents or self._updates >= self._limits.updates:
            raise JournalUnavailable("too many purchases wait for the journal; nothing was paid", quote=quote)
        charge_msat = intent.charge.amount_msat if intent.charge is not None else 0
        amounts = (quote.price_msat, intent.fee_cap_msat, charge_msat)
        if min(amounts) < 0 or max(amounts) >= LARGEST_AMOUNT:
            raise JournalUnavailable("the amount is too large; nothing was paid", quote=quote)
        self._numbers += 1
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(IntentEntry(self._numbers, intent, budgets), done, monotonic())
        self._intents += 1
        self._queue.append(waiting)
        self._overdue.append(waiting)
        if self._timer is None:
            self._timer = done.get_loop().call_later(self._limits.wait_s, self._give_up)
        self._wake.set()
        # A caller that is cancelled cancels the future; the writer sees that and withdraws the intent.
        await done

    async def find(self, job_id: bytes) -> EarlierPurchase | None:
        """Return the purchase of a job, or None where the journal has none."""
        try:
            return await self._database.read(lambda connection: find_job(connection, job_id))
        except DatabaseUnavailable as error:
            raise JournalUnavailable(f"the journal cannot be read ({error.reason})") from error

    def record(
        self,
        job_id: bytes,
        state: State | None,
        at: datetime,
        update: PurchaseUpdate = NOTHING_NEW,
        on_refund: Callable[[Refund], None] | None = None,
    ) -> None:
        """Write a later state soon, in order; ``not_paid`` releases its reservation. None leaves the state as it is.

        ``on_refund`` is called, once it is durable, with the decision on a charge that is to be refunded.
        """
        self._add(UpdateEntry(job_id, state, at, update, on_refund=on_refund))

    def _add(self, entry: UpdateEntry) -> None:
        if self._closing and (self._task is None or self._task.done()):
            self._lose(entry, "the journal is closed")
        elif self._updates >= self._limits.updates:
            self._lose(entry, "too many updates wait")
        else:
            self._updates += 1
            self._queue.append(entry)
            if entry.state not in _CAN_WAIT or entry.on_refund is not None or self._closing:
                self._wake.set()
            elif self._updates_due is None:
                loop = asyncio.get_running_loop()
                self._updates_due = loop.call_later(self._limits.update_s, self._write_updates)

    def _write_updates(self) -> None:
        self._updates_due = None
        self._wake.set()

    async def _run(self) -> None:
        pause_s = self._limits.retry_s
        while True:
            updates, intents = self._take()
            if not updates and not intents:
                if self._closing:
                    return
                if self._trouble is not None:
                    await self._pause(self._limits.retry_most_s)
                    await self._probe()
                    continue
                self._wake.clear()
                await self._wake.wait()
                continue
            unavailable = await self._write(updates, intents)
            if unavailable is None:
                pause_s = self._limits.retry_s
                self._set_trouble(None)
                continue
            self._set_trouble(unavailable.reason)
            self._turn_away(unavailable)
            if self._queue:
                await self._pause(pause_s)
                pause_s = min(pause_s * 2, self._limits.retry_most_s)

    async def _probe(self) -> None:
        """Try to write while the queue is empty, so that ``trouble`` ends without a purchase."""
        if self._queue:
            return
        with suppress(DatabaseUnavailable):
            await self._database.write(write_probe)
            self._set_trouble(None)

    def _turn_away(self, unavailable: DatabaseUnavailable) -> None:
        """Refuse the intents that came during a failed try: none waits behind updates for the next try."""
        intents = [item for item in self._queue if isinstance(item, _Waiting)]
        if intents:
            self._queue = deque(item for item in self._queue if isinstance(item, UpdateEntry))
            self._put_back([], intents, DatabaseUnavailable(unavailable.reason))

    async def _pause(self, seconds: float) -> None:
        """Wait before the next try; a new intent ends the wait, so that it is answered at once."""
        self._wake.clear()
        loop = asyncio.get_running_loop()
        timer = loop.call_later(seconds, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()

    def _take(self) -> tuple[list[UpdateEntry], list[_Waiting]]:
        """Take the entries that wait, in order, up to an update whose intent is in the same batch."""
        updates: list[UpdateEntry] = []
        intents: list[_Waiting] = []
        jobs: set[bytes] = set()
        left = 1 if self._singly else self._limits.batch
        while self._queue and left:
            item = self._queue[0]
            if isinstance(item, UpdateEntry):
                if item.job_id in jobs:
                    break
                updates.append(item)
                left -= 1
            elif item.done.done():
                # Its caller was cancelled, or waited too long: it is not written.
                self._intents -= 1
            else:
                intents.append(item)
                jobs.add(item.entry.intent.quote.job_id)
                left -= 1
            self._queue.popleft()
            if self._singly:
                self._singly -= 1
        return updates, intents

    async def _write(self, updates: list[UpdateEntry], intents: list[_Waiting]) -> DatabaseUnavailable | None:
        batch = JournalTransaction(
            self._database.owner,
            updates,
            [waiting.entry for waiting in intents],
            self.refunds,
            looks_up=any(waiting.collided for waiting in intents),
        )
        begun = monotonic()
        try:
            outcome = await self._database.write(batch.write)
        except DatabaseUnavailable as unavailable:
            self._put_back(updates, intents, unavailable)
            return unavailable
        except asyncio.CancelledError:
            self._put_back(updates, intents, DatabaseUnavailable("it was closed", unsure=True))
            raise
        except Exception as error:  # noqa: BLE001 - one entry caused it, and the others are to be written
            self._single_out(updates, intents, error)
            return None
        with suppress(Exception):
            self._on_commit(len(updates) + len(intents), monotonic() - begun)
        self._finish(updates, intents, outcome)
        return None

    def _single_out(self, updates: list[UpdateEntry], intents: list[_Waiting], error: Exception) -> None:
        """Write the entries of a failed batch again, and where that fails one by one: only the one that caused it fails."""
        if isinstance(error, _COLLISIONS) and not all(waiting.collided for waiting in intents):
            # A quote was taken before, or another process wrote an intent for the same request at the same time: both
            # are found by the next try.
            for waiting in intents:
                waiting.collided = True
            self._queue.extendleft(reversed([*updates, *intents]))
            if self._singly or len(updates) + len(intents) == 1:
                self._singly += 1
            return
        if len(updates) + len(intents) > 1:
            self._queue.extendleft(reversed([*updates, *intents]))
            self._singly = len(updates) + len(intents)
            return
        # The class of the error only: its text may quote the values.
        reason = f"the journal refused the entry ({type(error).__name__})"
        self._updates -= len(updates)
        self._intents -= len(intents)
        for entry in updates:
            self._report(JournalProblem(JournalProblemKind.NOTE_REFUSED, reason, entry.job_id, entry.state))
        for waiting in intents:
            _refuse(waiting, JournalUnavailable(f"{reason}; nothing was paid"))

    def _finish(self, updates: list[UpdateEntry], intents: list[_Waiting], outcome: TransactionResult) -> None:
        self._updates -= len(updates)
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
            self._report(problem)
        for earning in outcome.earnings:
            self._on_earning(earning)
        if outcome.refunds:
            self._report_refunds(updates, outcome.refunds)

    def _put_back(self, updates: list[UpdateEntry], intents: list[_Waiting], unavailable: DatabaseUnavailable) -> None:
        """Keep the updates for the next try, in their order, and refuse the intents."""
        self._queue.extendleft(reversed(updates))
        self._intents -= len(intents)
        for waiting in intents:
            if unavailable.unsure:
                self._withdraw(waiting)
            _refuse(
                waiting, JournalUnavailable(f"the journal cannot be written ({unavailable.reason}); nothing was paid")
            )

    def _withdraw(self, waiting: _Waiting) -> None:
        """Record as not paid an intent that was written, or may have been, and whose caller did not pay."""
        intent = waiting.entry.intent
        self._add(UpdateEntry(intent.quote.job_id, State.NOT_PAID, intent.at, withdraws=waiting.entry.number))

    def _lose(self, entry: UpdateEntry, why: str) -> None:
        if entry.withdraws is None:
            self._report(JournalProblem(JournalProblemKind.NOTE_LOST, why, entry.job_id, entry.state))

    def _report(self, problem: JournalProblem) -> None:
        # An error of a listener must not stop the writer.
        with suppress(Exception):
            self._on_problem(problem)

    def _report_refunds(self, updates: Sequence[UpdateEntry], decisions: Sequence[RefundDecision]) -> None:
        listening = {entry.job_id: entry.on_refund for entry in updates if entry.on_refund is not None}
        for decision in decisions:
            with suppress(Exception):
                self._on_refund(decision)
            if (on_refund := listening.get(decision.job_id)) is not None:
                with suppress(Exception):
                    on_refund(decision.refund)

    def _give_up(self) -> None:
        """Refuse the intents that waited too long; one timer is for all."""
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
    """The ``PurchaseJournal`` of a disabled journal: it writes nothing and keeps no budget."""

    async def intend(self, intent: Intent, budgets: Sequence[Budget] = ()) -> None:
        """Do nothing: the purchase may be paid."""

    async def find(self, job_id: bytes) -> EarlierPurchase | None:  # noqa: ARG002 - the protocol's signature
        """Return None: nothing is recorded."""
        return None

    def record(
        self,
        job_id: bytes,
        state: State,
        at: datetime,
        update: PurchaseUpdate = NOTHING_NEW,
        on_refund: Callable[[Refund], None] | None = None,
    ) -> None:
        """Do nothing."""
