"""A stand-in node with very little CPU: an HTTP server in a thread, whose streams of responses are prepared as bytes."""

import asyncio
import contextlib
import json
import secrets
import threading
from collections.abc import Iterator

from aiohttp import web

MODEL = "bench"
# A stream's events: so many of this many characters of text, which stand once more in the last one. 100 KiB in all.
_DELTAS, _DELTA_CHARS = 128, 304
_NO_ID = b"resp_" + b"0" * 48
_MAX_BODY_BYTES = 2**20


class Node:
    """Serves one model's responses, each 100 KiB of events, in a thread of its own."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.port = 0
        self.pause_s = 0.0
        self._first, self._middle, self._last = _events()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @contextlib.contextmanager
    def running(self) -> Iterator["Node"]:
        self._thread.start()
        runner = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        try:
            yield self
        finally:
            asyncio.run_coroutine_threadsafe(runner.cleanup(), self._loop).result(10)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
            self._loop.close()

    async def _start(self) -> web.AppRunner:
        app = web.Application(client_max_size=_MAX_BODY_BYTES)
        app.router.add_post("/v1/responses", self._respond)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.port = runner.addresses[0][1]
        return runner

    async def _respond(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        response_id = f"resp_{secrets.token_hex(24)}"
        first, last = (e.replace(_NO_ID, response_id.encode()) for e in (self._first, self._last))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        # At the end of a round streams are cut.
        with contextlib.suppress(ConnectionError):
            await response.prepare(request)
            for event in (first, *self._middle, last):
                await response.write(event)
                if self.pause_s:
                    await asyncio.sleep(self.pause_s)
            await response.write_eof()
            self.done.append(response_id)
        return response


def _events() -> tuple[bytes, list[bytes], bytes]:
    text = "x" * _DELTA_CHARS
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    part = {"type": "output_text", "text": text * _DELTAS, "annotations": []}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    response = {
        "id": _NO_ID.decode(),
        "object": "response",
        "created_at": 1_700_000_000,
        "model": MODEL,
        "status": "in_progress",
        "output": [],
    }
    usage = {"input_tokens": 9, "output_tokens": _DELTAS, "total_tokens": _DELTAS + 9}
    whole = {**response, "status": "completed", "output": [message], "usage": usage}
    deltas = [_event("response.output_text.delta", n + 1, {**place, "delta": text}) for n in range(_DELTAS)]
    return (
        _event("response.created", 0, {"response": response}),
        deltas,
        _event("response.completed", _DELTAS + 1, {"response": whole}),
    )


def _event(kind: str, number: int, rest: dict[str, object]) -> bytes:
    data = json.dumps({"type": kind, "sequence_number": number, **rest}, separators=(",", ":"))
    return f"event: {kind}\ndata: {data}\n\n".encode()
