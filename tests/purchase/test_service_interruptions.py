"""Results that are retained, purchases that are cancelled, and purchases that run out of time."""

import asyncio

import pytest

from lcp_gateway.purchase.purchase import Interrupted, InterruptReason
from lcp_gateway.purchase.result_buffer import BufferLimits
from lcp_gateway.purchase.service import CANCEL_REASON
from lcp_gateway.purchase.states import Verdict
from tests.support import virtual_time
from tests.support.purchases import stream_events
from tests.support.scripted_peers import (
    KEY,
    NO_REPEAT,
    Peer,
    PlainJournal,
    ScriptedPeers,
    ordered,
    settle,
    spawn,
    world,
)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_retained_result_is_bought_though_no_client_waits(stream):
    w = world(grace_s=0)
    answer = w.service.start(ordered(stream=stream), NO_REPEAT)
    answer.retained_for = object()
    w.service.joined(answer)
    w.service.left(answer)
    work = await w.work()
    w.service.joined(answer)
    w.service.left(answer)
    await asyncio.sleep(0.01)
    work.stream(b"an", b"swer") if stream else work.deliver(b"answer")
    await w.service.wait_idle()
    assert (answer.error, b"".join(answer.blocks())) == (None, b"answer")
    assert w.journal.only == ["paying", "settled", "delivered"]


async def test_a_second_request_joins_a_retained_result_and_may_leave_again():
    w = world(grace_s=0)
    answer = w.service.start(ordered(stream=True), KEY)
    answer.retained_for = object()
    work = await w.work()
    begin, one, *end = stream_events(b"one")
    work.put(begin, one)
    joined = spawn(w.ask(ordered(stream=True), KEY))
    await settle()
    joined.cancel()
    await asyncio.sleep(0.01)
    assert not answer.ended and answer.listeners == 0 and not answer.outlives_requests
    work.put(*end)
    assert await w.ask(ordered(stream=True), KEY) == b"one"
    assert len(w.upstream.works) == 1


async def test_a_retained_result_larger_than_the_buffer_ends_without_a_reader():
    w = world(bounds=BufferLimits(window_bytes=10, whole_bytes=20))
    answer = w.service.start(ordered(stream=True), NO_REPEAT)
    answer.retained_for = object()
    work = await w.work()
    work.put(*stream_events(b"x" * 15, b"y" * 15)[:3])
    await w.service.wait_idle()
    assert answer.error.code == InterruptReason.ENDED.value
    assert answer.verdict is Verdict.SETTLED
    assert w.memory.pool.held_bytes == 0


async def test_a_purchase_cancelled_before_its_payment_costs_nothing():
    upstream = ScriptedPeers({"p1": Peer(ready=asyncio.Event())})
    w = world(upstream=upstream)
    answer = w.service.start(ordered(), KEY)
    await settle()
    w.service.interrupt(answer, InterruptReason.CANCELLED)
    await w.service.wait_idle()
    assert (answer.error.code, answer.error.verdict) == ("cancelled", Verdict.NONE)
    assert w.upstream.works == [] and w.upstream.cancelled == [] and w.journal.states == {}


async def test_a_purchase_cancelled_while_its_intent_is_written_is_known_to_be_unpaid():
    journal = PlainJournal(gate=asyncio.Event())
    w = world(journal=journal)
    answer = w.service.start(ordered(), KEY)
    await settle()
    w.service.interrupt(answer, InterruptReason.CANCELLED)
    await w.service.wait_idle()
    assert answer.verdict is Verdict.NONE
    assert w.upstream.works == [] and journal.only == ["not_paid"]


@pytest.mark.parametrize(
    ("stream", "verdict", "states"),
    [(False, Verdict.UNKNOWN, ["paying", "unknown"]), (True, Verdict.SETTLED, ["paying", "settled", "undelivered"])],
)
async def test_a_purchase_cancelled_after_its_payment_reports_its_state_and_cancels_the_job(stream, verdict, states):
    w = world()
    answer = w.service.start(ordered(stream=stream), KEY)
    work = await w.work()
    if stream:
        work.put(*stream_events(b"one")[:2])
        await answer.wait_head()
    w.service.interrupt(answer, InterruptReason.CANCELLED)
    w.service.interrupt(answer, InterruptReason.CANCELLED)
    await w.service.wait_idle()
    await settle()
    assert (answer.error.code, answer.error.verdict) == ("cancelled", verdict)
    assert w.journal.only == states
    assert w.upstream.cancelled == [("p1", CANCEL_REASON)]
    # A repeat with the key gets the same result and pays nothing.
    with pytest.raises(Interrupted):
        await w.ask(ordered(stream=stream), KEY)
    assert len(w.upstream.works) == 1


async def test_cancelling_an_ended_purchase_changes_nothing():
    w = world()
    asked = spawn(w.ask(ordered(), KEY))
    (await w.work()).deliver()
    await asked
    (answer,) = w.observer.ends
    w.service.interrupt(answer, InterruptReason.CANCELLED)
    await settle()
    assert answer.error is None and w.upstream.cancelled == []


async def test_a_timeout_before_the_payment_costs_nothing():
    upstream = ScriptedPeers({"p1": Peer(ready=asyncio.Event())})
    w = world(upstream=upstream, limit_s=0.02)
    with pytest.raises(Interrupted) as caught:
        await w.ask(ordered())
    assert (caught.value.code, caught.value.verdict) == ("timed_out", Verdict.NONE)
    await w.service.wait_idle()
    assert w.upstream.works == []


@pytest.mark.parametrize(("stream", "verdict"), [(False, Verdict.UNKNOWN), (True, Verdict.SETTLED)])
def test_a_timeout_after_the_payment_reports_its_state(stream, verdict):
    async def scenario():
        w = world(limit_s=0.5)
        asked = spawn(w.ask(ordered(stream=stream), KEY))
        work = await w.work()
        if stream:
            work.put(*stream_events(b"one")[:2])
        with pytest.raises(Interrupted) as caught:
            await asked
        assert (caught.value.code, caught.value.verdict) == ("timed_out", verdict)
        assert w.upstream.cancelled == [("p1", CANCEL_REASON)]

    # The limit counts from before the payment: on a busy machine it would pass first.
    virtual_time.run(scenario())


async def test_the_time_limit_holds_for_a_purchase_without_a_reader_too():
    w = world(limit_s=0.02)
    answer = w.service.start(ordered(), NO_REPEAT)
    answer.retained_for = object()
    await w.service.wait_idle()
    assert answer.error.code == "timed_out"


async def test_a_result_that_came_in_time_is_not_interrupted_later():
    w = world(limit_s=60)
    asked = spawn(w.ask(ordered()))
    (await w.work()).deliver()
    assert await asked == b"answer"
    (answer,) = w.observer.ends
    timers = [one for one in asyncio.get_running_loop()._scheduled if not one.cancelled()]
    assert answer.error is None and timers == []


async def test_without_a_limit_no_timer_is_set():
    w = world()
    asked = spawn(w.ask(ordered()))
    await w.work()
    assert [one for one in asyncio.get_running_loop()._scheduled if not one.cancelled()] == []
    w.upstream.works[0].deliver()
    await asked


async def test_a_listener_that_fails_does_not_turn_a_delivery_into_a_failure():
    w, reported = world(), []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, it: reported.append(it))
    answer = w.service.start(ordered(), KEY)

    def fail(_answer):
        raise RuntimeError("a bug")

    answer.when_ended(fail)
    reading = spawn(w.read(answer))
    (await w.work()).deliver()
    assert await reading == b"answer"
    assert await w.ask(ordered(), KEY) == b"answer"
    assert (answer.error, len(w.upstream.works), len(reported)) == (None, 1, 1)
    assert w.journal.only[-1] == "delivered"


# Purchases of other gateways, found in the journal.
