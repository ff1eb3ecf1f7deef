"""Several gateways on one Redis buy an order once, whichever of them receives it."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from lcp_gateway.purchase.errors import PaymentFailed, Undelivered, UpstreamError
from lcp_gateway.purchase.idempotency import CacheLimits, KeyReused, RepeatKeys, ResultLost
from lcp_gateway.purchase.journal import JournalUnavailable
from lcp_gateway.purchase.money import Charge, Markup
from lcp_gateway.purchase.purchase import Interrupted, InterruptReason
from lcp_gateway.purchase.quote import Candidate
from lcp_gateway.purchase.result_buffer import BufferLimits
from lcp_gateway.purchase.states import State, Verdict
from tests.accounts.shared.sharing import CODEX, KEY, NO_ROUTE, RETRY, bought, everything, left_alone, spawn, work_of
from tests.support.purchases import result, stream_events
from tests.support.scripted_peers import NO_REPEAT, OTHER_BODY, Peer, ScriptedPeers, ordered


async def test_a_result_that_one_gateway_bought_is_returned_by_another(replica, journals):
    one, other = await replica(), await replica()
    assert await bought(one) == b"answer"
    answer = other.service.start(ordered(), KEY)
    assert await other.read(answer) == b"answer"
    theirs = one.observer.ends[0].purchase
    assert answer.head == one.observer.ends[0].head
    assert answer.verdict is Verdict.SETTLED and answer.purchase.state is State.DELIVERED
    assert answer.purchase.quote == replace(theirs.quote, payment_request="")
    await other.service.wait_idle()
    assert await other.ask(ordered(), KEY) == b"answer"
    assert not other.upstream.asked and not other.observer.ends
    assert other.joined == ["replayed"] and one.joined == []
    assert journals.asked == []


async def test_everything_that_an_answer_says_of_its_purchase_comes_along(replica):
    one, other = await replica(), await replica()
    routing = {"model": "m", "why": ["cheap", 1], "more": {"a": None}}
    one.upstream.candidates = lambda: [Candidate("p1", adapter="completions", routing=routing)]
    asked = spawn(one.ask(ordered(), KEY))
    work = await work_of(one)
    answer = next(iter(one.service._running))
    answer.purchase.charge = Charge("acct_1", 5_500, Markup(100_000, 7), refund_undelivered=True)
    answer.purchase.runner_up_msat = 9_000
    work.put(result(content_type="text/x", content_encoding="gzip", charged_msat=4_000))
    await asked
    await one.service.wait_idle()
    again = other.service.start(ordered(), KEY)
    await other.read(again)
    ours = again.purchase
    assert ours.charge == answer.purchase.charge and ours.customer_msat == 4_407
    assert (ours.cost_msat, ours.runner_up_msat) == (4_000, 9_000)
    assert ours.candidate == Candidate("p1", adapter="completions", routing=routing)
    assert (again.head.content_type, again.head.content_encoding) == ("text/x", "gzip")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_repeat_at_another_gateway_waits_for_the_end_of_the_purchase(replica, stream):
    replicas = [await replica() for _ in range(3)]
    asked = [spawn(w.ask(ordered(stream=stream), KEY)) for w in replicas for _ in range(10)]
    async with asyncio.timeout(60):
        while not any(w.upstream.works for w in replicas):
            await asyncio.sleep(0.01)
        (buyer,) = [w for w in replicas if w.upstream.works]
        for w in replicas:
            if w is not buyer:
                await w.found.wait()
    assert sum(len(w.upstream.asked) for w in replicas) == 1
    if stream:
        buyer.upstream.works[0].stream(b"one", b"two")
    else:
        buyer.upstream.works[0].deliver(b"onetwo")
    assert await asyncio.gather(*asked) == [b"onetwo"] * 30
    assert sum(len(w.journal.intents) for w in replicas) == 1
    assert [w.joined for w in replicas if w is not buyer] == [["running"], ["running"]]


async def test_the_same_key_with_another_body_is_refused_everywhere(replica):
    one, other = await replica(), await replica()
    first = spawn(one.ask(ordered(), KEY))
    work = await work_of(one)
    with pytest.raises(KeyReused):
        await other.ask(ordered(OTHER_BODY), KEY)
    work.deliver()
    await first
    await one.service.wait_idle()
    with pytest.raises(KeyReused):
        await other.ask(ordered(OTHER_BODY), KEY)
    # The request with the key has its result there too.
    assert await other.ask(ordered(), KEY) == b"answer"
    assert not other.upstream.asked


async def test_keys_are_those_of_a_credential(replica):
    one, other = await replica(), await replica()
    await bought(one, ordered(key_id="one"))
    assert await bought(other, ordered(b"another", key_id="other")) == b"answer"
    assert len(one.upstream.works) == len(other.upstream.works) == 1


@pytest.mark.parametrize("repeat", [RETRY, CODEX])
async def test_a_marked_retry_that_comes_to_another_is_answered(replica, repeat):
    one, other = await replica(), await replica()
    await bought(one, ordered(), NO_REPEAT if repeat is RETRY else CODEX)
    assert await other.ask(ordered(), repeat) == b"answer"
    assert not other.upstream.asked


async def test_the_same_request_without_a_word_on_repeating_is_bought_each_time(replica):
    one, other = await replica(), await replica()
    await bought(one, ordered(), NO_REPEAT)
    await bought(other, ordered(), NO_REPEAT, result(b"newer"))
    third = await replica()
    # A retry gets the newest result.
    assert await third.ask(ordered(), RETRY) == b"newer"
    assert len(one.upstream.works) == len(other.upstream.works) == 1


async def test_an_unpaid_failure_may_be_bought_elsewhere(replica):
    one, other = await replica(), await replica()
    with pytest.raises(PaymentFailed) as error:
        await bought(one, ordered(), KEY, NO_ROUTE)
    assert error.value.verdict is Verdict.NONE
    assert await everything(one) == b""
    assert await bought(other) == b"answer"
    assert await one.ask(ordered(), KEY) == b"answer"


async def test_a_waiting_repeat_buys_when_the_purchase_failed_unpaid(replica):
    one, other = await replica(), await replica()
    first = spawn(one.ask(ordered(), KEY))
    work = await work_of(one)
    second = spawn(other.ask(ordered(), KEY))
    await asyncio.sleep(0.05)
    work.put(NO_ROUTE)
    with pytest.raises(PaymentFailed):
        await first
    (await work_of(other)).deliver()
    assert await second == b"answer"


@pytest.mark.parametrize(
    ("failure", "kind", "verdict"),
    [
        (UpstreamError("DEADLINE_EXCEEDED", "late", code="slow"), PaymentFailed, Verdict.UNKNOWN),
        (result(sha256=b"x" * 32), Undelivered, Verdict.SETTLED),
        (UpstreamError("UNKNOWN", "lcp_error code=5: no"), PaymentFailed, Verdict.SETTLED),
        (RuntimeError("secret inside"), Exception, Verdict.UNKNOWN),
    ],
)
async def test_a_failure_after_a_possible_payment_is_shared(replica, failure, kind, verdict):
    one, other = await replica(), await replica()
    with pytest.raises(kind) as first:
        await bought(one, ordered(), KEY, failure)
    for _ in range(2):
        with pytest.raises(kind) as again:
            await other.ask(ordered(), KEY)
        assert again.value.verdict is verdict
        if kind is Exception:
            assert "inside" not in str(again.value)
        else:
            assert str(again.value) == str(first.value)
            assert getattr(again.value, "code", None) == getattr(first.value, "code", None)
            assert getattr(again.value, "status", None) == getattr(first.value, "status", None)
    assert not other.upstream.asked and not other.upstream.cancelled


async def test_a_stream_that_was_cut_is_cut_at_the_same_place(replica):
    one, other = await replica(), await replica()
    begin, one_block, *_ = stream_events(b"one")
    order = ordered(stream=True)
    with pytest.raises(Undelivered):
        await bought(one, order, KEY, begin, one_block, UpstreamError("UNAVAILABLE", "cut"))
    answer = other.service.start(order, KEY)
    other.service.joined(answer)
    await answer.wait_head()
    blocks = []
    with pytest.raises(Undelivered, match="cut"):
        async for block in answer.chunks():
            blocks.append(block)
    assert blocks == [b"one"]
    other.service.left(answer)


async def test_a_purchase_that_the_gateway_interrupted_ends_everywhere(replica):
    one, other = await replica(), await replica()
    asked = spawn(one.ask(ordered(), KEY))
    await work_of(one)
    one.service.interrupt_all(InterruptReason.SHUTTING_DOWN)
    with pytest.raises(Interrupted):
        await asked
    await one.service.wait_idle()
    with pytest.raises(Interrupted) as error:
        await other.ask(ordered(), KEY)
    assert error.value.code == "shutting_down" and error.value.verdict is Verdict.UNKNOWN


@pytest.mark.parametrize("size", [1_001, 5_000])
async def test_an_answer_too_large_to_keep_is_known_to_have_been_bought(replica, size):
    bounds = BufferLimits(whole_bytes=2_000)
    one, other = await replica(bounds=bounds), await replica()
    await bought(one, ordered(), KEY, result(b"x" * size))
    with pytest.raises(ResultLost) as error:
        await other.ask(ordered(), KEY)
    assert error.value.verdict is Verdict.SETTLED
    assert error.value.quote.job_id == one.upstream.quotes[0].job_id
    assert other.joined == ["lost"] and not other.upstream.asked


async def test_bytes_are_kept_for_a_time_and_names_for_longer(replica):
    keep = CacheLimits(bytes_for_s=0.1, keys_for_s=600.0, repeats_for_s=0.1)
    one, other = await replica(keep=keep), await replica(keep=keep)
    await bought(one)
    await asyncio.sleep(0.2)
    with pytest.raises(ResultLost):
        await other.ask(ordered(), KEY)
    assert await bought(other, ordered(), RETRY) == b"answer"
    redis = one.claims._calls.client
    kept_ms = [await redis.pttl(name) async for name in redis.scan_iter()]
    assert -1 not in kept_ms, "a name without an end"
    assert 0 < max(kept_ms) <= 600_000


async def test_nothing_readable_lies_in_redis(replica):
    one, other = await replica(), await replica()
    key = RepeatKeys(key="a-telling-key", client_request_id="telling-client")
    order = ordered(b'{"messages":["a telling prompt"]}', key_id="key_telling")
    running = spawn(one.ask(order, key))
    work = await work_of(one)
    held = await everything(one)
    work.put(result(b"a telling answer"))
    await running
    await one.service.wait_idle()
    held += await everything(one)
    assert b"lcp-gateway:" in held and b"ended" in held
    # In quotes: two letters alone stand in a few kilobytes of ciphertext now and then.
    told = [b"telling", b"req_1", b'"p1"', b"answer of", order.body_sha256]
    told += [order.body_sha256.hex().encode(), one.upstream.quotes[0].job_id.hex().encode()]
    assert [word for word in told if word in held] == []
    # A gateway with another secret cannot use it: it finds nothing.
    stranger = await replica(secret=b"the secret of another")
    assert await bought(stranger, order, key) == b"answer"
    assert await other.ask(order, key) == b"a telling answer"


async def test_a_forged_result_reaches_no_client(replica):
    one, other = await replica(), await replica()
    await bought(one)
    await bought(one, ordered(OTHER_BODY, key_id="victim"), RepeatKeys(key="v"))
    redis = one.claims._calls.client
    names = [name async for name in redis.scan_iter("lcp-gateway:repeat:*") if not name.endswith(b":missed")]
    answers = [name async for name in redis.scan_iter("lcp-gateway:answer:*")]
    first, second = [await redis.get(name) for name in answers]
    await redis.set(answers[0], second)
    await redis.set(answers[1], first)
    assert len(names) == 4
    with pytest.raises(ResultLost) as error:
        await other.ask(ordered(), KEY)
    assert error.value.verdict is Verdict.UNKNOWN


@pytest.mark.parametrize(
    ("state", "verdict"),
    [
        (State.PAYING, Verdict.UNKNOWN),
        (State.UNKNOWN, Verdict.UNKNOWN),
        (State.SETTLED, Verdict.SETTLED),
        (State.DELIVERED, Verdict.SETTLED),
        (State.UNDELIVERED, Verdict.SETTLED),
    ],
)
async def test_a_purchase_that_a_dead_gateway_paid_is_not_bought_again(replica, journals, state, verdict):
    one, other = await replica(lease_s=0.1), await replica(lease_s=0.1)
    before = datetime.now(UTC)
    asked = spawn(one.ask(ordered(key_id="key_1"), KEY))
    await work_of(one)
    await left_alone(one)
    journals.state = state
    with pytest.raises(ResultLost) as error:
        await other.ask(ordered(key_id="key_1"), KEY)
    assert error.value.verdict is verdict
    assert not other.upstream.asked
    ((key_id, request_id, since),) = journals.asked
    assert (key_id, request_id) == ("key_1", "req_1")
    # Five seconds before it asked, which it did a little later than ``before``.
    assert timedelta(seconds=-30) < before - since <= timedelta(seconds=6)
    asked.cancel()


@pytest.mark.parametrize("state", [None, State.NOT_PAID])
async def test_a_purchase_that_a_dead_gateway_had_not_paid_is_bought_by_one_other(replica, journals, state):
    journals.state = state
    dead = await replica(lease_s=0.1, upstream=ScriptedPeers({"p1": Peer(ready=asyncio.Event())}))
    others = [await replica() for _ in range(3)]
    asked = spawn(dead.ask(ordered(), KEY))
    async with asyncio.timeout(60):
        while not dead.upstream.asked:
            await asyncio.sleep(0.01)
    await left_alone(dead)
    again = [spawn(w.ask(ordered(), KEY)) for w in others for _ in range(5)]
    async with asyncio.timeout(60):
        while not any(w.upstream.works for w in others):
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    (buyer,) = [w for w in others if w.upstream.works]
    buyer.upstream.works[0].deliver()
    assert await asyncio.gather(*again) == [b"answer"] * 15
    # The gateway was only slow: it must not pay now.
    dead.claims._outage._until = 0
    dead.upstream.peers["p1"].ready.set()
    with pytest.raises(Interrupted) as error:
        await asked
    assert error.value.code == "taken_over" and not dead.journal.intents
    await dead.service.wait_idle()
    assert await dead.ask(ordered(), KEY) == b"answer"


async def test_where_the_journal_cannot_tell_nothing_is_bought(replica, journals):
    journals.state = JournalUnavailable("cannot be read")
    one, other = await replica(lease_s=0.1), await replica()
    asked = spawn(one.ask(ordered(), KEY))
    await work_of(one)
    await left_alone(one)
    with pytest.raises(JournalUnavailable):
        await other.ask(ordered(), KEY)
    assert not other.upstream.asked
    asked.cancel()


async def test_a_claim_is_renewed_for_as_long_as_it_takes(replica, journals):
    one, other = await replica(renew_s=0.02), await replica(renew_s=0.02)
    redis = one.claims._calls.client

    async def runs_until_ms() -> int:
        (name,) = [name async for name in redis.scan_iter("lcp-gateway:claim:*")]
        return int(await redis.hget(name, "until"))

    first, second = (spawn(w.ask(ordered(), KEY)) for w in (one, other))
    async with asyncio.timeout(60):
        while not one.upstream.works and not other.upstream.works:
            await asyncio.sleep(0.01)
        begun_ms = await runs_until_ms()
        while await runs_until_ms() < begun_ms + 300:
            await asyncio.sleep(0.01)
    (buyer,) = [w for w in (one, other) if w.upstream.works]
    buyer.upstream.works[0].deliver()
    assert await first == await second == b"answer"
    assert journals.asked == []


async def test_a_repeat_that_waits_too_long_gets_the_error_that_the_purchase_still_runs(replica):
    one, other = await replica(), await replica(wait_s=0.2)
    asked = spawn(one.ask(ordered(), KEY))
    work = await work_of(one)
    with pytest.raises(ResultLost, match="still being bought") as error:
        await other.ask(ordered(), KEY)
    assert error.value.verdict is Verdict.UNKNOWN
    await other.service.wait_idle()
    work.deliver()
    await asked
    await one.service.wait_idle()
    assert await other.ask(ordered(), KEY) == b"answer"


async def test_a_client_that_leaves_while_it_waits_leaves_nothing_behind(replica):
    one, other = await replica(), await replica()
    asked = spawn(one.ask(ordered(), KEY))
    work = await work_of(one)
    waiting = spawn(other.ask(ordered(), KEY))
    await asyncio.sleep(0.05)
    waiting.cancel()
    await other.service.wait_idle()
    assert len(other.service) == 0
    work.deliver()
    assert await asked == b"answer"


async def test_a_client_that_leaves_while_the_claim_is_made_leaves_nothing_behind(replica):
    one = await replica()
    for turns in range(12):
        asked = spawn(one.ask(ordered(), KEY))
        for _ in range(turns):
            await asyncio.sleep(0)
        asked.cancel()
        await asyncio.wait({asked})
        await one.service.wait_idle()
        await one.claims._calls.settled()
        one.upstream.works.clear()
    held = await everything(one)
    # A claim whose payment may have been made stays; every other one is released.
    assert b"running" not in held


def held_up(w) -> asyncio.Event:
    """Let no call reach Redis before the event."""
    calls, go = w.claims._calls, asyncio.Event()
    send = calls._send

    async def later(together):
        await go.wait()
        return await send(together)

    calls._send = later
    return go


async def test_an_order_that_repeats_none_is_quoted_while_it_is_claimed_and_paid_once_it_is(replica):
    one, other = await replica(), await replica()
    go = held_up(one)
    asked = spawn(one.ask(ordered(), RepeatKeys()))
    async with asyncio.timeout(60):
        while not one.observer.quotes:
            await asyncio.sleep(0)
    for _ in range(20):
        await asyncio.sleep(0)
    assert not one.upstream.works
    go.set()
    work = await work_of(one)
    waiting = spawn(other.ask(ordered(), RETRY))
    await asyncio.sleep(0.05)
    work.deliver()
    assert await asked == await waiting == b"answer"
    assert not other.upstream.asked


async def test_a_claim_that_was_not_made_yet_when_its_client_left_is_released(replica):
    one, other = await replica(), await replica()
    go = held_up(one)
    asked = spawn(one.ask(ordered(), RepeatKeys()))
    async with asyncio.timeout(60):
        while not one.observer.quotes:
            await asyncio.sleep(0)
    asked.cancel()
    await asyncio.wait({asked})
    await one.service.wait_idle()
    go.set()
    await one.claims._calls.settled()
    assert b"running" not in await everything(one)
    assert await bought(other, ordered(), RETRY) == b"answer"
