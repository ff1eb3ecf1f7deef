"""A purchase runs in a task of its own, which outlives its client's connection."""

import asyncio
import weakref

import pytest

from lcp_gateway.purchase.errors import PaymentFailed, Undelivered, UpstreamError
from lcp_gateway.purchase.idempotency import RepeatKeys, ResultLost
from lcp_gateway.purchase.limits import SpendingLimits
from lcp_gateway.purchase.money import Budget, Msat, Period
from lcp_gateway.purchase.ports import ResultStatus
from lcp_gateway.purchase.purchase import Interrupted, InterruptReason
from lcp_gateway.purchase.result_buffer import BufferLimits
from lcp_gateway.purchase.service import CANCEL_REASON
from lcp_gateway.purchase.states import Verdict
from tests.support.purchases import result, stream_events
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


async def test_an_order_is_bought_once_and_its_bytes_come_back():
    w = world()
    asked = spawn(w.ask(ordered()))
    (await w.work()).deliver(b"answer")
    assert await asked == b"answer"
    assert w.journal.only == ["paying", "settled", "delivered"]
    assert len(w.service) == 0
    assert [answer.verdict for answer in w.observer.ends] == [Verdict.SETTLED]


async def test_a_stream_comes_as_it_is_made():
    w = world()
    answer = w.service.start(ordered(stream=True), NO_REPEAT)
    w.service.joined(answer)
    work = await w.work()
    begin, one, *end = stream_events(b"one")
    work.put(begin, one)
    assert (await answer.wait_head()).content_type == "text/event-stream"
    chunks = answer.chunks()
    assert await anext(chunks) == b"one"
    assert not answer.ended and answer.verdict is Verdict.SETTLED
    work.put(*end)
    with pytest.raises(StopAsyncIteration):
        await anext(chunks)
    w.service.left(answer)
    assert w.journal.only[-1] == "delivered"


async def test_a_client_that_leaves_before_anything_is_paid_ends_the_purchase():
    upstream = ScriptedPeers({"p1": Peer(ready=asyncio.Event())})
    w = world(upstream=upstream)
    asked = spawn(w.ask(ordered()))
    await settle()
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    await w.service.wait_idle()
    assert upstream.works == [] and upstream.cancelled == []
    (answer,) = w.observer.ends
    assert isinstance(answer.error, Interrupted) and answer.error.verdict is Verdict.NONE


async def test_a_client_that_leaves_while_the_intent_is_written_pays_nothing():
    w = world(journal=PlainJournal(gate=asyncio.Event()))
    asked = spawn(w.ask(ordered()))
    await settle()
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    await w.service.wait_idle()
    assert w.upstream.works == []
    assert w.journal.only == ["not_paid"]


async def test_a_client_that_leaves_does_not_end_a_purchase_that_another_waits_for():
    w = world()
    leaving, staying = spawn(w.ask(ordered(), KEY)), spawn(w.ask(ordered(), KEY))
    work = await w.work()
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await asyncio.sleep(0.05)
    work.deliver()
    assert await staying == b"answer"


async def test_when_all_leave_after_payment_the_result_is_received_for_a_repeat():
    w = world(grace_s=60)
    asked = spawn(w.ask(ordered(stream=True), KEY))
    work = await w.work()
    begin, one, *end = stream_events(b"one")
    work.put(begin, one)
    await settle()
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    again = spawn(w.ask(ordered(stream=True), KEY))
    await settle()
    work.put(*end)
    assert await again == b"one"
    assert w.upstream.cancelled == [] and w.journal.only[-1] == "delivered"


async def test_a_result_that_ends_within_the_grace_is_held_for_a_retry():
    w = world(grace_s=60)
    asked = spawn(w.ask(ordered()))
    work = await w.work()
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    work.deliver()
    await w.service.wait_idle()
    assert w.journal.only[-1] == "delivered"
    assert await w.ask(ordered(), RepeatKeys(is_retry=True)) == b"answer"
    assert len(w.upstream.works) == 1


async def test_the_grace_counts_from_the_second_leaving(monkeypatch):
    """The timer of the first departure must be cancelled when a client joins again."""
    w = world(grace_s=60)
    loop = asyncio.get_running_loop()
    set_timers = []
    call_later = loop.call_later

    def noted(delay, callback, *arguments, **more):
        timer = call_later(delay, callback, *arguments, **more)
        if delay == 60:
            set_timers.append(timer)
        return timer

    monkeypatch.setattr(loop, "call_later", noted)
    answer = w.service.start(ordered(stream=True), NO_REPEAT)
    w.service.joined(answer)
    work = await w.work()
    work.put(*stream_events(b"one")[:2])
    await answer.wait_head()
    w.service.left(answer)
    w.service.joined(answer)
    w.service.left(answer)
    first, second = set_timers
    assert first.cancelled() and not second.cancelled()
    # The first timer would have fired by now.
    await settle()
    assert not answer.ended
    w.service.joined(answer)
    assert second.cancelled()
    work.put(*stream_events(b"one")[2:])
    await w.service.wait_idle()
    assert w.journal.only[-1] == "delivered"
    w.service.left(answer)


@pytest.mark.parametrize("begun", [False, True])
async def test_without_a_listener_at_the_end_of_the_grace_the_job_is_cancelled(begun):
    w = world(grace_s=0.02)
    asked = spawn(w.ask(ordered(stream=True), KEY))
    work = await w.work()
    if begun:
        work.put(*stream_events(b"one")[:2])
        await settle()
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    assert len(w.service) == 1, "the purchase continues"
    await asyncio.wait_for(w.service.wait_idle(), 60)
    await settle()
    assert w.upstream.cancelled == [("p1", CANCEL_REASON)]
    assert work.closed
    assert w.journal.only[-1] == ("undelivered" if begun else "unknown")
    with pytest.raises(Interrupted) as caught:
        await w.ask(ordered(stream=True), KEY)
    assert caught.value.verdict is (Verdict.SETTLED if begun else Verdict.UNKNOWN)
    assert len(w.upstream.works) == 1, "a purchase that may have been paid is not bought again"


async def test_a_cut_stream_gives_its_bytes_and_then_the_error_to_every_reader():
    w = world()
    answer = w.service.start(ordered(stream=True), KEY)
    w.service.joined(answer)
    work = await w.work()
    work.put(*stream_events(b"one")[:2], UpstreamError("UNAVAILABLE", "gone"))
    await answer.wait_head()
    for _ in range(2):
        chunks = answer.chunks()
        assert await anext(chunks) == b"one"
        with pytest.raises(Undelivered):
            await anext(chunks)
    await settle()
    assert w.upstream.cancelled == [("p1", CANCEL_REASON)], "the peer may still be working on it"
    assert w.journal.only == ["paying", "settled", "undelivered"]


async def test_a_failed_result_is_nothing_to_cancel():
    w = world()
    asked = spawn(w.ask(ordered()))
    (await w.work()).put(result(status=ResultStatus.FAILED, message="broke"))
    with pytest.raises(Undelivered, match="broke"):
        await asked
    await settle()
    assert w.upstream.cancelled == []


async def test_a_deadline_is_told_to_the_peer():
    w = world()
    asked = spawn(w.ask(ordered()))
    (await w.work()).put(UpstreamError("DEADLINE_EXCEEDED", "late"))
    with pytest.raises(PaymentFailed):
        await asked
    await settle()
    assert w.upstream.cancelled == [("p1", CANCEL_REASON)]


async def test_a_peer_that_cannot_get_its_cancellation_does_no_harm():
    w = world()

    async def unreachable(quote, reason, timeout_s):
        raise UpstreamError("UNAVAILABLE", "gone")

    w.upstream.cancel = unreachable
    asked = spawn(w.ask(ordered()))
    (await w.work()).put(UpstreamError("DEADLINE_EXCEEDED", "late"))
    with pytest.raises(PaymentFailed):
        await asked
    await settle()
    assert len(w.service) == 0


async def test_a_bug_in_the_upstream_reaches_the_requests_that_wait_and_counts_as_unknown():
    w = world()
    asked = spawn(w.ask(ordered(), KEY))
    (await w.work()).put(RuntimeError("bug"))
    with pytest.raises(RuntimeError):
        await asked
    assert w.journal.only == ["paying", "unknown"]
    with pytest.raises(RuntimeError):
        await w.ask(ordered(), KEY)
    assert len(w.upstream.works) == 1


async def test_interrupting_all_ends_running_purchases_and_reports_their_payments():
    w = world()
    asked = [spawn(w.ask(ordered(stream=True), RepeatKeys(key=str(at)))) for at in range(3)]
    (await w.work(2)).put(*stream_events(b"one")[:2])
    await settle()
    assert w.service.interrupt_all(InterruptReason.SHUTTING_DOWN) == 3
    await w.service.wait_idle()
    for one in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(one, Interrupted) and "shutting down" in one.message
    ends = sorted(states[-1] for states in w.journal.states.values())
    assert ends == ["undelivered", "unknown", "unknown"]
    assert len(w.service) == 0


async def test_an_order_that_is_ended_before_it_began_ends_too():
    """The gateway may be stopped at the moment a request arrives."""
    w = world()
    answer = w.service.start(ordered(), KEY)
    w.service.interrupt_all(InterruptReason.SHUTTING_DOWN)
    await w.service.wait_idle()
    await settle()
    assert answer.ended and len(w.service) == 0
    assert w.upstream.works == []
    again = spawn(w.ask(ordered(), KEY))
    (await w.work()).deliver()
    assert await again == b"answer"


async def test_a_stream_too_large_to_hold_without_a_reader_is_ended():
    w = world(grace_s=60, bounds=BufferLimits(window_bytes=1_000, whole_bytes=10))
    asked = spawn(w.ask(ordered(stream=True), KEY))
    work = await w.work()
    begin, one, two, *_ = stream_events(b"x" * 8, b"y" * 8)
    work.put(begin, one)
    await settle()
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    work.put(two)
    await asyncio.wait_for(w.service.wait_idle(), 60)
    assert w.journal.only[-1] == "undelivered"
    await settle()
    assert w.upstream.cancelled == [("p1", CANCEL_REASON)]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_large_result_reaches_the_client_that_pays_for_it(stream):
    w = world(bounds=BufferLimits(window_bytes=1_000, whole_bytes=10))
    asked = spawn(w.ask(ordered(stream=stream), KEY))
    work = await w.work()
    if stream:
        work.stream(b"x" * 8, b"y" * 8)
    else:
        work.deliver(b"x" * 16)
    assert len(await asked) == 16
    with pytest.raises(ResultLost) as caught:
        await w.ask(ordered(stream=stream), KEY)
    assert caught.value.verdict is Verdict.SETTLED
    assert len(w.upstream.works) == 1


@pytest.mark.parametrize("is_awaited", [True, False])
async def test_a_failed_result_that_is_remembered_holds_none_of_its_requests(is_awaited):
    """Tracebacks hold frames, and those whole requests with their connections: minutes of them, while a daemon is away."""
    w = world()
    answer = w.service.start(ordered(), KEY)

    async def request():
        body = Body()
        bodies.append(weakref.ref(body))
        try:
            await answer.wait_head()
        finally:
            w.service.left(answer)

    class Body:
        """An object that only the request's frame holds."""

    bodies: list[weakref.ref] = []
    asked = []
    if is_awaited:
        for _ in range(3):
            w.service.joined(answer)
            asked.append(spawn(request()))
        await settle()
    (await w.work()).put(UpstreamError("UNAVAILABLE", "the connection was lost"))
    errors = await asyncio.gather(*asked, return_exceptions=True)
    await settle()
    assert all(error is answer.error for error in errors) and isinstance(answer.error, PaymentFailed)
    assert w.journal.only[-1] == "unknown", "and its evidence stays"
    error = answer.error
    while error is not None:
        assert error.__traceback__ is None
        error = error.__cause__
    asked.clear()
    assert not any(body() for body in bodies)


async def test_a_slow_reader_holds_the_peer_back():
    w = world(bounds=BufferLimits(window_bytes=10, whole_bytes=1_000))
    answer = w.service.start(ordered(stream=True), NO_REPEAT)
    w.service.joined(answer)
    work = await w.work()
    begin, *rest = stream_events(*[b"x" * 5] * 20)
    work.put(begin)
    await answer.wait_head()
    chunks = answer.chunks()
    first = spawn(anext(chunks))
    await settle()
    work.put(*rest)
    await settle()
    assert answer.size <= 15 and not answer.ended
    read = await first + b"".join([block async for block in chunks])
    assert len(read) == 100
    w.service.left(answer)


@pytest.mark.parametrize(("stands_s", "seen"), [(80.0, "released"), (10.0, "undelivered")])
async def test_a_stream_that_times_out_because_of_its_reader_is_charged_to_the_reader(stands_s, seen):
    w = world(bounds=BufferLimits(window_bytes=10, whole_bytes=1_000))
    answer = w.service.start(ordered(stream=True), NO_REPEAT)
    w.service.joined(answer)
    work = await w.work()
    begin, *rest = stream_events(*[b"x" * 20] * 3)
    work.put(begin)
    await answer.wait_head()
    chunks = answer.chunks()
    reading = spawn(anext(chunks))
    await settle()
    # The result took some time to start, and then stalls for this long.
    w.clock[0] += 30
    work.put(rest[0], rest[1])
    await reading
    await settle()
    w.clock[0] += stands_s
    work.put(UpstreamError("DEADLINE_EXCEEDED", "too late"))
    with pytest.raises(Undelivered):
        async for _ in chunks:
            pass
    assert w.exposure.states[-1] == seen
    w.service.left(answer)


async def test_budgets_are_asked_for_the_credential():
    limits = SpendingLimits(budgets={Period.DAY: 100_000}, key_budgets={Period.HOUR: 50_000})
    w = world(limits=limits)
    asked = spawn(w.ask(ordered(key_id="alice")))
    (await w.work()).deliver()
    await asked
    assert w.journal.budgets == [[Budget(Period.DAY, Msat(100_000)), Budget(Period.HOUR, Msat(50_000), "alice")]]


# The loop brake.
