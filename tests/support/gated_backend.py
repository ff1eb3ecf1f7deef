"""An OpenAI-compatible server in a thread, whose results wait for the test: before their first byte, and in their middle."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web

PIECE_BYTES = 20_000


class GatedBackend:
    """Answers each request with the same bytes, made of its model's name.

    ``begun`` and ``halfway`` count the results that came to those two places; ``hold`` makes later ones wait there.
    """

    def __init__(self) -> None:
        self.begun = 0
        self.halfway = 0
        self.base_url = ""
        self._fails = False
        self._loop = asyncio.new_event_loop()
        self._gates = {"begun": asyncio.Event(), "halfway": asyncio.Event()}
        for gate in self._gates.values():
            gate.set()

    @staticmethod
    def result(model: str, *, stream: bool) -> bytes:
        """Return the bytes of a result."""
        if stream:
            piece = f'data: {{"object":"chat.completion.chunk","model":"{model}","text":"'.encode()
            return (piece.ljust(PIECE_BYTES, b"x") + b'"}\n\n') * 2 + b"data: [DONE]\n\n"
        return f'{{"object":"chat.completion","model":"{model}","text":"'.encode().ljust(PIECE_BYTES, b"y") + b'"}'

    def hold(self, place: str) -> None:
        self._loop.call_soon_threadsafe(self._gates[place].clear)

    def fail_next(self) -> None:
        """Answer with an error in place of the next result that would begin."""
        self._fails = True

    def release(self, place: str) -> None:
        self._loop.call_soon_threadsafe(self._gates[place].set)

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        is_stream = asked.get("stream", False)
        body = self.result(asked["model"], stream=is_stream)
        self.begun += 1
        await self._gates["begun"].wait()
        if self._fails:
            self._fails = False
            return web.json_response({"error": {"message": "out of order"}}, status=500)
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream" if is_stream else "application/json"}
        )
        await response.prepare(request)
        half = len(body) // 2
        await response.write(body[:half])
        self.halfway += 1
        await self._gates["halfway"].wait()
        await response.write(body[half:])
        return response

    async def _start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._complete)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        return runner

    @contextmanager
    def running(self) -> Iterator["GatedBackend"]:
        thread = threading.Thread(target=self._loop.run_forever, name="backend", daemon=True)
        thread.start()
        runner = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(60)
        try:
            yield self
        finally:
            asyncio.run_coroutine_threadsafe(runner.cleanup(), self._loop).result(60)
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join(60)
            self._loop.close()
