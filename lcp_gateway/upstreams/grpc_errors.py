"""gRPC errors in the gateway's words: mapped here once, with what another try may cure."""

import re

import grpc.aio

from lcp_gateway.purchase.errors import UpstreamError

_MAX_MESSAGE_CHARS = 500
_UNPRINTABLE = re.compile(r"[^\x20-\x7e\u00a0-\ud7ff\ue000-\ufffd]+")

DAEMON_AWAY = "the daemon that Lightning peers are reached through cannot be reached"
"""The sentence for every text in which gRPC says that it has no connection."""

# What gRPC's own library says of a connection; a daemon's words about its lnd begin otherwise.
_CONNECTION = re.compile(
    r"failed to connect to all addresses|connections to all backends failing|empty address list"
    r"|DNS (?:resolution|query)|.{0,40}name resolution"
    r"|Socket closed|(?:recvmsg|sendmsg|read|write)\b.{0,60}(?:reset|pipe|closed|refused|timed out)"
    r"|Connection (?:reset|refused|closed|dropped)|Broken pipe|GOAWAY|Endpoint clos|Stream removed"
    r"|(?:keepalive|ping)\b.{0,20}time ?out|Handshake|Ssl handshake|Too many pings",
    re.IGNORECASE,
)
_ADDRESS = re.compile(
    r"\b(?:ipv4|ipv6|unix|unix-abstract|dns|vsock):[^\s,;)\"]+"
    r"|(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?::\d{1,5})?(?![\w.])"
    r"|\[[0-9a-fA-F:.%]{2,}\](?::\d{1,5})?"
    r"|\b(?:localhost|[\w-]+(?:\.[\w-]+)*\.[a-z]{2,}):\d{2,5}\b"
    r"|(?<=dial tcp )\S+|(?<=dial unix )\S+"
)
_SOMEWHERE = "[address]"

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


def upstream_error(error: grpc.aio.AioRpcError, *, for_client: bool = True) -> UpstreamError:
    """Give the error of a call in the gateway's words; the daemon's text is bounded and made printable.

    With ``for_client`` the text names no address. The call that pays needs the text as it is, for it is evidence.
    """
    status = error.code().name
    text = _UNPRINTABLE.sub(" ", error.details() or "").strip()[:_MAX_MESSAGE_CHARS]
    message = text or f"the daemon answered {status}"
    retryable = may_be_cured(status, message)
    if not for_client:
        return UpstreamError(status, message, retryable=retryable)
    if status == "UNAVAILABLE" and _CONNECTION.match(text):
        return UpstreamError(status, DAEMON_AWAY, retryable=retryable, is_away=True)
    return UpstreamError(status, _ADDRESS.sub(_SOMEWHERE, message), retryable=retryable)


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
