"""Errors of calls in the gateway's words: mapped here once, with what another try may cure."""

import re

from lcp_gateway.lightning.error_codes import ErrorCode, read_code
from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.payment_evidence import PaymentReport
from lcp_gateway.purchase.states import Verdict
from lcp_gateway.upstream_status import UpstreamStatus
from lcp_gateway.upstreams.lcpd.transport import RpcError

_MAX_MESSAGE_CHARS = 500
_UNPRINTABLE = re.compile(r"[^\x20-\x7e\u00a0-\ud7ff\ue000-\ufffd]+")

DAEMON_AWAY = "the daemon that Lightning peers are reached through cannot be reached"
"""The sentence for every text in which gRPC says that it has no connection."""

# The texts of gRPC's own library about a connection; a daemon's about its lnd begin otherwise.
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

# The daemon's words for a peer's error. Its number means another thing in another version of the protocol.
_PEER_ERROR = re.compile(r"\blcp_error code=(\d{1,5})\b")
# A daemon that has just started, or a peer that is reconnecting.
_NOT_READY_YET = re.compile(r"manifest not exchanged|not (?:connected|ready)")
# Error 10 is worth a retry whatever its text. A peer answers each message of a request that it does not take, and lcpd-grpcd
# reports the last answer: 10, "no input stream for job", also where the first was 2 (3 in version 3), an unknown model, or 10,
# "manifest not exchanged", which passes. The two cannot be told apart, so a model that a peer does not sell is asked for four times.
_NOT_READY_CODES = frozenset({ErrorCode.INVALID_STATE, ErrorCode.MANIFEST_REQUIRED})
_TOO_LARGE = re.compile(r"too large|larger than max|exceeds peer max")
_TOO_LARGE_CODES = frozenset({ErrorCode.PAYLOAD_TOO_LARGE, ErrorCode.STREAM_LIMIT_EXCEEDED})


def peer_error(message: str, version: int) -> ErrorCode | None:
    """Return the meaning of a peer's error in a daemon's text, None where it holds none or ``version`` does not know it."""
    found = _PEER_ERROR.search(message)
    return None if found is None else read_code(version, int(found[1]))


def upstream_error(
    error: RpcError, version: int, *, for_client: bool = True, payment: PaymentReport | None = None
) -> UpstreamError:
    """Return the gateway's error for one of gRPC's; the daemon's text is bounded and made printable.

    ``version`` is the daemon's version of the protocol, 0 while that is not known.

    With ``for_client`` the text names no address. The call that pays needs the text as it is, for it is evidence; that
    HTTP/2 calls a stream not processed is better evidence than any text. Where the daemon reported the payment, its text is no
    evidence any more.
    """
    status = error.status
    text = _UNPRINTABLE.sub(" ", error.details).strip()[:_MAX_MESSAGE_CHARS]
    message = text or f"the daemon answered {status}"
    retryable = is_retryable(status, message, version)
    if payment is None and not for_client:
        evidence = Verdict.NONE if error.not_processed else None
        return UpstreamError(status, message, retryable=retryable, evidence=evidence)
    if status == UpstreamStatus.UNAVAILABLE and _CONNECTION.match(text):
        return UpstreamError(status, DAEMON_AWAY, retryable=retryable, is_away=True, payment=payment)
    return UpstreamError(status, _ADDRESS.sub(_SOMEWHERE, message), retryable=retryable, payment=payment)


def is_retryable(status: UpstreamStatus, message: str, version: int) -> bool:
    """Return whether asking again for a quote may succeed (a payment is never repeated)."""
    code = peer_error(message, version)
    if status == UpstreamStatus.RESOURCE_EXHAUSTED and (code in _TOO_LARGE_CODES or _TOO_LARGE.search(message)):
        return False
    if status == UpstreamStatus.FAILED_PRECONDITION:
        return code in _NOT_READY_CODES or bool(_NOT_READY_YET.search(message))
    return status.may_pass


def is_transient(error: BaseException) -> bool:
    """Return whether a try in the next half second is likely to succeed."""
    return isinstance(error, UpstreamError) and (
        error.status == UpstreamStatus.UNAVAILABLE
        or (error.status == UpstreamStatus.FAILED_PRECONDITION and error.retryable)
    )
