"""Slow readers, lying, cutting, stalling and honest providers, clients that leave, deadlines and crashes.

After each step the journal, the ledger and the provider's trust must agree with a simple model about each purchase.
"""

import asyncio
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.limits import SpendingLimits
from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.outcome import EndedBy, Received
from lcp_gateway.purchase.ports import ResultStatus, StreamBegin, StreamEnd
from lcp_gateway.purchase.purchase import InterruptReason
from lcp_gateway.purchase.result_buffer import BufferLimits
from lcp_gateway.purchase.states import State, Verdict
from lcp_gateway.store.accounts.accounts import Accounts
from lcp_gateway.store.accounts.ledger import Ledger
from lcp_gateway.store.database.engines import open_database
from lcp_gateway.store.journal.queries import Books
from lcp_gateway.store.journal.recovery import sweep
from lcp_gateway.store.journal.writer import JournalWriter
from tests.store.journals import written
from tests.support.examples import examples
from tests.support.purchases import NOW, result, stream_events
from tests.support.scripted_peers import NO_REPEAT, ordered, settle, world

WINDOW = 10
BALANCE = 10**9
PRICE = 5_000
picks = st.integers(0, 100)


@dataclass
class Job:
    """The model's record of a purchase: what its provider sent, what its client read, and the expected outcome."""

    answer: object
    work: object
    stream: bool
    started: float
    on_delivery: bool = False
    reader: object = None
    reading: object = None
    sent: bytes = b""
    seen: int = 0
    waiting: list = field(default_factory=list)
    blocked_since: float | None = None
    waited_s: float = 0.0
    is_slow: bool = False
    goes_on: object = None
    ended_by: EndedBy | None = None
    received: Received | None = None
    state: State = State.SETTLED

    @property
    def is_flowing(self):
        """Whether it is a stream whose head has come."""
        return self.stream and self.state is not State.PAYING

    @property
    def is_over(self):
        return self.state is not State.SETTLED and self.state is not State.PAYING

    def is_held_up(self, now):
        waits = 0.0 if self.blocked_since is None else now - self.blocked_since
        return 2 * (self.waited_s + waits) > now - self.started

    @property
    def came(self):
        return Received.PART if self.seen else Received.NOTHING


class Endings(RuleBasedStateMachine):
    @initialize()
    def wake(self):
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.past = {}
        self.jobs = []
        self.blame = {}
        self.run(self._open(new=True))

    def teardown(self):
        if not hasattr(self, "loop"):
            return
        try:
            self.run(self._close())
        finally:
            self.run(_cancel_rest())
            self.loop.close()
            self.folder.cleanup()

    def run(self, coroutine):
        return self.loop.run_until_complete(coroutine)

    async def _open(self, *, new=False):
        self.database = await open_database(str(Path(self.folder.name) / "journal.db"))
        self.books, self.ledger = Books(self.database), Ledger(self.database)
        if new:
            account = await Accounts(self.database).create("c", actor="t", at=NOW)
            await self.ledger.adjust(account.id, Msat(BALANCE), reason="a", actor="t", at=NOW)
            self.account_id = account.id
        self.journal = JournalWriter(self.database, on_problem=self._problem)
        self.journal.start()
        self.w = world(
            journal=self.journal,
            limits=SpendingLimits(refund_undelivered=True),
            bounds=BufferLimits(window_bytes=WINDOW, whole_bytes=10_000),
            grace_s=0.0,
        )
        self.w.upstream.quotes.extend([None] * len(self.past))
        self.w.exposure.ended = lambda quote, state: self.blame.setdefault(quote.job_id, []).append(state.value)
        self.w.exposure.released = lambda quote: self.blame.setdefault(quote.job_id, []).append("left")

    def _problem(self, problem):
        raise AssertionError(problem)

    async def _close(self):
        self.w.service.interrupt_all(InterruptReason.SHUTTING_DOWN)
        await self.w.service.wait_idle()
        await self.journal.close()
        await self.database.close()

    # Actions of clients and providers.

    @precondition(lambda self: len(self.jobs) < 3)
    @rule(stream=st.sampled_from([True, True, True, False]), reads=st.booleans())
    def a_client_buys(self, stream, reads):
        self.run(self._buy(stream, reads))

    @precondition(lambda self: len(self.jobs) < 3)
    @rule(stream=st.booleans(), reads=st.booleans(), begins=st.booleans())
    def a_client_buys_at_a_node_that_is_paid_on_delivery(self, stream, reads, begins):
        self.run(self._buy(stream, reads, on_delivery=True, begins=begins))

    async def _buy(self, stream, reads, *, on_delivery=False, begins=True):
        self.w.upstream.peers["p1"].dialled_in = on_delivery
        number = len(self.past) + len(self.jobs)
        body = b'{"model":"m","messages":[%d]}' % number
        order = replace(ordered(body, stream=stream), account_id=self.account_id)
        answer = self.w.service.start(order, NO_REPEAT)
        self.w.service.joined(answer)
        at = len(self.w.upstream.works)
        while len(self.w.upstream.works) == at:
            await asyncio.sleep(0.001)
        job = Job(answer, self.w.upstream.works[at], stream, self.w.clock[0], on_delivery)
        self.jobs.append(job)
        if not (stream and begins):
            job.state = State.PAYING
            return
        job.work.put(StreamBegin("text/event-stream", "identity"))
        if on_delivery:
            # Such a node's head comes with its first bytes.
            job.work.put(b"xxx")
            job.sent, job.seen = b"xxx", 3
        await answer.wait_head()
        job.reader = answer.chunks()
        job.reading = asyncio.ensure_future(self._read(job, reads))
        await settle()

    async def _read(self, job, reads):
        """Read the whole stream; a slow reader pauses after one block until the test lets it continue."""
        job.goes_on = asyncio.Event()
        job.is_slow = not reads
        if reads:
            job.goes_on.set()
        with suppress(Exception):
            async for _ in job.reader:
                await job.goes_on.wait()

    @precondition(lambda self: self._streams())
    @rule(pick=picks, size=st.sampled_from([3, 12]))
    def a_provider_sends(self, pick, size):
        job = self._pick(self._streams(), pick)
        chunk = b"x" * size
        job.work.put(chunk)
        job.sent += chunk
        self._handed(job, len(chunk))
        self.run(settle())

    @precondition(lambda self: self.jobs)
    @rule(
        pick=picks,
        how=st.sampled_from(["whole", "whole", "hash", "length", "status", "cut", "silent", "late", "order"]),
    )
    def a_provider_ends(self, pick, how):
        job = self._pick(self.jobs, pick)
        if job.is_flowing:
            for event in _ends(job.sent, how):
                job.work.put(event)
        elif not job.stream and how in {"whole", "hash", "length", "status"}:
            changes = {
                "hash": {"sha256": b"\0" * 32},
                "length": {"length": 1},
                "status": {"status": ResultStatus.FAILED},
            }.get(how, {})
            job.work.put(result(b"answer", **changes))
        else:
            how = "late"
            evidence = Verdict.NONE if job.on_delivery else None
            job.work.put(UpstreamError("DEADLINE_EXCEEDED", "late", evidence=evidence))
        self._handed(job, how)
        self.run(settle())
        self.run(self._take_delivered())
        self._forget_ended()

    @precondition(lambda self: any(job.blocked_since is not None for job in self.jobs))
    @rule(pick=picks)
    def a_slow_reader_goes_on(self, pick):
        job = self._pick([job for job in self.jobs if job.blocked_since is not None], pick)
        job.waited_s += self.w.clock[0] - job.blocked_since
        job.blocked_since = None
        job.is_slow = False
        job.goes_on.set()
        waiting, job.waiting = job.waiting, []
        for what in waiting:
            self._handed(job, what)
        self.run(settle(200))
        self.run(self._take_delivered())
        self._forget_ended()

    @precondition(lambda self: len(self.jobs) < 3)
    @rule(
        how=st.sampled_from(["hash", "status", "cut", "silent", "late", "whole"]),
        before_s=st.sampled_from([0.0, 30.0]),
        after_s=st.sampled_from([5.0, 40.0]),
    )
    def a_slow_reader_holds_up_what_its_provider_does(self, how, before_s, after_s):
        """One step for a whole scenario, so that hypothesis often reaches it: a slow client hides what its provider does."""
        self.a_client_buys(stream=True, reads=False)
        at = self._streams().index(self.jobs[-1])
        self.w.clock[0] += before_s
        self.a_provider_sends(at, 12)
        self.w.clock[0] += after_s
        self.a_provider_ends(len(self.jobs) - 1, how)
        blocked = [job for job in self.jobs if job.blocked_since is not None]
        self.a_slow_reader_goes_on(blocked.index(self.jobs[-1]))

    @rule(seconds=st.sampled_from([1.0, 5.0, 40.0]))
    def time_passes(self, seconds):
        self.w.clock[0] += seconds

    @precondition(lambda self: self.jobs)
    @rule(
        pick=picks,
        how=st.sampled_from(["leaves", InterruptReason.CANCELLED, InterruptReason.TIMED_OUT, InterruptReason.ENDED]),
    )
    def it_is_ended_before_its_time(self, pick, how):
        job = self._pick(self.jobs, pick)
        now = self.w.clock[0]
        if how == "leaves":
            self.run(self._leave(job))
            party = EndedBy.CLIENT
        else:
            self.w.service.interrupt(job.answer, how)
            party = {InterruptReason.CANCELLED: EndedBy.CLIENT, InterruptReason.ENDED: EndedBy.GATEWAY}.get(how)
        if party is None:
            party = EndedBy.CLIENT if job.stream and job.is_held_up(now) else EndedBy.PROVIDER
        self._ended(job, party, job.came)
        self.run(settle())
        self._forget_ended()

    async def _leave(self, job):
        if job.reading is not None:
            job.reading.cancel()
            await asyncio.gather(job.reading, return_exceptions=True)
            await job.reader.aclose()
        if job.stream and job.waiting:
            # The unread chunks have no reader any more; the purchase is interrupted immediately.
            job.waiting = []
        self.w.service.interrupt(job.answer, InterruptReason.NO_LISTENER)

    @precondition(lambda self: self.jobs)
    @rule()
    def the_gateway_shuts_down_and_starts_again(self):
        for job in self.jobs:
            self._ended(job, EndedBy.GATEWAY, job.came)
        self.run(self._restart(killed=False))

    @precondition(lambda self: self.jobs)
    @rule()
    def the_gateway_is_killed_and_starts_again(self):
        for job in self.jobs:
            self._ended(job, EndedBy.OPERATOR, Received.UNKNOWN)
        self.run(self._restart(killed=True))

    @precondition(lambda self: len(self.jobs) < 3)
    @rule(stream=st.booleans())
    def the_gateway_is_killed_while_a_client_still_reads_what_came_whole(self, stream):
        self.a_client_buys(stream=stream, reads=False)
        job = self.jobs[-1]
        if stream:
            job.work.put(*stream_events(b"abc")[1:])
        else:
            job.work.put(result(b"answer"))
        self.run(settle())
        assert job.answer.ended and job.answer.purchase.state is State.DELIVERED
        job.state = State.SETTLED
        self.run(self._check())
        job.state, job.ended_by, job.received = (State.UNDELIVERED, EndedBy.OPERATOR, Received.UNKNOWN)
        for other in self.jobs:
            self._ended(other, EndedBy.OPERATOR, Received.UNKNOWN)
        self.run(self._restart(killed=True))
        self.blame[self._id(job)] = ["undelivered"]

    async def _take_delivered(self):
        """Let the clients of delivered results read them to the end."""
        for job in self.jobs:
            if job.state is State.DELIVERED:
                if job.reading is not None:
                    job.goes_on.set()
                    await job.reading
                self.w.service.left(job.answer)
        await settle()

    async def _restart(self, *, killed):
        await written(self.journal)
        if killed:
            # The killed process writes nothing more about its open purchases.
            self.journal._task.cancel()
            await asyncio.gather(self.journal._task, return_exceptions=True)
            await self.database.close()
            for job in self.jobs:
                self.blame[self._id(job)] = ["undelivered"] if job.stream or job.on_delivery else ["unknown"]
                job.answer.purchase = None
        else:
            await self._close()
        self._forget_ended(killed=killed)
        await self._open()
        await sweep(self.database, NOW)

    # The model.

    def _handed(self, job, what):
        """Apply what the provider sent to the model, as far as the reader takes it."""
        if job.is_over:
            return
        if job.blocked_since is not None:
            job.waiting.append(what)
        elif isinstance(what, int):
            job.seen += what
            if job.is_slow and job.seen >= WINDOW:
                job.blocked_since = self.w.clock[0]
        elif what == "whole":
            job.state = State.DELIVERED
        elif what in {"hash", "length", "status", "order"}:
            self._ended(job, EndedBy.PROVIDER, Received.ALTERED)
        elif not job.is_flowing:
            job.state = State.NOT_PAID if job.on_delivery else State.UNKNOWN
        else:
            late = what == "late" and job.is_held_up(self.w.clock[0])
            self._ended(job, EndedBy.CLIENT if late else EndedBy.PROVIDER, job.came)

    def _ended(self, job, party, received):
        if job.is_over:
            return
        if job.on_delivery and job.state is State.PAYING and received in {Received.NOTHING, Received.PART}:
            # Nothing came of it: neither is its node paid nor its customer charged, whichever party ended it.
            job.state = State.NOT_PAID
        elif job.stream or job.on_delivery or received is Received.ALTERED:
            job.state, job.ended_by, job.received = State.UNDELIVERED, party, received
        else:
            job.state = State.UNKNOWN

    def _forget_ended(self, *, killed=False):
        for job in [job for job in self.jobs if killed or job.is_over]:
            self.past[self._id(job)] = job
            self.jobs.remove(job)

    def _id(self, job):
        return job.work.quote.job_id

    def _streams(self):
        return [job for job in self.jobs if job.is_flowing]

    def _pick(self, jobs, pick):
        return jobs[pick % len(jobs)]

    @invariant()
    def the_books_say_what_the_model_says(self):
        if hasattr(self, "loop"):
            self.run(self._check())

    async def _check(self):
        await settle()
        await written(self.journal)
        taken = held = 0
        for job_id, job in [*self.past.items(), *((self._id(job), job) for job in self.jobs)]:
            found = await self.books.purchase(job_id)
            assert found.state is job.state
            assert (found.ended_by, found.received) == (job.ended_by, job.received)
            if job.state in {State.UNKNOWN, State.PAYING}:
                held += PRICE
            left = job.ended_by is EndedBy.CLIENT
            pays = job.state in {State.SETTLED, State.DELIVERED} or left
            taken += PRICE if pays else 0
            assert found.charged_msat == (PRICE if pays else 0)
            if job.state is State.UNDELIVERED:
                blamed = not (left and job.received is Received.PART)
                assert found.blames_provider is blamed
                assert self.blame[job_id][-1] == ("undelivered" if blamed else "left")
            elif job.state in {State.DELIVERED, State.NOT_PAID}:
                assert self.blame[job_id][-1] == job.state.value
        balance = await self.ledger.balance(self.account_id)
        assert (balance.balance_msat, balance.held_msat) == (BALANCE - taken, held)
        assert (await self.ledger.audit()).problems == []


async def _cancel_rest():
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)


def _ends(sent, how):
    done = result(sent, status=ResultStatus.FAILED if how == "status" else ResultStatus.OK)
    sha256 = b"\0" * 32 if how == "hash" else done.sha256
    end = StreamEnd(sha256, done.length + (how == "length"))
    match how:
        case "cut":
            return [UpstreamError("UNAVAILABLE", "cut")]
        case "late":
            return [UpstreamError("DEADLINE_EXCEEDED", "late")]
        case "silent":
            return [None]
        case "order":
            return [end, end]
        case _:
            return [end, done]


Endings.TestCase.settings = settings(max_examples=examples(0.25), stateful_step_count=25, deadline=None)
TestEndings = Endings.TestCase
