"""``python -m bench.dialin``: the gateway's CPU for a paced token through a node that dialled in, paired with a virtual node."""

import argparse
import asyncio
import contextlib
import json
import statistics
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from aiohttp import web

from bench import processes
from bench.workload import Workload
from tests.support.ports import free_port

_PROMPT = "word " * 90
_CHUNKS = 60
_MICRO = 1e6
_CLIENTS, _PAUSE_S = 64, 0.05


class Backend:
    """A server with very little CPU, whose streams are prepared; in a thread. Both kinds of node stand before it."""

    def __init__(self, pause_s: float) -> None:
        base = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "bench"}
        events = [{**base, "choices": [{"index": 0, "delta": {"content": " word"}, "finish_reason": None}]}] * _CHUNKS
        events.append({**base, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        self._chunks = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events]
        self._chunks.append(b"data: [DONE]\n\n")
        self._pause_s = pause_s
        self.port = 0

    @contextlib.contextmanager
    def running(self) -> Iterator["Backend"]:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        runner = asyncio.run_coroutine_threadsafe(self._start(), loop).result(10)
        try:
            yield self
        finally:
            asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(20)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(10)

    async def _start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        runner = web.AppRunner(app, shutdown_timeout=1.0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port = runner.addresses[0][1]
        return runner

    async def _models(self, _request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "bench"}]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        # Clients leave in the middle when a turn is over.
        with contextlib.suppress(ConnectionError):
            for chunk in self._chunks:
                await response.write(chunk)
                await asyncio.sleep(self._pause_s)
        return response


@contextlib.contextmanager
def _joined(address: str, backend: Backend, folder: Path) -> Iterator[None]:
    settings = {
        "LCP_GATEWAY_JOIN_TOKEN": "tok",
        "LCP_GATEWAY_JOIN_BACKEND": f"http://127.0.0.1:{backend.port}",
        "LCP_GATEWAY_JOIN_CONCURRENT": "1000",
        "XDG_CONFIG_HOME": str(folder),
        "XDG_STATE_HOME": str(folder),
    }
    with processes.running("-m", "lcp_gateway", "join", f"ws://{address}", "--name", "bench", **settings):
        yield


def _turn(gateway: processes.Server, clients: int, seconds: float) -> float:
    workload = Workload("bench", _PROMPT, True, clients, max(seconds, 1.5 * _CHUNKS * _PAUSE_S), 0.5)
    load, used = processes.load("http", gateway.address, workload, gateway)
    if load.errors or not load.chunks:
        raise SystemExit(f"{load.errors} requests failed")
    return used.cpu_s / load.chunks


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.dialin", description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0, help="how long each turn measures")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of turns")
    parser.add_argument("--clients", type=int, default=_CLIENTS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lcp-gateway-bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        backend = stack.enter_context(Backend(_PAUSE_S).running())
        node = {"name": "bench", "base_url": f"http://127.0.0.1:{backend.port}", "max_connections": 1000}
        common = {"LCP_GATEWAY_PREFLIGHT": "false"}
        gateways = {}
        for kind, settings in (
            ("virtual", {"LCP_GATEWAY_NODES": json.dumps([node])}),
            ("dialled in", {"LCP_GATEWAY_DIALIN_NODES": json.dumps([{"name": "bench", "token": "tok"}])}),
        ):
            place = folder / kind.replace(" ", "-")
            place.mkdir()
            port = free_port()
            if kind == "dialled in":
                # It is not ready before its node has dialled in, which tries until it can.
                stack.enter_context(_joined(f"127.0.0.1:{port}", backend, place))
            gateways[kind] = stack.enter_context(
                processes.gateway(place, "127.0.0.1:1", port=port, **common, **settings)
            )
        turns: dict[str, list[float]] = {kind: [] for kind in gateways}
        for _ in range(arguments.rounds):
            for kind, gateway in gateways.items():
                turns[kind].append(_turn(gateway, arguments.clients, arguments.seconds))
        ratio = statistics.median(
            mine / theirs for mine, theirs in zip(turns["dialled in"], turns["virtual"], strict=True)
        )
        print(f"a token each {_PAUSE_S * 1000:g} ms, {arguments.clients} streams: dialled in / virtual {ratio:.2f}")
        for kind, found in turns.items():
            print(f"  {kind:10} {statistics.median(found) * _MICRO:8.1f} us of CPU a token")


if __name__ == "__main__":
    main()
