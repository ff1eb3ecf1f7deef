"""The transport that speaks HTTP/2 itself: one socket on the event loop, no threads.

Under a model's pace each token wakes the process up once, instead of a thread of grpc's and then the loop.
"""

import asyncio
import math
import random
import ssl
from collections import deque
from functools import lru_cache
from typing import Final, cast

from lcp_gateway.upstream_status import UpstreamStatus
from lcp_gateway.upstreams.lcpd.endpoint import Endpoint
from lcp_gateway.upstreams.lcpd.grpc_call import GrpcCall, reset_error
from lcp_gateway.upstreams.lcpd.http2_events import (
    DataReceived,
    Event,
    GoingAway,
    HeadersReceived,
    Http2Error,
    StreamReset,
)
from lcp_gateway.upstreams.lcpd.http2_header_blocks import header_block, literal
from lcp_gateway.upstreams.lcpd.http2_protocol import Http2Connection
from lcp_gateway.upstreams.lcpd.transport import CONNECTION_ENDED, Metadata, RpcError

# grpc-go's servers close a connection that pings more often than every 5 minutes, and a quiet stream that has been
# paid for would die with it. A daemon that is gone is noticed sooner by the refresh of the peers.
_KEEPALIVE_S: Final = 310.0
_KEEPALIVE_TIMEOUT_S: Final = 20.0
_CONNECT_TIMEOUT_S: Final = 5.0
# Reconnects start at once and slow down to one every 2 s, so that a restarted daemon is found quickly.
_FIRST_BACKOFF_S: Final = 0.1
_LONGEST_BACKOFF_S: Final = 2.0
_JITTER: Final = 0.2
_MAX_TIMEOUT_DIGITS: Final = 99_999_999
_USER_AGENT: Final = b"lcp-gateway"


class _Connection(asyncio.Protocol):
    """One socket. It lives until either side ends it; calls that it carried know how."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._core = Http2Connection()
        self._calls: dict[int, GrpcCall] = {}
        self._transport: asyncio.Transport | None = None
        self._keepalive: asyncio.TimerHandle | None = None
        self._flush_planned = False
        self._is_paused = False
        self._is_quiet = True
        self._room: deque[asyncio.Future[None]] = deque()
        self.is_closed = False

    @property
    def is_leaving(self) -> bool:
        return self.is_closed or self._core.is_leaving

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._flush()
        self._keepalive = self._loop.call_later(_KEEPALIVE_S, self._probe)

    def data_received(self, data: bytes) -> None:
        self._is_quiet = False
        try:
            events = self._core.receive(data)
        except Http2Error as error:
            self.close(f"the daemon broke the HTTP/2 protocol: {error}")
            return
        self._on_events(events)
        if self._room and self._core.can_open:
            self._wake_waiting()
        self._flush()

    def _on_events(self, events: list[Event]) -> None:
        fed: list[GrpcCall] = []
        for event in events:
            if isinstance(event, HeadersReceived):
                if (call := self._calls.get(event.stream_id)) is not None:
                    call.on_headers(event.headers, is_end=event.is_end)
            elif isinstance(event, DataReceived):
                if (call := self._calls.get(event.stream_id)) is not None:
                    if call.on_data(event.data):
                        fed.append(call)
                    if event.is_end:
                        call.on_end()
            else:
                self._on_event(event)
        # All messages that one read brought for a call are one block.
        for call in fed:
            call.deliver()

    def _on_event(self, event: Event) -> None:
        match event:
            case StreamReset(stream_id, code):
                if (call := self._calls.get(stream_id)) is not None:
                    call.end(reset_error(code))
            case GoingAway(last_stream_id, _):
                for stream_id in [number for number in self._calls if number > last_stream_id]:
                    self._calls[stream_id].end(
                        RpcError(UpstreamStatus.UNAVAILABLE, "GOAWAY received", not_processed=True)
                    )
                self._wake_waiting()
                self._close_if_idle()
            case _:
                pass

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"Socket closed: {type(exc).__name__}" if exc else "Socket closed")

    def pause_writing(self) -> None:
        # The daemon does not read: what is still to be sent waits in the core, which bounds it.
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        self._flush()

    async def room(self) -> None:
        """Wait until the server's limit of streams allows one more, or the connection is leaving."""
        while not self._core.can_open and not self.is_leaving:
            waiter = self._loop.create_future()
            self._room.append(waiter)
            try:
                await waiter
            finally:
                if waiter in self._room:
                    self._room.remove(waiter)

    def open(self, call: GrpcCall, block: bytes, body: bytes) -> bool:
        """Start a call. False: the connection accepts no more calls, and nothing was sent."""
        if self.is_closed or self._transport is None:
            return False
        stream_id = self._core.open(block, body)
        if stream_id is None:
            return False
        self._calls[stream_id] = call
        call.start(self, stream_id)
        self.flush_soon()
        return True

    def forget(self, stream_id: int) -> None:
        """Take a call off the connection; a stream that has not ended is reset."""
        if self._calls.pop(stream_id, None) is None or self.is_closed:
            return
        if self._core.reset(stream_id):
            self.flush_soon()
        if self._room:
            self._wake_waiting()
        if not self._calls:
            self._close_if_idle()

    def acknowledge(self, stream_id: int, count: int) -> None:
        self._core.acknowledge(stream_id, count)
        if self._core.has_output:
            self.flush_soon()

    def flush_soon(self) -> None:
        """Write once for all that this iteration of the loop has to send."""
        if not self._flush_planned:
            self._flush_planned = True
            self._loop.call_soon(self._flush)

    def close(self, reason: str) -> None:
        """End the connection and its calls, whose effect is unknown."""
        if self._transport is not None and not self.is_closed:
            self._core.close()
            self._flush()
            if self._is_paused:
                # Its buffer may never empty.
                self._transport.abort()
            else:
                self._transport.close()
        self._end(reason)

    def _flush(self) -> None:
        self._flush_planned = False
        transport = self._transport
        if transport is None or self._is_paused or transport.is_closing() or not self._core.has_output:
            return
        transport.write(self._core.take_output())

    def _end(self, reason: str) -> None:
        if self.is_closed:
            return
        self.is_closed = True
        if self._keepalive is not None:
            self._keepalive.cancel()
        self._wake_waiting()
        for call in list(self._calls.values()):
            call.end(RpcError(UpstreamStatus.UNAVAILABLE, reason))
        self._calls.clear()

    def _wake_waiting(self) -> None:
        for waiter in self._room:
            if not waiter.done():
                waiter.set_result(None)

    def _close_if_idle(self) -> None:
        if not self._calls and self._core.is_leaving:
            self.close("GOAWAY received")

    def _probe(self) -> None:
        """Send a PING where calls wait for a daemon that was silent."""
        if self._is_quiet and self._calls:
            self._core.ping(b"lcpalive")
            self._flush()
            self._keepalive = self._loop.call_later(_KEEPALIVE_TIMEOUT_S, self._give_up)
            return
        self._is_quiet = True
        self._keepalive = self._loop.call_later(_KEEPALIVE_S, self._probe)

    def _give_up(self) -> None:
        if self._is_quiet:
            self.close("keepalive ping timeout")
        else:
            self._is_quiet = True
            self._keepalive = self._loop.call_later(_KEEPALIVE_S, self._probe)


class DirectTransport:
    """Calls to one daemon over HTTP/2 of our own."""

    name = "direct"

    def __init__(self, endpoint: Endpoint) -> None:
        """Connects on first use."""
        self._endpoint = endpoint
        self._connection: _Connection | None = None
        self._leaving: set[_Connection] = set()
        self._connecting: asyncio.Task[None] | None = None
        self._backoff_s = 0.0
        self._not_before = 0.0
        self._last_problem = ""
        self._is_closed = False
        self._heads: dict[str, bytes] = {}
        self._starting: set[asyncio.Task[None]] = set()

    @property
    def connection(self) -> _Connection | None:
        """The connection that takes calls; None where there is none."""
        connection = self._connection
        return None if connection is None or connection.is_leaving else connection

    async def connect(self, timeout_s: float) -> object:
        """Return the connection that takes calls; connect if there is none."""
        if (connection := self.connection) is not None:
            return connection
        try:
            return await self._connected(asyncio.get_running_loop().time() + timeout_s)
        except TimeoutError:
            raise RpcError(UpstreamStatus.DEADLINE_EXCEEDED, "Deadline Exceeded", not_processed=True) from None

    async def unary(
        self, path: str, request: bytes, timeout_s: float, metadata: Metadata, *, on: object | None = None
    ) -> bytes:
        """Make a call with one answer."""
        call = GrpcCall(asyncio.get_running_loop())
        call.limit(timeout_s)
        try:
            if not self._begin(call, path, request, timeout_s, metadata, on):
                await self._begin_later(call, path, request, timeout_s, metadata, on)
            answers = await call.read_all()
        finally:
            if not call.is_done:
                call.cancel()
        if not answers:
            raise RpcError(UpstreamStatus.INTERNAL, "the daemon sent no answer")
        return answers[0]

    def stream(
        self, path: str, request: bytes, timeout_s: float, metadata: Metadata, *, on: object | None = None
    ) -> GrpcCall:
        """Start a call with many messages."""
        loop = asyncio.get_running_loop()
        call = GrpcCall(loop)
        call.limit(timeout_s)
        if not self._begin(call, path, request, timeout_s, metadata, on):
            task = loop.create_task(self._begin_later(call, path, request, timeout_s, metadata, on))
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)
        return call

    async def close(self) -> None:
        """End all calls and connections."""
        self._is_closed = True
        for task in (self._connecting, *self._starting):
            if task is not None:
                task.cancel()
        for connection in (self._connection, *self._leaving):
            if connection is not None:
                connection.close("the channel is closed")
        self._connection = None
        self._leaving.clear()

    def _begin(
        self, call: GrpcCall, path: str, request: bytes, timeout_s: float, metadata: Metadata, on: object | None
    ) -> bool:
        """Start a call on the connection that is there; False where there is none with room, or another than ``on``."""
        connection = self._connection
        if connection is None or (on is not None and on is not connection):
            return False
        return connection.open(call, self._block(path, timeout_s, metadata), _message(request))

    async def _begin_later(
        self, call: GrpcCall, path: str, request: bytes, timeout_s: float, metadata: Metadata, on: object | None
    ) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        try:
            while True:
                connection = self._connection if on is not None else await self._connected(deadline)
                if connection is None or connection.is_leaving or (on is not None and on is not connection):
                    raise RpcError(UpstreamStatus.UNAVAILABLE, CONNECTION_ENDED, not_processed=True)  # noqa: TRY301 - ends the call below
                async with asyncio.timeout_at(deadline):
                    await connection.room()
                if call.is_done or self._begin(call, path, request, deadline - loop.time(), metadata, on):
                    return
        except TimeoutError:
            call.end(RpcError(UpstreamStatus.DEADLINE_EXCEEDED, "Deadline Exceeded"))
        except RpcError as error:
            call.end(error)
        except BaseException:
            # No call is left without an end, whatever ended this.
            call.end(RpcError(UpstreamStatus.CANCELLED, "the channel is closed"))
            raise

    async def _connected(self, deadline: float) -> _Connection:
        """Return a connection that takes calls; all calls that need one share one attempt.

        Raises:
            RpcError: there is none, and nothing was sent.
            TimeoutError: the deadline (of the loop's clock) passed.
        """
        loop = asyncio.get_running_loop()
        while self._connection is None or self._connection.is_leaving:
            self._retire()
            if self._connecting is None:
                if self._is_closed or loop.time() < self._not_before:
                    raise self._unavailable()
                self._connecting = loop.create_task(self._connect())
                self._connecting.add_done_callback(self._attempted)
            attempt = self._connecting
            async with asyncio.timeout_at(deadline):
                await asyncio.wait([attempt])
            if attempt.cancelled() or attempt.exception() is not None:
                raise self._unavailable()
        return self._connection

    def _attempted(self, attempt: asyncio.Task[None]) -> None:
        self._connecting = None
        if not attempt.cancelled():
            # Retrieved: all calls that waited for it may have left.
            attempt.exception()

    def _retire(self) -> None:
        """Let a connection that accepts no more calls finish those that it has."""
        if self._connection is not None and not self._connection.is_closed:
            self._leaving.add(self._connection)
        self._connection = None
        self._leaving = {one for one in self._leaving if not one.is_closed}

    def _unavailable(self) -> RpcError:
        return RpcError(
            UpstreamStatus.UNAVAILABLE, f"failed to connect to all addresses; last error: {self._last_problem}"
        )

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        endpoint = self._endpoint
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                if endpoint.path:
                    transport, connection = await loop.create_unix_connection(lambda: _Connection(loop), endpoint.path)
                else:
                    transport, connection = await loop.create_connection(
                        lambda: _Connection(loop),
                        endpoint.host,
                        endpoint.port,
                        ssl=endpoint.tls,
                        server_hostname=(endpoint.server_name or endpoint.host) if endpoint.tls else None,
                    )
            if endpoint.tls is not None:
                secured = transport.get_extra_info("ssl_object")
                if secured is None or secured.selected_alpn_protocol() != "h2":
                    transport.abort()
                    raise ssl.SSLError("the daemon does not speak HTTP/2 over TLS")
        except OSError as error:
            self._last_problem = error.strerror or str(error) or type(error).__name__
            self._backoff_s = min(max(self._backoff_s * 1.6, _FIRST_BACKOFF_S), _LONGEST_BACKOFF_S)
            spread = random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - no secret
            self._not_before = loop.time() + self._backoff_s * spread
            raise
        self._backoff_s = self._not_before = 0.0
        self._connection = connection

    def _block(self, path: str, timeout_s: float, metadata: Metadata) -> bytes:
        head = self._heads.get(path)
        if head is None:
            head = self._heads[path] = header_block(
                [
                    (b":method", b"POST"),
                    (b":scheme", b"https" if self._endpoint.tls else b"http"),
                    (b":path", path.encode()),
                    (b":authority", self._endpoint.authority.encode()),
                    (b"te", b"trailers"),
                    (b"content-type", b"application/grpc"),
                    (b"user-agent", _USER_AGENT),
                ]
            )
        block = head + _timeout_header(timeout_s)
        for name, value in metadata:
            block += literal(name.lower().encode("ascii"), value.encode("ascii"))
        return block


def _message(request: bytes) -> bytes:
    return b"\x00" + len(request).to_bytes(4, "big") + request


# Nearly all calls have one of two timeouts.
@lru_cache(maxsize=16)
def _timeout_header(timeout_s: float) -> bytes:
    return literal(b"grpc-timeout", _timeout(timeout_s))


def _timeout(timeout_s: float) -> bytes:
    """Write a duration as gRPC does: up to eight digits and a unit, rounded up."""
    for unit, per_second in ((b"m", 1_000), (b"S", 1)):
        count = max(math.ceil(timeout_s * per_second), 1)
        if count <= _MAX_TIMEOUT_DIGITS:
            return str(count).encode() + unit
    return b"99999999S"
