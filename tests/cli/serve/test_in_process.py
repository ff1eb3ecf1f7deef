"""The gateway's adapter over a node's calls: in one process as over gRPC."""

import asyncio
import json
from contextlib import asynccontextmanager
from hashlib import sha256
from itertools import product

import pytest

from lcp_gateway.cli.serve.in_process import InProcessTransport
from lcp_gateway.lightning.lnd import records as lnd
from lcp_gateway.lightning.lnd.records import PaymentRecord
from lcp_gateway.node.lcp.buying_events import ResultData, ResultHead
from lcp_gateway.node.lcp.messages import JSON, SSE, Protocol
from lcp_gateway.node.rpc.server import RpcServer, ServerOptions
from lcp_gateway.node.rpc.service import RpcService
from lcp_gateway.node.runtime.calls import CallFailed, Paid, PaymentReport, PaymentState
from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.order import Task, TaskKind
from lcp_gateway.purchase.ports import ResultStatus, StreamBegin, StreamEnd
from lcp_gateway.purchase.states import Verdict
from lcp_gateway.upstream_status import UpstreamStatus
from lcp_gateway.upstreams.lcpd.adapter import LcpdUpstream
from lcp_gateway.upstreams.lcpd.transport import LcpdAddress, TransportKind
from tests.support.fake_node_calls import JOB, NODE, PEER, PREIMAGE, SETTLED, FakeNodeCalls, whole

BODY = json.dumps({"model": "model-a", "messages": [{"role": "user", "content": "hello"}]}).encode()
TASK = Task(TaskKind.CHAT_COMPLETIONS, "model-a", BODY, stream=False)
KINDS = ["in-process", "direct", "grpcio"]


@asynccontextmanager
async def buying(kind, calls, protocol=Protocol.V02):
    """Yield the gateway's adapter on a node with these calls."""

    def on_bug(name, error):
        calls.bugs.append((name, str(error)))

    if kind == "in-process":
        transport = InProcessTransport(RpcService(calls, protocol), on_bug=on_bug)
        upstream = LcpdUpstream(LcpdAddress("unused:1"), transport=transport, fee_limit_msat=9)
        yield upstream
        await upstream.close()
        return
    server = RpcServer(calls, ServerOptions(listen="127.0.0.1:0", protocol=protocol), on_bug=on_bug)
    upstream = LcpdUpstream(LcpdAddress(await server.start(), transport=TransportKind(kind)), fee_limit_msat=9)
    yield upstream
    await upstream.close()
    await server.stop(0)


@pytest.fixture(params=product(KINDS, Protocol), ids=lambda param: f"{param[0]}, version {param[1].value}")
def open_node(request):
    """Return a function that opens the adapter on a node with the given calls, over a transport, in a version."""
    kind, protocol = request.param
    return lambda calls: buying(kind, calls, protocol)


async def failure(awaited) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        await awaited
    return caught.value


async def read(upstream, quote, timeout_s=60.0):
    return [event async for event in upstream.execute_stream(quote, TASK, timeout_s)]


async def test_the_node_and_its_peers_are_named(open_node):
    async with open_node(FakeNodeCalls()) as upstream:
        assert (await upstream.local_info(60)).node_id == NODE
        (provider,) = await upstream.list_peers(60)
    # Peers of version 3 name kinds alone.
    assert provider.peer_id == PEER
    assert {*provider.models, *provider.open_kinds} == {TaskKind.CHAT_COMPLETIONS, TaskKind.RESPONSES}
    assert set(provider.models.values()) <= {("model-a",)}


async def test_a_result_is_bought_whole(open_node):
    calls = FakeNodeCalls(items=whole(b'{"ok"', b": 1}"))
    async with open_node(calls) as upstream:
        quote = await upstream.request_quote(TASK, PEER, 60)
        result = await upstream.execute(quote, TASK, 60)
    assert (quote.job_id, quote.price_msat) == (JOB, 418)
    assert calls.asked[0][2].request == BODY
    assert (result.status, result.body, result.length) == (ResultStatus.OK, b'{"ok": 1}', 9)
    assert (result.sha256, result.content_type) == (sha256(b'{"ok": 1}').digest(), JSON)
    assert (result.payment.preimage, result.payment.fee_msat) == (PREIMAGE, 7)
    assert calls.accepted == [(PEER, JOB, 418, 9)]


async def test_a_result_is_bought_as_a_stream(open_node):
    async with open_node(FakeNodeCalls(items=whole(b"one", b"two"))) as upstream:
        events = await read(upstream, await upstream.request_quote(TASK, PEER, 60))
    begin, *chunks, end, result = events
    assert isinstance(begin, StreamBegin) and begin.payment.preimage == PREIMAGE
    assert b"".join(chunks) == b"onetwo"
    assert end == StreamEnd(sha256(b"onetwo").digest(), 6)
    assert result.status is ResultStatus.OK


KNOWN = [
    (SETTLED, PaymentRecord(SETTLED.payment_hash, lnd.PaymentState.SETTLED, fee_msat=7, preimage=PREIMAGE)),
    (PaymentReport(state=PaymentState.NONE), PaymentRecord(b"\x01" * 32, lnd.PaymentState.FAILED)),
    (PaymentReport(state=PaymentState.UNKNOWN), PaymentRecord(b"\x01" * 32, lnd.PaymentState.IN_FLIGHT)),
    (PaymentReport(state=PaymentState.NO_RECORD), None),
]


@pytest.mark.parametrize(("known", "record"), KNOWN)
async def test_a_past_payment_is_looked_up(open_node, known, record):
    calls = FakeNodeCalls()
    calls.known = known
    async with open_node(calls) as upstream:
        assert await upstream.payment(JOB, b"\x01" * 32, 60) == record
        assert (await upstream.local_info(60)).software.looks_payments_up
    assert calls.looked_up == [(JOB, b"\x01" * 32)]


async def test_a_look_up_that_the_node_cannot_answer_is_an_error_that_may_pass(open_node):
    calls = FakeNodeCalls()
    calls.known = CallFailed(UpstreamStatus.UNAVAILABLE, "TrackPaymentV2: lnd is away", payment=SETTLED)
    async with open_node(calls) as upstream:
        error = await failure(upstream.payment(JOB, b"\x01" * 32, 60))
    assert (error.status, error.retryable) == (UpstreamStatus.UNAVAILABLE, True)


@pytest.mark.parametrize("state", [PaymentState.NONE, PaymentState.SETTLED, PaymentState.UNKNOWN])
async def test_a_failure_keeps_status_text_and_payment(open_node, state):
    report = PaymentReport(state=state)
    failed = CallFailed(UpstreamStatus.RESOURCE_EXHAUSTED, "lcp_error code=7: busy", payment=report)
    async with open_node(FakeNodeCalls(items=[failed])) as upstream:
        quote = await upstream.request_quote(TASK, PEER, 60)
        for error in (await failure(upstream.execute(quote, TASK, 60)), await failure(read(upstream, quote))):
            assert (error.status, error.message) == (failed.status, failed.details)
            assert error.evidence is Verdict(state.value)


async def test_a_failure_in_mid_stream_comes_after_what_came_before_it(open_node):
    items = [Paid(SETTLED), ResultHead(SSE), ResultData(b"one"), CallFailed(UpstreamStatus.FAILED_PRECONDITION, "gone")]
    got = []
    async with open_node(FakeNodeCalls(items=items)) as upstream:
        quote = await upstream.request_quote(TASK, PEER, 60)
        with pytest.raises(UpstreamError, match="gone"):
            async for event in upstream.execute_stream(quote, TASK, 60):
                got.append(event)
    assert isinstance(got[0], StreamBegin) and got[1:] == [b"one"]


async def test_a_refused_quote_keeps_its_status(open_node):
    calls = FakeNodeCalls(quote=CallFailed(UpstreamStatus.NOT_FOUND, "peer not found"))
    async with open_node(calls) as upstream:
        error = await failure(upstream.request_quote(TASK, PEER, 60))
    assert (error.status, error.message) == ("NOT_FOUND", "peer not found")


async def test_the_end_of_the_time_closes_the_purchase(open_node):
    for stream in (False, True):
        calls = FakeNodeCalls(items=[asyncio.Event()])
        async with open_node(calls) as upstream:
            quote = await upstream.request_quote(TASK, PEER, 60)
            within_s = 0.2
            # On a busy machine the time may be over before the node has the call.
            while not calls.accepted:
                called = read(upstream, quote, within_s) if stream else upstream.execute(quote, TASK, within_s)
                assert (await failure(called)).status == "DEADLINE_EXCEEDED"
                within_s *= 2
            async with asyncio.timeout(60):
                await calls.left.wait()
        assert not calls.bugs


async def test_a_stream_that_is_left_closes_the_purchase(open_node):
    calls = FakeNodeCalls(items=[Paid(SETTLED), ResultHead(SSE), asyncio.Event()])
    async with open_node(calls) as upstream:
        events = upstream.execute_stream(await upstream.request_quote(TASK, PEER, 60), TASK, 60)
        assert isinstance(await anext(events), StreamBegin)
        await events.aclose()
        async with asyncio.timeout(60):
            await calls.left.wait()
    assert not calls.bugs


async def test_a_call_that_is_cancelled_closes_the_purchase(open_node):
    calls = FakeNodeCalls(items=[asyncio.Event()])
    async with open_node(calls) as upstream:
        quote = await upstream.request_quote(TASK, PEER, 60)
        paying = asyncio.create_task(upstream.execute(quote, TASK, 60))
        async with asyncio.timeout(60):
            while not calls.accepted:
                await asyncio.sleep(0.01)
            paying.cancel()
            await asyncio.wait([paying])
            await calls.left.wait()
    assert paying.cancelled()


async def test_an_error_of_the_node_itself_is_internal_and_its_text_stays_there(open_node):
    calls = FakeNodeCalls(items=[KeyError("a prompt")])
    async with open_node(calls) as upstream:
        quote = await upstream.request_quote(TASK, PEER, 60)
        for error in (await failure(upstream.execute(quote, TASK, 60)), await failure(read(upstream, quote))):
            assert (error.status, error.message) == ("INTERNAL", "the node failed; its log says how")
            assert error.evidence is None
    assert calls.bugs == [("AcceptAndExecute", "'a prompt'"), ("AcceptAndExecuteStream", "'a prompt'")]


@pytest.mark.parametrize("kind", ["in-process", "direct"])
async def test_closing_ends_every_call_without_evidence(kind):
    """What a call that was cut off paid is not known. (grpcio cancels the callers themselves.)"""
    calls = FakeNodeCalls(items=[asyncio.Event()])
    async with buying(kind, calls) as upstream:
        quote = await upstream.request_quote(TASK, PEER, 60)
        paying = [
            asyncio.create_task(failure(upstream.execute(quote, TASK, 60))),
            asyncio.create_task(failure(read(upstream, quote))),
        ]
        async with asyncio.timeout(60):
            while len(calls.accepted) < len(paying):
                await asyncio.sleep(0.01)
            await upstream.close()
            errors = await asyncio.gather(*paying)
    assert {error.status for error in errors} <= {"UNAVAILABLE", "CANCELLED"}
    assert [error.evidence for error in errors] == [None, None]


async def test_in_one_process_a_reader_that_waits_gets_chunks_without_being_woken():
    taken = []
    calls = FakeNodeCalls(items=whole(*[b"%d," % number for number in range(100)]))
    async with buying("in-process", calls) as upstream:
        events = upstream.execute_stream(await upstream.request_quote(TASK, PEER, 60), TASK, 60)
        begin = await anext(events)
        begin.hand_to(lambda chunk: taken.append(chunk) is None)
        rest = [event async for event in events]
    chunks = [event for event in rest if isinstance(event, bytes)]
    assert b"".join([*chunks, *taken]) == b"".join(b"%d," % number for number in range(100))
    assert len(taken) > 50


async def test_in_one_process_a_reader_that_stops_stops_its_job():
    calls = FakeNodeCalls(items=whole(*[b"x"] * 1_000))
    async with buying("in-process", calls) as upstream:
        events = upstream.execute_stream(await upstream.request_quote(TASK, PEER, 60), TASK, 60)
        await anext(events)
        for _ in range(1_000):
            await asyncio.sleep(0)
        assert calls.given < 50
        rest = [event async for event in events]
    assert b"".join(event for event in rest if isinstance(event, bytes)) == b"x" * 1_000


async def test_in_one_process_a_closed_transport_takes_no_calls():
    async with buying("in-process", FakeNodeCalls()) as upstream:
        await upstream.close()
        assert (await failure(upstream.list_peers(1))).status == "UNAVAILABLE"
