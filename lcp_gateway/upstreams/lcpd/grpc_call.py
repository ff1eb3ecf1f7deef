"""One gRPC call on an HTTP/2 stream: messages out of bytes, a status out of headers."""

import asyncio
import binascii
import struct
from collections.abc import Mapping
from typing import Final, Protocol
from urllib.parse import unquote_to_bytes

from lcp_gateway.upstream_status import UpstreamStatus
from lcp_gateway.upstreams.lcpd.http2_events import ErrorCode
from lcp_gateway.upstreams.lcpd.http2_header_blocks import Headers
from lcp_gateway.upstreams.lcpd.http2_protocol import WINDOW_BYTES
from lcp_gateway.upstreams.lcpd.transport import MAX_RECEIVE_BYTES, MessageSink, RpcError

_PREFIX: Final = struct.Struct(">BI")  # whether a message is compressed, and its length
_PREFIX_BYTES: Final = _PREFIX.size
# Read bytes are told to the connection in portions. With what it holds back itself they leave a part of the window open.
_ACKNOWLEDGED_BYTES: Final = WINDOW_BYTES // 4

# By their numbers, from 1.
_STATUSES: Final = (
    UpstreamStatus.CANCELLED,
    UpstreamStatus.UNKNOWN,
    UpstreamStatus.INVALID_ARGUMENT,
    UpstreamStatus.DEADLINE_EXCEEDED,
    UpstreamStatus.NOT_FOUND,
    UpstreamStatus.ALREADY_EXISTS,
    UpstreamStatus.PERMISSION_DENIED,
    UpstreamStatus.RESOURCE_EXHAUSTED,
    UpstreamStatus.FAILED_PRECONDITION,
    UpstreamStatus.ABORTED,
    UpstreamStatus.OUT_OF_RANGE,
    UpstreamStatus.UNIMPLEMENTED,
    UpstreamStatus.INTERNAL,
    UpstreamStatus.UNAVAILABLE,
    UpstreamStatus.DATA_LOSS,
    UpstreamStatus.UNAUTHENTICATED,
)
# What gRPC makes of a reset without a status ("PROTOCOL-HTTP2", Errors), and of an HTTP status that is not 200.
_STATUS_OF_RESET: Final[dict[int, UpstreamStatus]] = {
    ErrorCode.REFUSED_STREAM: UpstreamStatus.UNAVAILABLE,
    ErrorCode.CANCEL: UpstreamStatus.CANCELLED,
    ErrorCode.ENHANCE_YOUR_CALM: UpstreamStatus.RESOURCE_EXHAUSTED,
    ErrorCode.INADEQUATE_SECURITY: UpstreamStatus.PERMISSION_DENIED,
}
_STATUS_OF_HTTP: Final = {
    b"400": UpstreamStatus.INTERNAL,
    b"401": UpstreamStatus.UNAUTHENTICATED,
    b"403": UpstreamStatus.PERMISSION_DENIED,
    b"404": UpstreamStatus.UNIMPLEMENTED,
    b"429": UpstreamStatus.UNAVAILABLE,
    b"502": UpstreamStatus.UNAVAILABLE,
    b"503": UpstreamStatus.UNAVAILABLE,
    b"504": UpstreamStatus.UNAVAILABLE,
}


class Carrier(Protocol):
    """The connection that a call is made on."""

    def forget(self, stream_id: int) -> None:
        """Take the call off the connection; a stream that has not ended is reset."""
        ...

    def acknowledge(self, stream_id: int, count: int) -> None:
        """Open the stream's window by ``count`` bytes."""
        ...


class GrpcCall:
    """One stream: its messages, and how it ended."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._connection: Carrier | None = None
        self._stream_id = 0
        self._parts: list[bytes] = []  # of a message that is not whole yet
        self._have = self._need = 0
        self._messages: list[bytes] = []
        self._is_fed = False
        self._unacknowledged = 0
        self._sink: MessageSink | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._waits_for_end = False
        self._timer: asyncio.TimerHandle | None = None
        self._headers: dict[bytes, bytes] = {}
        self.is_done = False
        self.error: RpcError | None = None

    def start(self, connection: Carrier, stream_id: int) -> None:
        """Take the stream that the request went out on."""
        self._connection, self._stream_id = connection, stream_id

    def limit(self, timeout_s: float) -> None:
        """End the call when its time is over."""
        self._timer = self._loop.call_later(timeout_s, self._expire)

    def _expire(self) -> None:
        self.end(RpcError(UpstreamStatus.DEADLINE_EXCEEDED, "Deadline Exceeded"))

    def end(self, error: RpcError | None) -> None:
        """Record the end of the call, by this side or the other; a stream that has not ended is reset."""
        if self.is_done:
            return
        if error is not None and error.not_processed and self._headers:
            # A handler has answered already: that it never saw the call is no evidence any more.
            error = RpcError(error.status, error.details)
        self.is_done, self.error = True, error
        if self._timer is not None:
            self._timer.cancel()
        if self._connection is not None:
            self._connection.forget(self._stream_id)
        self._wake()

    def cancel(self) -> None:
        """End the call, if it has not ended."""
        self.end(RpcError(UpstreamStatus.CANCELLED, "the call was cancelled here"))

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def hand_to(self, sink: MessageSink) -> None:
        """Offer messages to ``sink`` the moment they come, while a reader waits in ``read``."""
        self._sink = sink

    async def read(self) -> list[bytes]:
        """Return the messages that are there, at least one; an empty list after the last.

        Raises:
            RpcError: the call failed.
        """
        while not self._messages:
            if self.is_done:
                if self.error is not None:
                    raise self.error
                return []
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        messages, self._messages = self._messages, []
        self._acknowledge()
        return messages

    async def read_all(self) -> list[bytes]:
        """Return all messages at the end of the call, whose caller is woken up once. For calls with one answer.

        Raises:
            RpcError: the call failed.
        """
        if not self.is_done:
            self._waits_for_end = True
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self.error is not None:
            raise self.error
        if len(self._messages) > 1:
            raise RpcError(UpstreamStatus.INTERNAL, "the daemon sent two answers to one call")
        return self._messages

    def _acknowledge(self) -> None:
        if self._unacknowledged >= _ACKNOWLEDGED_BYTES and self._connection is not None:
            self._connection.acknowledge(self._stream_id, self._unacknowledged)
            self._unacknowledged = 0

    def on_data(self, data: bytes) -> bool:
        """Take bytes of the body: length-prefixed messages. Return whether ``deliver`` has to follow, once."""
        self._unacknowledged += len(data)
        if self._parts:
            self._parts.append(data)
            self._have += len(data)
            if self._have < self._need:
                # The rest of a long message has to fit through the window.
                self._acknowledge_unread()
                return False
            data = b"".join(self._parts)
            self._parts.clear()
        messages = self._messages
        had = len(messages)
        position, end = 0, len(data)
        self._need = _PREFIX_BYTES
        while end - position >= _PREFIX_BYTES:
            compressed, size = _PREFIX.unpack_from(data, position)
            if compressed or size > MAX_RECEIVE_BYTES:
                self.end(_refusal(compressed, size))
                return False
            start = position + _PREFIX_BYTES
            if start + size > end:
                self._need = _PREFIX_BYTES + size
                break
            position = start + size
            messages.append(data[start:position])
        if position < end:
            self._parts.append(data[position:])
            self._have = end - position
        if len(messages) == had:
            self._acknowledge_unread()
            return False
        is_first, self._is_fed = not self._is_fed, True
        return is_first

    def deliver(self) -> None:
        """Hand messages that have come to the sink, or wake the reader. A reader that waits has read all before them."""
        self._is_fed = False
        sink, waiter = self._sink, self._waiter
        if self._waits_for_end:
            if len(self._messages) > 1:
                self.end(RpcError(UpstreamStatus.INTERNAL, "the daemon sent two answers to one call"))
            return
        if waiter is None or waiter.done():
            return
        if sink is not None and sink(self._messages):
            self._messages = []
            self._acknowledge()
        else:
            waiter.set_result(None)

    def _acknowledge_unread(self) -> None:
        """Open the window where no message waits for its reader; where one does, the reader opens it."""
        if not self._messages:
            self._acknowledge()

    def on_headers(self, headers: Headers, *, is_end: bool) -> None:
        """Take the head or the trailers."""
        self._headers.update(headers)
        status = self._headers.get(b":status", b"")
        if b"grpc-status" in self._headers:
            if is_end:
                self._finish()
        elif status != b"200":
            name = _STATUS_OF_HTTP.get(status, UpstreamStatus.UNKNOWN)
            self.end(RpcError(name, f"Received http2 header with status: {status.decode('latin-1')}"))
        elif not self._headers.get(b"content-type", b"").startswith(b"application/grpc"):
            self.end(RpcError(UpstreamStatus.UNKNOWN, "the answer is not gRPC: another server listens there"))
        elif is_end:
            self.on_end()

    def on_end(self) -> None:
        """The stream ended without trailers."""
        self.end(RpcError(UpstreamStatus.INTERNAL, "the daemon ended the call without a status"))

    def _finish(self) -> None:
        text = self._headers.get(b"grpc-status", b"")
        number = 0 if text == b"0" else int(text) if text.isdigit() else -1
        if number == 0:
            if self._parts:
                self.end(RpcError(UpstreamStatus.INTERNAL, "the call ended in the middle of a message"))
            else:
                self.end(None)
            return
        status = _STATUSES[number - 1] if 0 < number <= len(_STATUSES) else UpstreamStatus.UNKNOWN
        message = unquote_to_bytes(self._headers.get(b"grpc-message", b""))
        self.end(RpcError(status, message.decode("utf-8", "replace"), trailers=_binary(self._headers)))


def _binary(headers: Mapping[bytes, bytes]) -> dict[str, bytes]:
    """Return the headers with binary values; one that is no base64 is left out."""
    found: dict[str, bytes] = {}
    for name, value in headers.items():
        if name.endswith(b"-bin"):
            try:
                # gRPC leaves the padding out, or in.
                found[name.decode("latin-1")] = binascii.a2b_base64(value.rstrip(b"=") + b"==", strict_mode=False)
            except binascii.Error:
                continue
    return found


def _refusal(compressed: int, size: int) -> RpcError:
    if compressed:
        return RpcError(UpstreamStatus.INTERNAL, "the daemon sent a compressed message")
    # The words of gRPC's own library, which the adapter knows.
    text = f"Received message larger than max ({size} vs. {MAX_RECEIVE_BYTES})"
    return RpcError(UpstreamStatus.RESOURCE_EXHAUSTED, text)


def reset_error(code: int) -> RpcError:
    """Return what a stream's reset means for its call."""
    status = _STATUS_OF_RESET.get(code, UpstreamStatus.INTERNAL)
    return RpcError(
        status, f"Received RST_STREAM with error code {code}", not_processed=code == ErrorCode.REFUSED_STREAM
    )
