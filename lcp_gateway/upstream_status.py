"""How a call to an upstream failed: gRPC's status codes, which every adapter maps its own errors to.

The names are gRPC's, so that lnd, the daemon and virtual nodes are told apart by one vocabulary, without importing grpc.
"""

import enum


class UpstreamStatus(enum.StrEnum):
    """A status of a failed call, and whether another try may succeed. A failed payment is judged by its text instead."""

    CANCELLED = "CANCELLED"
    UNKNOWN = "UNKNOWN"
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    ABORTED = "ABORTED"
    OUT_OF_RANGE = "OUT_OF_RANGE"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    INTERNAL = "INTERNAL"
    UNAVAILABLE = "UNAVAILABLE"
    DATA_LOSS = "DATA_LOSS"
    UNAUTHENTICATED = "UNAUTHENTICATED"

    @property
    def may_pass(self) -> bool:
        """Whether the same call may succeed later, as far as the status alone says."""
        return self in _MAY_PASS

    @property
    def is_upstreams_fault(self) -> bool:
        """Whether the upstream failed, rather than the request: another try, or another provider, may do better."""
        return self in _UPSTREAMS_FAULT

    @property
    def is_unanswered(self) -> bool:
        """Whether nothing answered the call."""
        return self in _UNANSWERED


_UNANSWERED = frozenset({UpstreamStatus.UNAVAILABLE, UpstreamStatus.DEADLINE_EXCEEDED, UpstreamStatus.CANCELLED})
_UPSTREAMS_FAULT = frozenset(
    {
        UpstreamStatus.UNAVAILABLE,
        UpstreamStatus.DEADLINE_EXCEEDED,
        UpstreamStatus.DATA_LOSS,
        UpstreamStatus.RESOURCE_EXHAUSTED,
    }
)
# UNKNOWN is lnd's word while it starts, while its wallet is locked, and for a macaroon that it does not accept.
_MAY_PASS = _UNANSWERED | _UPSTREAMS_FAULT | {UpstreamStatus.ABORTED, UpstreamStatus.INTERNAL, UpstreamStatus.UNKNOWN}
