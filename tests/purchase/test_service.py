import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from lcp_gateway.purchase.errors import (
    PaymentFailed,
    PriceLimitExceeded,
    PurchaseError,
    QuoteExpired,
    Refused,
    Undelivered,
    UpstreamError,
)
from lcp_gateway.purchase.held_quotes import QuoteForAnotherBody, UnknownQuote
from lcp_gateway.purchase.idempotency import CacheLimits, KeyReused, RepeatKeys, ResultLost
from lcp_gateway.purchase.journal import (
    BudgetExceeded,
    DuplicateIntent,
    EarlierPurchase,
    JournalUnavailable,
    RequestRepeated,
)
from lcp_gateway.purchase.limits import LoopDetected, SpendingLimits
from lcp_gateway.purchase.money import Budget, Charge, Markup, Msat, Period, Refund
from lcp_gateway.purchase.ports import ResultStatus
from lcp_gateway.purchase.purchase import Interrupted, InterruptReason
from lcp_gateway.purchase.quoting import QuotingRules
from lcp_gateway.purchase.result_buffer import BufferLimits
from lcp_gateway.purchase.service import CANCEL_REASON
from lcp_gateway.purchase.shared_purchases import BoughtBefore
from lcp_gateway.purchase.states import State, Verdict
from tests.support.purchases import quote, result, stream_events
from tests.support.shop import (
    NO_REPEAT,
    OTHER_BODY,
    Peer,
    PlainJournal,
    Shop,
    ordered,
    settle,
    world,
)

KEY = RepeatKeys(key="k")


def spawn(coroutine) -> asyncio.Task:
    return asyncio.ensure_future(coroutine)


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


@pytest.mark.parametrize("stream", [False, True])
async def test_twenty_who_ask_at_once_with_one_key_share_one_payment(stream):
    w = world()
    asked = [spawn(w.ask(ordered(stream=stream), KEY)) for _ in range(20)]
    work = await w.work()
    if stream:
        work.stream(b"one", b"two")
    else:
        work.deliver(b"onetwo")
    assert await asyncio.gather(*asked) == [b"onetwo"] * 20
    assert len(w.shop.works) == len(w.journal.intents) == 1


async def test_who_comes_after_the_end_gets_the_answer_again():
    w = world()
    first = spawn(w.ask(ordered(), KEY))
    (await w.work()).deliver()
    assert await first == await w.ask(ordered(), KEY) == b"answer"
    assert len(w.shop.works) == 1


async def test_what_failed_after_payment_fails_alike_for_who_asks_again():
    w = world()
    first = spawn(w.ask(ordered(), KEY))
    (await w.work()).put(UpstreamError("DEADLINE_EXCEEDED", "late"))
    for _ in range(3):
        with pytest.raises(PaymentFailed) as caught:
            await (first if not first.done() else w.ask(ordered(), KEY))
        assert caught.value.verdict is Verdict.UNKNOWN
    assert len(w.shop.works) == 1


async def test_what_was_certainly_not_paid_is_bought_anew():
    w = world()
    first = spawn(w.ask(ordered(), KEY))
    no_route = UpstreamError(
        "FAILED_PRECONDITION", "payment failed: FAILURE_REASON_NO_ROUTE: no route"
    )
    (await w.work()).put(no_route)
    with pytest.raises(PaymentFailed) as caught:
        await first
    assert caught.value.verdict is Verdict.NONE
    second = spawn(w.ask(ordered(), KEY))
    (await w.work(1)).deliver()
    assert await second == b"answer"
    assert sorted(map(tuple, w.journal.states.values())) == [
        ("paying", "not_paid"),
        ("paying", "settled", "delivered"),
    ]


async def test_the_same_key_with_another_body_is_refused_while_it_runs_and_after():
    w = world()
    first = spawn(w.ask(ordered(), KEY))
    await settle()
    with pytest.raises(KeyReused):
        await w.ask(ordered(OTHER_BODY), KEY)
    (await w.work()).deliver()
    await first
    with pytest.raises(KeyReused):
        await w.ask(ordered(OTHER_BODY), KEY)
    assert len(w.shop.works) == 1


async def test_the_same_key_of_another_credential_is_another_order():
    w = world()
    one = spawn(w.ask(ordered(key_id="one"), KEY))
    other = spawn(w.ask(ordered(key_id="other"), KEY))
    for at in (0, 1):
        (await w.work(at)).deliver()
    await asyncio.gather(one, other)
    assert len(w.shop.works) == 2


async def test_who_leaves_before_anything_is_paid_ends_it():
    shop = Shop({"p1": Peer(ready=asyncio.Event())})
    w = world(shop=shop)
    asked = spawn(w.ask(ordered()))
    await settle()
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    await w.service.wait_idle()
    assert shop.works == [] and shop.cancelled == []
    (answer,) = w.observer.ends
    assert isinstance(answer.error, Interrupted) and answer.error.verdict is Verdict.NONE


async def test_who_leaves_while_it_is_written_down_pays_nothing():
    w = world(journal=PlainJournal(gate=asyncio.Event()))
    asked = spawn(w.ask(ordered()))
    await settle()
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    await w.service.wait_idle()
    assert w.shop.works == []
    assert w.journal.only == ["not_paid"]


async def test_one_who_leaves_does_not_end_what_another_waits_for():
    w = world()
    leaving, staying = spawn(w.ask(ordered(), KEY)), spawn(w.ask(ordered(), KEY))
    work = await w.work()
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await asyncio.sleep(0.05)
    work.deliver()
    assert await staying == b"answer"


async def test_when_all_leave_after_payment_it_is_taken_in_for_who_asks_again():
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
    assert w.shop.cancelled == [] and w.journal.only[-1] == "delivered"


async def test_when_the_answer_ends_within_the_grace_it_is_kept_for_a_retry():
    w = world(grace_s=60)
    asked = spawn(w.ask(ordered()))
    work = await w.work()
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    work.deliver()
    await w.service.wait_idle()
    assert w.journal.only[-1] == "delivered"
    assert await w.ask(ordered(), RepeatKeys(is_retry=True)) == b"answer"
    assert len(w.shop.works) == 1


async def test_the_grace_counts_from_the_second_leaving(monkeypatch):
    """E, purchase/service ``joined``: the timer of the first leaving ran on, and no test noticed."""
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
    # What the first would have done by now.
    await settle()
    assert not answer.ended
    w.service.joined(answer)
    assert second.cancelled()
    work.put(*stream_events(b"one")[2:])
    await w.service.wait_idle()
    assert w.journal.only[-1] == "delivered"
    w.service.left(answer)


@pytest.mark.parametrize("begun", [False, True])
async def test_when_nobody_comes_back_within_the_grace_the_job_is_cancelled(begun):
    w = world(grace_s=0.02)
    asked = spawn(w.ask(ordered(stream=True), KEY))
    work = await w.work()
    if begun:
        work.put(*stream_events(b"one")[:2])
        await settle()
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    assert len(w.service) == 1, "it goes on"
    await asyncio.wait_for(w.service.wait_idle(), 2)
    await settle()
    assert w.shop.cancelled == [("p1", CANCEL_REASON)]
    assert work.closed
    assert w.journal.only[-1] == ("undelivered" if begun else "unknown")
    with pytest.raises(Interrupted) as caught:
        await w.ask(ordered(stream=True), KEY)
    assert caught.value.verdict is (Verdict.SETTLED if begun else Verdict.UNKNOWN)
    assert len(w.shop.works) == 1, "what may have been paid is not bought again"


async def test_a_cut_stream_gives_its_bytes_and_then_the_error_to_everybody():
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
    assert w.shop.cancelled == [("p1", CANCEL_REASON)], "the peer may still be at it"
    assert w.journal.only == ["paying", "settled", "undelivered"]


async def test_a_failed_result_is_nothing_to_cancel():
    w = world()
    asked = spawn(w.ask(ordered()))
    (await w.work()).put(result(status=ResultStatus.FAILED, message="broke"))
    with pytest.raises(Undelivered, match="broke"):
        await asked
    await settle()
    assert w.shop.cancelled == []


async def test_a_deadline_is_told_to_the_peer():
    w = world()
    asked = spawn(w.ask(ordered()))
    (await w.work()).put(UpstreamError("DEADLINE_EXCEEDED", "late"))
    with pytest.raises(PaymentFailed):
        await asked
    await settle()
    assert w.shop.cancelled == [("p1", CANCEL_REASON)]


async def test_a_peer_that_cannot_be_told_harms_nobody():
    w = world()

    async def unreachable(quote, reason, timeout_s):
        raise UpstreamError("UNAVAILABLE", "gone")

    w.shop.cancel = unreachable
    asked = spawn(w.ask(ordered()))
    (await w.work()).put(UpstreamError("DEADLINE_EXCEEDED", "late"))
    with pytest.raises(PaymentFailed):
        await asked
    await settle()
    assert len(w.service) == 0


async def test_a_bug_in_the_upstream_reaches_those_who_wait_and_counts_as_unknown():
    w = world()
    asked = spawn(w.ask(ordered(), KEY))
    (await w.work()).put(RuntimeError("bug"))
    with pytest.raises(RuntimeError):
        await asked
    assert w.journal.only == ["paying", "unknown"]
    with pytest.raises(RuntimeError):
        await w.ask(ordered(), KEY)
    assert len(w.shop.works) == 1


async def test_ending_all_ends_what_runs_and_says_what_was_paid():
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
    """The gateway may be told to stop in the very moment in which a request comes in."""
    w = world()
    answer = w.service.start(ordered(), KEY)
    w.service.interrupt_all(InterruptReason.SHUTTING_DOWN)
    await w.service.wait_idle()
    await settle()
    assert answer.ended and len(w.service) == 0
    assert w.shop.works == []
    again = spawn(w.ask(ordered(), KEY))
    (await w.work()).deliver()
    assert await again == b"answer"


async def test_a_stream_too_large_to_keep_that_nobody_takes_is_ended():
    w = world(grace_s=60, bounds=BufferLimits(window_bytes=1_000, whole_bytes=10))
    asked = spawn(w.ask(ordered(stream=True), KEY))
    work = await w.work()
    begin, one, two, *_ = stream_events(b"x" * 8, b"y" * 8)
    work.put(begin, one)
    await settle()
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    work.put(two)
    await asyncio.wait_for(w.service.wait_idle(), 2)
    assert w.journal.only[-1] == "undelivered"
    await settle()
    assert w.shop.cancelled == [("p1", CANCEL_REASON)]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_large_answer_reaches_who_pays_for_it(stream):
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
    assert len(w.shop.works) == 1


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
async def test_a_stream_whose_time_runs_out_for_its_reader_is_its_readers_doing(stands_s, seen):
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
    # It took some time to come, and then stands still for so long.
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


async def test_an_answer_that_is_gone_is_not_bought_again():
    w = world(memory_limits=CacheLimits(bytes_in_all=10))
    first = spawn(w.ask(ordered(), KEY))
    (await w.work()).deliver(b"x" * 8)
    await first
    other = spawn(w.ask(ordered(OTHER_BODY), RepeatKeys(key="other")))
    (await w.work(1)).deliver(b"y" * 8)
    assert await other == b"y" * 8
    with pytest.raises(ResultLost) as caught:
        await w.ask(ordered(), KEY)
    assert caught.value.verdict is Verdict.SETTLED
    assert len(w.shop.works) == 2


# Quotes that are shown first.


async def test_a_quote_that_was_shown_can_be_taken_once():
    w = world()
    held = await w.service.quote(ordered())
    assert w.journal.intents == [] and w.shop.works == []
    asked = spawn(w.ask(ordered(), quote_id=held.id))
    work = await w.work()
    work.deliver()
    assert await asked == b"answer"
    assert work.quote == held.offer.quote and len(w.shop.quotes) == 1
    with pytest.raises(UnknownQuote):
        await w.ask(ordered(), quote_id=held.id)
    assert len(w.shop.works) == 1


async def test_a_quote_is_for_its_own_request_and_stays_when_another_asks():
    w = world()
    held = await w.service.quote(ordered())
    with pytest.raises(QuoteForAnotherBody):
        await w.ask(ordered(OTHER_BODY), quote_id=held.id)
    asked = spawn(w.ask(ordered(), quote_id=held.id))
    (await w.work()).deliver()
    assert await asked == b"answer"


async def test_a_quote_that_has_expired_is_not_taken():
    w = world()
    held = await w.service.quote(ordered())
    w.now[0] += timedelta(seconds=300)
    with pytest.raises(QuoteExpired):
        await w.ask(ordered(), quote_id=held.id)
    assert w.journal.intents == []


async def test_a_retry_of_a_taken_quote_joins_it():
    w = world()
    held = await w.service.quote(ordered())
    asked = spawn(w.ask(ordered(), quote_id=held.id))
    await w.work()
    retry = spawn(w.ask(ordered(), RepeatKeys(is_retry=True), quote_id=held.id))
    await settle()
    w.shop.works[0].deliver()
    assert await asked == await retry == b"answer"
    assert len(w.shop.works) == 1


async def test_a_quote_too_dear_for_the_client_can_be_taken_without_its_limit():
    w = world()
    with pytest.raises(PriceLimitExceeded) as caught:
        await w.ask(ordered(limit_msat=Msat(100)))
    name = f"quote_{caught.value.quote.job_id.hex()}"
    assert w.shop.cancelled == []
    asked = spawn(w.ask(ordered(), quote_id=name))
    (await w.work()).deliver()
    assert await asked == b"answer" and len(w.shop.quotes) == 1


async def test_a_quote_is_measured_again_when_it_is_taken():
    w = world()
    held = await w.service.quote(ordered())
    for _ in range(2):
        with pytest.raises(PriceLimitExceeded):
            await w.ask(ordered(limit_msat=Msat(100)), quote_id=held.id)
    assert w.journal.intents == []


@pytest.mark.parametrize("refusal", ["budget", "journal"])
async def test_a_quote_that_may_pass_later_can_be_taken_later(refusal):
    w = world()
    held = await w.service.quote(ordered())
    quote = held.offer.quote
    budget = Budget(Period.DAY, Msat(1))
    w.journal.refusal = (
        BudgetExceeded(quote, budget, Msat(0))
        if refusal == "budget"
        else JournalUnavailable("full", quote=quote)
    )
    with pytest.raises(Refused):
        await w.ask(ordered(), quote_id=held.id)
    w.journal.refusal = None
    asked = spawn(w.ask(ordered(), quote_id=held.id))
    (await w.work()).deliver()
    assert await asked == b"answer" and len(w.shop.quotes) == 1


async def test_budgets_are_asked_for_the_credential():
    limits = SpendingLimits(budgets={Period.DAY: 100_000}, key_budgets={Period.HOUR: 50_000})
    w = world(limits=limits)
    asked = spawn(w.ask(ordered(key_id="alice")))
    (await w.work()).deliver()
    await asked
    assert w.journal.budgets == [
        [Budget(Period.DAY, Msat(100_000)), Budget(Period.HOUR, Msat(50_000), "alice")]
    ]


# The brake.


async def test_the_brake_holds_what_comes_again_and_again_but_not_what_joins():
    w = world(per_minute=2)
    for at in range(2):
        asked = spawn(w.ask(ordered(), RepeatKeys(key=str(at))))
        (await w.work(at)).deliver()
        await asked
    assert await w.ask(ordered(), RepeatKeys(key="1")) == b"answer", "joining is free"
    with pytest.raises(LoopDetected):
        await w.ask(ordered(), RepeatKeys(key="2"))
    assert len(w.shop.works) == 2
    w.clock[0] += 61
    asked = spawn(w.ask(ordered(), RepeatKeys(key="2")))
    (await w.work(2)).deliver()
    assert await asked == b"answer"


async def test_the_brake_does_not_use_up_a_quote():
    w = world(per_minute=1)
    held = await w.service.quote(ordered())
    asked = spawn(w.ask(ordered()))
    (await w.work()).deliver()
    await asked
    with pytest.raises(LoopDetected):
        await w.ask(ordered(), quote_id=held.id)
    w.clock[0] += 61
    asked = spawn(w.ask(ordered(), quote_id=held.id))
    (await w.work(1)).deliver()
    assert await asked == b"answer"


async def test_the_runner_up_price_is_written_down():
    w = world(shop=Shop({"p1": Peer(5_000), "p2": Peer(4_000)}), asking=QuotingRules(at_once=2))
    asked = spawn(w.ask(ordered()))
    work = await w.work()
    assert work.quote.price_msat == 4_000
    work.deliver()
    await asked
    (intent,) = w.journal.intents
    assert intent.runner_up_msat == 5_000


# -- kept, cancelled and out of time ----------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_kept_is_bought_though_nobody_waits_for_it(stream):
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


async def test_a_second_request_joins_what_is_kept_and_may_leave_again():
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
    assert len(w.shop.works) == 1


async def test_a_kept_answer_larger_than_what_is_held_ends_when_nobody_takes_it():
    w = world(bounds=BufferLimits(window_bytes=10, whole_bytes=20))
    answer = w.service.start(ordered(stream=True), NO_REPEAT)
    answer.retained_for = object()
    work = await w.work()
    work.put(*stream_events(b"x" * 15, b"y" * 15)[:3])
    await w.service.wait_idle()
    assert answer.error.code == InterruptReason.ENDED.value
    assert answer.verdict is Verdict.SETTLED
    assert w.memory.pool.held_bytes == 0


async def test_what_is_cancelled_before_its_payment_costs_nothing():
    shop = Shop({"p1": Peer(ready=asyncio.Event())})
    w = world(shop=shop)
    answer = w.service.start(ordered(), KEY)
    await settle()
    w.service.interrupt(answer, InterruptReason.CANCELLED)
    await w.service.wait_idle()
    assert (answer.error.code, answer.error.verdict) == ("cancelled", Verdict.NONE)
    assert w.shop.works == [] and w.shop.cancelled == [] and w.journal.states == {}


async def test_what_is_cancelled_while_its_intent_is_written_is_known_not_to_be_paid():
    journal = PlainJournal(gate=asyncio.Event())
    w = world(journal=journal)
    answer = w.service.start(ordered(), KEY)
    await settle()
    w.service.interrupt(answer, InterruptReason.CANCELLED)
    await w.service.wait_idle()
    assert answer.verdict is Verdict.NONE
    assert w.shop.works == [] and journal.only == ["not_paid"]


@pytest.mark.parametrize(
    ("stream", "verdict", "states"),
    [
        (False, Verdict.UNKNOWN, ["paying", "unknown"]),
        (True, Verdict.SETTLED, ["paying", "settled", "undelivered"]),
    ],
)
async def test_what_is_cancelled_after_its_payment_says_what_is_known_and_tells_the_peer(
    stream, verdict, states
):
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
    assert w.shop.cancelled == [("p1", CANCEL_REASON)]
    # Whoever asks again with the key is told the same, and pays nothing.
    with pytest.raises(Interrupted):
        await w.ask(ordered(stream=stream), KEY)
    assert len(w.shop.works) == 1


async def test_cancelling_what_has_ended_changes_nothing():
    w = world()
    asked = spawn(w.ask(ordered(), KEY))
    (await w.work()).deliver()
    await asked
    (answer,) = w.observer.ends
    w.service.interrupt(answer, InterruptReason.CANCELLED)
    await settle()
    assert answer.error is None and w.shop.cancelled == []


async def test_out_of_time_before_its_payment_it_costs_nothing():
    shop = Shop({"p1": Peer(ready=asyncio.Event())})
    w = world(shop=shop, limit_s=0.02)
    with pytest.raises(Interrupted) as caught:
        await w.ask(ordered())
    assert (caught.value.code, caught.value.verdict) == ("timed_out", Verdict.NONE)
    await w.service.wait_idle()
    assert w.shop.works == []


@pytest.mark.parametrize(("stream", "verdict"), [(False, Verdict.UNKNOWN), (True, Verdict.SETTLED)])
async def test_out_of_time_after_its_payment_it_says_what_is_known(stream, verdict):
    w = world(limit_s=0.05)
    asked = spawn(w.ask(ordered(stream=stream), KEY))
    work = await w.work()
    if stream:
        work.put(*stream_events(b"one")[:2])
    with pytest.raises(Interrupted) as caught:
        await asked
    assert (caught.value.code, caught.value.verdict) == ("timed_out", verdict)
    assert w.shop.cancelled == [("p1", CANCEL_REASON)]


async def test_the_time_holds_for_a_job_that_nobody_reads_too():
    w = world(limit_s=0.02)
    answer = w.service.start(ordered(), NO_REPEAT)
    answer.retained_for = object()
    await w.service.wait_idle()
    assert answer.error.code == "timed_out"


async def test_what_came_in_time_is_not_ended_later():
    w = world(limit_s=0.03)
    asked = spawn(w.ask(ordered()))
    (await w.work()).deliver()
    assert await asked == b"answer"
    (answer,) = w.observer.ends
    timers = [one for one in asyncio.get_running_loop()._scheduled if not one.cancelled()]
    await asyncio.sleep(0.05)
    assert answer.error is None and timers == []


async def test_without_a_limit_no_timer_is_set():
    w = world()
    asked = spawn(w.ask(ordered()))
    await w.work()
    assert [one for one in asyncio.get_running_loop()._scheduled if not one.cancelled()] == []
    w.shop.works[0].deliver()
    await asked


async def test_a_listener_that_fails_does_not_make_a_failure_of_what_was_delivered():
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
    assert (answer.error, len(w.shop.works), len(reported)) == (None, 1, 1)
    assert w.journal.only[-1] == "delivered"


# What was bought elsewhere, as the journal tells.


def bought_elsewhere(w, state, *, body=None, key_id="", number=99):
    """Let the journal have a purchase of another process for the same request; it refuses the next intent for it."""
    identity = w.memory.identity(ordered() if body is None else ordered(body), KEY)
    job_id = bytes([number]) * 32
    earlier = EarlierPurchase(
        replace(quote(), job_id=job_id), state, key_id, "req_elsewhere", identity.body
    )
    w.journal.elsewhere[job_id] = earlier
    w.journal.refusal = RequestRepeated(quote(), earlier)
    return earlier


@pytest.mark.parametrize(
    ("state", "verdict"),
    [
        (State.SETTLED, Verdict.SETTLED),
        (State.DELIVERED, Verdict.SETTLED),
        (State.UNDELIVERED, Verdict.SETTLED),
        (State.UNKNOWN, Verdict.UNKNOWN),
    ],
)
async def test_what_another_process_bought_is_not_bought_again(state, verdict):
    w = world()
    earlier = bought_elsewhere(w, state)
    with pytest.raises(ResultLost) as lost:
        await w.ask(ordered(), KEY)
    assert lost.value.verdict is verdict
    assert (lost.value.quote, lost.value.request_id) == (earlier.quote, "req_elsewhere")
    assert w.shop.works == []
    # The quote that was asked for meanwhile is given back; it is another job than the one that was paid.
    await asyncio.sleep(0)
    assert len(w.shop.cancelled) == 1


async def test_another_request_under_a_key_of_another_process_is_refused_and_does_no_harm():
    w = world()
    bought_elsewhere(w, State.DELIVERED)
    with pytest.raises(KeyReused):
        await w.ask(ordered(OTHER_BODY), KEY)
    with pytest.raises(ResultLost):
        await w.ask(ordered(), KEY)


async def test_what_another_process_is_paying_is_waited_for():
    w = world()
    earlier = bought_elsewhere(w, State.PAYING)
    asked = spawn(w.ask(ordered(), KEY))
    await asyncio.sleep(0.05)
    assert not asked.done()
    w.journal.elsewhere[earlier.quote.job_id] = replace(earlier, state=State.DELIVERED)
    with pytest.raises(ResultLost) as lost:
        await asked
    assert lost.value.verdict is Verdict.SETTLED


async def test_what_another_process_could_not_pay_is_bought_with_the_quote_that_is_there():
    w = world()
    earlier = bought_elsewhere(w, State.PAYING)
    asked = spawn(w.ask(ordered(), KEY))
    await asyncio.sleep(0.03)
    w.journal.refusal = None
    w.journal.elsewhere[earlier.quote.job_id] = replace(earlier, state=State.NOT_PAID)
    work = await asyncio.wait_for(_first_work(w), 2)
    work.deliver()
    assert await asked == b"answer"
    assert len(w.shop.quotes) == 1 and w.shop.cancelled == []
    assert w.journal.only == ["paying", "settled", "delivered"]


async def _first_work(w):
    while not w.shop.works:
        await asyncio.sleep(0.005)
    return w.shop.works[0]


async def test_what_another_process_pays_for_ever_is_not_waited_for_for_ever():
    w = world(elsewhere_s=0.05)
    bought_elsewhere(w, State.PAYING)
    with pytest.raises(ResultLost) as lost:
        await asyncio.wait_for(w.ask(ordered(), KEY), 2)
    assert lost.value.verdict is Verdict.UNKNOWN


async def test_a_quote_that_another_process_took_says_what_was_bought_with_it():
    w = world()
    held = await w.service.quote(ordered())
    earlier = bought_elsewhere(w, State.DELIVERED)
    name = f"quote_{earlier.quote.job_id.hex()}"
    with pytest.raises(ResultLost) as lost:
        await w.service.check_quote(ordered(), name)
    assert lost.value.verdict is Verdict.SETTLED
    # Nothing is told to another credential or of another request, and nothing of what was not paid.
    for order in (ordered(key_id="other"), ordered(OTHER_BODY)):
        with pytest.raises(UnknownQuote):
            await w.service.check_quote(order, name)
    w.journal.elsewhere[earlier.quote.job_id] = replace(earlier, state=State.NOT_PAID)
    for unknown in (name, "quote_" + "ab" * 32, "quote_zz", "something"):
        with pytest.raises(UnknownQuote):
            await w.service.check_quote(ordered(), unknown)
    await w.service.check_quote(ordered(), held.id)


async def test_a_retry_looks_for_its_first_try_elsewhere_only_if_it_was_not_here():
    w = world()
    retry = RepeatKeys(is_retry=True)
    assert w.memory.identity(ordered(), retry).first_try_since is not None
    asked = spawn(w.ask(ordered()))
    (await w.work()).deliver()
    await asked
    assert w.memory.identity(ordered(), retry).first_try_since is None
    assert w.memory.identity(ordered(OTHER_BODY), NO_REPEAT).first_try_since is None


# A peer that gives the id of a job that is paid for and running to another quote.


async def test_a_duplicate_never_cancels_the_job_that_is_paid_and_running():
    """A13: its quote was given back as not taken, with the id of the running job."""
    w = world()
    first = spawn(w.ask(ordered()))
    work = await w.work()
    w.journal.refusal = DuplicateIntent("this quote was taken before", quote=work.quote)
    w.shop.same_job = work.quote.job_id
    with pytest.raises(DuplicateIntent):
        await w.ask(ordered(OTHER_BODY))
    await asyncio.sleep(0.01)
    assert w.shop.cancelled == []
    work.deliver()
    assert await first == b"answer"


async def test_a_duplicate_never_cancels_the_job_that_another_process_paid_for():
    w = world()
    w.journal.refusal = DuplicateIntent("this quote was taken before", quote=quote())
    with pytest.raises(DuplicateIntent):
        await w.ask(ordered())
    await asyncio.sleep(0.01)
    assert w.shop.cancelled == []


async def test_a_quote_that_is_not_taken_never_cancels_a_job_that_was_paid_for():
    """A13: the quote may also be too dear, or lose against another one."""
    limits = SpendingLimits(max_price_msat=5_000)
    w = world(limits=limits, asking=QuotingRules(at_once=2, at_most=2))
    first = spawn(w.ask(ordered()))
    work = await w.work()
    w.shop.same_job = work.quote.job_id
    w.shop.peers["p1"].price_msat = 6_000
    w.shop.peers |= {"p2": Peer(4_000), "p3": Peer(4_500)}
    other = spawn(w.ask(ordered(OTHER_BODY)))
    await asyncio.sleep(0.01)
    assert w.shop.cancelled == []
    work.deliver()
    assert await first == b"answer"
    other.cancel()


# What was unknown, and turns out not to have been paid.


async def test_a_key_whose_payment_was_unknown_buys_once_it_is_found_not_to_be_paid():
    w = world()
    asked = spawn(w.ask(ordered(), KEY))
    work = await w.work()
    work.put(UpstreamError("DEADLINE_EXCEEDED", "too late"))
    with pytest.raises(PaymentFailed):
        await asked
    unknown = w.service.find_undecided(ordered(), KEY)
    assert unknown is not None and w.service.find_undecided(ordered(), NO_REPEAT) is None
    assert w.service.find_undecided(ordered(OTHER_BODY), KEY) is None
    earlier = EarlierPurchase(work.quote, State.UNKNOWN, "", "req_1", None)
    for state in (State.UNKNOWN, State.NOT_PAID):
        w.journal.elsewhere[work.quote.job_id] = replace(earlier, state=state)
        await w.service.learn_outcome(unknown)
        if state is State.UNKNOWN:
            with pytest.raises(PaymentFailed):
                await w.ask(ordered(), KEY)
    assert w.service.find_undecided(ordered(), KEY) is None
    again = spawn(w.ask(ordered(), KEY))
    (await w.work(1)).deliver()
    assert await again == b"answer"


@pytest.mark.parametrize("refund", [Refund.GIVEN, Refund.WITHHELD])
async def test_a_key_whose_payment_was_unknown_tells_what_was_found_once_it_is_found_to_be_paid(
    refund,
):
    """A4: the process that had lost sight of the payment told "unknown", and the charge, for as long as it kept the key."""
    w = world()
    asked = spawn(w.ask(ordered(), KEY))
    work = await w.work()
    work.put(UpstreamError("UNAVAILABLE", "the daemon is gone"))
    with pytest.raises(PaymentFailed):
        await asked
    unknown = w.service.find_undecided(ordered(), KEY)
    charge = Charge("acct_1", Msat(5_500), Markup(100_000), refund is Refund.GIVEN)
    w.journal.elsewhere[work.quote.job_id] = EarlierPurchase(
        work.quote, State.UNDELIVERED, "", "req_1", None, charge, refund
    )
    with pytest.raises(BoughtBefore, match="its result did not come") as told:
        await w.service.learn_outcome(unknown)
    assert told.value.verdict is Verdict.SETTLED
    assert told.value.earlier.customer_msat == (0 if refund is Refund.GIVEN else 5_500)
    assert len(w.journal.intents) == 1, "it is not paid again"


@pytest.mark.parametrize(
    ("decided", "customer_msat"), [(Refund.GRANTED, 0), (Refund.DENIED, 5_500)]
)
async def test_a_key_whose_charge_was_withheld_tells_what_the_operator_decided(
    decided, customer_msat
):
    """A6: the process that bought it went on saying "withheld" after the charge had been given back."""
    w = world()
    asked = spawn(w.ask(ordered(), KEY))
    work = await w.work()
    work.put(UpstreamError("RESOURCE_EXHAUSTED", "lcp_error code=7: backend unavailable"))
    with pytest.raises(PurchaseError) as failed:
        await asked
    assert failed.value.verdict is Verdict.SETTLED
    assert w.service.find_undecided(ordered(), KEY) is None
    purchase = w.observer.ends[0].purchase
    purchase.charge = Charge("acct_1", Msat(5_500), Markup(100_000), refund_undelivered=True)
    purchase.record_refund(Refund.WITHHELD)
    assert purchase.customer_msat == 5_500
    undecided = w.service.find_undecided(ordered(), KEY)
    charge = replace(purchase.charge, refund_undelivered=decided is Refund.GRANTED)
    w.journal.elsewhere[work.quote.job_id] = EarlierPurchase(
        work.quote, State.UNDELIVERED, "", "req_1", None, charge, decided
    )
    await w.service.learn_outcome(undecided)
    assert (purchase.refund, purchase.customer_msat) == (decided, customer_msat)
    assert w.service.find_undecided(ordered(), KEY) is None
