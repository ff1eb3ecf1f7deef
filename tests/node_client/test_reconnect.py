"""The node's side: how it dials again, which backends it asks, and what it never does."""

import asyncio
import contextlib
from datetime import UTC, datetime

import pytest
import structlog
from aiohttp import web

from lcp_gateway.node_client import backend as backends
from lcp_gateway.node_client import reconnect, session
from lcp_gateway.node_client.catalog import ModelCatalog
from lcp_gateway.node_client.options import BackendOptions, JoinOptions
from lcp_gateway.node_client.reconnect import CannotJoin, Joiner, pause_s
from lcp_gateway.node_client.statistics import Statistics
from lcp_gateway.node_protocol.frames import MAX_DATA_BYTES, PingCame
from lcp_gateway.node_protocol.gateway_side import (
    BodyCame,
    EndCame,
    FailureCame,
    GatewaySide,
    HeadCame,
    ModelsCame,
    Released,
)
from lcp_gateway.node_protocol.messages import SUBPROTOCOL, Goodbye, Hello, Request, Welcome
from tests.support.http_node import HttpNodeThread

OF = {"kind": "chat", "model": "m", "timeout_ms": 60_000, "result_bytes": 10**6}
BODY = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"hi there"}]}'


class PlainGateway:
    """A gateway that takes one node after another; ``serve`` has the WebSocket and the side of each."""

    def __init__(self, serve):
        self.serve = serve
        self.headers = []
        self.events: asyncio.Queue = asyncio.Queue()
        self.status = 0
        self.redirect = ""
        self.places = iter(())
        self.held = []

    async def handle(self, request):
        self.headers.append(request.headers)
        if self.redirect:
            return web.Response(status=307, headers={"Location": self.redirect})
        if self.status:
            return web.Response(status=self.status)
        socket = web.WebSocketResponse(protocols=(SUBPROTOCOL,), compress=False)
        await socket.prepare(request)
        side = GatewaySide()
        hello = side.receive((await socket.receive()).data)
        assert isinstance(hello, Hello)
        self.held.append(hello.held)
        worker, workers = next(self.places, (0, 1))
        if worker in hello.held:
            await socket.send_bytes(side.goodbye(Goodbye("already_here")))
            await socket.close()
            return socket
        await socket.send_bytes(side.welcome(Welcome("gpu", 20.0, 64, 0, worker, workers)))
        await self.serve(self, socket, side)
        return socket

    async def read(self, socket, side, wanted):
        """Read until an event of this kind comes; pings are answered."""
        found = []
        async for message in socket:
            event = side.receive(message.data)
            if isinstance(event, PingCame):
                await socket.send_bytes(event.answer)
            elif event is not None:
                found.append(event)
            if isinstance(event, wanted):
                return found
        return found

    async def ask(self, socket, side, body=BODY, credit=64, **more):
        request = Request(**{**OF, "stream": True, **more}, body_bytes=len(body), credit_bytes=credit)
        request_id, frames = side.request(request, body)
        for frame in frames:
            await socket.send_bytes(frame)
        return request_id


@contextlib.asynccontextmanager
async def joined(serve, backend, **options):
    """Run a node at a plain gateway; yields the gateway, the node's numbers, its task, and the event that stops it."""
    gateway = PlainGateway(serve)
    app = web.Application()
    app.router.add_get("/api/nodes/connect", gateway.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"ws://127.0.0.1:{runner.addresses[0][1]}/api/nodes/connect"
    found = BackendOptions(base_url=backend.base_url)
    choice = JoinOptions(url, "tok", "gpu", (found,), found, **{"refresh_s": 0.1, "drain_s": 5.0, **options})
    statistics = Statistics(datetime.now(UTC), url)
    stop = asyncio.Event()
    catalog = ModelCatalog(choice.backends, choice.found)
    joiner = Joiner(choice, catalog, statistics, structlog.get_logger(), chance=lambda: 0.05)
    running = asyncio.create_task(joiner.run(stop))
    try:
        yield gateway, statistics, running, stop
    finally:
        stop.set()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await runner.cleanup()


@pytest.fixture(autouse=True)
def _patience(monkeypatch):
    """Give backends and gateways a minute: a node whose backend does not list its models in time refuses the next request."""
    for module, limit in (
        (backends, "_CONNECT_TIMEOUT_S"),
        (backends, "_LIST_TIMEOUT_S"),
        (reconnect, "_CONNECT_TIMEOUT_S"),
        (session, "_WELCOME_WITHIN_S"),
    ):
        monkeypatch.setattr(module, limit, 60.0)


@pytest.fixture
def backend():
    with HttpNodeThread("alpha", ("m",), api_key="") as running:
        yield running


async def test_a_stream_comes_byte_for_byte_within_a_small_credit(backend):
    came = asyncio.get_running_loop().create_future()

    async def serve(gateway, socket, side):
        request_id = await gateway.ask(socket, side)
        data, end = b"", None
        while end is None:
            (*_, event) = await gateway.read(socket, side, (BodyCame, EndCame))
            if isinstance(event, EndCame):
                end = event.end
            else:
                assert len(event.data) <= 64
                data += event.data
                await socket.send_bytes(side.grant(request_id, len(event.data)))
        came.set_result((data, end))
        await socket.receive()

    async with joined(serve, backend) as (gateway, *_):
        data, end = await asyncio.wait_for(came, 60)
    assert data.startswith(b"data: ") and data.endswith(b"data: [DONE]\n\n") and len(data) == end.length
    (call,) = backend.server.calls()
    assert call.body == BODY and "Authorization" not in call.headers
    assert gateway.headers[0]["Authorization"] == "Bearer tok"


async def test_a_cancelled_request_ends_at_the_backend_too(backend):
    backend.behave(token_delay_s=0.05)
    released = asyncio.Event()

    async def serve(gateway, socket, side):
        request_id = await gateway.ask(socket, side)
        await gateway.read(socket, side, HeadCame)
        await socket.send_bytes(side.cancel(request_id))
        await gateway.read(socket, side, Released)
        released.set()
        await socket.receive()

    async with joined(serve, backend) as (_, statistics, *_):
        await asyncio.wait_for(released.wait(), 60)
        assert statistics.cancelled == 1


@pytest.mark.parametrize("frames_sent", [1, 2, 3], ids=["before its body", "within its body", "right after its body"])
async def test_a_request_that_is_cancelled_as_it_comes_is_released(backend, frames_sent):
    answered = asyncio.get_running_loop().create_future()

    async def serve(gateway, socket, side):
        body = b"x" * (MAX_DATA_BYTES + 1)
        request = Request(**OF, stream=True, body_bytes=len(body), credit_bytes=64)
        request_id, frames = side.request(request, body)
        sent = [frame for frame, _ in zip(frames, range(frames_sent), strict=False)]
        for frame in (*sent, side.cancel(request_id)):
            await socket.send_bytes(frame)
        (*_, event) = await gateway.read(socket, side, Released)
        answered.set_result((event, side.open_requests))
        await socket.receive()

    async with joined(serve, backend, refresh_s=60.0) as (_, statistics, *_):
        event, still_open = await asyncio.wait_for(answered, 60)
    assert isinstance(event, Released) and still_open == 0 == statistics.running


@pytest.mark.parametrize(
    ("behaviour", "code"),
    [
        ({"redirect": "http://127.0.0.1:9/evil"}, "backend_redirects"),
        ({"fail_status": 401, "fail_body": "sk-secret"}, "backend_refuses"),
        ({"cut": "before_head"}, "backend_unavailable"),
        ({"cut": "mid_stream"}, "broken_off"),
    ],
)
async def test_what_the_gateway_hears_of_a_backend_that_fails(backend, behaviour, code):
    heard = asyncio.get_running_loop().create_future()

    async def serve(gateway, socket, side):
        if not side.hello.models:
            await gateway.read(socket, side, ModelsCame)
        backend.behave(**behaviour)
        await gateway.ask(socket, side, credit=10**6)
        heard.set_result((await gateway.read(socket, side, FailureCame))[-1].failure)
        await socket.receive()

    async with joined(serve, backend, refresh_s=60.0):
        failure = await asyncio.wait_for(heard, 60)
    assert failure.code == code and "secret" not in failure.message and "127.0.0.1" not in failure.message


async def test_it_dials_again_after_a_loss_and_drains_at_the_end(backend):
    backend.behave(token_delay_s=1.0)
    dialled = 0
    ended = asyncio.Event()
    asked = asyncio.Event()

    async def serve(gateway, socket, side):
        nonlocal dialled
        dialled += 1
        if dialled < 3:
            return
        await gateway.ask(socket, side, credit=10**6)
        await gateway.read(socket, side, HeadCame)
        asked.set()
        assert isinstance((await gateway.read(socket, side, Goodbye))[-1], Goodbye)
        backend.behave(token_delay_s=0.0)
        assert isinstance((await gateway.read(socket, side, EndCame))[-1], EndCame)
        ended.set()
        await socket.receive()

    async with joined(serve, backend, drain_s=60.0) as (_, statistics, running, stop):
        await asyncio.wait_for(asked.wait(), 60)
        stop.set()
        await asyncio.wait_for(ended.wait(), 60)
        await asyncio.wait_for(running, 60)
    assert dialled == 3 and statistics.requests == 1 and statistics.failed == 0


async def test_it_gives_up_where_it_is_refused_and_never_follows_a_redirect(backend):
    async with joined(None, backend) as (gateway, statistics, running, _):
        gateway.redirect = "http://127.0.0.1:9/elsewhere"
        while "waiting" not in statistics.state:
            await asyncio.sleep(0.01)
        gateway.redirect, gateway.status = "", 401
        with pytest.raises(CannotJoin, match="token"):
            await asyncio.wait_for(running, 60)

    async def serve(gateway, socket, side):
        await socket.send_bytes(side.goodbye(Goodbye("replaced", "another one", -1.0)))

    async with joined(serve, backend) as (_, _, running, _):
        with pytest.raises(CannotJoin, match="replaced"):
            await asyncio.wait_for(running, 60)


async def test_it_dials_until_it_is_connected_to_every_worker(backend):
    ended = []
    both = asyncio.Event()

    async def serve(gateway, socket, side):
        await gateway.ask(socket, side, credit=10**6)
        await gateway.read(socket, side, EndCame)
        ended.append(side)
        if len(ended) == 2:
            both.set()
        await gateway.read(socket, side, ())

    async with joined(serve, backend) as (gateway, statistics, running, stop):
        gateway.places = iter([(0, 2), (0, 2), (0, 2), (1, 2)])
        await asyncio.wait_for(both.wait(), 60)
        assert gateway.held == [(), (0,), (0,), (0,)]
        stop.set()
        await asyncio.wait_for(running, 60)
        assert statistics.requests == 2 and statistics.failed == 0


async def test_models_that_appear_later_are_told(backend):
    told = asyncio.get_running_loop().create_future()

    async def serve(gateway, socket, side):
        # The node has asked its backend for the models of its hello.
        assert [one.id for one in side.hello.models] == ["m"]
        backend.server.models = ("m", "later")
        event = (await gateway.read(socket, side, ModelsCame))[-1]
        told.set_result([one.id for one in event.models])
        await socket.receive()

    async with joined(serve, backend):
        assert await asyncio.wait_for(told, 60) == ["m", "later"]


def test_the_pauses_grow_are_spread_and_bounded():
    assert [pause_s(failures, 1.0) for failures in (1, 2, 3, 4, 5, 99)] == [1, 2, 4, 8, 15, 15]
    assert pause_s(5, 0.5) == 7.5


@pytest.mark.parametrize("broken", ["_once", "_refresh"])
async def test_a_task_that_breaks_ends_the_node_and_does_not_stay_silent(backend, monkeypatch, broken):
    async def breaks(*_):
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(Joiner, broken, breaks)

    async def serve(gateway, socket, side):
        await gateway.read(socket, side, ())

    async with joined(serve, backend) as (_, _, running, _):
        with pytest.raises(RuntimeError, match="unforeseen"):
            await asyncio.wait_for(running, 60)


async def test_an_error_of_the_backend_does_not_name_its_address_without_the_path(backend):
    heard = asyncio.get_running_loop().create_future()

    async def serve(gateway, socket, side):
        where = backend.base_url.removesuffix("/v1")
        backend.behave(fail_status=500, fail_body=f'{{"error": {{"message": "cannot load at {where}/api"}}}}')
        await gateway.ask(socket, side, credit=10**6)
        heard.set_result((await gateway.read(socket, side, FailureCame))[-1].failure)
        await socket.receive()

    async with joined(serve, backend, refresh_s=60.0):
        failure = await asyncio.wait_for(heard, 60)
    assert failure.message == "cannot load at http://[redacted]/api"
