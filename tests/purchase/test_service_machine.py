"""Drives the service through random events, and checks after each step that its guarantees about money hold."""

from collections import defaultdict
from dataclasses import replace
from itertools import pairwise

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lcp_gateway.purchase.errors import PurchaseError, UpstreamError
from lcp_gateway.purchase.idempotency import KeyReused, RepeatKeys, ResultLost
from lcp_gateway.purchase.payment_evidence import verdict_of_failure
from lcp_gateway.purchase.ports import ResultStatus, StreamBegin, StreamEnd
from lcp_gateway.purchase.purchase import InterruptReason
from lcp_gateway.purchase.result_buffer import ResultGone
from lcp_gateway.purchase.states import VERDICTS, State, Verdict
from tests.support.examples import examples
from tests.support.model import GRACE_S, KEYS_FOR_S, Client, Job, Universe, verdict_told
from tests.support.purchases import result

CODES = (
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)
# How a pay call can fail: the error, and whether it paid; None leaves that open.
FAILURES = (
    *((code, "something", None) for code in CODES),
    ("FAILED_PRECONDITION", "payment failed: FAILURE_REASON_NO_ROUTE: no route", False),
    ("FAILED_PRECONDITION", "decode invoice: not an invoice", False),
    ("NOT_FOUND", "job not found", False),
    ("FAILED_PRECONDITION", "payment failed: no final payment status", None),
    ("UNAVAILABLE", "pay: invoice is already paid", True),
    ("RESOURCE_EXHAUSTED", "lcp_error code=7: busy", True),
    ("UNAVAILABLE", "lcp_error code=10: broke", True),
)
BODIES = (b"one", b"two")
KEYS = (None, "k1", "k2")
REPEATS = (RepeatKeys(key="k1"), RepeatKeys(key="k1"), RepeatKeys(), RepeatKeys(is_retry=True))
picks = st.integers(0, 1_000)


class ServiceMachine(RuleBasedStateMachine):
    @initialize()
    def wake(self) -> None:
        self.world = Universe()
        # The first verdict that each client got; it must never change.
        self.told: dict[int, Verdict] = {}

    def teardown(self) -> None:
        world = getattr(self, "world", None)
        if world is None:
            return
        try:
            self._let_all_end()
            self.promises_hold()
        finally:
            world.close()

    # Clients.

    @rule(
        body=st.sampled_from(BODIES),
        key=st.sampled_from(KEYS),
        retry=st.booleans(),
        key_id=st.sampled_from(("", "alice")),
        session=st.sampled_from((None, "s")),
        stream=st.booleans(),
        kept=st.sampled_from([False, False, True]),
    )
    def somebody_asks(self, body, key, retry, key_id, session, stream, kept) -> None:
        # The body says whether the answer is streamed.
        repeat = RepeatKeys(key=key, is_retry=retry, client_request_id=session)
        life = self.world.life
        whole = body + (b" stream" if stream else b"")
        life.begin(Client(whole, stream, repeat, key_id, life.number, kept=kept))
        self.world.loop.turn()

    @rule(
        body=st.sampled_from(BODIES),
        repeat=st.sampled_from(REPEATS),
        stream=st.booleans(),
        clients=st.integers(1, 3),
        kept=st.sampled_from([False, False, True]),
    )
    def a_payment_gets_under_way(self, body, repeat, stream, clients, kept) -> None:
        """One step for the usual sequence, so that hypothesis often gets beyond it."""
        for at in range(clients):
            # Only the first client may ask to retain the result; the others join, and may leave again.
            is_kept = kept and at == 0
            self.somebody_asks(body, repeat.key, repeat.is_retry, "", None, stream, is_kept)
        self._quotes_come()
        self.the_disk_is_written(full=False)

    @rule(body=st.sampled_from(BODIES), stream=st.booleans(), taken=st.booleans())
    def somebody_asks_for_a_quote(self, body, stream, taken) -> None:
        life = self.world.life
        whole = body + (b" stream" if stream else b"")
        life.show(Client(whole, stream, RepeatKeys(), "", life.number))
        self.world.loop.turn()
        self._quotes_come()
        if taken and life.held:
            self.somebody_takes_a_quote(len(life.held) - 1, None, wrong=False)

    @precondition(lambda self: self.world.life.held)
    @rule(pick=picks, key=st.sampled_from(KEYS), wrong=st.booleans())
    def somebody_takes_a_quote(self, pick, key, wrong) -> None:
        life = self.world.life
        name, shown = life.held[pick % len(life.held)]
        body = b"another" if wrong else shown.body
        stream = shown.stream
        for _ in range(2):
            # Whichever came first, the second comes too late.
            life.begin(Client(body, stream, RepeatKeys(key=key), "", life.number, quote_id=name))
        self.world.loop.turn()
        self.the_disk_is_written(full=False)

    @precondition(lambda self: self.world.life.clients)
    @rule(pick=picks, retry=st.booleans())
    def somebody_asks_again(self, pick, retry) -> None:
        clients = self.world.life.clients
        before = clients[pick % len(clients)]
        repeat = replace(before.repeat, is_retry=retry)
        life = self.world.life
        life.begin(Client(before.body, before.stream, repeat, before.key_id, life.number))
        self.world.loop.turn()
        self._quotes_come()
        self.the_disk_is_written(full=False)

    @precondition(lambda self: self._waiting())
    @rule(pick=picks)
    def a_client_goes_away(self, pick) -> None:
        waiting = self._waiting()
        waiting[pick % len(waiting)].task.cancel()
        self.world.loop.turn()

    @precondition(lambda self: len(self.world.life.service))
    @rule(pick=picks, times=st.integers(1, 2))
    def a_job_is_cancelled(self, pick, times) -> None:
        running = list(self.world.life.service._running)
        for _ in range(times):
            self.world.life.service.interrupt(running[pick % len(running)], InterruptReason.CANCELLED)
        self.world.loop.turn()

    # Events outside the gateway.

    @precondition(lambda self: self.world.life.quoting)
    @rule(pick=picks, fails=st.sampled_from([False, False, False, True]))
    def a_peer_answers_with_a_quote(self, pick, fails) -> None:
        quoting = self.world.life.quoting
        answered = quoting.pop(pick % len(quoting))
        if not answered.done():
            if fails:
                answered.set_exception(UpstreamError("UNAVAILABLE", "gone"))
            else:
                answered.set_result(None)
        self.world.loop.turn()

    @rule(full=st.sampled_from([False, False, False, True]))
    def the_disk_is_written(self, full) -> None:
        self.world.life.journal.disk(full=full)
        self.world.loop.turn()

    @precondition(lambda self: self.world.working())
    @rule(pick=picks, failure=st.sampled_from(FAILURES), was_paid=st.booleans())
    def the_call_that_pays_fails(self, pick, failure, was_paid) -> None:
        job = self._pick(pick)
        status, message, truth = failure
        if job.evidence is Verdict.UNKNOWN:
            job.evidence = verdict_of_failure(status, message)
            job.paid = was_paid if truth is None else truth
        self._close(job, UpstreamError(status, message))

    @precondition(lambda self: self.world.working())
    @rule(pick=picks, data=st.binary(min_size=1, max_size=12))
    def some_bytes_come(self, pick, data) -> None:
        job = self._pick(pick)
        if not self._is_stream(job):
            return
        self._begin(job)
        job.sent += data
        job.open.put_nowait(data)
        self.world.loop.turn()

    @precondition(lambda self: self.world.working())
    @rule(
        pick=picks,
        data=st.sampled_from([b"", b"short", b"l" * 30, b"larger than what is kept" * 2]),
        how=st.sampled_from(["whole", "whole", "whole", "hash", "status", "cut"]),
    )
    def the_work_is_done(self, pick, data, how) -> None:
        job = self._pick(pick)
        job.paid, job.evidence = True, Verdict.SETTLED
        status = ResultStatus.FAILED if how == "status" else ResultStatus.OK
        if self._is_stream(job):
            self._begin(job)
            job.whole = how == "whole"
            done = result(bytes(job.sent), status=status)
            digest = b"\0" * 32 if how == "hash" else done.sha256
            end = StreamEnd(digest, done.length)
            for event in () if how == "cut" else (end, done):
                job.open.put_nowait(event)
            self._close(job, None)
            return
        job.whole = how in {"whole", "cut"}
        job.sent += data
        done = result(data, status=status)
        self._close(job, result(data, sha256=b"\0" * 32) if how == "hash" else done)

    @rule(
        body=st.sampled_from(BODIES),
        repeat=st.sampled_from(REPEATS),
        stream=st.booleans(),
        data=st.sampled_from([b"short", b"l" * 30, b"larger than what is kept" * 2]),
        kept=st.booleans(),
    )
    def a_purchase_succeeds(self, body, repeat, stream, data, kept) -> None:
        """One step for a successful purchase, so that hypothesis often gets beyond it."""
        before = set(self.world.jobs)
        self.a_payment_gets_under_way(body, repeat, stream, 1, kept)
        working = self.world.working()
        for at, job in enumerate(working):
            if job.quote.job_id not in before:
                self.some_bytes_come(at, data[:12])
                self.the_work_is_done(at, data, "whole")
                return

    @rule(seconds=st.sampled_from([0.1, GRACE_S / 2, GRACE_S + 1, 51.0, 101.0, 201.0]))
    def time_passes(self, seconds) -> None:
        self.world.advance(seconds)

    @precondition(lambda self: self._has_lived())
    @rule()
    def the_gateway_is_told_to_stop_and_starts_again(self) -> None:
        life = self.world.life
        life.service.interrupt_all(InterruptReason.SHUTTING_DOWN)
        self.world.loop.turn()
        assert len(life.service) == 0
        life.journal.disk(full=False)
        self._record_truth_of_open_jobs()
        self.world.restart()

    @precondition(lambda self: self._has_lived())
    @rule(flushed=st.booleans())
    def the_gateway_is_killed_and_starts_again(self, flushed) -> None:
        if flushed:
            self.world.life.journal.flush()
        self._record_truth_of_open_jobs()
        self.world.restart()

    # Invariants.

    @invariant()
    def promises_hold(self) -> None:
        if not hasattr(self, "world"):
            return
        self._every_executed_job_is_in_the_journal()
        self._nothing_that_was_paid_is_called_not_paid()
        self._a_key_pays_once()
        self._clients_were_told_the_truth()
        self._what_is_stored_came_whole()
        self._memory_is_bounded()

    def _every_executed_job_is_in_the_journal(self) -> None:
        for job_id, job in self.world.jobs.items():
            assert job.executes <= 1
            states = self.world.durable.states.get(job_id)
            if job.executes:
                assert states and states[0] is State.PAYING

    def _nothing_that_was_paid_is_called_not_paid(self) -> None:
        for job_id, job in self.world.jobs.items():
            believed = self._believed(job_id)
            if believed is State.NOT_PAID and job.executes:
                assert job.evidence is Verdict.NONE, "an unknown became a failure without evidence"
            if job.paid:
                assert believed is not State.NOT_PAID
            if believed in {State.SETTLED, State.DELIVERED, State.UNDELIVERED}:
                assert job.evidence is Verdict.SETTLED
            if believed is State.DELIVERED:
                assert job.whole

    def _a_key_pays_once(self) -> None:
        asked_at: dict[tuple, dict[bytes, float]] = defaultdict(dict)
        for client in self.world.clients():
            answer = client.answer
            if client.repeat.key is None or answer is None or answer.purchase is None:
                continue
            name = (client.life, client.key_id, client.repeat.key)
            asked_at[name].setdefault(answer.purchase.quote.job_id, client.asked_at)
        for times in asked_at.values():
            perhaps = sorted(
                at
                for job_id, at in times.items()
                if (job := self.world.jobs[job_id]).executes and job.evidence is not Verdict.NONE
            )
            for earlier, later in pairwise(perhaps):
                assert later - earlier > KEYS_FOR_S, "one key paid twice"

    def _clients_were_told_the_truth(self) -> None:
        for client in self.world.clients():
            verdict = verdict_told(client)
            if verdict is None:
                assert client.error is None or isinstance(client.error, ResultGone)
                continue
            first = self.told.setdefault(id(client), verdict)
            assert first is verdict
            if isinstance(client.error, ResultLost):
                assert verdict is not Verdict.NONE
            purchase = client.answer.purchase if client.answer is not None else None
            if purchase is None:
                assert verdict is Verdict.NONE or isinstance(client.error, ResultLost)
                continue
            job = self.world.jobs[purchase.quote.job_id]
            if client.finished:
                assert job.whole and bytes(client.got) == bytes(job.sent)
            else:
                assert bytes(job.sent).startswith(bytes(client.got))
            if verdict is Verdict.NONE:
                assert not job.paid
                assert not job.executes or job.evidence is Verdict.NONE
            if verdict is Verdict.SETTLED:
                assert job.evidence is Verdict.SETTLED
            if not isinstance(client.error, KeyReused):
                assert purchase.order.body_sha256 == client.answer.order.body_sha256
                assert job.body == client.body, "a client got the result of another request"

    def _what_is_stored_came_whole(self) -> None:
        for client in self.world.clients():
            if client.stored is not None:
                job = self.world.jobs[client.answer.purchase.quote.job_id]
                assert job.whole and client.stored == bytes(job.sent)
                assert job.body == client.body

    def _memory_is_bounded(self) -> None:
        pool = self.world.life.memory.pool
        assert pool.held_bytes >= 0
        running = self.world.life.service._running
        held = sum(sum(map(len, answer._blocks)) for answer in running)
        assert pool.held_bytes <= pool.limit_bytes + held

    # Helpers.

    def _has_lived(self) -> bool:
        return len(self.world.past) < 3 and len(self.world.life.clients) > 1

    def _waiting(self) -> list[Client]:
        return [c for c in self.world.life.clients if c.task is not None and not c.task.done()]

    def _quotes_come(self) -> None:
        for answered in self.world.life.quoting:
            if not answered.done():
                answered.set_result(None)
        self.world.life.quoting.clear()
        self.world.loop.turn()

    def _pick(self, pick: int) -> Job:
        working = self.world.working()
        return working[pick % len(working)]

    def _is_stream(self, job: Job) -> bool:
        return job.body.endswith(b" stream")

    def _begin(self, job: Job) -> None:
        job.paid = True
        if job.evidence is not Verdict.SETTLED:
            job.evidence = Verdict.SETTLED
            job.open.put_nowait(StreamBegin("text/event-stream", "identity"))

    def _close(self, job: Job, last: object) -> None:
        job.open.put_nowait(last)
        job.open = None
        self.world.loop.turn()

    def _record_truth_of_open_jobs(self) -> None:
        """A payment whose caller was cancelled may have gone through; assume that it did, which is the worse case."""
        for job in self.world.jobs.values():
            if job.executes and job.paid is None:
                job.paid = True

    def _believed(self, job_id: bytes) -> State | None:
        return self.world.life.journal.believed(job_id)

    def _let_all_end(self) -> None:
        """End every order; the journal must then have the known state of each job."""
        world = self.world
        for _ in range(30):
            life = world.life
            self._quotes_come()
            life.journal.disk(full=False)
            for job in world.working():
                job.paid = True
                if job.evidence is Verdict.SETTLED:
                    self._close(job, UpstreamError("UNAVAILABLE", "cut"))
                else:
                    self._close(job, UpstreamError("DEADLINE_EXCEEDED", "late"))
            world.loop.turn()
        world.advance(GRACE_S + 1)
        world.life.journal.disk(full=False)
        assert len(world.life.service) == 0
        assert not self._waiting()
        assert world.life.leases == 0, "an admission was not released"
        for client in world.life.clients:
            answer = client.answer
            assert answer is None or answer.ended
            if answer is not None and answer.purchase is not None:
                states = world.durable.states.get(answer.purchase.quote.job_id)
                if states:
                    assert VERDICTS[states[-1]] is answer.purchase.verdict
        for states in world.durable.states.values():
            assert states[-1] is not State.PAYING
        for client in world.life.clients:
            assert client.error is None or isinstance(client.error, PurchaseError | ResultGone)


ServiceMachine.TestCase.settings = settings(max_examples=examples(1.2), stateful_step_count=40)
TestService = ServiceMachine.TestCase
