import asyncio
import hashlib
import random

import pytest

from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.order import TaskKind
from lcp_gateway.purchase.outcome import Received
from lcp_gateway.purchase.ports import Result, ResultStatus, StreamBegin
from tests.upstreams.openai.buying import CHAT, SSE, bought, failed, streamed, task


@pytest.mark.parametrize("kind", [CHAT, TaskKind.RESPONSES, TaskKind.COMPLETIONS])
async def test_a_stream_comes_piece_by_piece_and_ends_with_its_result(server, opened, kind):
    server.behave(held=True)
    upstream, asked = opened(server.base_url), task(kind, stream=True)
    stream = upstream.execute_stream(await upstream.request_quote(asked, "node:a", 60), asked, 60)
    assert await anext(stream) == StreamBegin(SSE, "identity")
    chunks = [await anext(stream)]
    # The first piece has come; the rest is held back until now.
    server.behave(held=False)
    *others, end = [event async for event in stream]
    assert others
    chunks += others
    whole = b"".join(chunks)
    assert isinstance(end, Result)
    assert (end.status, end.body, end.length) == (ResultStatus.OK, b"", len(whole))
    assert end.sha256 == hashlib.sha256(whole).digest()
    assert b"alpha" in whole


async def test_a_stream_that_is_answered_with_a_whole_document_is_passed_on(server, opened):
    answer = b'{"choices":[]}'
    server.behave(raw=answer)
    begin, *chunks, end = await streamed(opened(server.base_url), task(stream=True))
    assert begin.content_type == "application/json"
    assert b"".join(chunks) == answer
    assert end.length == len(answer)


@pytest.mark.parametrize(
    ("kind", "close_delimited"),
    [(CHAT, True), (TaskKind.COMPLETIONS, True), (TaskKind.RESPONSES, True), (TaskKind.RESPONSES, False)],
)  # fmt: skip
async def test_a_stream_without_its_end_mark_is_not_whole(server, opened, kind, close_delimited):
    server.behave(cut="no_done", close_delimited=close_delimited)
    error = await failed(streamed(opened(server.base_url), task(kind, stream=True)))
    assert (error.status, error.message) == ("DATA_LOSS", "the stream ended without its end mark")


@pytest.mark.parametrize("kind", [CHAT, TaskKind.RESPONSES])
@pytest.mark.parametrize(
    ("how", "status"),
    [
        ({"cut": "mid_stream"}, "UNAVAILABLE"),
        ({"die_after_chunks": 2}, "UNAVAILABLE"),
        ({"cut": "mid_stream", "close_delimited": True}, "DATA_LOSS"),
    ],
)
async def test_a_stream_that_is_cut_never_passes_for_whole(server, opened, kind, how, status):
    server.behave(token_delay_s=0.01, **how)
    upstream = opened(server.base_url)
    asked = task(kind, stream=True)
    quote = await upstream.request_quote(asked, "node:a", 1)
    events = []
    with pytest.raises(UpstreamError) as caught:
        async for event in upstream.execute_stream(quote, asked, 60):
            events.append(event)
    assert caught.value.status == status
    assert isinstance(events[0], StreamBegin)
    assert not any(isinstance(event, Result) for event in events)


@pytest.mark.parametrize("kind", [CHAT, TaskKind.COMPLETIONS])
async def test_a_stream_without_its_end_mark_whose_choices_are_finished_is_whole(server, opened, kind):
    """Regression: a clean end after the finish_reason of every choice was classified as cut."""
    server.behave(cut="no_done")
    begin, *_, end = await streamed(opened(server.base_url), task(kind, stream=True))
    assert isinstance(end, Result)
    assert begin.judge.received() is Received.WHOLE


CHAT_STREAM = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\ndata: [DONE]\n\n'
RESPONSES_STREAM = (
    b'event: response.created\ndata: {"type":"response.created"}\n\n'
    b'event: response.completed\ndata: {"type":"response.completed","response":{"x":{}}}\n\n'
)


async def stream_is_whole(server, upstream, kind, raw):
    server.behave(raw=raw, content_type=SSE, close_delimited=True)
    try:
        begin, *_, end = await streamed(upstream, task(kind, stream=True))
    except UpstreamError:
        return False
    return isinstance(end, Result) and begin.judge.received() is Received.WHOLE


@pytest.mark.parametrize(
    ("kind", "raw"),
    [
        (CHAT, CHAT_STREAM),
        (CHAT, CHAT_STREAM.replace(b"data: ", b"data:")),
        (CHAT, CHAT_STREAM.replace(b"\n", b"\r\n")),
        (CHAT, CHAT_STREAM.replace(b"\n", b"\r")),
        (CHAT, CHAT_STREAM.rstrip()),
        (CHAT, CHAT_STREAM + b": bye\n\n"),
        (CHAT, CHAT_STREAM + b": bye\n\n" * 2_000),
        (CHAT, b"\xef\xbb\xbf" + CHAT_STREAM),
        (CHAT, CHAT_STREAM.replace(b'{"', b'{\ndata: "')),
        (CHAT, CHAT_STREAM.replace(b"data: [", b"data: " + b"x" * 20_000 + b"\n\ndata: [")),
        (TaskKind.RESPONSES, RESPONSES_STREAM),
        (TaskKind.RESPONSES, RESPONSES_STREAM.replace(b"\n", b"\r\n")),
        (TaskKind.RESPONSES, RESPONSES_STREAM.replace(b"completed", b"incomplete")),
        (TaskKind.RESPONSES, RESPONSES_STREAM + b"data: [DONE]\n\n"),
        (TaskKind.RESPONSES, b'data: {"response":{},"sequence_number":1,"type":"response.completed"}\n\n'),
        (TaskKind.RESPONSES, b'data: {"type": "response.completed"}\n\n'),
        (TaskKind.RESPONSES, RESPONSES_STREAM.replace(b"{}", b'"' + b"y" * 99_000 + b'"')),
    ],
)
async def test_an_end_mark_is_known_however_it_is_written(server, opened, kind, raw):
    assert await stream_is_whole(server, opened(server.base_url), kind, raw)


@pytest.mark.parametrize(
    ("kind", "raw"),
    [
        (CHAT, b""),
        (CHAT, b'data: {"text":"data: [DONE]"}\n\n'),
        (CHAT, b"data: [DON"),
        (CHAT, RESPONSES_STREAM),
        (CHAT, b"data: [DONE]\n\n"),
        (TaskKind.RESPONSES, RESPONSES_STREAM.replace(b"completed", b"failed")),
        (TaskKind.RESPONSES, RESPONSES_STREAM[:-1]),
        (TaskKind.RESPONSES, CHAT_STREAM),
        (TaskKind.RESPONSES, b'data: {"text":"event: response.completed"}\n\n'),
        (TaskKind.RESPONSES, b"data: " + b"x" * 41 + b"event: response.completed\n\n"),
        (TaskKind.RESPONSES, RESPONSES_STREAM.partition(b"completed\n")[0] + b"completed\n"),
        (TaskKind.RESPONSES, RESPONSES_STREAM[:-5]),
        (TaskKind.RESPONSES, RESPONSES_STREAM.replace(b"completed", b"completed_not")),
    ],
)
async def test_what_only_looks_like_an_end_mark_is_none(server, opened, kind, raw):
    assert not await stream_is_whole(server, opened(server.base_url), kind, raw)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_without_a_length_is_whole_only_if_its_text_is(server, opened, stream):
    upstream = opened(server.base_url)
    call = streamed if stream else bought
    server.behave(close_delimited=True, raw=b'{"a": [1]} \n')
    await call(upstream, task(stream=stream))
    server.behave(raw=b'{"a": [1')
    assert (await failed(call(upstream, task(stream=stream)))).status == "DATA_LOSS"
    server.behave(raw=b'{"a": {"b": 1}')
    assert (await failed(bought(upstream, task()))).status == "DATA_LOSS"


async def test_a_reader_that_stops_stops_the_node(server, opened):
    server.behave(raw=b"x" * 30_000_000, content_type="text/plain")
    upstream = opened(server.base_url)
    asked = task(stream=True)
    quote = await upstream.request_quote(asked, "node:a", 1)
    events = upstream.execute_stream(quote, asked, 60)
    assert isinstance(await anext(events), StreamBegin)
    taken = len(await anext(events))
    before = -1
    async with asyncio.timeout(60):
        while server.server.written_bytes != before:
            before = server.server.written_bytes
            await asyncio.sleep(0.3)
    assert before < 20_000_000
    with pytest.raises(UpstreamError, match="without its end mark"):
        async for event in events:
            if isinstance(event, bytes):
                taken += len(event)
    assert taken == 30_000_000


async def test_a_reader_that_leaves_closes_the_connection(server, opened):
    server.behave(token_delay_s=1)
    upstream = opened(server.base_url, max_connections=1)
    asked = task(stream=True, n=500)
    quote = await upstream.request_quote(asked, "node:a", 1)
    events = upstream.execute_stream(quote, asked, 60)
    await anext(events)
    await events.aclose()
    async with asyncio.timeout(60):
        while server.server.under_way:
            await asyncio.sleep(0.01)
    assert server.server.gone == 1
    server.behave(token_delay_s=0)
    assert await bought(upstream, task()), "its place is free again"


async def test_a_caller_that_is_cancelled_closes_the_connection(server, opened):
    server.behave(delay_s=120)
    upstream = opened(server.base_url, max_connections=1)
    call = asyncio.create_task(bought(upstream, task()))
    while not server.server.under_way:
        await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    async with asyncio.timeout(60):
        while server.server.under_way:
            await asyncio.sleep(0.01)
    server.behave(delay_s=0)
    assert await bought(upstream, task())


async def test_a_stream_of_random_pieces_is_passed_on_byte_for_byte(server, opened):
    noise = random.Random(1).randbytes(300_000)
    raw = noise.replace(b"\n", b" ") + b"\n\ndata: [DONE]\n\n"
    server.behave(raw=raw, content_type=SSE)
    _, *chunks, end = await streamed(opened(server.base_url), task(stream=True))
    assert b"".join(chunks) == raw
    assert end.length == len(raw)
