"""gRPC errors in the gateway's words: mapped here once, with what another try may cure."""

import re

import grpc.aio

from lcp_gateway.purchase.errors import UpstreamError

_MAX_MESSAGE_CHARS = 500
_UNPRINTABLE = re.compile(r"[^\x20-\x7e\u00a0-\ud7ff\ue000-\ufffd]+")

_PASSING = frozenset(
    {
        "ABORTED",
        "CANCELLED",
        "DATA_LOSS",
        "DEADLINE_EXCEEDED",
        "INTERNAL",
        "RESOURCE_EXHAUSTED",
        "UNAVAILABLE",
        "UNKNOWN",
    }
)
# A daemon that has just started, or a peer that is reconnecting.
_NOT_READY_YET = re.compile(r"lcp_error code=10\b|manifest not exchanged|not (?:connected|ready)")
_TOO_LARGE = re.compile(r"lcp_error code=6\b|too large|larger than max")


def upstream_error(error: grpc.aio.AioRpcError) -> UpstreamError:
    """Give the error of a call in the gateway's words; the daemon's text is bounded and made printable."""
    status = error.code().name
    text = _UNPRINTABLE.sub(" ", error.details() or "").strip()[:_MAX_MESSAGE_CHARS]
    message = text or f"the daemon answered {status}"
    return UpstreamError(status, message, retryable=may_be_cured(status, message))


def may_be_cured(status: str, message: str) -> bool:
    """Tell whether asking again for a quote may help (for a payment the question does not arise)."""
    if status == "RESOURCE_EXHAUSTED" and _TOO_LARGE.search(message):
        return False
    if status == "FAILED_PRECONDITION":
        return bool(_NOT_READY_YET.search(message))
    return status in _PASSING


def passes_quickly(error: BaseException) -> bool:
    """Tell whether a try in the next half second is likely to succeed."""
    return isinstance(error, UpstreamError) and (
        error.status == "UNAVAILABLE" or (error.status == "FAILED_PRECONDITION" and error.retryable)
    )
