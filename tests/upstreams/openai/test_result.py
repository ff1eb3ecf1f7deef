"""Results of a node: how the connection of a complete result ends, and the usage that it reported before."""

import asyncio
import json
import time

import pytest

from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.order import Task, TaskKind
from lcp_gateway.purchase.outcome import Received
from lcp_gateway.purchase.ports import Result
from lcp_gateway.upstreams.openai import result as node_result
from lcp_gateway.upstreams.openai.adapter import OpenAIHttpUpstream
from lcp_gateway.upstreams.openai.connections import VirtualNode
from lcp_gateway.upstreams.openai.price import NodePrice
from tests.support.raw_node import End, Scripted, raw_node

CHAT, RESPONSES = TaskKind.CHAT_COMPLETIONS, TaskKind.RESPONSES
HELLO = b'data: {"choices":[{"index":0,"delta":{"content":"hello"},"finish_reason":null}]}\n\n'
STOP = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"
COMPLETED = b'event: response.completed\ndata: {"type":"response.completed","response":{}}\n\n'
ERROR = b'data: {"error":{"message":"no"}}\n\n'
PRICE = NodePrice(per_1k_output_msat=1_000)


async def streamed(*pieces, end=End.TIDY, kind=CHAT, price=PRICE):
    """Buy one stream; return its bytes, the judge's verdict, the node's result, and how long it took."""
    body = json.dumps({"model": "m", "messages": [{"content": "case-0"}], "stream": True}).encode()
    task = Task(kind, "m", body, stream=True)
    with raw_node(Scripted(pieces, end)) as node:
        upstream = OpenAIHttpUpstream([VirtualNode("a", node.base_url, kinds=frozenset(TaskKind), price=price)])
        try:
            quote = await upstream.request_quote(task, "node:a", 1)
            begun = time.monotonic()
            begin, *chunks, result = [event async for event in upstream.execute_stream(quote, task, 60)]
            took_s = time.monotonic() - begun
        finally:
            await upstream.close()
    assert isinstance(result, Result)
    return b"".join(chunks), begin.judge.received(), result, took_s


@pytest.mark.parametrize("end", End)
@pytest.mark.parametrize(
    ("kind", "stream"), [(CHAT, HELLO + DONE), (CHAT, HELLO + STOP + DONE), (RESPONSES, COMPLETED)]
)
async def test_a_whole_answer_is_whole_however_its_connection_ends(monkeypatch, kind, stream, end):
    monkeypatch.setattr(node_result, "CLOSE_WAIT_S", 0.2)
    came, received, result, _ = await streamed(stream, end=end, kind=kind)
    assert came == stream
    assert received is Received.WHOLE
    assert result.length == len(stream)


async def test_an_open_connection_is_waited_for_no_longer_than_its_bound(monkeypatch):
    monkeypatch.setattr(node_result, "CLOSE_WAIT_S", 0.2)
    _, received, _, took_s = await streamed(HELLO, DONE, end=End.OPEN)
    assert received is Received.WHOLE
    assert took_s >= 0.2


async def test_what_follows_the_end_is_handed_on_up_to_a_bound(monkeypatch):
    monkeypatch.setattr(node_result, "CLOSE_WAIT_S", 60.0)
    comments = b": bye\n\n" * 1_300
    came, received, _, _ = await streamed(HELLO + DONE, comments)
    assert came == HELLO + DONE + comments
    assert received is Received.WHOLE
    flood = [b"x" * 60_000] * 50
    came, received, _, _ = await streamed(HELLO + DONE, *flood)
    assert received is Received.WHOLE
    assert len(came) < 1_500_000, "what never ends is not read to its end"


@pytest.mark.parametrize("end", [End.LOST, End.CLOSE])
async def test_without_an_end_mark_only_a_clean_end_counts(end):
    with pytest.raises(UpstreamError):
        await streamed(HELLO, STOP, end=end)
    _, received, _, _ = await streamed(HELLO, STOP)
    assert received is Received.WHOLE


async def test_an_error_ends_an_answer_as_its_end_mark_does(monkeypatch):
    monkeypatch.setattr(node_result, "CLOSE_WAIT_S", 0.2)
    async with asyncio.timeout(60):
        came, received, _, _ = await streamed(HELLO, ERROR, end=End.OPEN)
    assert came == HELLO + ERROR
    assert received is Received.ERROR


def usage(tokens):
    return b'"usage":{"prompt_tokens":3,"completion_tokens":%b}' % tokens


@pytest.mark.parametrize(
    ("told", "charged_msat"),
    [
        # Usage in every chunk, and 11 KiB of something else after the last of them.
        ([HELLO.replace(b"}\n", b",%b}\n" % usage(b"%d" % n)) for n in (1, 2, 2_000)], 2_000),
        ([b'data: {"choices":[],%b}\n\n' % usage(b"2000.0")], 2_000),
        ([b'data: {"choices":[],"x_of_server":{%b}}\n\n' % usage(b"7")], 7),
        ([b'data: {"choices":[],%b}\n\n' % usage(b"2000.5")], 0),
    ],
)
async def test_the_last_reported_usage_is_charged(told, charged_msat):
    """Regression: usage was looked for in the last 8 KiB only, and a count with a decimal point was ignored."""
    rest = b'data: {"choices":[],"search_results":["%b"]}\n\n' % (b"y" * 11_000)
    _, _, result, _ = await streamed(HELLO, *told, STOP, rest, DONE)
    assert result.charged_msat == charged_msat
