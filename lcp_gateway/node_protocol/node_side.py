"""The node's side of its connection to a gateway: which frames may come now, and what they mean."""

from dataclasses import dataclass, field
from typing import Final

from lcp_gateway.node_protocol import messages
from lcp_gateway.node_protocol.frames import MAX_DATA_BYTES, FrameKind, PingCame, read_credit, read_frame, write_frame
from lcp_gateway.node_protocol.messages import (
    End,
    Failure,
    Goodbye,
    Head,
    Hello,
    NodeModel,
    Offered,
    ProtocolError,
    Receipt,
    Request,
    Welcome,
)


@dataclass(frozen=True, slots=True)
class RequestCame:
    """A request with its whole body."""

    request_id: int
    request: Request
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class RequestTooMuch:
    """A request beyond the limits of the hello: answer it with an error. Its body is not kept."""

    request_id: int
    failure: Failure


@dataclass(frozen=True, slots=True)
class CreditCame:
    """More bytes of a request's result may be sent."""

    request_id: int


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The gateway wants no more of a request: end its work, and answer with an error of the code ``cancelled``."""

    request_id: int


@dataclass(frozen=True, slots=True)
class ReceiptCame:
    """What a request came to."""

    request_id: int
    receipt: Receipt


Event = Welcome | Offered | RequestCame | RequestTooMuch | CreditCame | Cancelled | ReceiptCame | PingCame | Goodbye
"""What a frame of the gateway means: after its welcome requests may come, after its goodbye no new ones."""

CANCELLED: Final = Failure(499, "cancelled", "the gateway cancelled the request")
"""The answer to a cancelled request."""
_BUSY = Failure(429, "busy", "the node works on as many requests as it can")
_TOO_LARGE = Failure(413, "request_too_large", "the request is larger than the node takes")
_MAX_CREDIT_BYTES = 2**31 - 1


@dataclass(slots=True)
class _Inbound:
    """A request's body while it comes; ``request`` is None for one that was answered already."""

    request: Request | None
    left_bytes: int
    parts: list[bytes]


class NodeSide:
    """Reads the gateway's frames into events, and writes the node's. No I/O, no clock.

    A request is open from its last frame until ``end`` or ``error``. ``concurrent`` and ``request_bytes`` of the hello bound
    what is kept here.
    """

    def __init__(self, hello: Hello) -> None:
        self._hello = hello
        self._is_welcome = False
        self._inbound: dict[int, _Inbound] = {}
        self._credits: dict[int, int] = {}
        self._last_id = 0

    @property
    def open_requests(self) -> int:
        """How many requests are under way."""
        return len(self._credits)

    def is_open(self, request_id: int) -> bool:
        """Whether a request has begun to come, and has neither end nor error yet."""
        return request_id in self._credits

    @property
    def kept_bytes(self) -> int:
        """The bytes of requests that have come in part."""
        return sum(len(part) for inbound in self._inbound.values() for part in inbound.parts)

    # -- what the node sends ------------------------------------------------------------------------

    def hello(self) -> bytes:
        """Return the first frame."""
        return write_frame(FrameKind.HELLO, 0, messages.write(self._hello))

    def models(self, models: tuple[NodeModel, ...]) -> bytes:
        """Return the frame that replaces the list of models."""
        return write_frame(FrameKind.MODELS, 0, messages.write_models(models))

    def head(self, request_id: int, head: Head) -> bytes:
        """Return the head of a result."""
        return write_frame(FrameKind.HEAD, request_id, messages.write(head))

    def credit_bytes(self, request_id: int) -> int:
        """Return how many bytes of a result may be sent now; 0 for a request that is over."""
        return self._credits.get(request_id, 0)

    def body(self, request_id: int, data: bytes) -> bytes:
        """Return a frame of a result; ``data`` is within the credit and not longer than ``MAX_DATA_BYTES``."""
        left = self._credits[request_id] - len(data)
        if left < 0 or not 0 < len(data) <= MAX_DATA_BYTES:
            raise RuntimeError("a frame of a result is within its credit")
        self._credits[request_id] = left
        return write_frame(FrameKind.BODY, request_id, data)

    def end(self, request_id: int, end: End) -> bytes:
        """Return the end of a result. The request is over."""
        del self._credits[request_id]
        return write_frame(FrameKind.END, request_id, messages.write(end))

    def error(self, request_id: int, failure: Failure) -> bytes:
        """Return the frame that ends a request without a whole result."""
        self._credits.pop(request_id, None)
        return write_frame(FrameKind.ERROR, request_id, messages.write(failure))

    def goodbye(self, goodbye: Goodbye) -> bytes:
        """Return the frame that says that no new request is taken."""
        return write_frame(FrameKind.GOODBYE, 0, messages.write(goodbye))

    # -- what the gateway sends ---------------------------------------------------------------------

    def receive(self, frame: bytes) -> Event | None:  # noqa: C901, PLR0912 - a row for each kind
        """Read a frame; return what it means, None where nothing is to be done yet.

        Raises:
            ProtocolError: the gateway may not send it.
        """
        if (parts := read_frame(frame)) is None:
            return None
        kind, request_id, payload = parts
        if not self._is_welcome and kind not in {FrameKind.WELCOME, FrameKind.GOODBYE, FrameKind.PING}:
            raise ProtocolError("bad_order", "the first frame of a gateway is its welcome or its goodbye")
        match kind:
            case FrameKind.WELCOME:
                if self._is_welcome:
                    raise ProtocolError("bad_order", "a second welcome")
                self._is_welcome = True
                return messages.read_welcome(payload)
            case FrameKind.OFFERED:
                return messages.read_offered(payload)
            case FrameKind.REQUEST:
                return self._request(request_id, messages.read_request(payload))
            case FrameKind.REQUEST_BODY:
                return self._request_body(request_id, payload)
            case FrameKind.CREDIT:
                return self._credit(request_id, read_credit(payload))
            case FrameKind.CANCEL:
                return self._cancel(request_id)
            case FrameKind.RECEIPT:
                if request_id > self._last_id:
                    raise ProtocolError("unknown_request", "a receipt of a request that never came")
                return ReceiptCame(request_id, messages.read_receipt(payload))
            case FrameKind.PING:
                return PingCame()
            case FrameKind.PONG:
                return None
            case FrameKind.GOODBYE:
                return messages.read_goodbye(payload)
        raise ProtocolError("bad_order", f"a gateway does not send {kind.name}")

    def _request(self, request_id: int, request: Request) -> RequestCame | RequestTooMuch | None:
        if request_id <= self._last_id:
            raise ProtocolError("bad_order", "the id of a request is not higher than those before it")
        self._last_id = request_id
        refusal = None
        if len(self._credits) >= self._hello.concurrent:
            refusal = _BUSY
        elif request.body_bytes > self._hello.request_bytes:
            refusal = _TOO_LARGE
        if refusal is not None:
            if request.body_bytes:
                self._inbound[request_id] = _Inbound(None, request.body_bytes, [])
            return RequestTooMuch(request_id, refusal)
        self._credits[request_id] = request.credit_bytes
        if request.body_bytes:
            self._inbound[request_id] = _Inbound(request, request.body_bytes, [])
            return None
        return RequestCame(request_id, request, b"")

    def _request_body(self, request_id: int, payload: bytes) -> RequestCame | None:
        inbound = self._inbound.get(request_id)
        if inbound is None:
            raise ProtocolError("unknown_request", "bytes of a request that is not open")
        inbound.left_bytes -= len(payload)
        if inbound.left_bytes < 0:
            raise ProtocolError("too_long", "a request is longer than its head says")
        if inbound.request is not None:
            inbound.parts.append(payload)
        if inbound.left_bytes:
            return None
        del self._inbound[request_id]
        if inbound.request is None:
            return None
        return RequestCame(request_id, inbound.request, b"".join(inbound.parts))

    def _credit(self, request_id: int, byte_count: int) -> CreditCame | None:
        credit = self._credits.get(request_id)
        if credit is None:
            # It was sent before the gateway knew of the end.
            return None
        if credit + byte_count > _MAX_CREDIT_BYTES:
            raise ProtocolError("too_much_credit", "more credit than the protocol has")
        self._credits[request_id] = credit + byte_count
        return CreditCame(request_id)

    def _cancel(self, request_id: int) -> Cancelled | None:
        # The rest of its body does not come.
        self._inbound.pop(request_id, None)
        return Cancelled(request_id) if request_id in self._credits else None
