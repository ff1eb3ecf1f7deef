"""What an HTTP/2 connection makes of its server's bytes: events, and the errors that end it."""

from enum import IntEnum
from typing import NamedTuple

from lcp_gateway.upstreams.lcpd.http2_header_blocks import Headers
from lcp_gateway.values import value


class ErrorCode(IntEnum):
    """Error codes of RST_STREAM and GOAWAY (7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


class Http2Error(Exception):
    """The server broke the protocol: the connection is over, and a GOAWAY is in the output."""

    def __init__(self, code: ErrorCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code


@value
class HeadersReceived:
    """A response's head or its trailers."""

    stream_id: int
    headers: Headers
    is_end: bool


@value
class DataReceived:
    """Bytes of a response's body. The stream's window opens again by ``acknowledge``."""

    stream_id: int
    data: bytes
    is_end: bool


class StreamReset(NamedTuple):
    """The stream is over; ``code`` may be one that ``ErrorCode`` does not know."""

    stream_id: int
    code: int


class GoingAway(NamedTuple):
    """No stream above ``last_stream_id`` was or will be processed (6.8), and no new one is taken."""

    last_stream_id: int
    code: int


class PingAnswered(NamedTuple):
    """The server answered a PING."""

    payload: bytes


class SettingsChanged(NamedTuple):
    """The server sent its limits; more streams may be possible."""


Event = HeadersReceived | DataReceived | StreamReset | GoingAway | PingAnswered | SettingsChanged
