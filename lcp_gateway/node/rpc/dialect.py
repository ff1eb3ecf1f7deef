"""A version of LCPDService: how its messages are read, checked and written. The calls themselves are the same in both."""

import re
from collections.abc import Sequence
from typing import Final
from typing import Protocol as Interface

from google.protobuf.timestamp_pb2 import Timestamp

from lcp_gateway.node.lcp.buying_events import Order, Outcome
from lcp_gateway.node.lcp.messages import Protocol, QuoteResponse
from lcp_gateway.node.runtime.calls import CallFailed, Delivered, LocalInfo, PaymentReport, ReadyPeer
from lcp_gateway.upstream_status import UpstreamStatus
from lcp_gateway.values import value

ID_BYTES: Final = 32
MAX_REASON_CHARS: Final = 256
_LATEST: Final = 2**63 - 1
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


class Dialect(Interface):
    """Messages of one version, as bytes. What reads a request raises ``CallFailed`` for one that is malformed."""

    @property
    def protocol(self) -> Protocol:
        """The version of the protocol between nodes."""
        ...

    def write_peers(self, peers: Sequence[ReadyPeer]) -> bytes:
        """Write the answer of ListLCPPeers."""
        ...

    def write_info(self, info: LocalInfo) -> bytes:
        """Write the answer of GetLocalInfo."""
        ...

    def read_quote_request(self, request: bytes) -> QuoteCall:
        """Read the request of RequestQuote."""
        ...

    def write_quote(self, peer_id: str, quote: QuoteResponse) -> bytes:
        """Write the answer of RequestQuote."""
        ...

    def read_accept(self, request: bytes) -> JobCall:
        """Read the request of AcceptAndExecute, which is that of AcceptAndExecuteStream too."""
        ...

    def write_whole(self, delivered: Delivered, body: bytes) -> bytes:
        """Write the answer of AcceptAndExecute."""
        ...

    def write_begin(self, content_type: str, content_encoding: str, payment: PaymentReport | None) -> bytes:
        """Write the first event of a streamed result."""
        ...

    def write_chunk(self, data: bytes) -> bytes:
        """Write an event with bytes of a result."""
        ...

    def write_end(self, sha256: bytes, length: int) -> bytes:
        """Write the event after the last bytes."""
        ...

    def write_result(self, delivered: Delivered) -> bytes:
        """Write the last event; the bytes have gone before it."""
        ...

    def read_cancel(self, request: bytes) -> JobCall:
        """Read the request of CancelJob."""
        ...

    def write_cancelled(self) -> bytes:
        """Write the answer of CancelJob."""
        ...


STATUS_NUMBERS: Final = {Outcome.DELIVERED: 1, Outcome.FAILED: 2, Outcome.CANCELLED: 3}
"""The numbers of a result's status; they are those of both versions, as is 0 for a status that is not known."""


def expiry_of(quote: QuoteResponse) -> Timestamp:
    """Return when a quote expires. A peer may name a time that the message cannot; its client finds then that it is not the terms'."""
    return Timestamp(seconds=min(quote.quote_expiry, _LATEST))


def malformed() -> CallFailed:
    """Return the failure of a request that is no message of its kind."""
    return CallFailed(UpstreamStatus.INTERNAL, "the request is no message of its kind")


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
