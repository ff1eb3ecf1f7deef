import asyncio
from dataclasses import dataclass, field

import pytest
from aiohttp import web


@dataclass
class Server:
    """An OpenAI-compatible server that records requests and sends scripted responses.

    It waits for ``gate`` after each chunk, for ``head_gate`` before the response. ``left`` is set when a client leaves early.
    """

    url: str = ""
    seen: list[tuple[str, bytes, dict[str, str]]] = field(default_factory=list)
    status: int = 200
    body: bytes = b'{"odd" :  "spacing"}'
    headers: dict[str, str] = field(default_factory=dict)
    chunks: list[bytes] = field(default_factory=list)
    cut: bool = False
    gate: asyncio.Event | None = None
    head_gate: asyncio.Event | None = None
    left: asyncio.Event = field(default_factory=asyncio.Event)
    connections: list[tuple[str, int]] = field(default_factory=list)
    models: bytes = b'{"data":[{"id":"llama"},{"id":"qwen"},{"no":"id"}]}'

    async def complete(self, request):
        self.seen.append((request.path, await request.read(), dict(request.headers)))
        self.connections.append(request.transport.get_extra_info("peername"))
        try:
            return await self._answer(request)
        except (asyncio.CancelledError, ConnectionError):
            self.left.set()
            raise

    async def _answer(self, request):
        if self.head_gate is not None:
            await self.head_gate.wait()
        if not self.chunks:
            return web.Response(
                status=self.status, body=self.body, content_type="application/json", headers=self.headers
            )
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", **self.headers})
        await response.prepare(request)
        for chunk in self.chunks:
            await response.write(chunk)
            if self.gate is not None:
                await self.gate.wait()
        if self.cut:
            request.transport.close()
        return response


@pytest.fixture
async def backend():
    server = Server()

    async def models(request):
        return web.Response(body=server.models, content_type="application/json")

    app = web.Application(client_max_size=8 * 1024 * 1024)
    app.router.add_get("/v1/models", models)
    app.router.add_post("/v1/chat/completions", server.complete)
    app.router.add_post("/v1/responses", server.complete)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    yield server
    await runner.cleanup()
