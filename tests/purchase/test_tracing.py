import asyncio

import pytest
from opentelemetry.trace import StatusCode

from lcp_gateway.purchase.errors import PaymentFailed, PeerNotTrusted, PriceLimitExceeded, Undelivered, UpstreamError
from lcp_gateway.purchase.idempotency import RepeatKeys
from lcp_gateway.purchase.quoting import QuotingRules
from lcp_gateway.purchase.states import Verdict
from lcp_gateway.purchase.tracing import NO_TRACING, TraceStep, error_type, paid_facts
from tests.support.purchases import quote, stream_events
from tests.support.scripted_peers import NO_REPEAT, Peer, ScriptedPeers, World, ordered, settle, world
from tests.support.spans import Kept

KEY = RepeatKeys(key="k")
HEAD, REST = stream_events(b"one", b"two")[:2], stream_events(b"one", b"two")[2:]
PROMPT = b'{"model":"m","messages":["MARKER of the prompt"]}'


def traced(**wanted) -> tuple[World, Kept]:
    w, kept = world(**wanted), Kept()
    for part in (w.service, w.service._quoting, w.service._executor):
        part._tracing = kept.tracing
    return w, kept


async def ask(w: World, kept: Kept, order, *, name: str = "request", repeat=NO_REPEAT):
    with kept.tracing.request([], []) as root:
        root.name(name)
        return await w.ask(order, repeat)


def children_of(kept: Kept, name: str = "request") -> list[str]:
    root = kept[name]
    return [span.name for span in kept.spans if span.parent and span.parent.span_id == root.context.span_id]


async def test_a_purchase_is_routed_quoted_and_paid():
    w, kept = traced()
    asked = asyncio.ensure_future(ask(w, kept, ordered(PROMPT)))
    (await w.work()).deliver(b"MARKER of the output")
    await asked
    assert children_of(kept) == ["route", "quote", "pay"]
    assert kept["route"].attributes == {"lcp.candidates": 1}
    pay = kept["pay"].attributes
    assert pay["lcp.payment"] == "settled" and pay["lcp.state"] == "delivered"
    assert pay["lcp.price_msat"] == 5_000 and pay["lcp.peer_id"] == "p1"
    assert pay["lcp.job_id"] == kept["quote"].attributes["lcp.job_id"] == w.upstream.quotes[0].job_id.hex()
    assert pay["gen_ai.request.model"] == "m" and pay["gen_ai.provider.name"] == "lcp"
    assert "MARKER" not in kept.everything()


async def test_a_stream_has_a_span_that_ends_with_its_last_byte():
    w, kept = traced()
    asked = asyncio.ensure_future(ask(w, kept, ordered(PROMPT, stream=True)))
    (await w.work()).stream(b"MARKER one", b"MARKER two")
    await asked
    assert children_of(kept) == ["route", "quote", "pay", "stream"]
    assert kept["pay"].attributes["lcp.state"] == "settled"
    stream = kept["stream"].attributes
    assert stream["lcp.state"] == "delivered" and stream["lcp.result_bytes"] == 20
    assert stream["gen_ai.response.time_to_first_chunk"] >= 0
    assert "MARKER" not in kept.everything()


async def test_each_provider_that_is_asked_has_a_span():
    upstream = ScriptedPeers(
        {"dear": Peer(9_000), "away": Peer(error=UpstreamError("UNAVAILABLE", "MARKER")), "good": Peer()}
    )
    w, kept = traced(upstream=upstream, asking=QuotingRules(at_once=3))
    asked = asyncio.ensure_future(ask(w, kept, ordered()))
    (await w.work()).deliver()
    await asked
    quotes = {span.attributes["lcp.peer_id"]: span for span in kept.spans if span.name == "quote"}
    assert set(quotes) == {"dear", "away", "good"}
    assert quotes["away"].attributes["error.type"] == "UNAVAILABLE"
    assert quotes["away"].status.status_code is StatusCode.ERROR
    assert quotes["dear"].attributes["lcp.price_msat"] == 9_000
    assert "error.type" not in quotes["good"].attributes
    assert kept["pay"].attributes["lcp.peer_id"] == "good"
    assert "MARKER" not in kept.everything()


async def test_a_peer_that_does_not_answer_in_time_is_not_an_error():
    upstream = ScriptedPeers({"slow": Peer(ready=asyncio.Event()), "good": Peer()})
    w, kept = traced(upstream=upstream, asking=QuotingRules(at_once=2, patience_s=0.01))
    asked = asyncio.ensure_future(ask(w, kept, ordered()))
    async with asyncio.timeout(60):
        while not w.upstream.works:
            await asyncio.sleep(0.001)
    (await w.work()).deliver()
    await asked
    (slow,) = [s for s in kept.spans if s.attributes.get("lcp.peer_id") == "slow"]
    assert slow.attributes["error.type"] == "cancelled"
    assert slow.status.status_code is StatusCode.UNSET


async def test_a_failed_payment_reports_whether_it_may_have_paid():
    w, kept = traced()
    asked = asyncio.ensure_future(ask(w, kept, ordered()))
    (await w.work()).put(UpstreamError("DEADLINE_EXCEEDED", "MARKER"))
    with pytest.raises(PaymentFailed):
        await asked
    pay = kept["pay"]
    assert pay.attributes["lcp.payment"] == "unknown"
    assert pay.attributes["error.type"] == "DEADLINE_EXCEEDED"
    assert pay.status.status_code is StatusCode.ERROR and pay.status.description is None
    assert "MARKER" not in kept.everything()


async def test_a_stream_that_breaks_off_is_undelivered():
    w, kept = traced()
    asked = asyncio.ensure_future(ask(w, kept, ordered(stream=True)))
    work = await w.work()
    work.stream(b"one")
    work.queue._queue.pop()
    work.put(UpstreamError("UNAVAILABLE", "MARKER"))
    with pytest.raises(Undelivered):
        await asked
    stream = kept["stream"].attributes
    assert (stream["error.type"], stream["lcp.state"]) == ("undelivered", "undelivered")


async def test_a_purchase_that_outlives_its_request_ends_its_spans():
    w, kept = traced(grace_s=60)
    asked = asyncio.ensure_future(ask(w, kept, ordered(stream=True), repeat=KEY))
    work = await w.work()
    work.put(*HEAD)
    await settle()
    asked.cancel()
    await settle()
    assert "request" in kept.names and "stream" not in kept.names
    work.put(*REST)
    await settle()
    assert children_of(kept) == ["route", "quote", "pay", "stream"]
    assert kept["stream"].attributes["lcp.state"] == "delivered"


async def test_a_client_that_leaves_for_good_ends_its_spans_too():
    w, kept = traced(grace_s=0.01)
    asked = asyncio.ensure_future(ask(w, kept, ordered(stream=True)))
    (await w.work()).put(*HEAD)
    await settle()
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    await asyncio.wait_for(w.service.wait_idle(), 60)
    assert kept["stream"].attributes["error.type"] == "cancelled"
    assert kept["stream"].attributes["lcp.state"] == "undelivered"


async def test_a_request_that_joins_points_to_the_trace_that_bought():
    w, kept = traced()
    first = asyncio.ensure_future(ask(w, kept, ordered(), name="first", repeat=KEY))
    work = await w.work()
    second = asyncio.ensure_future(ask(w, kept, ordered(), name="second", repeat=KEY))
    await settle()
    work.deliver()
    assert await first == await second
    await ask(w, kept, ordered(), name="third", repeat=KEY)
    for name in ("second", "third"):
        (link,) = kept[name].links
        assert link.context == kept["first"].context
        assert children_of(kept, name) == []
    assert not kept["first"].links


async def test_a_quote_alone_is_routed_and_quoted():
    w, kept = traced()
    with kept.tracing.request([], []):
        await w.service.quote(ordered())
    assert children_of(kept) == ["route", "quote"]


async def test_the_cancellation_of_a_job_has_no_span():
    w, kept = traced(grace_s=0.0)
    asked = asyncio.ensure_future(ask(w, kept, ordered()))
    await w.work()
    asked.cancel()
    await asyncio.sleep(0.02)
    await settle()
    assert w.upstream.cancelled
    assert sorted(kept.names) == ["pay", "quote", "request", "route"]


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (asyncio.CancelledError("MARKER"), "cancelled"),
        (UpstreamError("UNAVAILABLE", "MARKER", code="MARKER"), "UNAVAILABLE"),
        (PaymentFailed(UpstreamError("ABORTED", "MARKER", code="MARKER"), Verdict.NONE, quote=quote()), "ABORTED"),
        (Undelivered("MARKER"), "undelivered"),
        (PriceLimitExceeded(quote(), 1), "price_limit_exceeded"),
        (PeerNotTrusted("MARKER"), "peer_not_trusted"),
        (ValueError("MARKER"), "ValueError"),
    ],
)
def test_the_error_code_in_a_span_is_never_a_providers_text(error, word):
    assert error_type(error) == word


def test_nothing_is_worked_out_for_a_trace_that_is_not_recorded():
    with NO_TRACING.request(["x"], []) as root, NO_TRACING.span(TraceStep.PAY) as span:
        root.name("n")
        root.note(pytest.fail, "asked")
        span.note(paid_facts, None)
        span.failed("x")
        assert root.trace_id == ""
    assert NO_TRACING.headers() == {} and NO_TRACING.origin() is None
    NO_TRACING.link(object())
