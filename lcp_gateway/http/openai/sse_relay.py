"""Relays a paid stream to the client: its bytes as they come, and a clean end only if all of them came."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext, suppress
from types import TracebackType
from typing import Any, Self

import orjson
from aiohttp import web
from aiohttp.http_writer import StreamWriter

from lcp_gateway.adapters.sse import ends_event, is_event_stream
from lcp_gateway.http.errors import ApiError
from lcp_gateway.http.server.connection import FLUSH_S, close_if_http10, cut_off
from lcp_gateway.purchase.order import TaskKind

_HEARTBEAT = b": heartbeat\n\n"
_TAIL_BYTES = 4


class SseRelay:
    """Writes one streamed response."""

    def __init__(
        self,
        request: web.Request,
        response: web.StreamResponse,
        *,
        kind: TaskKind,
        heartbeat_s: float,
        limit_s: float,
        on_bytes: Callable[[int], None],
        on_head: Callable[[], None] = lambda: None,
    ) -> None:
        """``on_bytes`` is called with the size of each chunk that has come, ``on_head`` before the head goes out."""
        self._request = request
        self._response = response
        self._kind = kind
        self._heartbeat_s = heartbeat_s
        self._limit_s = limit_s
        self._on_bytes = on_bytes
        self._on_head = on_head
        # Nothing can be put between the events of a stream that is compressed.
        self._sse = is_event_stream(response.content_type) and "Content-Encoding" not in response.headers
        self._heartbeats = _Heartbeats(heartbeat_s, self._write) if self._sse else None
        self._writer: StreamWriter | None = None

    @property
    def begun(self) -> bool:
        """Whether the head has been sent, so that an error can no longer be a response of its own."""
        return self._response.prepared

    async def run(self, chunks: AsyncGenerator[bytes, None]) -> None:
        """Write all chunks, then the end.

        Waits for the first chunk, or for the first heartbeat, before the head goes out: a failure before it is an
        ordinary error response.

        Raises:
            whatever ``chunks`` raises, ConnectionResetError when the client is gone, and TimeoutError when the client does
            not read for ``limit_s``.
        """
        response, heartbeats = self._response, self._heartbeats
        beating: AbstractAsyncContextManager[object] = heartbeats or nullcontext()
        # A client that does not read must not hold its place for longer than a purchase may take.
        async with asyncio.timeout(self._limit_s), beating, aclosing(chunks):
            async for chunk in chunks:
                self._on_bytes(len(chunk))
                if heartbeats is not None:
                    await heartbeats.pause()
                if not response.prepared:
                    await self._write(chunk)
                elif chunk:
                    await response.write(chunk)
                if heartbeats is not None:
                    heartbeats.go_on(chunk)
                if chunk:
                    self._writer = self._open_writer()
            if heartbeats is not None:
                await heartbeats.pause()
            await self._prepare()
            await response.write_eof()

    def take(self, chunk: bytes) -> bool:
        """Write a chunk at once; return False, having done nothing, where ``run`` has to write it.

        It may be called while ``run`` waits for a chunk. ``run`` writes the first, and the one that a client who is
        behind, or a heartbeat on its way, must be waited for.
        """
        if not chunk:
            # A provider may send one; on the wire it would be the end of the body, and what follows another response.
            return True
        writer, connection, heartbeats = self._writer, self._request.protocol, self._heartbeats
        transport = connection.transport
        if (
            writer is None
            or transport is None
            or connection.writing_paused
            or transport.is_closing()
            or (heartbeats is not None and heartbeats.writing is not None)
        ):
            return False
        self._on_bytes(len(chunk))
        # As aiohttp writes a chunk, without a coroutine and without a list of parts.
        data = b"%x\r\n%b\r\n" % (len(chunk), chunk)
        writer.output_size += len(data)
        transport.write(data)
        if heartbeats is not None:
            heartbeats.go_on(chunk)
        return True

    def _open_writer(self) -> StreamWriter | None:
        """Return the writer of a body that has begun, None where it is not sent in chunks."""
        writer = self._request.writer
        return writer if isinstance(writer, StreamWriter) and writer.chunked else None

    async def break_off(self, error: ApiError, *, is_told: bool = False) -> None:
        """End a response that has begun: write the error if the client reads events, and close without the end of the body.

        ``is_told`` is true where the client has read an error already, the provider's.
        """
        transport = self._request.transport
        if transport is None or transport.is_closing():
            return
        try:
            if self._sse and not is_told:
                async with asyncio.timeout(FLUSH_S):
                    await self._response.write(_error_event(self._kind, error))
        except (ConnectionError, TimeoutError):
            transport.abort()
            return
        cut_off(self._request)

    async def _write(self, data: bytes) -> None:
        if data:
            await self._prepare()
            await self._response.write(data)

    async def _prepare(self) -> None:
        if not self._response.prepared:
            self._on_head()
            close_if_http10(self._request, self._response)
            await self._response.prepare(self._request)


class _Heartbeats:
    """Writes a comment between events, never inside one, whenever no chunk has come for ``every_s``; 0 is never.

    ``writing`` is the task that writes one, until ``pause`` has waited for it.
    """

    def __init__(self, every_s: float, write: Callable[[bytes], Coroutine[Any, Any, None]]) -> None:
        self._every_s = every_s
        self._write = write
        self._loop = asyncio.get_running_loop()
        self._idle_since: float | None = self._loop.time()
        self._tail = b"\n\n"
        self._timer: asyncio.TimerHandle | None = None
        self.writing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._every_s:
            self._timer = self._loop.call_later(self._every_s, self._due)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        writing = self.writing
        if writing is None:
            return
        if not isinstance(error, asyncio.CancelledError):
            # A head that it writes is out before the caller asks for ``begun``; the block's own error stands.
            with suppress(ConnectionError):
                await writing
        elif not writing.cancel() and not writing.cancelled():
            # Retrieved: the error of a task that has ended is logged otherwise.
            writing.exception()

    async def pause(self) -> None:
        """Write no heartbeat from now on, and wait for one that is being written.

        Raises:
            ConnectionError: the client is gone.
        """
        self._idle_since = None
        if self.writing is not None:
            writing, self.writing = self.writing, None
            await writing

    def go_on(self, chunk: bytes) -> None:
        """Write heartbeats again; ``chunk`` was written last."""
        tail = chunk[-_TAIL_BYTES:]
        self._tail = tail if len(tail) == _TAIL_BYTES else (self._tail + tail)[-_TAIL_BYTES:]
        self._idle_since = self._loop.time()

    def _due(self) -> None:
        # One timer for the whole stream, which looks when the last chunk came: cheaper than one a chunk.
        idle_s = 0.0 if self._idle_since is None else self._loop.time() - self._idle_since
        wait_s = self._every_s - idle_s
        if wait_s <= 0:
            wait_s = self._every_s
            last = self.writing
            if ends_event(self._tail) and (last is None or (last.done() and not last.exception())):
                self.writing = self._loop.create_task(self._write(_HEARTBEAT))
        self._timer = self._loop.call_later(wait_s, self._due)


def _error_event(kind: TaskKind, error: ApiError) -> bytes:
    """Return an error as an event; the empty line before it ends an event that was cut."""
    body = error.as_object()
    if kind is TaskKind.RESPONSES:
        fields = {key: body[key] for key in ("code", "message", "param")}
        data = orjson.dumps({"type": "error", **fields, "error": body})
        return b"\n\nevent: error\ndata: " + data + b"\n\n"
    return b"\n\ndata: " + orjson.dumps({"error": body}) + b"\n\n"
