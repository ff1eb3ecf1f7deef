"""The client side of HTTP/2 for gRPC, without I/O: bytes in, events out (section numbers are those of RFC 9113).

A connection never blocks and never waits. Received bytes go into ``receive``, bytes to send come out of ``take_output``.
The server can make it hold one frame, one header block and one window per stream, and no more.
"""

import struct
from dataclasses import dataclass
from typing import Final

import hpack

from lcp_gateway.upstreams.lcpd.http2_events import (
    DataReceived,
    ErrorCode,
    Event,
    GoingAway,
    HeadersReceived,
    Http2Error,
    PingAnswered,
    SettingsChanged,
    StreamReset,
)
from lcp_gateway.upstreams.lcpd.http2_header_blocks import MAX_HEADER_BLOCK_BYTES, HeaderDecoder

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
WINDOW_BYTES: Final = 65_535
"""The bytes that a stream may receive before its reader takes some: a reader that stops stops the server."""
_MAX_FRAME_BYTES: Final = 16_384
_MAX_WINDOW: Final = 2**31 - 1
# The connection's own window never stops a stream: each stream has its own, and one that stands must not stop the others.
_CONNECTION_REFILL: Final = 2**20
_MAX_CONTINUATIONS: Final = 16
# Answers to PING and SETTINGS that the transport has not taken yet: a flood of them is an attack (10.5).
_MAX_PENDING_REPLIES: Final = 1_000
_HEAD: Final = struct.Struct(">HBBBI")  # length (24 bits), kind, flags, stream
_HEAD_BYTES: Final = _HEAD.size

_DATA, _HEADERS, _PRIORITY, _RST_STREAM, _SETTINGS, _PUSH_PROMISE, _PING, _GOAWAY = range(8)
_WINDOW_UPDATE, _CONTINUATION = 8, 9
_END_STREAM = _ACK = 0x1
_END_HEADERS, _PADDED, _HAS_PRIORITY = 0x4, 0x8, 0x20
_WHOLE_HEADERS: Final = _END_STREAM | _END_HEADERS
_ENABLE_PUSH, _MAX_CONCURRENT_STREAMS, _INITIAL_WINDOW_SIZE, _MAX_FRAME_SIZE = 2, 3, 4, 5


@dataclass(slots=True)
class _Stream:
    send_window: int
    unsent: bytes | memoryview
    is_sent: bool = False  # the whole request, with its END_STREAM
    has_head: bool = False
    receive_window: int = WINDOW_BYTES
    unacknowledged: int = 0


@dataclass(slots=True)
class _HeaderBlock:
    stream_id: int
    is_end: bool
    parts: list[bytes]
    size: int


class Http2Connection:
    """The client's side of one connection."""

    def __init__(self) -> None:
        settings = _ENABLE_PUSH.to_bytes(2, "big") + (0).to_bytes(4, "big")
        self._output: list[bytes] = [
            PREFACE,
            _frame(_SETTINGS, 0, 0, settings),
            _frame(_WINDOW_UPDATE, 0, 0, (_MAX_WINDOW - WINDOW_BYTES).to_bytes(4, "big")),
        ]
        self._tail = b""
        self._decoder = HeaderDecoder()
        self._streams: dict[int, _Stream] = {}
        self._next_id = 1
        self._last_id = 0
        self._block: _HeaderBlock | None = None
        self._has_settings = False
        self._is_over = False
        self._replies = 0
        self._received_since_refill = 0
        self._send_window = WINDOW_BYTES
        self._peer_window = WINDOW_BYTES
        self._peer_frame_bytes = _MAX_FRAME_BYTES
        self._max_streams = _MAX_WINDOW
        self._went_away_at: int | None = None
        self.is_leaving = False
        """Whether no stream can ever be opened on this connection again."""

    @property
    def can_open(self) -> bool:
        """Whether a stream can be opened now: the server's limit allows it, and neither side is going away."""
        return not self.is_leaving and len(self._streams) < self._max_streams

    @property
    def has_output(self) -> bool:
        """Whether ``take_output`` has something."""
        return bool(self._output)

    def take_output(self) -> bytes:
        """Return the bytes to send, once."""
        output, self._output, self._replies = b"".join(self._output), [], 0
        return output

    def open(self, header_block: bytes, body: bytes) -> int | None:
        """Open a stream with a whole request: a header block of ``literal`` and a body. Return its id; None if not ``can_open``."""
        if not self.can_open:
            return None
        stream_id = self._last_id = self._next_id
        self._next_id += 2
        self.is_leaving = self._next_id > _MAX_WINDOW
        stream = self._streams[stream_id] = _Stream(self._peer_window, body)
        kind = _HEADERS
        while len(header_block) > _MAX_FRAME_BYTES:
            self._output.append(_frame(kind, 0, stream_id, header_block[:_MAX_FRAME_BYTES]))
            kind, header_block = _CONTINUATION, header_block[_MAX_FRAME_BYTES:]
        self._output.append(_frame(kind, _END_HEADERS, stream_id, header_block))
        self._send(stream_id, stream)
        return stream_id

    def reset(self, stream_id: int, code: ErrorCode = ErrorCode.CANCEL) -> bool:
        """Reset a stream; frames that still arrive for it are ignored. Return whether it had not ended."""
        if self._streams.pop(stream_id, None) is None or self._is_over:
            return False
        self._output.append(_frame(_RST_STREAM, 0, stream_id, code.to_bytes(4, "big")))
        return True

    def acknowledge(self, stream_id: int, count: int) -> None:
        """Record that the reader took ``count`` bytes of a stream: its window opens by as much."""
        stream = self._streams.get(stream_id)
        if stream is None or self._is_over:
            return
        stream.unacknowledged += count
        if stream.unacknowledged * 2 >= WINDOW_BYTES:
            stream.receive_window += stream.unacknowledged
            self._output.append(_frame(_WINDOW_UPDATE, 0, stream_id, stream.unacknowledged.to_bytes(4, "big")))
            stream.unacknowledged = 0

    def ping(self, payload: bytes) -> None:
        """Send a PING of eight bytes; ``PingAnswered`` is its answer."""
        self._output.append(_frame(_PING, 0, 0, payload))

    def close(self, code: ErrorCode = ErrorCode.NO_ERROR) -> None:
        """Send GOAWAY; the connection sends and reads nothing after it."""
        if not self._is_over:
            self._is_over = self.is_leaving = True
            self._streams.clear()
            self._output.append(_frame(_GOAWAY, 0, 0, bytes(4) + code.to_bytes(4, "big")))

    def receive(self, data: bytes) -> list[Event]:
        """Read bytes from the server and return their events, in order.

        Raises:
            Http2Error: the server broke the protocol; the events before that are lost with the connection.
        """
        events: list[Event] = []
        if self._is_over:
            return events
        if self._tail:
            data = self._tail + data
        try:
            position = self._read_frames(events, data)
        except Http2Error as error:
            self.close(error.code)
            raise
        self._tail = data[position:] if position < len(data) else b""
        return events

    def _read_frames(self, events: list[Event], data: bytes) -> int:
        """Read the whole frames at the beginning of ``data``; return where the rest begins."""
        position, end = 0, len(data)
        while end - position >= _HEAD_BYTES:
            high, low, kind, flags, stream_id = _HEAD.unpack_from(data, position)
            length = high << 8 | low
            if length > _MAX_FRAME_BYTES:
                raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "a large frame is malformed or out of place")
            start = position + _HEAD_BYTES
            if start + length > end:
                break
            stream_id &= _MAX_WINDOW
            position = start + length
            is_plain = self._has_settings and self._block is None
            if is_plain and kind == _HEADERS and flags | _END_STREAM == _WHOLE_HEADERS:
                # As in _on_headers: nearly every head and every trailer.
                self._on_header_block(events, stream_id, data[start:position], is_end=flags != _END_HEADERS)
            elif is_plain and kind == _DATA:
                stream = self._streams.get(stream_id)
                received = self._received_since_refill + length
                if flags or stream is None or not stream.has_head or received >= _CONNECTION_REFILL:
                    self._on_data(events, flags, stream_id, data[start:position])
                elif length:
                    # As in _on_data: nearly every frame.
                    self._received_since_refill = received
                    stream.receive_window -= length
                    if stream.receive_window < 0:
                        raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "more bytes than the window allows")
                    events.append(DataReceived(stream_id, data[start:position], False))
            else:
                self._on_frame(events, kind, flags, stream_id, data[start:position])
                if self._replies > _MAX_PENDING_REPLIES:
                    raise Http2Error(ErrorCode.ENHANCE_YOUR_CALM, "a flood of frames that ask for a reply")
        return position

    def _on_frame(self, events: list[Event], kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if not self._has_settings and (kind != _SETTINGS or flags & _ACK):
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
        if self._block is not None and kind != _CONTINUATION:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "a header block is interrupted")
        if kind == _HEADERS:
            self._on_headers(events, flags, stream_id, payload)
        elif kind == _CONTINUATION:
            self._on_continuation(events, flags, stream_id, payload)
        elif kind == _SETTINGS:
            self._on_settings(events, flags, stream_id, payload)
        elif kind == _PING:
            self._on_ping(events, flags, stream_id, payload)
        elif kind == _PRIORITY:
            _expect(len(payload) == 5, ErrorCode.FRAME_SIZE_ERROR, "PRIORITY")  # noqa: PLR2004 - 6.3
            _expect(stream_id > 0, ErrorCode.PROTOCOL_ERROR, "PRIORITY")
        elif kind == _PUSH_PROMISE:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "a push was promised, and is disabled")
        elif kind in _CONTROL:
            _CONTROL[kind](self, events, stream_id, payload)
        # Frames of unknown kinds are ignored (4.1).

    def _stream(self, stream_id: int, what: str) -> _Stream | None:
        """Return an open stream; None for one that is over."""
        stream = self._streams.get(stream_id)
        if stream is None and (stream_id > self._last_id or stream_id % 2 == 0):
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"{what} on a stream that was never opened")
        return stream

    def _on_data(self, events: list[Event], flags: int, stream_id: int, payload: bytes) -> None:
        stream = self._stream(stream_id, "DATA")
        size = len(payload)
        self._received_since_refill += size
        if self._received_since_refill >= _CONNECTION_REFILL:
            refill = self._received_since_refill.to_bytes(4, "big")
            self._output.append(_frame(_WINDOW_UPDATE, 0, 0, refill))
            self._received_since_refill = 0
        data = _unpadded(payload) if flags & _PADDED else payload
        if stream is None:
            return
        stream.receive_window -= size
        if stream.receive_window < 0:
            raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "more bytes than the window allows")
        if not stream.has_head:
            self._malformed(events, stream_id)
            return
        is_end = bool(flags & _END_STREAM)
        if is_end:
            self._ended(stream_id, stream)
        elif size > len(data):
            self.acknowledge(stream_id, size - len(data))
        if data or is_end:
            events.append(DataReceived(stream_id, data, is_end))

    def _on_headers(self, events: list[Event], flags: int, stream_id: int, payload: bytes) -> None:
        if flags & _PADDED:
            payload = _unpadded(payload)
        if flags & _HAS_PRIORITY:
            _expect(len(payload) >= 5, ErrorCode.FRAME_SIZE_ERROR, "HEADERS")  # noqa: PLR2004 - 6.2
            payload = payload[5:]
        is_end = bool(flags & _END_STREAM)
        if flags & _END_HEADERS:
            self._on_header_block(events, stream_id, payload, is_end=is_end)
        else:
            self._block = _HeaderBlock(stream_id, is_end, [payload], len(payload))

    def _on_continuation(self, events: list[Event], flags: int, stream_id: int, payload: bytes) -> None:
        block = self._block
        if block is None or block.stream_id != stream_id:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "a CONTINUATION continues nothing")
        block.parts.append(payload)
        block.size += len(payload)
        if block.size > MAX_HEADER_BLOCK_BYTES or len(block.parts) > _MAX_CONTINUATIONS:
            raise Http2Error(ErrorCode.ENHANCE_YOUR_CALM, "a header block is too large")
        if flags & _END_HEADERS:
            self._block = None
            self._on_header_block(events, stream_id, b"".join(block.parts), is_end=block.is_end)

    def _on_header_block(self, events: list[Event], stream_id: int, encoded: bytes, *, is_end: bool) -> None:
        stream = self._streams.get(stream_id) or self._stream(stream_id, "HEADERS")
        try:
            # Also for a stream that is over: the decoder's table has to follow.
            headers, status = self._decoder.decode(encoded)
        except hpack.HPACKError:
            raise Http2Error(ErrorCode.COMPRESSION_ERROR, "a header block is broken") from None
        if stream is None:
            return
        if not stream.has_head:
            if not status:
                self._malformed(events, stream_id)
                return
            if status.startswith(b"1") and not is_end:
                return  # an interim response (8.1)
            stream.has_head = True
        elif status is not None or not is_end:
            # A second head that is no trailer (8.1).
            self._malformed(events, stream_id)
            return
        if is_end:
            self._ended(stream_id, stream)
        events.append(HeadersReceived(stream_id, headers, is_end))

    def _malformed(self, events: list[Event], stream_id: int) -> None:
        self.reset(stream_id, ErrorCode.PROTOCOL_ERROR)
        events.append(StreamReset(stream_id, ErrorCode.PROTOCOL_ERROR))

    def _ended(self, stream_id: int, stream: _Stream) -> None:
        del self._streams[stream_id]
        if not stream.is_sent:
            # The whole answer came before the whole request was sent: the rest is not wanted (8.1).
            self._output.append(_frame(_RST_STREAM, 0, stream_id, ErrorCode.NO_ERROR.to_bytes(4, "big")))

    def _on_reset(self, events: list[Event], stream_id: int, payload: bytes) -> None:
        _expect(len(payload) == 4, ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM")  # noqa: PLR2004 - 6.4
        if self._stream(stream_id, "RST_STREAM") is not None:
            del self._streams[stream_id]
            events.append(StreamReset(stream_id, int.from_bytes(payload, "big")))

    def _on_settings(self, events: list[Event], flags: int, stream_id: int, payload: bytes) -> None:
        _expect(stream_id == 0, ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & _ACK:
            _expect(not payload, ErrorCode.FRAME_SIZE_ERROR, "SETTINGS")
            return
        _expect(len(payload) % 6 == 0, ErrorCode.FRAME_SIZE_ERROR, "SETTINGS")
        self._has_settings = True
        for at in range(0, len(payload), 6):
            name = int.from_bytes(payload[at : at + 2], "big")
            value = int.from_bytes(payload[at + 2 : at + 6], "big")
            if name == _ENABLE_PUSH:
                _expect(value == 0, ErrorCode.PROTOCOL_ERROR, "a server cannot enable push")
            elif name == _MAX_CONCURRENT_STREAMS:
                self._max_streams = value
            elif name == _INITIAL_WINDOW_SIZE:
                _expect(value <= _MAX_WINDOW, ErrorCode.FLOW_CONTROL_ERROR, "an initial window")
                change, self._peer_window = value - self._peer_window, value
                for stream in self._streams.values():
                    stream.send_window += change
                    _expect(stream.send_window <= _MAX_WINDOW, ErrorCode.FLOW_CONTROL_ERROR, "a window")
            elif name == _MAX_FRAME_SIZE:
                _expect(_MAX_FRAME_BYTES <= value < 2**24, ErrorCode.PROTOCOL_ERROR, "a frame size")
                self._peer_frame_bytes = value
        self._reply(_frame(_SETTINGS, _ACK, 0, b""))
        self._send_all()
        events.append(SettingsChanged())

    def _on_ping(self, events: list[Event], flags: int, stream_id: int, payload: bytes) -> None:
        _expect(stream_id == 0, ErrorCode.PROTOCOL_ERROR, "PING on a stream")
        _expect(len(payload) == 8, ErrorCode.FRAME_SIZE_ERROR, "PING")  # noqa: PLR2004 - 6.7
        if flags & _ACK:
            events.append(PingAnswered(payload))
        else:
            self._reply(_frame(_PING, _ACK, 0, payload))

    def _on_goaway(self, events: list[Event], stream_id: int, payload: bytes) -> None:
        _expect(stream_id == 0, ErrorCode.PROTOCOL_ERROR, "GOAWAY on a stream")
        _expect(len(payload) >= 8, ErrorCode.FRAME_SIZE_ERROR, "GOAWAY")  # noqa: PLR2004 - 6.8
        last = int.from_bytes(payload[:4], "big") & _MAX_WINDOW
        if self._went_away_at is not None:
            # A later one may only lower it (6.8); what was called processed once stays so.
            last = min(last, self._went_away_at)
        self._went_away_at, self.is_leaving = last, True
        for refused in [number for number in self._streams if number > last]:
            del self._streams[refused]
        events.append(GoingAway(last, int.from_bytes(payload[4:8], "big")))

    def _on_window_update(self, events: list[Event], stream_id: int, payload: bytes) -> None:
        _expect(len(payload) == 4, ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE")  # noqa: PLR2004 - 6.9
        increment = int.from_bytes(payload, "big") & _MAX_WINDOW
        if stream_id == 0:
            _expect(increment > 0, ErrorCode.PROTOCOL_ERROR, "an empty WINDOW_UPDATE")
            self._send_window += increment
            _expect(self._send_window <= _MAX_WINDOW, ErrorCode.FLOW_CONTROL_ERROR, "a window")
            self._send_all()
            return
        stream = self._stream(stream_id, "WINDOW_UPDATE")
        if stream is None:
            return
        if increment == 0 or stream.send_window + increment > _MAX_WINDOW:
            code = ErrorCode.FLOW_CONTROL_ERROR if increment else ErrorCode.PROTOCOL_ERROR
            self.reset(stream_id, code)
            events.append(StreamReset(stream_id, code))
            return
        stream.send_window += increment
        self._send(stream_id, stream)

    def _reply(self, frame: bytes) -> None:
        self._replies += 1
        self._output.append(frame)

    def _send_all(self) -> None:
        for stream_id, stream in self._streams.items():
            if not stream.is_sent:
                self._send(stream_id, stream)

    def _send(self, stream_id: int, stream: _Stream) -> None:
        """Send what the windows allow of a request's body."""
        while not stream.is_sent:
            unsent = stream.unsent
            length = len(unsent)
            size = min(length, self._peer_frame_bytes, stream.send_window, self._send_window)
            if size == length:
                stream.is_sent, stream.unsent = True, b""
                self._output.append(_frame(_DATA, _END_STREAM, stream_id, unsent))
            elif size > 0:
                stream.unsent = memoryview(unsent)[size:]
                self._output.append(_frame(_DATA, 0, stream_id, unsent[:size]))
            else:
                return
            stream.send_window -= size
            self._send_window -= size


_CONTROL: Final = {
    _RST_STREAM: Http2Connection._on_reset,  # noqa: SLF001 - a table of its own methods
    _GOAWAY: Http2Connection._on_goaway,  # noqa: SLF001 - as above
    _WINDOW_UPDATE: Http2Connection._on_window_update,  # noqa: SLF001 - as above
}


def _frame(kind: int, flags: int, stream_id: int, payload: bytes | memoryview) -> bytes:
    head = len(payload) << 48 | kind << 40 | flags << 32 | stream_id
    return head.to_bytes(_HEAD_BYTES, "big") + payload


def _unpadded(payload: bytes) -> bytes:
    if not payload or payload[0] >= len(payload):
        raise Http2Error(ErrorCode.PROTOCOL_ERROR, "padding is longer than its frame")
    return payload[1 : len(payload) - payload[0]]


def _expect(holds: bool, code: ErrorCode, what: str) -> None:
    if not holds:
        raise Http2Error(code, f"{what} is malformed or out of place")
