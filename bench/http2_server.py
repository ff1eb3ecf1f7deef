"""The server side of HTTP/2 that the stand-in daemon needs: gRPC calls in, prepared bytes out, for very little CPU.

grpcio's own server costs more a message than the gateway does, so that on a small machine it would be what is measured.
Only what clients of gRPC really send is understood; a connection that sends anything else ends.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import hpack

from lcp_gateway.upstreams.lcpd.http2_header_blocks import literal
from lcp_gateway.upstreams.lcpd.http2_protocol import PREFACE

_DATA, _HEADERS, _, _RST_STREAM, _SETTINGS, _, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = range(10)
_END_STREAM = _ACK = 1
_END_HEADERS, _PADDED, _HAS_PRIORITY = 4, 8, 32
_FRAME_BYTES: Final = 16_384
_WINDOW_BYTES: Final = 65_535
_HEAD: Final = b"\x88" + literal(b"content-type", b"application/grpc")


def message(data: bytes) -> bytes:
    """Return a gRPC message with its prefix, as it is sent."""
    return b"\0" + len(data).to_bytes(4, "big") + data


def _frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    return (len(payload) << 48 | kind << 40 | flags << 32 | stream_id).to_bytes(9, "big") + payload


class Reply:
    """The answer to one call: sent as far as the client's windows allow, the rest when they open."""

    __slots__ = ("_connection", "_trailers", "_waiting", "body", "is_over", "path", "stream_id", "window")

    def __init__(self, connection: "Connection", stream_id: int, path: str, window: int) -> None:
        self._connection = connection
        self.stream_id = stream_id
        self.path = path
        self.body = bytearray()
        self.window = window
        self.is_over = False
        self._trailers = b""
        self._waiting: deque[bytes] = deque()

    def send(self, data: bytes) -> None:
        """Send prefixed messages."""
        if not self._waiting and self._allows(data):
            self._connection.write(_frame(_DATA, 0, self.stream_id, data))
            return
        self._waiting.extend(data[at : at + _FRAME_BYTES] for at in range(0, len(data), _FRAME_BYTES))
        self.go_on()

    def finish(self, status: int = 0) -> None:
        """End the call with a status of gRPC, OK by default."""
        self._trailers = literal(b"grpc-status", b"%d" % status)
        self.go_on()

    def go_on(self) -> None:
        """Send what waits and what the windows allow now."""
        while self._waiting and self._allows(self._waiting[0]):
            self._connection.write(_frame(_DATA, 0, self.stream_id, self._waiting.popleft()))
        if self._trailers and not self._waiting:
            self._connection.write(_frame(_HEADERS, _END_HEADERS | _END_STREAM, self.stream_id, self._trailers))
            self._connection.forget(self)

    def _allows(self, data: bytes) -> bool:
        size = len(data)
        if size > min(_FRAME_BYTES, self.window, self._connection.window):
            return False
        self.window -= size
        self._connection.window -= size
        return True


class Service(Protocol):
    """What is served: by the path of a call, its answer, or a function that sends messages as they come."""

    @property
    def unary(self) -> Mapping[str, Callable[[bytes], bytes]]: ...

    @property
    def streams(self) -> Mapping[str, Callable[[bytes, Reply], None]]: ...


class Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._decoder = hpack.Decoder()
        self._replies: dict[int, Reply] = {}
        self._buffer = b""
        self._output: list[bytes] = []
        self._reading = False
        self._has_preface = False
        self._head = b""
        self._stream_window = _WINDOW_BYTES
        self.window = _WINDOW_BYTES
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport) -> None:
        self._transport = transport
        # As many streams as a client likes, and bodies of any size without a stop.
        transport.write(_frame(_SETTINGS, 0, 0, b"") + _frame(_WINDOW_UPDATE, 0, 0, (2**30).to_bytes(4, "big")))

    def connection_lost(self, _error) -> None:
        for reply in self._replies.values():
            reply.is_over = True
        self._replies.clear()

    def write(self, data: bytes) -> None:
        """Send bytes, those that answer one read together."""
        if self._reading:
            self._output.append(data)
        else:
            self._transport.write(data)

    def forget(self, reply: Reply) -> None:
        reply.is_over = True
        self._replies.pop(reply.stream_id, None)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._reading = True
        try:
            self._read()
        finally:
            self._reading = False
        output, self._output = b"".join(self._output), []
        if output:
            self._transport.write(output)

    def _read(self) -> None:
        if not self._has_preface:
            if len(self._buffer) < len(PREFACE):
                return
            self._has_preface, self._buffer = True, self._buffer[len(PREFACE) :]
        data, at = self._buffer, 0
        while len(data) - at >= 9:
            size = int.from_bytes(data[at : at + 3], "big")
            start = at + 9
            if start + size > len(data):
                break
            stream_id = int.from_bytes(data[at + 5 : start], "big") & 0x7FFFFFFF
            self._on_frame(data[at + 3], data[at + 4], stream_id, data[start : start + size])
            at = start + size
        self._buffer = data[at:]

    def _on_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if kind == _DATA:
            self._on_data(flags, stream_id, payload)
        elif kind == _WINDOW_UPDATE:
            self._on_window(stream_id, int.from_bytes(payload, "big"))
        elif kind == _HEADERS:
            if flags & _PADDED:
                payload = payload[1 : len(payload) - payload[0]]
            self._head = payload[5:] if flags & _HAS_PRIORITY else payload
            self._on_head(flags, stream_id)
        elif kind == _CONTINUATION:
            self._head += payload
            self._on_head(flags, stream_id)
        elif kind == _SETTINGS and not flags & _ACK:
            self._on_settings(payload)
        elif kind == _PING and not flags & _ACK:
            self.write(_frame(_PING, _ACK, 0, payload))
        elif kind == _RST_STREAM and (reply := self._replies.get(stream_id)) is not None:
            self.forget(reply)
        elif kind == _GOAWAY:
            self._transport.close()

    def _on_head(self, flags: int, stream_id: int) -> None:
        if flags & _END_HEADERS:
            path = dict(self._decoder.decode(self._head))[":path"]
            self._replies[stream_id] = Reply(self, stream_id, path, self._stream_window)

    def _on_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        if flags & _PADDED:
            payload = payload[1 : len(payload) - payload[0]]
        reply = self._replies.get(stream_id)
        if reply is None:
            return
        reply.body += payload
        if flags & _END_STREAM:
            self._answer(reply)
        elif payload:
            count = len(payload).to_bytes(4, "big")
            self.write(_frame(_WINDOW_UPDATE, 0, stream_id, count) + _frame(_WINDOW_UPDATE, 0, 0, count))

    def _answer(self, reply: Reply) -> None:
        self.write(_frame(_HEADERS, _END_HEADERS, reply.stream_id, _HEAD))
        request = bytes(reply.body[5:])
        if (unary := self._service.unary.get(reply.path)) is not None:
            reply.send(message(unary(request)))
            reply.finish()
        else:
            self._service.streams[reply.path](request, reply)

    def _on_settings(self, payload: bytes) -> None:
        for at in range(0, len(payload), 6):
            if int.from_bytes(payload[at : at + 2], "big") == 4:
                window = int.from_bytes(payload[at + 2 : at + 6], "big")
                change, self._stream_window = window - self._stream_window, window
                for reply in self._replies.values():
                    reply.window += change
        self.write(_frame(_SETTINGS, _ACK, 0, b""))

    def _on_window(self, stream_id: int, increment: int) -> None:
        if stream_id == 0:
            self.window += increment
            for reply in list(self._replies.values()):
                reply.go_on()
        elif (reply := self._replies.get(stream_id)) is not None:
            reply.window += increment
            reply.go_on()


@contextlib.asynccontextmanager
async def serving(service: Service, address: str):
    """Serve at ``host:port`` or ``unix:path`` while the block runs."""
    loop = asyncio.get_running_loop()
    if address.startswith("unix:"):
        server = await loop.create_unix_server(lambda: Connection(service), address.removeprefix("unix:"), backlog=1024)
    else:
        host, _, port = address.rpartition(":")
        server = await loop.create_server(lambda: Connection(service), host, int(port), backlog=1024)
    try:
        yield
    finally:
        server.close()
