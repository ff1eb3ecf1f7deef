import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from itertools import pairwise

import pytest
from coincurve import PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from lcp_gateway.lightning import bolt11, reconcile
from lcp_gateway.lightning.lnd.client import LndClient
from lcp_gateway.lightning.lnd.records import FailureReason, LndError, PaymentRecord, PaymentState
from lcp_gateway.lightning.reconcile import MAX_ERRORS_IN_A_ROW, OpenPayment, Reconciler, ReconcilerTiming, ResolvedBy
from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.journal import JournalUnavailable
from lcp_gateway.purchase.states import State
from tests.support.lnd_standin import FAILED, LndStandin, settled, unfinished

START = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
PREIMAGE = b"\x09" * 32
AWAY = LndError("UNAVAILABLE", "connection refused", retryable=True)
POISON = LndError("INVALID_ARGUMENT", "bad hash", retryable=False)


def preimage_of(number):
    return number.to_bytes(32, "big")


def open_payment(number=1, **changes):
    fields = {
        "job_id": b"job %4d" % number,
        "payment_hash": sha256(preimage_of(number)).digest(),
        "payable_until": START + timedelta(seconds=300),
        "paying_since": START + timedelta(seconds=number),
    }
    return OpenPayment(**{**fields, **changes})


def record(state, number=1, **changes):
    return PaymentRecord(sha256(preimage_of(number)).digest(), state, **changes)


def was_paid(number=1):
    return record(PaymentState.SETTLED, number, fee_msat=7, preimage=preimage_of(number))


@dataclass
class World:
    """A journal's open payments, an lnd and a clock, all scripted by the test."""

    answers: dict = field(default_factory=dict)
    open: list = field(default_factory=list)
    resolved: list = field(default_factory=list)
    asked: list = field(default_factory=list)
    now: datetime = START
    lnd_pays: bool = True
    lnd_is_away: bool = False
    unwritable: Exception | None = None

    def __post_init__(self):
        self.reconciler = self.make()

    def make(self, **changes):
        parts = {
            "lookup": self.lookup,
            "open_payments": self.open_payments,
            "resolve": self.resolve,
            "lnd_pays": lambda: self.lnd_pays,
            "now": lambda: self.now,
        }
        return Reconciler(**{**parts, **changes})

    def add(self, number=1, answer=None, **changes):
        payment = open_payment(number, **changes)
        self.open.append(payment)
        self.answers[payment.payment_hash] = answer
        return payment

    async def lookup(self, payment):
        payment_hash = payment.payment_hash
        self.asked.append(payment_hash)
        if self.lnd_is_away:
            raise AWAY
        answer = self.answers[payment_hash]
        if isinstance(answer, Exception):
            raise answer
        return answer or PaymentRecord(payment_hash, PaymentState.UNKNOWN_TO_LND)

    async def open_payments(self):
        for payment in list(self.open):
            yield payment

    async def resolve(self, payment, resolution):
        if self.unwritable:
            raise self.unwritable
        if payment not in self.open:
            return False
        self.open.remove(payment)
        self.resolved.append((payment, resolution))
        return True

    def passes(self, seconds):
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def world():
    return World()


async def test_a_payment_that_lnd_proves_is_settled_with_fee_and_preimage(world):
    payment = world.add(answer=was_paid())

    summary = await world.reconciler.once()

    [(resolved, resolution)] = world.resolved
    assert resolved is payment
    assert (resolution.state, resolution.evidence) == (State.SETTLED, ResolvedBy.PREIMAGE)
    assert (resolution.update.fee_msat, resolution.update.preimage) == (7, preimage_of(1))
    assert resolution.at == START
    assert (summary.settled, summary.fees_msat, summary.still_open) == (1, 7, 0)
    assert summary.oldest is None


async def test_a_payment_that_lnd_gave_up_was_not_paid(world):
    world.add(answer=record(PaymentState.FAILED, failure=FailureReason.NO_ROUTE))

    summary = await world.reconciler.once()

    [(_, resolution)] = world.resolved
    assert (resolution.state, resolution.evidence) == (State.NOT_PAID, ResolvedBy.FAILED)
    assert summary.not_paid == 1


async def test_a_payment_in_flight_stays_unknown_for_days(world):
    payment = world.add(answer=record(PaymentState.IN_FLIGHT))

    for _ in range(50):
        summary = await world.reconciler.once()
        world.passes(3 * 3_600)
        assert (summary.in_flight, summary.still_open) == (1, 1)

    assert world.resolved == []
    assert summary.oldest == payment.paying_since


@pytest.mark.parametrize("preimage", [None, b"", bytes(32), preimage_of(2)])
async def test_a_preimage_that_does_not_fit_proves_nothing(world, preimage):
    world.add(answer=record(PaymentState.SETTLED, fee_msat=7, preimage=preimage))

    summary = await world.reconciler.once()

    assert world.resolved == []
    assert (summary.contradictory, summary.still_open) == (1, 1)


@pytest.mark.parametrize("state", list(PaymentState))
async def test_an_answer_about_another_payment_proves_nothing(world, state):
    world.add(1, answer=record(state, 2, preimage=preimage_of(2)))
    world.passes(100_000)

    summary = await world.reconciler.once()

    assert world.resolved == []
    assert summary.contradictory == 1


class TestAbsence:
    @pytest.mark.parametrize("seconds", [0, 300, 899, 900])
    async def test_it_proves_nothing_while_lnd_might_still_begin_to_pay(self, world, seconds):
        world.add()
        world.passes(seconds)

        summary = await world.reconciler.once()

        assert world.resolved == []
        assert (summary.unproven, summary.still_open) == (1, 1)

    async def test_it_proves_that_nothing_was_paid_ten_minutes_after_the_invoice_expired(self, world):
        world.add()
        world.passes(901)

        await world.reconciler.once()

        [(_, resolution)] = world.resolved
        assert (resolution.state, resolution.evidence) == (State.NOT_PAID, ResolvedBy.ABSENT)

    async def test_the_margin_can_be_set(self, world):
        world.add()
        world.passes(361)

        await world.make(timing=ReconcilerTiming(absent_after_s=60)).once()

        assert len(world.resolved) == 1

    async def test_a_call_that_went_out_after_the_expiry_counts_from_then(self, world):
        world.add(paying_since=START + timedelta(seconds=800))
        world.passes(901)

        await world.reconciler.once()

        assert world.resolved == []

    async def test_an_invoice_that_never_expires_is_never_absent_for_long_enough(self, world):
        world.add(payable_until=datetime.max.replace(tzinfo=UTC))
        world.passes(10 * 86_400)

        assert (await world.reconciler.once()).unproven == 1

    async def test_the_time_counts_at_which_lnd_was_asked_and_not_when_it_answered(self, world):
        world.add()
        world.passes(899)

        async def slow(payment_hash):
            world.passes(60)
            return PaymentRecord(payment_hash, PaymentState.UNKNOWN_TO_LND)

        await world.make(lookup=slow).once()

        assert world.resolved == []


class TestWhenAnotherLndPays:
    @pytest.mark.parametrize("answer", [None, record(PaymentState.FAILED)])
    async def test_failure_and_absence_prove_nothing(self, world, answer):
        world.add(answer=answer)
        world.lnd_pays = False
        world.passes(10 * 86_400)

        summary = await world.reconciler.once()

        assert world.resolved == []
        assert (summary.unproven, summary.still_open) == (1, 1)

    async def test_a_preimage_proves_all_the_same(self, world):
        world.add(answer=was_paid())
        world.lnd_pays = False

        assert (await world.reconciler.once()).settled == 1


class TestJournalContents:
    def invoice(self, **changes):
        fields = {
            "network": "bcrt",
            "timestamp": int(START.timestamp()),
            "payment_hash": b"\x33" * 32,
            "payment_secret": b"\x44" * 32,
            "description": "x",
            "expiry_s": 60,
        }
        return bolt11.encode(PrivateKey(b"\x01" * 32), **{**fields, **changes})

    def read(self, payment_request):
        return reconcile.open_payment(b"job", payment_request, START + timedelta(1), START)

    def test_hash_and_expiry_are_the_invoices_own(self):
        payment = self.read(self.invoice())

        assert payment.payment_hash == b"\x33" * 32
        assert payment.payable_until == START + timedelta(seconds=60)
        assert (payment.job_id, payment.paying_since) == (b"job", START)

    @pytest.mark.parametrize("expiry_s", [2**40, 2**60])
    def test_an_expiry_beyond_the_calendar_is_its_end(self, expiry_s):
        payment = self.read(self.invoice(expiry_s=expiry_s))

        assert payment.payable_until == datetime.max.replace(tzinfo=UTC)

    def test_an_invoice_that_cannot_be_read_has_no_hash(self):
        assert self.read("lnbc1").payment_hash is None


async def test_a_payment_without_a_hash_is_counted_and_not_asked_for(world):
    world.add(payment_hash=None)

    summary = await world.reconciler.once()

    assert world.asked == []
    assert (summary.without_hash, summary.still_open) == (1, 1)


async def test_while_lnd_is_away_nothing_changes_and_it_is_asked_little(world):
    for number in range(20):
        world.add(number, answer=was_paid(number))
    world.lnd_is_away = True
    reconciler = world.make(batch=15)

    summary = await reconciler.once()

    assert world.resolved == []
    assert len(world.asked) == MAX_ERRORS_IN_A_ROW
    assert (summary.unanswered, summary.waiting, summary.still_open) == (3, 17, 20)
    assert not summary.more, "there is no use in asking again at once"

    world.lnd_is_away = False
    world.passes(60)
    assert [(await reconciler.once()).settled for _ in range(2)] == [15, 5]


async def test_payments_that_lnd_cannot_be_asked_about_do_not_hold_up_the_others(world):
    for number in range(5):
        world.add(number, answer=AWAY if number % 2 else POISON)
    for number in range(5, 10):
        world.add(number, answer=was_paid(number))

    for _ in range(2):
        await world.reconciler.once()
        world.passes(30)

    assert len(world.resolved) == 5


async def test_an_lnd_that_answers_now_and_then_is_not_taken_to_be_away(world):
    for number in range(12):
        world.add(number, answer=was_paid(number) if number % 3 else AWAY)

    summary = await world.reconciler.once()

    assert (summary.settled, summary.unanswered, summary.waiting) == (8, 4, 0)


async def test_a_journal_that_cannot_be_written_leaves_the_payment_open_for_a_later_pass(world):
    world.add(answer=was_paid())
    world.unwritable = JournalUnavailable("the disk is full")

    summary = await world.reconciler.once()
    assert (summary.settled, summary.unanswered, summary.still_open) == (0, 1, 1)

    world.unwritable = None
    world.passes(60)
    assert (await world.reconciler.once()).settled == 1


async def test_a_payment_resolved_by_another_process_is_not_counted_twice(world):
    payment = world.add(answer=was_paid())

    async def resolved_meanwhile(payment_hash):
        world.open.remove(payment)
        return was_paid()

    summary = await world.make(lookup=resolved_meanwhile).once()

    assert (summary.settled, summary.elsewhere, summary.fees_msat) == (0, 1, 0)
    assert summary.still_open == 0


async def test_an_answer_that_is_no_evidence_leaves_a_payment_unknown_for_ever(world):
    """A node of another gateway on the same journal has no record of a payment, however old it is."""
    world.add()
    world.passes(10 * 86_400)

    async def nothing(_payment):
        return None

    assert (await world.make(lookup=nothing).once()).unproven == 1
    assert world.resolved == []


@pytest.mark.parametrize("retryable", [True, False])
async def test_a_node_that_does_not_answer_is_asked_again(world, retryable):
    payment = world.add(answer=UpstreamError("UNAVAILABLE", "away", retryable=retryable))

    assert (await world.reconciler.once()).unanswered == 1

    world.answers[payment.payment_hash] = was_paid()
    world.passes(600)
    assert (await world.reconciler.once()).settled == 1


async def test_a_payment_is_looked_at_less_and_less_often(world):
    world.add(answer=record(PaymentState.IN_FLIGHT))
    asked_at = []
    for second in range(0, 3_000, 5):
        world.now = START + timedelta(seconds=second)
        before = len(world.asked)
        summary = await world.reconciler.once()
        assert summary.still_open == 1
        if len(world.asked) > before:
            asked_at.append(second)

    gaps = [later - earlier for earlier, later in pairwise(asked_at)]
    assert gaps == [5, 10, 20, 40, 80, 160, 320, 600, 600, 600]


async def test_a_clock_that_was_set_back_does_not_put_payments_off_for_long(world):
    world.add(answer=record(PaymentState.IN_FLIGHT))
    await world.reconciler.once()
    world.passes(-86_400)

    await world.reconciler.once()

    assert len(world.asked) == 2


async def test_a_pass_asks_one_batch_and_says_that_there_is_more(world):
    for number in range(25):
        world.add(number, answer=was_paid(number))
    reconciler = world.make(batch=10)

    first, second, third = [await reconciler.once() for _ in range(3)]

    assert (first.settled, first.waiting, first.more) == (10, 15, True)
    assert (second.settled, second.more) == (10, True)
    assert (third.settled, third.waiting, third.more) == (5, 0, False)


async def test_nothing_is_remembered_of_payments_that_are_no_longer_open(world):
    for number in range(100):
        world.add(number, answer=record(PaymentState.IN_FLIGHT, number))
    await world.reconciler.once()
    assert len(world.reconciler._waits) == 100

    del world.open[1:]
    await world.reconciler.once()

    assert list(world.reconciler._waits) == [world.open[0].job_id]


class TestRunning:
    async def test_it_looks_at_once_and_again_after_each_interval(self, world):
        passes = asyncio.Queue()
        running = asyncio.create_task(
            world.make(timing=ReconcilerTiming(interval_s=30)).run(passes.put_nowait, pytest.fail)
        )
        try:
            assert (await asyncio.wait_for(passes.get(), 60)).still_open == 0
            await asyncio.sleep(0)
            assert passes.empty()
        finally:
            running.cancel()

        running = asyncio.create_task(
            world.make(timing=ReconcilerTiming(interval_s=0.01)).run(passes.put_nowait, pytest.fail)
        )
        try:
            for _ in range(3):
                await asyncio.wait_for(passes.get(), 60)
        finally:
            running.cancel()

    async def test_a_backlog_is_worked_off_without_a_pause(self, world):
        for number in range(95):
            world.add(number, answer=was_paid(number))
        reconciler = world.make(batch=10, timing=ReconcilerTiming(interval_s=3_600))
        finished = asyncio.Event()
        running = asyncio.create_task(reconciler.run(lambda it: it.more or finished.set(), pytest.fail))
        try:
            await asyncio.wait_for(finished.wait(), 60)
        finally:
            running.cancel()

        assert len(world.resolved) == 95

    async def test_an_unavailable_lnd_is_reported_and_asked_again(self, world):
        world.add(1, answer=was_paid(1))
        errors, away = asyncio.Queue(), [JournalUnavailable("the journal cannot be read")]
        reconciler = world.make(timing=ReconcilerTiming(interval_s=0.01))
        read = reconciler._open_payments

        async def open_payments():
            if away:
                raise away.pop()
            async for payment in read():
                yield payment

        reconciler._open_payments = open_payments
        running = asyncio.create_task(reconciler.run(lambda it: None, errors.put_nowait))
        try:
            assert isinstance(await asyncio.wait_for(errors.get(), 60), JournalUnavailable)
            async with asyncio.timeout(60):
                while len(world.resolved) < 1:
                    await asyncio.sleep(0.001)
        finally:
            running.cancel()

    async def test_a_pass_that_fails_is_raised_and_the_next_run_goes_on_with_the_others(self, world):
        """An unexpected error is raised to the supervisor, which logs and counts it."""
        world.add(1, answer=was_paid(1))
        world.add(2, answer=was_paid(2))
        world.unwritable = RuntimeError("a bug")
        reconciler = world.make(timing=ReconcilerTiming(interval_s=3_600))
        with pytest.raises(RuntimeError, match="a bug"):
            await asyncio.wait_for(reconciler.run(lambda it: None, pytest.fail), 60)
        world.unwritable = None
        running = asyncio.create_task(reconciler.run(lambda it: None, pytest.fail))
        try:
            async with asyncio.timeout(60):
                while len(world.resolved) < 1:
                    await asyncio.sleep(0)
        finally:
            running.cancel()

        assert world.resolved[0][0].job_id == open_payment(2).job_id, "the others have their turn"


@settings(deadline=None)
@given(
    fates=st.lists(st.sampled_from(["paid", "failed", "never begun", "in flight, then paid"])),
    away=st.lists(st.booleans(), max_size=10),
)
def test_each_payment_is_resolved_once_and_as_it_really_ended(fates, away):
    async def story():
        world = World()
        for number, fate in enumerate(fates):
            world.add(
                number,
                answer={
                    "paid": was_paid(number),
                    "failed": record(PaymentState.FAILED, number),
                    "never begun": None,
                    "in flight, then paid": record(PaymentState.IN_FLIGHT, number),
                }[fate],
            )
        for world.lnd_is_away in [*away, False]:
            await world.reconciler.once()
            world.passes(20)
        for number, fate in enumerate(fates):
            if fate == "in flight, then paid":
                world.answers[open_payment(number).payment_hash] = was_paid(number)
        for _ in range(3):
            world.passes(1_000)
            await world.reconciler.once()
        return world

    world = asyncio.run(story())

    assert world.open == []
    told = {payment.job_id: resolution.state for payment, resolution in world.resolved}
    assert len(told) == len(world.resolved) == len(fates)
    for number, fate in enumerate(fates):
        expected = State.SETTLED if "paid" in fate else State.NOT_PAID
        assert told[open_payment(number).job_id] is expected


async def test_against_an_lnd_that_restarts_every_payment_is_resolved(tmp_path, world):
    node = LndStandin(tmp_path)
    await node.start()
    for number in range(30):
        payment = world.add(number)
        if number % 3 == 0:
            node.knows(settled(preimage_of(number), fee_msat=number))
        elif number % 3 == 1:
            node.knows(unfinished(payment.payment_hash, status=FAILED, failure_reason=2))
    try:
        async with LndClient(node.address, timeout_s=60) as lnd:
            reconciler = world.make(lookup=lambda payment: lnd.payment(payment.payment_hash), batch=10)
            assert (await reconciler.once()).still_open == 23
            await node.stop()
            assert (await reconciler.once()).unanswered == 3
            assert len(world.resolved) == 7
            await node.start()
            for _ in range(200):
                world.passes(100)
                if not (await reconciler.once()).still_open:
                    break
                await asyncio.sleep(0.01)
    finally:
        await node.stop()

    states = {payment.job_id: resolution for payment, resolution in world.resolved}
    for number in range(30):
        resolution = states[open_payment(number).job_id]
        assert resolution.evidence is list(ResolvedBy)[number % 3]
        assert resolution.update.fee_msat == (number if number % 3 == 0 else None)
