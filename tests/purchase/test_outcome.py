"""Each row of the outcome table, reached through the purchase service."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from lcp_gateway.purchase.errors import PurchaseError, UpstreamError
from lcp_gateway.purchase.execution import PurchaseExecutor
from lcp_gateway.purchase.limits import SpendingLimits
from lcp_gateway.purchase.outcome import FOUND_PAID, LOST_BY_CRASH, RULINGS, EndedBy, Ending, Received, no_judge
from lcp_gateway.purchase.ports import ResultStatus, StreamEnd
from lcp_gateway.purchase.purchase import InterruptReason, Purchase
from lcp_gateway.purchase.quote import ProviderSource
from lcp_gateway.purchase.result_buffer import BufferLimits
from lcp_gateway.purchase.states import TRANSITIONS, PurchaseEvent, State, Verdict
from tests.support import virtual_time
from tests.support.cases import each_case
from tests.support.purchases import (
    NOW,
    TASK,
    MemoryJournal,
    ScriptedInspector,
    ScriptedUpstream,
    Trusting,
    order,
    quote,
    result,
    stream_events,
)
from tests.support.scripted_peers import NO_REPEAT, ordered, settle, world

PAGE = Path(__file__).parents[2] / "docs" / "money.md"
REFUND = SpendingLimits(refund_undelivered=True)
STREAM = replace(TASK, stream=True)


def test_every_ending_has_a_ruling():
    assert set(RULINGS) == set(Received)
    assert all(set(row) == set(EndedBy) for row in RULINGS.values())


def test_the_documented_table_is_the_one_that_is_executed():
    printed = PAGE.read_text().split("<!-- endings:begin -->")[1].split("<!-- endings:end -->")[0]
    rows = [tuple(cell.strip() for cell in line.strip("| ").split("|")) for line in printed.strip().splitlines()[2:]]
    documented = {
        (received, ended_by): (event.strip("`"), charge, blamed)
        for received, ended_by, event, charge, blamed in (row[:5] for row in rows)
    }
    executed = {
        (received.value, ended_by.value): (
            ruling.event.value,
            "kept" if ruling.keeps_charge else "given back",
            "yes" if ruling.blames_provider else "no",
        )
        for received, row in RULINGS.items()
        for ended_by, ruling in row.items()
    }
    assert documented == executed


def test_only_a_whole_result_is_delivered_and_only_it_clears_its_provider_of_everything():
    for received, row in RULINGS.items():
        for ruling in row.values():
            whole = received is Received.WHOLE
            assert (ruling.event is PurchaseEvent.DELIVER) is whole
            assert TRANSITIONS[State.SETTLED][ruling.event] is (State.DELIVERED if whole else State.UNDELIVERED)


def test_only_a_client_that_leaves_before_the_end_pays_for_what_it_did_not_get():
    """A wrong result counts against its provider, however slowly the client reads."""
    kept = {
        Ending(ended_by, received)
        for received, row in RULINGS.items()
        for ended_by, ruling in row.items()
        if ruling.keeps_charge and received is not Received.WHOLE
    }
    assert kept == {Ending(EndedBy.CLIENT, Received.NOTHING), Ending(EndedBy.CLIENT, Received.PART)}


@pytest.mark.parametrize("ending", [LOST_BY_CRASH, FOUND_PAID])
def test_purchases_resolved_later_are_decided_in_the_customers_favour(ending):
    assert not ending.ruling.keeps_charge and ending.ruling.blames_provider


# What a provider sends, and how the result is classified.


class Fixed:
    """A judge with a fixed verdict."""

    free_bytes = 2**40
    is_complete = is_flooded = shows_error = False

    def __init__(self, received):
        self.said = received
        self.read = b""

    def feed(self, chunk):
        self.read += chunk

    def received(self):
        return self.said


def bought(*, judge=None, source=ProviderSource.LCP, stream=False, **script):
    upstream = ScriptedUpstream(quoted=replace(quote(), source=source), **script)
    exposure = Trusting()
    executor = PurchaseExecutor(
        upstream,
        journal=MemoryJournal(upstream),
        inspector=ScriptedInspector(REFUND),
        limits=REFUND,
        exposure=exposure,
        execute_timeout_s=1,
        judges=no_judge if judge is None else lambda *_what: judge,
        now=lambda: NOW,
    )
    wanted = replace(order(STREAM if stream else TASK), account_id="acct_1")
    return executor, exposure, Purchase(wanted, upstream.quoted)


async def end_of(executor, purchase, *, then=None):
    """Buy to the end and return the outcome; ``then`` are the events of a stream after its first chunk."""
    try:
        if not purchase.order.task.stream:
            await executor.execute(purchase)
        else:
            stream = await executor.open_stream(purchase)
            async for _ in stream.chunks():
                if then is not None:
                    then(purchase)
    except PurchaseError:
        pass
    return purchase.ending


WRONG_HASH = {"sha256": b"\0" * 32}
FAILED = {"status": ResultStatus.FAILED}


@pytest.mark.parametrize(
    ("outcome", "received"),
    [
        (result(), Received.WHOLE),
        (result(**WRONG_HASH), Received.ALTERED),
        (result(length=1), Received.ALTERED),
        (result(**FAILED), Received.ALTERED),
        (UpstreamError("UNAVAILABLE", "lcp_error code=10: broke"), Received.NOTHING),
    ],
)
async def test_what_a_provider_sends_in_one_piece(outcome, received):
    executor, exposure, purchase = bought(outcome=outcome)
    assert await end_of(executor, purchase) == Ending(EndedBy.PROVIDER, received)
    assert exposure.states[-1] == ("delivered" if received is Received.WHOLE else "undelivered")
    assert bool(purchase.customer_msat) is (received is Received.WHOLE)


def cut(events, at):
    return [*events[:at], UpstreamError("UNAVAILABLE", "cut")]


GOOD = stream_events(b"one", b"two")


@each_case(
    "events, received",
    [
        (GOOD, Received.WHOLE),
        ([*GOOD[:3], StreamEnd(b"\0" * 32, 6), GOOD[4]], Received.ALTERED),
        ([*GOOD[:3], StreamEnd(GOOD[3].sha256, 5), GOOD[4]], Received.ALTERED),
        (stream_events(b"one", b"two", **FAILED), Received.ALTERED),
        ([*GOOD[:4], b"more", GOOD[4]], Received.ALTERED),
        (cut(GOOD, 2), Received.PART),
        (GOOD[:3], Received.PART),
        (cut(GOOD, 1), Received.NOTHING),
        (GOOD[:1], Received.NOTHING),
        ([result(**FAILED)], Received.NOTHING),
    ],
)
@each_case("slow", [False, True])
async def test_a_providers_stream_is_classified_the_same_however_slow_the_reader(events, received, slow):
    """Regression: wrong results were charged to clients that read slowly, and never counted against the provider."""
    executor, exposure, purchase = bought(events=events, stream=True)
    purchase.held_up_by_readers = lambda: slow
    assert await end_of(executor, purchase) == Ending(EndedBy.PROVIDER, received)
    assert exposure.states[-1] == ("delivered" if received is Received.WHOLE else "undelivered")
    assert bool(purchase.customer_msat) is (received is Received.WHOLE)


@pytest.mark.parametrize("slow", [False, True])
async def test_a_timeout_is_charged_to_readers_that_held_the_stream_up(slow):
    late = UpstreamError("DEADLINE_EXCEEDED", "late")
    executor, exposure, purchase = bought(events=[*GOOD[:2], late], stream=True)
    purchase.held_up_by_readers = lambda: slow
    party = EndedBy.CLIENT if slow else EndedBy.PROVIDER
    assert await end_of(executor, purchase) == Ending(party, Received.PART)
    assert exposure.states[-1] == ("released" if slow else "undelivered")
    assert bool(purchase.customer_msat) is slow


@each_case("received", [r for r in Received if r is not Received.UNKNOWN])
@each_case("stream", [False, True])
async def test_the_judge_of_the_bytes_takes_part_in_the_classification(received, stream):
    judge = Fixed(received)
    executor, exposure, purchase = bought(judge=judge, stream=stream, outcome=result(b"onetwo"), events=GOOD)
    assert await end_of(executor, purchase) == Ending(EndedBy.PROVIDER, received)
    assert judge.read == b"onetwo"
    assert exposure.states[-1] == ("delivered" if received is Received.WHOLE else "undelivered")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_judge_cannot_make_a_wrong_hash_right(stream):
    events = [*GOOD[:3], StreamEnd(b"\0" * 32, 6), GOOD[4]]
    executor, _, purchase = bought(
        judge=Fixed(Received.WHOLE), stream=stream, outcome=result(**WRONG_HASH), events=events
    )
    assert (await end_of(executor, purchase)).received is Received.ALTERED


@pytest.mark.parametrize("party", [EndedBy.CLIENT, EndedBy.GATEWAY, EndedBy.PROVIDER])
async def test_a_wrong_result_is_found_while_another_party_ends_the_purchase(party):
    events = [*GOOD[:3], StreamEnd(b"\0" * 32, 6), GOOD[4]]
    executor, exposure, purchase = bought(events=events, stream=True)

    def interrupted(purchase):
        purchase.interrupted_by = party

    ending = await end_of(executor, purchase, then=interrupted)
    assert ending == Ending(EndedBy.PROVIDER, Received.ALTERED)
    assert exposure.states[-1] == "undelivered" and purchase.customer_msat == 0


# Purchases that the service interrupts.


async def interrupted(reason, *, begun, stream=True, source=ProviderSource.LCP, on_delivery=False):
    w = world(limits=REFUND)
    order = replace(ordered(stream=stream), account_id="acct_1")
    answer = w.service.start(order, NO_REPEAT)
    work = await w.work()
    if source is ProviderSource.NODE:
        answer.purchase.quote = replace(answer.purchase.quote, source=source, on_delivery=on_delivery)
    if stream and (begun or not on_delivery):
        work.put(*GOOD[: 2 if begun else 1])
        await answer.wait_head()
        await settle()
    w.service.interrupt(answer, reason)
    await w.service.wait_idle()
    return answer.purchase, w.exposure.states[-1]


@pytest.mark.parametrize("reason", [InterruptReason.SHUTTING_DOWN, InterruptReason.ENDED])
@pytest.mark.parametrize("begun", [False, True])
async def test_a_purchase_that_the_gateway_interrupts_is_refunded(reason, begun):
    """A purchase that the gateway interrupts must not count as cancelled by its client."""
    purchase, seen = await interrupted(reason, begun=begun)
    assert purchase.ending.ended_by is EndedBy.GATEWAY
    assert (purchase.state, seen) == (State.UNDELIVERED, "undelivered")
    assert not purchase.ending.ruling.keeps_charge


async def test_a_timeout_counts_against_the_provider():
    """A timeout must not count as cancelled by the client."""
    purchase, seen = await interrupted(InterruptReason.TIMED_OUT, begun=True)
    assert purchase.ending == Ending(EndedBy.PROVIDER, Received.PART)
    assert (purchase.state, seen) == (State.UNDELIVERED, "undelivered")


@pytest.mark.parametrize("reason", [InterruptReason.CANCELLED, InterruptReason.NO_LISTENER])
@pytest.mark.parametrize(("begun", "seen"), [(True, "released"), (False, "undelivered")])
async def test_the_client_pays_for_a_purchase_that_it_ends(reason, begun, seen):
    purchase, heard = await interrupted(reason, begun=begun)
    received = Received.PART if begun else Received.NOTHING
    assert purchase.ending == Ending(EndedBy.CLIENT, received)
    assert purchase.ending.ruling.keeps_charge and heard == seen


@pytest.mark.parametrize(
    ("reason", "stream", "ending"),
    [
        (InterruptReason.CANCELLED, False, Ending(EndedBy.CLIENT, Received.PART)),
        (InterruptReason.SHUTTING_DOWN, False, Ending(EndedBy.GATEWAY, Received.PART)),
        (InterruptReason.TIMED_OUT, False, Ending(EndedBy.PROVIDER, Received.PART)),
    ],
)
async def test_a_node_that_was_at_work_is_paid_whatever_ends_it(reason, stream, ending):
    purchase, _ = await interrupted(reason, begun=False, stream=stream, source=ProviderSource.NODE)
    assert purchase.ending == ending


@each_case("reason", InterruptReason)
@each_case("stream", [False, True])
async def test_nothing_is_paid_or_charged_at_a_node_that_is_paid_on_delivery_before_anything_came(reason, stream):
    """Regression: a client that left before the first byte was charged the most that the answer could have cost."""
    purchase, seen = await interrupted(reason, begun=False, stream=stream, source=ProviderSource.NODE, on_delivery=True)
    assert (purchase.state, purchase.ending, seen) == (State.NOT_PAID, None, "not_paid")
    assert (purchase.verdict, purchase.customer_msat) == (Verdict.NONE, 0)


async def test_a_client_that_leaves_in_the_middle_pays_also_where_the_node_is_paid_on_delivery():
    purchase, seen = await interrupted(
        InterruptReason.NO_LISTENER, begun=True, source=ProviderSource.NODE, on_delivery=True
    )
    assert (purchase.ending, seen) == (Ending(EndedBy.CLIENT, Received.PART), "released")
    assert purchase.customer_msat == purchase.quote.price_msat


def test_readers_that_hold_a_stream_up_until_its_time_is_over_pay_for_it():
    async def scenario():
        w = world(bounds=BufferLimits(window_bytes=2, whole_bytes=1_000), limit_s=1.0)
        answer = w.service.start(ordered(stream=True), NO_REPEAT)
        w.service.joined(answer)
        reader = answer.chunks()
        work = await w.work()
        work.put(GOOD[0])
        await answer.wait_head()
        first = asyncio.ensure_future(anext(reader))
        await settle()
        work.put(GOOD[1])
        assert await first == b"one"
        # The reader stops reading; from here on the delay is the client's.
        await settle()
        w.clock[0] += 60
        await asyncio.wait_for(w.service.wait_idle(), 60)
        assert answer.purchase.ending == Ending(EndedBy.CLIENT, Received.PART)
        await reader.aclose()

    # The limit counts from the start: on a busy machine it would pass before the reader stops.
    virtual_time.run(scenario())


async def test_a_provider_that_stalls_after_its_reader_did_is_not_excused_by_it():
    """Regression: the client's delay was measured at the last block, and excused a provider that stalled later."""
    w = world(bounds=BufferLimits(window_bytes=2, whole_bytes=1_000))
    answer = w.service.start(ordered(stream=True), NO_REPEAT)
    w.service.joined(answer)
    reader = answer.chunks()
    work = await w.work()
    work.put(GOOD[0])
    await answer.wait_head()
    first = asyncio.ensure_future(anext(reader))
    await settle()
    work.put(GOOD[1])
    assert await first == b"one"
    await settle()
    w.clock[0] += 10
    following = asyncio.ensure_future(anext(reader))
    await settle()
    # The client reads again, and the provider sends nothing for longer than the client had stalled.
    w.clock[0] += 60
    work.put(UpstreamError("DEADLINE_EXCEEDED", "late"))
    with pytest.raises(PurchaseError):
        await following
    assert answer.purchase.ending == Ending(EndedBy.PROVIDER, Received.PART)
    w.service.left(answer)
