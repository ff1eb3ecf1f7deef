"""Relays a paid stream to the client: its bytes as they come, and never a clean end unless all of them came."""

import asyncio
import re
import socket
import struct
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import orjson
from aiohttp import HttpVersion11, web

from lcp_gateway.adapters.json_bytes import is_event_stream
from lcp_gateway.adapters.sse import ends_event
from lcp_gateway.http.errors import ApiError
from lcp_gateway.purchase.order import TaskKind

_HEARTBEAT = b": heartbeat\n\n"
# How long an answer that was broken off may take to leave before the connection is torn down.
_FLUSH_S = 5.0
_SAFE_HEADER = re.compile(r"[\x20-\x7e]{1,256}")


def safe_header(value: str, otherwise: str) -> str:
    """Give a provider's header value if it may stand in a header as it is, else ``otherwise``."""
    value = value.strip()
    return value if _SAFE_HEADER.fullmatch(value) else otherwise


def close_if_http10(request: web.Request, response: web.StreamResponse) -> None:
    """Have the connection of an HTTP/1.0 client closed at a body's end, also where it asked to keep it.

    Without chunks and without a length nothing else ends the body.
    """
    if request.version < HttpVersion11:
        response.force_close()


class SseRelay:
    """Writes one streamed answer."""

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
        """``on_bytes`` is told how many of the result's bytes have just come, ``on_head`` that the head goes out now."""
        self._request = request
        self._response = response
        self._kind = kind
        self._heartbeat_s = heartbeat_s
        self._limit_s = limit_s
        self._on_bytes = on_bytes
        self._on_head = on_head
        # Nothing can be put between the events of a stream that is compressed.
        self._sse = (
            is_event_stream(response.content_type) and "Content-Encoding" not in response.headers
        )

    @property
    def begun(self) -> bool:
        """Tell whether the answer's head is out, so that an error can no longer be an answer of its own."""
        return self._response.prepared

    async def run(self, chunks: AsyncGenerator[bytes, None]) -> None:
        """Write all chunks, then the end.

        Waits for the first chunk before the head goes out: what fails before it is an ordinary error answer.

        Raises:
            whatever ``chunks`` raises, ConnectionResetError when the client is gone, and TimeoutError when it does not
            read.
        """
        # A client that does not read must not hold its place for longer than the result can be had.
        async with asyncio.timeout(self._limit_s):
            await self._relay(chunks)

    async def break_off(self, error: ApiError, *, is_told: bool = False) -> None:
        """End an answer that has begun: say why, if the client reads events, and close without the end of the body.

        ``is_told`` says that the client has read an error already: that of the provider.
        """
        transport = self._request.transport
        if transport is None or transport.is_closing():
            return
        try:
            if self._sse and not is_told:
                async with asyncio.timeout(_FLUSH_S):
                    await self._response.write(_error_event(self._kind, error))
        except (ConnectionError, TimeoutError):
            transport.abort()
            return
        if self._request.version < HttpVersion11:
            # Without chunks the end of the connection is the end of the body: only a reset tells that it was cut.
            _reset_on_close(transport)
        # close() sends what is written and then ends the connection: no last chunk, so nobody takes it for whole.
        transport.close()
        asyncio.get_running_loop().call_later(_FLUSH_S, transport.abort)

    async def _relay(self, chunks: AsyncGenerator[bytes, None]) -> None:
        source = self._with_heartbeats(chunks) if self._heartbeat_s and self._sse else chunks
        async with aclosing(chunks), aclosing(source):
            async for chunk in source:
                if chunk is _HEARTBEAT:
                    await self._write(chunk)
                    continue
                self._on_bytes(len(chunk))
                await self._write(chunk)
        await self._prepare()
        await self._response.write_eof()

    async def _write(self, data: bytes) -> None:
        if not data:
            return
        await self._prepare()
        await self._response.write(data)

    async def _prepare(self) -> None:
        if not self._response.prepared:
            self._on_head()
            close_if_http10(self._request, self._response)
            await self._response.prepare(self._request)

    async def _with_heartbeats(
        self, chunks: AsyncGenerator[bytes, None]
    ) -> AsyncGenerator[bytes, None]:
        """Put a comment between events while nothing comes; never inside one."""
        tail = b"\n\n"
        pending = asyncio.ensure_future(anext(chunks, None))
        try:
            while True:
                done, _ = await asyncio.wait({pending}, timeout=self._heartbeat_s)
                if not done:
                    if ends_event(tail):
                        yield _HEARTBEAT
                    continue
                chunk = pending.result()
                if chunk is None:
                    return
                yield chunk
                tail = (tail + chunk)[-4:]
                pending = asyncio.ensure_future(anext(chunks, None))
        finally:
            if not pending.done():
                pending.cancel()
                await asyncio.wait({pending})
            elif not pending.cancelled():
                # Looked at, since whoever would have raised it is gone.
                pending.exception()


def _reset_on_close(transport: asyncio.Transport) -> None:
    connection = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _error_event(kind: TaskKind, error: ApiError) -> bytes:
    """Write an error as an event; the empty line before it ends an event that was cut."""
    body = error.as_object()
    if kind is TaskKind.RESPONSES:
        data = orjson.dumps(
            {
                "type": "error",
                "code": body["code"],
                "message": body["message"],
                "param": body["param"],
                "error": body,
            }
        )
        return b"\n\nevent: error\ndata: " + data + b"\n\n"
    return b"\n\ndata: " + orjson.dumps({"error": body}) + b"\n\n"
