import asyncio
import json
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from lcp_gateway.http.errors import ApiError
from lcp_gateway.http.openai.sse_relay import SseRelay
from lcp_gateway.purchase.errors import Undelivered
from lcp_gateway.purchase.order import TaskKind
from lcp_gateway.purchase.states import Verdict
from tests.support.purchases import quote

BROKEN = ApiError(502, "cut", code="undelivered", verdict=Verdict.SETTLED, quote=quote())


class AtOnce(bytes):
    """A chunk that is offered to ``take`` first."""


class Served:
    """A server with one route that relays the given chunks; an exception among them is raised."""

    def __init__(
        self, *chunks, kind=TaskKind.CHAT_COMPLETIONS, heartbeat_s=0.0, content_type="text/event-stream", encoding=""
    ):
        self.chunks, self.kind, self.heartbeat_s, self.content_type = (chunks, kind, heartbeat_s, content_type)
        self.encoding = {"Content-Encoding": encoding} if encoding else {}
        self.counted = 0
        self.relay: SseRelay | None = None
        self.taken: list[bool] = []

    async def _source(self):
        for chunk in self.chunks:
            if isinstance(chunk, AtOnce):
                self.taken.append(self.relay.take(chunk))
                if self.taken[-1]:
                    continue
            if isinstance(chunk, BaseException):
                raise chunk
            if isinstance(chunk, float):
                await asyncio.sleep(chunk)
            else:
                yield chunk

    def _count(self, byte_count):
        self.counted += byte_count

    async def _handle(self, request):
        response = web.StreamResponse(headers={"Content-Type": self.content_type, **self.encoding})
        relay = self.relay = SseRelay(
            request, response, kind=self.kind, heartbeat_s=self.heartbeat_s, limit_s=30, on_bytes=self._count
        )
        try:
            await relay.run(self._source())
        except Undelivered as error:
            if not relay.begun:
                return BROKEN.response()
            await relay.break_off(BROKEN, is_told=error.is_told)
        return response

    def server(self):
        app = web.Application()
        app.router.add_get("/", self._handle)
        return TestServer(app)

    async def get(self):
        """Return the status, the bytes received, and whether the body ended properly by HTTP's rules."""
        async with (
            self.server() as server,
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.get(server.make_url("/")) as response,
        ):
            received = b""
            try:
                async for chunk in response.content.iter_any():
                    received += chunk
            except aiohttp.ClientPayloadError:
                return response.status, received, False
            return response.status, received, True


@asynccontextmanager
async def served_at(served):
    async with served.server() as server:
        yield server.host, server.port


async def test_all_bytes_come_in_order_and_the_end_is_clean():
    served = Served(b"data: 1\n\n", b"da", b"ta: \xc3", b"\xa9\n\n")
    assert await served.get() == (200, b"data: 1\n\ndata: \xc3\xa9\n\n", True)
    assert served.counted == 19


async def test_chunks_that_are_taken_at_once_come_in_their_place():
    served = Served(AtOnce(b"data: 1\n\n"), AtOnce(b"data: 2\n\n"), b"data: 3\n\n", AtOnce(b"x" * 300), b"end")
    assert await served.get() == (200, b"data: 1\n\ndata: 2\n\ndata: 3\n\n" + b"x" * 300 + b"end", True)
    assert served.taken == [False, True, True], "the first goes out with the head"
    assert served.counted == 330


async def test_an_empty_chunk_of_a_provider_does_not_end_the_answer():
    served = Served(b"data: 1\n\n", AtOnce(b""), AtOnce(b"data: 2\n\n"), b"", b"data: 3\n\n")
    assert await served.get() == (200, b"data: 1\n\ndata: 2\n\ndata: 3\n\n", True)


async def test_nothing_is_taken_while_a_heartbeat_is_written_and_heartbeats_stay_between_events():
    served = Served(
        b"data: 1\n\n", AtOnce(b"da"), 0.15, AtOnce(b"ta: 2\n\n"), 0.15, AtOnce(b"data: 3\n\n"), heartbeat_s=0.04
    )
    status, body, ended = await served.get()
    assert (status, ended) == (200, True)
    assert body.startswith(b"data: 1\n\ndata: 2\n\n: heartbeat\n\n"), "no heartbeat inside an event"
    assert body.replace(b": heartbeat\n\n", b"") == b"data: 1\n\ndata: 2\n\ndata: 3\n\n"
    assert served.taken == [True, True, False], "the last comes after a heartbeat, which is waited for"


async def test_a_body_without_chunks_is_written_by_run():
    served = Served(b"data: 1\n\n", AtOnce(b"data: 2\n\n"), AtOnce(b"data: 3\n\n"))
    async with served_at(served) as (host, port):
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        _, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
    assert body == b"data: 1\n\ndata: 2\n\ndata: 3\n\n"
    assert served.taken == [False, False]


async def test_a_client_that_is_behind_is_waited_for_by_run():
    block = AtOnce(b"x" * 65_536)
    served = Served(b"first", *[block] * 400)
    async with served_at(served) as (host, port):
        _reader, writer = await asyncio.open_connection(host, port, limit=1_000)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(60):
            while False not in served.taken:
                await asyncio.sleep(0.01)
        came = len(served.taken)
        await asyncio.sleep(0.1)
        assert len(served.taken) == came, "the source is not asked for more"
        assert served.relay is not None and not served.relay.take(block)
        writer.transport.abort()


async def test_an_empty_stream_is_an_empty_answer():
    assert await Served().get() == (200, b"", True)


async def test_a_failure_before_the_first_byte_is_an_ordinary_error():
    status, body, whole = await Served(Undelivered("cut")).get()
    assert (status, whole) == (502, True)
    assert json.loads(body)["error"]["code"] == "undelivered"


async def test_a_chat_stream_that_breaks_says_so_in_an_event_and_never_ends_cleanly():
    status, body, whole = await Served(b"data: 1\n\ndata: cu", Undelivered("cut")).get()
    assert (status, whole) == (200, False)
    head, _, event = body.rpartition(b"\n\ndata: ")
    assert head == b"data: 1\n\ndata: cu"
    error = json.loads(event)["error"]
    assert error["lcp"]["payment"] == "settled"
    assert b"[DONE]" not in body


async def test_a_responses_stream_that_breaks_sends_an_error_event():
    _, body, whole = await Served(b"event: x\ndata: {}\n\n", Undelivered("cut"), kind=TaskKind.RESPONSES).get()
    assert not whole
    event = body.split(b"\n\n")[-2].removeprefix(b"\n")
    name, _, data = event.partition(b"\ndata: ")
    assert name == b"event: error"
    assert {"type", "code", "message", "param", "error"} == set(json.loads(data))


async def test_a_stream_that_is_not_events_just_breaks_off():
    assert await Served(b"{", Undelivered("cut"), content_type="application/json").get() == (200, b"{", False)


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
async def test_heartbeats_come_between_events_only(end):
    """The check includes the heartbeats, so that one inside an event would fail it."""
    first, begun, rest = b"data: 1" + end * 2, b"data: 2" + end, b"data: 3" + end * 2
    served = Served(first, 0.06, begun, 0.06, rest, heartbeat_s=0.02)
    _, body, whole = await served.get()
    assert whole
    beat = b": heartbeat\n\n"
    assert body.startswith(first + beat), "one comes while nothing does"
    assert body.endswith(begun + rest), "and none inside an event"
    assert body.replace(beat, b"") == first + begun + rest
    assert served.counted == len(first + begun + rest), "heartbeats are no bytes of the result"


async def test_nothing_is_put_into_a_compressed_stream():
    served = Served(b"\x1f\x8b1", 0.06, b"2", Undelivered("cut"), heartbeat_s=0.02, encoding="gzip")
    assert await served.get() == (200, b"\x1f\x8b12", False)


async def test_an_error_that_the_client_has_read_is_not_sent_again():
    error = b'data: {"error":{"message":"no"}}\n\n'
    served = Served(b"data: 1\n\n", error, Undelivered("no", is_told=True))
    assert await served.get() == (200, b"data: 1\n\n" + error, False)


@pytest.mark.parametrize("keep", [b"", b"Connection: keep-alive\r\n"])
async def test_the_end_of_the_connection_ends_a_stream_of_http_1_0(keep):
    """Regression: a client that asked for keep-alive waited for ever."""
    async with served_at(Served(b"data: 1\n\n")) as (host, port):
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"GET / HTTP/1.0\r\nHost: x\r\n" + keep + b"\r\n")
        async with asyncio.timeout(60):
            answer = await reader.read()
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert body == b"data: 1\n\n"
    assert b"keep-alive" not in head.lower()


async def test_a_heartbeat_may_come_before_the_first_byte():
    _, body, _ = await Served(0.06, b"data: 1\n\n", heartbeat_s=0.02).get()
    assert body.startswith(b": heartbeat\n\n")


async def test_a_failure_after_a_heartbeat_breaks_the_stream_off():
    """The heartbeat has sent the status line, so that the error can no longer be a response of its own."""
    status, body, whole = await Served(0.06, Undelivered("cut"), heartbeat_s=0.02).get()
    assert (status, whole) == (200, False)
    assert body.startswith(b": heartbeat\n\n") and b'"undelivered"' in body
