"""Frames: one WebSocket message each, five bytes of head and a payload; and the heartbeat, which both sides keep."""

import enum
import struct
from dataclasses import dataclass
from typing import Final

from lcp_gateway.node_protocol.messages import ProtocolError

HEAD_BYTES: Final = 5
MAX_DATA_BYTES: Final = 64 * 1024
"""The most bytes of a body in one frame: a longer one would keep the others waiting."""
MAX_CONTROL_BYTES: Final = 256 * 1024
"""The most bytes of the JSON in one frame."""
MAX_FRAME_BYTES: Final = HEAD_BYTES + MAX_CONTROL_BYTES
DEAD_AFTER_HEARTBEATS: Final = 3

_HEAD = struct.Struct("!BI")
_CREDIT = struct.Struct("!I")
_FIRST_EXTENSION = 0x80
MAX_REQUEST_ID: Final = 2**32 - 1


class FrameKind(enum.IntEnum):
    """What a frame holds. Kinds from 0x80 on are extensions, which a side that does not know them ignores."""

    HELLO = 0x01
    WELCOME = 0x02
    MODELS = 0x03
    OFFERED = 0x04
    PING = 0x05
    PONG = 0x06
    GOODBYE = 0x07
    REQUEST = 0x10
    REQUEST_BODY = 0x11
    CREDIT = 0x12
    CANCEL = 0x13
    RECEIPT = 0x14
    HEAD = 0x20
    BODY = 0x21
    END = 0x22
    ERROR = 0x23


OF_CONNECTION: Final = frozenset(
    {
        FrameKind.HELLO,
        FrameKind.WELCOME,
        FrameKind.MODELS,
        FrameKind.OFFERED,
        FrameKind.PING,
        FrameKind.PONG,
        FrameKind.GOODBYE,
    }
)
"""The kinds that belong to no request: their request id is 0."""

_DATA = frozenset({FrameKind.REQUEST_BODY, FrameKind.BODY})
_KNOWN = {int(kind): kind for kind in FrameKind}


def write_frame(kind: FrameKind, request_id: int, payload: bytes = b"") -> bytes:
    """Return a frame."""
    return _HEAD.pack(kind, request_id) + payload


@dataclass(frozen=True, slots=True)
class PingCame:
    """The other side asks whether this one lives: send ``answer``."""

    answer: bytes = write_frame(FrameKind.PONG, 0)


def write_credit(request_id: int, byte_count: int) -> bytes:
    """Return the frame that allows so many more bytes of a result."""
    return _HEAD.pack(FrameKind.CREDIT, request_id) + _CREDIT.pack(byte_count)


def read_credit(payload: bytes) -> int:
    """Return the bytes that a frame of credit allows."""
    if len(payload) != _CREDIT.size:
        raise ProtocolError("bad_frame", "a frame of credit has four bytes")
    (byte_count,) = _CREDIT.unpack(payload)
    return int(byte_count)


def read_frame(frame: bytes) -> tuple[FrameKind, int, bytes] | None:
    """Return the kind, the request id and the payload of a frame; None for an extension.

    Raises:
        ProtocolError: it is no frame of this protocol, or too long.
    """
    if len(frame) < HEAD_BYTES:
        raise ProtocolError("bad_frame", "a frame has at least five bytes")
    code, request_id = _HEAD.unpack_from(frame)
    kind = _KNOWN.get(code)
    if kind is None:
        if code >= _FIRST_EXTENSION and len(frame) <= MAX_FRAME_BYTES:
            return None
        raise ProtocolError("bad_frame", f"a frame of the unknown kind 0x{code:02x}")
    if len(frame) > (HEAD_BYTES + MAX_DATA_BYTES if kind in _DATA else MAX_FRAME_BYTES):
        raise ProtocolError("too_long", f"a frame of {len(frame)} bytes is too long for its kind")
    if (kind in OF_CONNECTION) is not (request_id == 0):
        raise ProtocolError("bad_frame", "a frame's request id does not go with its kind")
    return kind, request_id, frame[HEAD_BYTES:]


class Dead(Exception):
    """Nothing came from the other side for as long as three heartbeats."""


class Heartbeat:
    """Whether the other side lives: anything that comes shows it, and a side that hears nothing sends a ping.

    Times are readings of a monotonic clock, in seconds; the caller says what time it is.
    """

    def __init__(self, interval_s: float, now: float) -> None:
        self.interval_s = interval_s
        self._heard_at = now
        self._pinged_at = now

    def heard(self, now: float) -> None:
        """Something came."""
        self._heard_at = now

    def tick(self, now: float) -> bytes | None:
        """Return the frame to send now, if any; to be called at least twice in each interval.

        Raises:
            Dead: the other side has been silent for too long.
        """
        if now - self._heard_at >= DEAD_AFTER_HEARTBEATS * self.interval_s:
            raise Dead
        # Also while the other side is heard: it has to hear something as well.
        if now - self._pinged_at < self.interval_s:
            return None
        self._pinged_at = now
        return write_frame(FrameKind.PING, 0)
