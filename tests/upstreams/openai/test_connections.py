"""Connections to a node: large response heads, and idle connections that the node closes."""

import asyncio
import json
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from lcp_gateway.http.error_mapping import map_purchase_error
from lcp_gateway.purchase.errors import PaymentFailed, UpstreamError
from lcp_gateway.purchase.order import Task, TaskKind
from lcp_gateway.purchase.states import Verdict
from lcp_gateway.upstreams.openai import adapter, connections
from lcp_gateway.upstreams.openai.adapter import OpenAIHttpUpstream
from lcp_gateway.upstreams.openai.connections import VirtualNode
from lcp_gateway.upstreams.openai.errors import http_error, retry_after_s
from lcp_gateway.upstreams.openai.price import NodePrice

PRICE = NodePrice(per_request_msat=1_000)
ANSWER = b'{"object":"chat.completion","choices":[]}'
BODY = json.dumps({"model": "m", "messages": []}).encode()


@pytest.fixture(autouse=True)
def _kept_connections(monkeypatch):
    """Keep idle connections for longer than a busy machine stands still between two purchases."""
    monkeypatch.setattr(connections, "KEEPALIVE_S", 60.0)


def task(*, stream=False):
    return Task(TaskKind.CHAT_COMPLETIONS, "m", BODY, stream)


class Node:
    """A server scripted per connection and request: each step is called with reader and writer.

    ``requests`` are the heads of all requests that were read, ``connections`` counts accepted connections.
    """

    def __init__(self):
        self.requests = []
        self.connections = 0
        self.steps = {}
        self.port = 0

    async def serve(self, reader, writer):
        self.connections += 1
        connection, request = self.connections, 0
        try:
            while True:
                request += 1
                step = self.steps.get((connection, request), answered)
                if step is closed_unread:
                    # Wait until the request has arrived, and never read it.
                    await asyncio.sleep(0.05)
                    await asyncio.wait_for(reader.read(1), 60)
                    writer.transport.abort()
                    return
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
                await reader.readexactly(length)
                self.requests.append(head)
                if not await step(writer):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()


async def answered(writer):
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
    writer.write(b"Content-Length: %d\r\n\r\n%b" % (len(ANSWER), ANSWER))
    await writer.drain()
    return True


async def closed_unread(writer):
    raise NotImplementedError


async def closed_at_once(writer):
    return False


async def closed_after_work(writer):
    await asyncio.sleep(0.8)
    return False


async def part_of_a_head(writer):
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: appl")
    await writer.drain()
    return False


def head_of(*lines):
    async def step(writer):
        writer.write(b"\r\n".join([b"HTTP/1.1 200 OK", *lines, b"", ANSWER]))
        await writer.drain()
        return True

    return step


LENGTH = b"Content-Length: %d" % len(ANSWER)


@asynccontextmanager
async def bought_from(node, price=PRICE):
    server = await asyncio.start_server(node.serve, "127.0.0.1", 0, limit=2**20)
    port = server.sockets[0].getsockname()[1]
    upstream = OpenAIHttpUpstream([VirtualNode("a", f"http://127.0.0.1:{port}/v1", price=price)])

    async def buy(*, stream=False):
        asked = task(stream=stream)
        quote = await upstream.request_quote(asked, "node:a", 1)
        if not stream:
            return (await upstream.execute(quote, asked, 60)).body
        events = [event async for event in upstream.execute_stream(quote, asked, 60)]
        return b"".join(event for event in events if isinstance(event, bytes))

    try:
        yield buy
    finally:
        await upstream.close()
        server.close()


async def failure_of(call):
    with pytest.raises(UpstreamError) as caught:
        await call
    return caught.value


LARGE_HEADS = {
    "a header of 9,000 bytes": [b"X-Policy: " + b"p" * 9_000, LENGTH],
    "a header of 60 KiB": [b"X-Policy: " + b"p" * 60 * 1024, LENGTH],
    "150 headers": [*(b"X-Header-%d: v" % n for n in range(150)), LENGTH],
    "1,000 headers": [*(b"X-Header-%d: v" % n for n in range(1_000)), LENGTH],
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("lines", LARGE_HEADS.values(), ids=LARGE_HEADS.keys())
async def test_a_large_head_is_taken(lines, stream):
    """Regression: it was reported as "not HTTP", and counted as bought."""
    node = Node()
    node.steps[1, 1] = head_of(*lines)
    async with bought_from(node) as buy:
        assert await buy(stream=stream) == ANSWER


BAD_HEADS = {
    "the same length twice": [LENGTH, LENGTH],
    "two lengths": [LENGTH, b"Content-Length: 5"],
    "a header of 70 KiB": [b"X-Policy: " + b"p" * 70 * 1024, LENGTH],
    "a header without a name": [b": v", LENGTH],
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("lines", BAD_HEADS.values(), ids=BAD_HEADS.keys())
async def test_a_head_that_is_refused_is_not_booked(lines, stream):
    node = Node()
    node.steps[1, 1] = head_of(*lines)
    async with bought_from(node) as buy:
        error = await failure_of(buy(stream=stream))
    assert (error.status, error.evidence) == ("UNAVAILABLE", Verdict.NONE)
    assert len(node.requests) == 1


@pytest.mark.parametrize("close", [closed_unread, closed_at_once])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_meets_the_close_of_an_idle_connection_is_sent_once_more(stream, close, monkeypatch):
    """Regression: the node never saw the request, and the client got 502 and was charged."""
    monkeypatch.setattr(adapter, "_CLOSE_KNOWN_S", 60.0)
    node = Node()
    node.steps[1, 2] = close
    async with bought_from(node) as buy:
        assert await buy() == ANSWER
        assert await buy(stream=stream) == ANSWER
        # The request was not sent again over a connection that may be closing too.
        assert node.connections == 2
        assert await buy() == ANSWER
    keys = [head.lower().partition(b"idempotency-key: ")[2][:64] for head in node.requests]
    if close is closed_at_once:
        # The same task twice, by its id.
        assert keys[1] == keys[2]
        del keys[1]
    assert len(set(keys)) == len(keys) == 3


async def test_it_is_sent_once_more_and_no_oftener(monkeypatch):
    monkeypatch.setattr(adapter, "_CLOSE_KNOWN_S", 60.0)
    node = Node()
    node.steps = {(1, 2): closed_unread, (2, 1): closed_at_once}
    async with bought_from(node) as buy:
        await buy()
        error = await failure_of(buy())
    # It was sent to the node over a new connection.
    assert (error.status, error.evidence) == ("UNAVAILABLE", Verdict.SETTLED)
    assert node.connections == 2


@pytest.mark.parametrize("after", [closed_after_work, part_of_a_head])
async def test_what_the_node_may_have_taken_is_never_sent_again(after):
    node = Node()
    node.steps[1, 2] = after
    async with bought_from(node) as buy:
        await buy()
        error = await failure_of(buy())
    assert error.status == "UNAVAILABLE"
    assert len(node.requests) == 2


async def test_what_is_lost_on_a_new_connection_is_never_sent_again():
    node = Node()
    node.steps[1, 1] = closed_at_once
    async with bought_from(node) as buy:
        error = await failure_of(buy())
    assert error.evidence is Verdict.SETTLED
    assert len(node.requests) == node.connections == 1


async def test_a_node_that_disappeared_meanwhile_was_sent_nothing(monkeypatch):
    monkeypatch.setattr(adapter, "_CLOSE_KNOWN_S", 60.0)
    node = Node()
    node.steps[1, 2] = closed_unread
    server = await asyncio.start_server(node.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    upstream = OpenAIHttpUpstream([VirtualNode("a", f"http://127.0.0.1:{port}/v1", price=PRICE)])
    quote = await upstream.request_quote(task(), "node:a", 1)
    await upstream.execute(quote, task(), 60)
    server.close()
    error = await failure_of(upstream.execute(quote, task(), 60))
    assert (error.evidence, error.is_away, error.retryable) == (Verdict.NONE, True, True)
    await upstream.close()


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("17", 17),
        (" 17 ", 17),
        ("0", 1),
        ("9" * 30, 3_600),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
        (format_datetime(datetime(2026, 1, 1, 0, 0, 42, tzinfo=UTC), usegmt=True), 42),
        (format_datetime(datetime(2025, 1, 1, tzinfo=UTC), usegmt=True), 1),
        (format_datetime(datetime(2036, 1, 1, tzinfo=UTC), usegmt=True), 3_600),
    ],
)
def test_how_long_a_node_asks_to_be_left_alone_is_read_within_bounds(value, seconds):
    assert retry_after_s(value, datetime(2026, 1, 1, tzinfo=UTC)) == seconds


@pytest.mark.parametrize(
    ("status", "header", "told"),
    [(429, "17", 17), (503, "40", 40), (429, "", 1), (429, "nonsense", 1), (429, "999999", 3_600)],
)
async def test_a_nodes_retry_after_reaches_the_client(status, header, told):
    """Regression: the client got a Retry-After of 1 second."""
    quote = await OpenAIHttpUpstream([VirtualNode("a", "http://x")]).request_quote(task(), "node:a", 1)
    cause = http_error(status, b"", retry_after=header)
    answer = map_purchase_error(PaymentFailed(cause, Verdict.NONE, quote=quote))
    assert (answer.retry, answer.response().headers["retry-after"]) == (True, str(told))


@pytest.mark.parametrize("status", [101, 199, 300, 302, 304, 399, 418, 451, 500, 520, 599, 999])
def test_an_unusual_status_is_a_refusal_that_cost_nothing(status):
    error = http_error(status, b"<html>")
    assert error.evidence is Verdict.NONE
    assert error.message and "<" not in error.message
    assert ("redirect" in error.message) is (status in {300, 302, 399})


def test_only_temporary_errors_advise_a_wait():
    future = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert http_error(400, b"", retry_after="17").retry_after_s is None
    assert 25 < http_error(429, b"", retry_after=future).retry_after_s <= 30
