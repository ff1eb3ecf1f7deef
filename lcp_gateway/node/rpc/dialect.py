"""What the dialects of LCPDService share: ``v02`` and ``v03`` read and write messages as bytes, and check them alike."""

import re
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from lcp_gateway.node.lcp.buying_events import Order, Outcome
from lcp_gateway.node.lcp.messages import QuoteResponse
from lcp_gateway.node.runtime.calls import CallFailed
from lcp_gateway.upstream_status import UpstreamStatus
from lcp_gateway.values import value

ID_BYTES: Final = 32
MAX_REASON_CHARS: Final = 256
_LATEST: Final = 2**63 - 1
_Message = TypeVar("_Message", bound=Message)
_PEER_ID: Final = re.compile(r"[0-9a-fA-F]{66}")


@value
class QuoteCall:
    """A call that asks a peer for a quote."""

    peer_id: str
    order: Order


@value
class JobCall:
    """A call about a job: one that pays it, or one that cancels it with a ``reason``."""

    peer_id: str
    job_id: bytes
    reason: str = ""


STATUS_NUMBERS: Final = {Outcome.DELIVERED: 1, Outcome.FAILED: 2, Outcome.CANCELLED: 3}
"""The numbers of a result's status; they are those of both versions, as is 0 for a status that is not known."""


def expiry_of(quote: QuoteResponse) -> Timestamp:
    """Return when a quote expires. A peer may name a time that the message cannot; its client finds then that it is not the terms'."""
    return Timestamp(seconds=min(quote.quote_expiry, _LATEST))


def parse(kind: type[_Message], request: bytes) -> _Message:
    """Read a request.

    Raises:
        CallFailed: it is no message of its kind.
    """
    try:
        return kind.FromString(request)
    except DecodeError:
        raise CallFailed(UpstreamStatus.INTERNAL, "the request is no message of its kind") from None


def invalid(field: str, problem: str) -> CallFailed:
    """Return the failure of a field, in the words of lcpd-grpcd's validation."""
    return CallFailed(UpstreamStatus.INVALID_ARGUMENT, f"validation error: {field}: {problem}")


def check_peer_id(peer_id: str) -> None:
    """Check the form of a peer's id; either case is well-formed, though only lower case names a peer.

    Raises:
        CallFailed: it is malformed.
    """
    if not _PEER_ID.fullmatch(peer_id):
        raise invalid("peer_id", "value does not match regex pattern `^[0-9a-fA-F]{66}$`")


def check_job(field: str, peer_id: str, job_id: bytes) -> None:
    """Check what names a job; ``field`` is what the version calls its id.

    Raises:
        CallFailed: the peer's id or the job's is malformed.
    """
    check_peer_id(peer_id)
    if len(job_id) != ID_BYTES:
        raise invalid(field, f"value length must be {ID_BYTES} bytes")


def check_accept(field: str, peer_id: str, job_id: bytes, *, pay_invoice: bool) -> JobCall:
    """Return the job that is to be paid.

    Raises:
        CallFailed: an id is malformed, or the caller does not say that the invoice is to be paid.
    """
    check_job(field, peer_id, job_id)
    if not pay_invoice:
        raise invalid("pay_invoice", "value is required")
    return JobCall(peer_id, job_id)


def check_cancel(field: str, peer_id: str, job_id: bytes, reason: str) -> JobCall:
    """Return the job that is to be cancelled.

    Raises:
        CallFailed: an id is malformed, or the reason too long.
    """
    check_job(field, peer_id, job_id)
    if len(reason) > MAX_REASON_CHARS:
        raise invalid("reason", f"value length must be at most {MAX_REASON_CHARS} characters")
    return JobCall(peer_id, job_id, reason)
