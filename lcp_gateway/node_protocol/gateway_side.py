"""The gateway's side of a connection to one node: which frames may come now, and what they mean."""

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from lcp_gateway.node_protocol import messages
from lcp_gateway.node_protocol.frames import (
    HEAD_BYTES,
    MAX_DATA_BYTES,
    MAX_REQUEST_ID,
    FrameKind,
    PingCame,
    read_frame,
    write_credit,
    write_frame,
)
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
class ModelsCame:
    """The node's models have changed; this is the whole list."""

    models: tuple[NodeModel, ...]


@dataclass(frozen=True, slots=True)
class HeadCame:
    """A request's result begins."""

    request_id: int
    head: Head


@dataclass(frozen=True, slots=True)
class BodyCame:
    """The next bytes of a request's result."""

    request_id: int
    data: bytes


@dataclass(frozen=True, slots=True)
class EndCame:
    """A request's result has come, as its node says. The request is over."""

    request_id: int
    end: End


@dataclass(frozen=True, slots=True)
class FailureCame:
    """A request failed. It is over."""

    request_id: int
    failure: Failure


@dataclass(frozen=True, slots=True)
class Released:
    """A request that was cancelled has ended at the node as well."""

    request_id: int


Event = Hello | ModelsCame | HeadCame | BodyCame | EndCame | FailureCame | Released | PingCame | Goodbye
"""What a frame of the node means: a hello is to be welcomed or answered with a goodbye; after its own, it takes no new requests."""


class _Phase(enum.Enum):
    SENT = enum.auto()
    BEGUN = enum.auto()
    CANCELLED = enum.auto()


@dataclass(slots=True)
class _Flow:
    phase: _Phase
    credit_bytes: int


_BODY: Final = int(FrameKind.BODY)


class GatewaySide:
    """Reads a node's frames into events, and writes the gateway's. No I/O, no clock.

    A request is open from ``request`` until its end, its error, or the node's word after ``cancel``; the caller bounds how
    many are open. A node that sends more than it has credit for, or speaks of requests that it does not have, has broken
    the protocol.
    """

    def __init__(self) -> None:
        self.hello: Hello | None = None
        self.is_leaving = False
        self._is_welcome = False
        self._flows: dict[int, _Flow] = {}
        self._last_id = 0

    @property
    def open_requests(self) -> int:
        """How many requests are open, cancelled ones included that the node still works on."""
        return len(self._flows)

    # -- what the gateway sends ---------------------------------------------------------------------

    def welcome(self, welcome: Welcome) -> bytes:
        """Return the answer to a hello; requests may be sent after it."""
        if self.hello is None:
            raise RuntimeError("the node has not said hello")
        self._is_welcome = True
        return write_frame(FrameKind.WELCOME, 0, messages.write(welcome))

    def offered(self, offered: Offered) -> bytes:
        """Return the frame that says which models are offered."""
        return write_frame(FrameKind.OFFERED, 0, messages.write(offered))

    def request(self, request: Request, body: bytes) -> tuple[int, Iterator[bytes]]:
        """Open a request; return its id, and its frames one by one, so that those of others can be sent between them."""
        if not self._is_welcome or len(body) != request.body_bytes:
            raise RuntimeError("a request is sent to a node that is welcome, with its whole body")
        if self._last_id == MAX_REQUEST_ID:
            raise ProtocolError("ids_used_up", "all request ids of the connection have been used")
        self._last_id += 1
        self._flows[self._last_id] = _Flow(_Phase.SENT, request.credit_bytes)
        return self._last_id, self._frames_of(self._last_id, request, body)

    def grant(self, request_id: int, byte_count: int) -> bytes | None:
        """Return the frame that allows more bytes of a result; None for a request that is over."""
        flow = self._flows.get(request_id)
        if flow is None or flow.phase is _Phase.CANCELLED:
            return None
        flow.credit_bytes += byte_count
        return write_credit(request_id, byte_count)

    def cancel(self, request_id: int) -> bytes | None:
        """Return the frame that takes a request back; None for one that is over. Frames of it that are under way are ignored."""
        flow = self._flows.get(request_id)
        if flow is None or flow.phase is _Phase.CANCELLED:
            return None
        flow.phase = _Phase.CANCELLED
        return write_frame(FrameKind.CANCEL, request_id)

    def receipt(self, request_id: int, receipt: Receipt) -> bytes:
        """Return the frame that says what a request came to."""
        return write_frame(FrameKind.RECEIPT, request_id, messages.write(receipt))

    def goodbye(self, goodbye: Goodbye) -> bytes:
        """Return the frame that says that no request will follow."""
        self.is_leaving = True
        return write_frame(FrameKind.GOODBYE, 0, messages.write(goodbye))

    # -- what the node sends ------------------------------------------------------------------------

    def receive(self, frame: bytes) -> Event | None:  # noqa: C901 - a row for each kind
        """Read a frame; return what it means, None where nothing is to be done.

        Raises:
            ProtocolError: the node may not send it.
        """
        # Nearly all frames are these.
        if len(frame) > HEAD_BYTES and frame[0] == _BODY:
            return self._body(frame)
        if (parts := read_frame(frame)) is None:
            return None
        kind, request_id, payload = parts
        if self.hello is None and kind is not FrameKind.HELLO:
            raise ProtocolError("no_hello", "the first frame of a node is its hello")
        match kind:
            case FrameKind.HELLO:
                if self.hello is not None:
                    raise ProtocolError("bad_order", "a second hello")
                self.hello = messages.read_hello(payload)
                return self.hello
            case FrameKind.MODELS:
                return ModelsCame(messages.read_models(payload))
            case FrameKind.PING:
                return PingCame()
            case FrameKind.PONG:
                return None
            case FrameKind.GOODBYE:
                self.is_leaving = True
                return messages.read_goodbye(payload)
            case FrameKind.HEAD:
                return self._head(request_id, payload)
            case FrameKind.END:
                return self._end(request_id, payload)
            case FrameKind.ERROR:
                return self._error(request_id, payload)
        raise ProtocolError("bad_order", f"a node does not send {kind.name}")

    def _body(self, frame: bytes) -> BodyCame | None:
        size = len(frame) - HEAD_BYTES
        if size > MAX_DATA_BYTES:
            raise ProtocolError("too_long", f"a frame of {len(frame)} bytes is too long for its kind")
        request_id = int.from_bytes(frame[1:HEAD_BYTES])
        flow = self._flow(request_id)
        flow.credit_bytes -= size
        if flow.credit_bytes < 0:
            raise ProtocolError("no_credit", "more bytes of a result than the gateway allowed")
        if flow.phase is _Phase.CANCELLED:
            return None
        if flow.phase is not _Phase.BEGUN:
            raise ProtocolError("bad_order", "bytes of a result before its head")
        return BodyCame(request_id, frame[HEAD_BYTES:])

    def _head(self, request_id: int, payload: bytes) -> HeadCame | None:
        flow = self._flow(request_id)
        head = messages.read_head(payload)
        if flow.phase is _Phase.CANCELLED:
            return None
        if flow.phase is not _Phase.SENT:
            raise ProtocolError("bad_order", "a second head of a result")
        flow.phase = _Phase.BEGUN
        return HeadCame(request_id, head)

    def _end(self, request_id: int, payload: bytes) -> EndCame | Released:
        flow = self._flow(request_id)
        end = messages.read_end(payload)
        if flow.phase is _Phase.SENT:
            raise ProtocolError("bad_order", "the end of a result before its head")
        del self._flows[request_id]
        return Released(request_id) if flow.phase is _Phase.CANCELLED else EndCame(request_id, end)

    def _error(self, request_id: int, payload: bytes) -> FailureCame | Released:
        flow = self._flow(request_id)
        failure = messages.read_failure(payload)
        del self._flows[request_id]
        return Released(request_id) if flow.phase is _Phase.CANCELLED else FailureCame(request_id, failure)

    def _flow(self, request_id: int) -> _Flow:
        flow = self._flows.get(request_id)
        if flow is None:
            raise ProtocolError("unknown_request", "a frame of a request that is not open")
        return flow

    def _frames_of(self, request_id: int, request: Request, body: bytes) -> Iterator[bytes]:
        yield write_frame(FrameKind.REQUEST, request_id, messages.write(request))
        for at in range(0, len(body), MAX_DATA_BYTES):
            flow = self._flows.get(request_id)
            if flow is None:
                # The node refused it, and would wait for the rest.
                yield write_frame(FrameKind.CANCEL, request_id)
                return
            if flow.phase is _Phase.CANCELLED:
                return
            yield write_frame(FrameKind.REQUEST_BODY, request_id, body[at : at + MAX_DATA_BYTES])
