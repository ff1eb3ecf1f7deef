"""Errors of calls: a gRPC status and the text that the daemon would send with it."""

import grpc

from lcp_gateway.lightning.error_codes import ErrorCode
from lcp_gateway.node.lcp.messages import Protocol


class CallError(Exception):
    """Ends a call with a status; ``details`` never holds a prompt or an output.

    ``peer_error`` is the peer's, where the daemon passes on an error of the peer.
    """

    def __init__(self, code: grpc.StatusCode, details: str, peer_error: ErrorCode | None = None) -> None:
        super().__init__(details)
        self.code = code
        self.details = details
        self.peer_error = peer_error

    def text(self, protocol_version: int) -> str:
        """Return the text as the daemon writes it; the number of a peer's error depends on the version."""
        if self.peer_error is None:
            return self.details
        number = self.peer_error.number(Protocol.V03 if protocol_version == Protocol.V03 else Protocol.V02)
        return f"lcp_error code={number}: {self.details}"


_EXHAUSTED = frozenset({ErrorCode.PAYLOAD_TOO_LARGE, ErrorCode.RATE_LIMITED, ErrorCode.STREAM_LIMIT_EXCEEDED})


def lcp_error(code: ErrorCode, message: str) -> CallError:
    """Return a peer's refusal as the daemon passes it on."""
    status = grpc.StatusCode.RESOURCE_EXHAUSTED if code in _EXHAUSTED else grpc.StatusCode.FAILED_PRECONDITION
    return CallError(status, message, code)


def invalid(message: str) -> CallError:
    """Return the error of a malformed request."""
    return CallError(grpc.StatusCode.INVALID_ARGUMENT, message)


def not_found(message: str) -> CallError:
    """Return the error of an unknown peer or job."""
    return CallError(grpc.StatusCode.NOT_FOUND, message)


def failed_precondition(message: str) -> CallError:
    """Return the error of a call that cannot be served in this state; nothing was paid."""
    return CallError(grpc.StatusCode.FAILED_PRECONDITION, message)
