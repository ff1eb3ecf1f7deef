"""Errors of calls: a gRPC status and the text that the daemon would send with it."""

import enum

import grpc


class CallError(Exception):
    """Ends a call with a status; ``details`` never holds a prompt or an output."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details


class LcpErrorCode(enum.IntEnum):
    """The codes of a peer's refusal on the wire."""

    UNSUPPORTED_VERSION = 1
    UNSUPPORTED_TASK = 2
    QUOTE_EXPIRED = 3
    PAYMENT_REQUIRED = 4
    PAYMENT_INVALID = 5
    PAYLOAD_TOO_LARGE = 6
    RATE_LIMITED = 7
    UNSUPPORTED_PARAMS = 8
    UNSUPPORTED_ENCODING = 9
    INVALID_STATE = 10
    CHUNK_OUT_OF_ORDER = 11
    CHECKSUM_MISMATCH = 12


_EXHAUSTED = frozenset({LcpErrorCode.PAYLOAD_TOO_LARGE, LcpErrorCode.RATE_LIMITED})


def lcp_error(code: LcpErrorCode, message: str) -> CallError:
    """Return a peer's refusal as the daemon passes it on."""
    status = grpc.StatusCode.RESOURCE_EXHAUSTED if code in _EXHAUSTED else grpc.StatusCode.FAILED_PRECONDITION
    return CallError(status, f"lcp_error code={int(code)}: {message}")


def invalid(message: str) -> CallError:
    """Return the error of a malformed request."""
    return CallError(grpc.StatusCode.INVALID_ARGUMENT, message)


def not_found(message: str) -> CallError:
    """Return the error of an unknown peer or job."""
    return CallError(grpc.StatusCode.NOT_FOUND, message)


def failed_precondition(message: str) -> CallError:
    """Return the error of a call that cannot be served in this state; nothing was paid."""
    return CallError(grpc.StatusCode.FAILED_PRECONDITION, message)
