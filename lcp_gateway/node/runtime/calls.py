"""The calls of a node's clients: peers, quotes, purchases. gRPC services and the in-process transport are written over these.

Every call raises ``CallFailed`` with the status and the text that lcpd-grpcd answers in the same case.
"""

import enum
from collections.abc import AsyncGenerator
from typing import Protocol as Interface

from lcp_gateway.node.lcp.buying_events import Ended, Order, ResultData, ResultHead
from lcp_gateway.node.lcp.manifests import Limits
from lcp_gateway.node.lcp.messages import Manifest, Protocol, QuoteResponse, Result
from lcp_gateway.upstream_status import UpstreamStatus
from lcp_gateway.values import value


class CallFailed(Exception):
    """A call that failed; ``payment`` is there where the call could have paid."""

    def __init__(self, status: UpstreamStatus, details: str, *, payment: "PaymentReport | None" = None) -> None:
        super().__init__(f"{status}: {details}")
        self.status = status
        self.details = details
        self.payment = payment


class PaymentState(enum.StrEnum):
    """What is known of a purchase's payment. ``NONE``: nothing was paid, and nothing will be by this call."""

    NONE = "none"
    SETTLED = "settled"
    UNKNOWN = "unknown"
    NO_RECORD = "no_record"
    """Only of ``payment``: neither this node nor its Lightning node has a record of it."""


@value(kw_only=True)
class PaymentReport:
    """What this node says of a purchase's payment beyond lcpd-grpcd: amounts in msat, hash and preimage of 32 bytes."""

    state: PaymentState
    payment_hash: bytes | None = None
    preimage: bytes | None = None
    fee_msat: int | None = None


@value
class ReadyPeer:
    """A peer that jobs can be exchanged with."""

    peer_id: str
    address: str
    manifest: Manifest


@value
class LocalInfo:
    """This node's id, and its manifest in a version.

    ``has_extensions``: it reports payments, takes limits of a purchase and looks payments up, which lcpd-grpcd does not.
    """

    node_id: str
    manifest: Manifest
    limits: Limits
    has_extensions: bool = True


@value
class Paid:
    """The payment has settled; the first item of a purchase. Calls that stand for lcpd-grpcd report nothing of it."""

    payment: PaymentReport | None


@value
class Delivered:
    """The result is whole; the last item of a purchase. ``result`` is the seller's, its status may be failed or cancelled."""

    ended: Ended
    result: Result | None
    payment: PaymentReport | None


PurchaseItem = Paid | ResultHead | ResultData | Delivered


class NodeCalls(Interface):
    """A node as its clients see it."""

    def ready_peers(self, protocol: Protocol) -> list[ReadyPeer]:
        """Return the peers that are ready in a version, by id."""
        ...

    async def local_info(self, protocol: Protocol) -> LocalInfo:
        """Return this node's id and manifest.

        Raises:
            CallFailed: UNAVAILABLE while the Lightning node is away.
        """
        ...

    async def request_quote(self, protocol: Protocol, peer_id: str, order: Order) -> QuoteResponse:
        """Ask a peer for a quote. Cancelling the call cancels the job at the peer.

        Raises:
            CallFailed: the peer is not ready, takes no such request, or refused.
        """
        ...

    def accept(
        self, peer_id: str, job_id: bytes, *, max_price_msat: int | None = None, fee_limit_msat: int | None = None
    ) -> AsyncGenerator[PurchaseItem, None]:
        """Pay a quote, at most once, and return its result as it comes: first ``Paid``, last ``Delivered``.

        Nothing of a result is returned before its payment has settled, since a client takes a head for a proof of that.
        The generator raises ``CallFailed``. Closing it before the payment has begun means that nothing is paid; afterwards the
        payment goes on and is recorded, and the peer is told that the result is not wanted.
        """
        ...

    async def payment(self, job_id: bytes, payment_hash: bytes) -> PaymentReport:
        """Return what is known of a purchase's payment, now or in an earlier run of this node.

        A quote that no caller has accepted is given up: ``NONE`` says that nothing was paid and nothing will be.

        Raises:
            CallFailed: UNAVAILABLE where the Lightning node or the store has to be asked, and does not answer.
        """
        ...

    def cancel(self, peer_id: str, job_id: bytes, reason: str) -> None:
        """Tell a peer that a job is not wanted any more.

        Raises:
            CallFailed: the peer is unknown or away.
        """
        ...
