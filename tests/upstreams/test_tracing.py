"""The trace context is sent with a traced call, and with no other."""

import pytest

from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.order import Task, TaskKind
from lcp_gateway.purchase.tracing import TraceStep
from lcp_gateway.upstreams.lcpd.adapter import LcpdUpstream
from lcp_gateway.upstreams.lcpd.transport import LcpdAddress
from lcp_gateway.upstreams.openai.adapter import OpenAIHttpUpstream
from lcp_gateway.upstreams.openai.connections import VirtualNode
from tests.support.http_node import HttpNodeThread
from tests.support.scripted_daemon import PEER, Daemon, serving
from tests.support.spans import Kept

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
BODY = b'{"model": "m", "messages": [{"role": "user", "content": "hello"}]}'
TASK = Task(TaskKind.CHAT_COMPLETIONS, "m", BODY, stream=False)
STREAM = Task(TaskKind.CHAT_COMPLETIONS, "m", BODY[:-1] + b', "stream": true}', stream=True)
# The largest value that the standard allows.
STATES = ["a=" + "!" * 120 + "~", "b@c=x y z", "d=1"]


@pytest.fixture
async def daemon():
    async with serving(Daemon()) as running:
        yield running


@pytest.mark.parametrize("stream", [False, True])
async def test_a_node_is_told_and_gets_the_same_bytes(stream):
    kept = Kept()
    task = STREAM if stream else TASK
    with HttpNodeThread("alpha", ("m",)) as server:
        upstream = OpenAIHttpUpstream([VirtualNode("a", server.base_url, api_key="sk-key")], tracing=kept.tracing)
        quote = await upstream.request_quote(task, "node:a", 1)
        with kept.tracing.request([PARENT], STATES), kept.tracing.span(TraceStep.PAY):
            if stream:
                assert [event async for event in upstream.execute_stream(quote, task, 60)]
            else:
                await upstream.execute(quote, task, 60)
        (seen,) = server.requests
        await upstream.close()
    headers = {name.lower(): value for name, value in seen.headers.items()}
    span_id = f"{kept['pay'].context.span_id:016x}"
    assert headers["traceparent"].split("-")[1:3] == [TRACE, span_id]
    assert headers["tracestate"] == ",".join(STATES)
    assert headers["authorization"] == "Bearer sk-key"
    assert headers["content-type"] == "application/json"
    assert seen.body == task.body


async def test_a_node_is_told_nothing_where_nothing_is_traced():
    with HttpNodeThread("alpha", ("m",)) as server:
        upstream = OpenAIHttpUpstream([VirtualNode("a", server.base_url)])
        await upstream.execute(await upstream.request_quote(TASK, "node:a", 1), TASK, 60)
        (seen,) = server.requests
        await upstream.close()
    assert not {"traceparent", "tracestate"} & {name.lower() for name in seen.headers}


async def test_the_daemon_is_told_beside_the_operators_own_metadata(daemon):
    kept = Kept()
    address = LcpdAddress(daemon.address, metadata=(("macaroon", "abc"),))
    upstream = LcpdUpstream(address, tracing=kept.tracing)
    with kept.tracing.request([PARENT], STATES), kept.tracing.span(TraceStep.QUOTE):
        quote = await upstream.request_quote(TASK, PEER, 60)
    assert daemon.metadata["macaroon"] == "abc"
    assert daemon.metadata["traceparent"].startswith(f"00-{TRACE}-")
    assert daemon.metadata["tracestate"] == ",".join(STATES)
    with kept.tracing.request([], []), kept.tracing.span(TraceStep.PAY), pytest.raises(UpstreamError):
        # The scripted daemon has no response for this; that it was called is enough.
        [event async for event in upstream.execute_stream(quote, TASK, 60)]
    assert daemon.metadata["macaroon"] == "abc" and "traceparent" in daemon.metadata
    await upstream.close()


async def test_metadata_that_the_operator_sets_is_not_sent_twice(daemon):
    kept = Kept()
    upstream = LcpdUpstream(LcpdAddress(daemon.address, metadata=(("traceparent", PARENT),)), tracing=kept.tracing)
    with kept.tracing.request([], ["a=1"]):
        await upstream.request_quote(TASK, PEER, 60)
    assert daemon.metadata["traceparent"] == PARENT
    await upstream.close()


async def test_the_daemon_is_told_nothing_outside_of_a_request(daemon):
    upstream = LcpdUpstream(LcpdAddress(daemon.address), tracing=Kept().tracing)
    await upstream.request_quote(TASK, PEER, 60)
    assert not {"traceparent", "tracestate"} & set(daemon.metadata)
    await upstream.close()
