import asyncio
from datetime import timedelta

import pytest

from lcp_gateway.purchase.delivery import PaidStream
from lcp_gateway.purchase.errors import (
    PaymentFailed,
    PeerNotTrusted,
    QuoteExpired,
    Refused,
    Undelivered,
    UpstreamError,
)
from lcp_gateway.purchase.flow import Buyer
from lcp_gateway.purchase.journal import JournalUnavailable, Period
from lcp_gateway.purchase.limits import SpendingLimits
from lcp_gateway.purchase.purchase import Purchase
from lcp_gateway.purchase.results import ResultStatus, StreamBegin, StreamEnd
from lcp_gateway.purchase.states import IllegalTransition, State, Verdict
from tests.support.purchases import (
    HASH,
    NOW,
    MemoryJournal,
    ScriptedUpstream,
    Trusting,
    order,
    quote,
    result,
    stream_events,
)

NO_LIMITS = SpendingLimits()


def world(*, now=NOW, inspect=lambda _order, _quote: HASH, limits=NO_LIMITS, **script):
    upstream = ScriptedUpstream(**script)
    journal = MemoryJournal(upstream)
    buyer = Buyer(
        upstream,
        journal=journal,
        inspect=inspect,
        limits=limits,
        exposure=Trusting(),
        execute_timeout_s=1,
        now=lambda: now,
    )
    return upstream, journal, buyer, Purchase(order(), upstream.quoted)


async def read(stream: PaidStream) -> bytes:
    return b"".join([chunk async for chunk in stream.chunks()])


async def test_a_good_purchase_is_written_down_before_it_is_paid_and_ends_delivered():
    upstream, journal, buyer, purchase = world(outcome=result())
    assert (await buyer.buy(purchase)).body == b"answer"
    assert journal.states == ["paying", "settled", "delivered"]
    assert journal.calls_at[0] == (), "the intent is written before the call goes out"
    assert upstream.calls == ["execute"]


async def test_a_purchase_cannot_be_bought_twice():
    upstream, _, buyer, purchase = world(outcome=result())
    await buyer.buy(purchase)
    with pytest.raises(IllegalTransition):
        await buyer.buy(purchase)
    with pytest.raises(IllegalTransition):
        await buyer.open_stream(purchase)
    assert upstream.calls == ["execute"]


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_quote_that_does_not_pass_inspection_is_refused_unpaid(streamed):
    def refuse(_order, quote):
        raise Refused("no", quote=quote)

    upstream, journal, buyer, purchase = world(inspect=refuse, outcome=result())
    with pytest.raises(Refused):
        await (buyer.open_stream(purchase) if streamed else buyer.buy(purchase))
    assert (journal.states, upstream.calls) == ([], [])
    assert purchase.state is State.REFUSED and purchase.verdict is Verdict.NONE


async def test_what_cannot_be_written_down_is_not_paid():
    upstream, journal, buyer, purchase = world(outcome=result())
    journal.refusal = JournalUnavailable("the disk is full", quote=purchase.quote)
    with pytest.raises(JournalUnavailable):
        await buyer.buy(purchase)
    assert upstream.calls == []
    assert purchase.state is State.REFUSED


async def test_who_is_cancelled_while_it_is_written_down_pays_nothing_and_says_so():
    upstream, journal, buyer, purchase = world(outcome=result())
    journal.refusal = asyncio.CancelledError()
    with pytest.raises(asyncio.CancelledError):
        await buyer.buy(purchase)
    assert upstream.calls == []
    assert journal.states == ["not_paid"], (
        "the intent may stand in the journal, so it is taken back"
    )


async def test_a_peer_that_is_not_trusted_is_not_paid():
    upstream, _, buyer, purchase = world(outcome=result())

    class Distrusting(Trusting):
        def check(self, quote):
            raise PeerNotTrusted("no", quote=quote)

    buyer._exposure = Distrusting()
    with pytest.raises(PeerNotTrusted):
        await buyer.buy(purchase)
    assert upstream.calls == []


async def test_the_intent_says_what_is_about_to_be_paid_and_no_more():
    limits = SpendingLimits(budgets={Period.DAY: 9}, key_budgets={Period.HOUR: 5})
    _, journal, buyer, purchase = world(outcome=result(), limits=limits)
    await buyer.buy(purchase)
    (intent,) = journal.intents
    assert (intent.quote, intent.payment_hash, intent.model) == (purchase.quote, HASH, "m")
    assert (intent.fee_cap_msat, intent.amount_msat) == (1_050, 6_050)
    assert intent.request_sha256 == purchase.order.body_sha256
    assert "messages" not in repr(intent)


async def test_an_expired_quote_is_not_paid():
    upstream, journal, buyer, purchase = world(
        now=NOW + timedelta(seconds=300), outcome=result(), quoted=quote(expires_in_s=300)
    )
    with pytest.raises(QuoteExpired):
        await buyer.buy(purchase)
    assert (journal.states, upstream.calls) == ([], [])
    assert purchase.state is State.EXPIRED


@pytest.mark.parametrize(
    ("failure", "states", "verdict"),
    [
        (UpstreamError("FAILED_PRECONDITION", "payment failed: FAILURE_REASON_NO_ROUTE"),
         ["paying", "not_paid"], Verdict.NONE),
        (UpstreamError("DEADLINE_EXCEEDED", "too late"), ["paying", "unknown"], Verdict.UNKNOWN),
        (UpstreamError("RESOURCE_EXHAUSTED", "lcp_error code=7: backend unavailable"),
         ["paying", "settled", "undelivered"], Verdict.SETTLED),
    ],
)  # fmt: skip
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_failed_call_is_judged_by_its_evidence_and_never_repeated(
    failure, states, verdict, streamed
):
    upstream, journal, buyer, purchase = world(outcome=failure, events=[failure])
    with pytest.raises(PaymentFailed) as caught:
        await (buyer.open_stream(purchase) if streamed else buyer.buy(purchase))
    assert caught.value.verdict is purchase.verdict is verdict
    assert journal.states == states
    assert upstream.calls == ["execute"]


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_client_that_leaves_while_paying_leaves_an_unknown(streamed):
    gone = asyncio.CancelledError()
    _, journal, buyer, purchase = world(outcome=gone, events=[gone])
    with pytest.raises(asyncio.CancelledError):
        await (buyer.open_stream(purchase) if streamed else buyer.buy(purchase))
    assert journal.states == ["paying", "unknown"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"sha256": b"\0" * 32},
        {"sha256": b""},
        {"length": 7},
        {"status": ResultStatus.FAILED, "message": "the model broke"},
        {"status": ResultStatus.CANCELLED},
        {"status": ResultStatus.UNSPECIFIED},
    ],
)
async def test_a_result_that_is_not_what_was_promised_is_undelivered(wrong):
    _, journal, buyer, purchase = world(outcome=result(**wrong))
    with pytest.raises(Undelivered):
        await buyer.buy(purchase)
    assert journal.states == ["paying", "settled", "undelivered"]
    assert purchase.verdict is Verdict.SETTLED


async def test_a_whole_stream_is_delivered():
    upstream, journal, buyer, purchase = world(events=stream_events(b"one", b"two"))
    stream = await buyer.open_stream(purchase)
    assert purchase.state is State.SETTLED
    assert await read(stream) == b"onetwo"
    assert journal.states == ["paying", "settled", "delivered"]
    assert upstream.closed


def cut_streams():
    begin, one, end, done = stream_events(b"one")
    wrong_hash = StreamEnd(b"\0" * 32, 3)
    yield "no end", [begin, one]
    yield "no terminal result", [begin, one, end]
    yield "wrong hash", [begin, one, wrong_hash, done]
    yield "wrong length", [begin, one, StreamEnd(end.sha256, 4), done]
    yield "hashes that differ", [begin, one, end, result(b"", sha256=b"\1" * 32, length=3)]
    yield "a chunk after the end", [begin, one, end, b"more", done]
    yield "two heads", [begin, one, begin, end, done]
    yield "failed", [begin, one, end, result(b"", status=ResultStatus.FAILED)]
    yield "broken", [begin, one, UpstreamError("UNAVAILABLE", "gone")]


@pytest.mark.parametrize("events", [pytest.param(e, id=name) for name, e in cut_streams()])
async def test_a_stream_that_is_not_whole_never_ends_cleanly(events):
    upstream, journal, buyer, purchase = world(events=events)
    stream = await buyer.open_stream(purchase)
    with pytest.raises(Undelivered):
        await read(stream)
    assert journal.states == ["paying", "settled", "undelivered"]
    assert upstream.closed


async def test_a_reader_that_stops_early_ends_the_call_and_the_purchase_as_undelivered():
    upstream, journal, buyer, purchase = world(events=stream_events(b"one", b"two"))
    chunks = (await buyer.open_stream(purchase)).chunks()
    assert await anext(chunks) == b"one"
    await chunks.aclose()
    assert journal.states[-1] == "undelivered"
    assert upstream.closed


async def test_a_stream_without_a_head_is_undelivered():
    _, journal, buyer, purchase = world(events=[result(status=ResultStatus.FAILED, message="no")])
    with pytest.raises(Undelivered, match="no"):
        await buyer.open_stream(purchase)
    assert journal.states == ["paying", "settled", "undelivered"]


async def test_a_stream_that_says_nothing_leaves_an_unknown():
    _, journal, buyer, purchase = world(events=[])
    with pytest.raises(PaymentFailed) as caught:
        await buyer.open_stream(purchase)
    assert caught.value.verdict is Verdict.UNKNOWN
    assert journal.states == ["paying", "unknown"]


async def test_a_result_with_only_a_terminal_hash_is_still_checked():
    begin, one, _, done = stream_events(b"one")
    _, journal, buyer, purchase = world(events=[begin, one, done])
    assert await read(await buyer.open_stream(purchase)) == b"one"
    assert journal.states[-1] == "delivered"
    assert isinstance(begin, StreamBegin)
