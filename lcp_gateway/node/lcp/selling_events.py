"""Events and effects of a job that is sold."""

import enum
from typing import Final

from lcp_gateway.lightning.error_codes import ErrorCode
from lcp_gateway.node.lcp.effects import MessageCame, Send
from lcp_gateway.node.lcp.messages import QuoteRequest, QuoteResponse, Status
from lcp_gateway.node.lcp.pricing import NO_SURGE, Surge
from lcp_gateway.values import value


class SalePhase(enum.StrEnum):
    """Where a job is."""

    AWAITING_INPUT = "awaiting_input"
    PRICED = "priced"
    """Its invoice is being made."""
    QUOTED = "quoted"
    RUNNING = "running"
    """It is paid, or the payment is held: it is finished, whatever the time."""
    DELIVERED = "delivered"
    ENDED = "ended"
    """Cancelled, failed or expired: nothing more is sent but the same answer again."""


class SaleOutcome(enum.StrEnum):
    """How a job ended for its seller."""

    DELIVERED = "delivered"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    """It was not paid in time, or its request never came whole."""


OUTCOMES: Final = {
    Status.OK: SaleOutcome.DELIVERED,
    Status.FAILED: SaleOutcome.FAILED,
    Status.CANCELLED: SaleOutcome.CANCELLED,
}
"""The outcome of a job by the status of its result."""

TOO_LONG: Final = "result exceeds remote stream limits"
INTERRUPTED: Final = "backend unavailable: interrupted by a restart"


@value
class SaleTerms:
    """How long quotes live, how much sooner their invoices end, and the surcharge; seconds."""

    ttl_s: int = 300
    invoice_slack_s: int = 5
    surge: Surge = NO_SURGE
    hold: bool = False
    """Whether payments are held until the backend's first byte, and go back where there is none."""

    @property
    def invoice_expiry_s(self) -> int:
        """Return how long an invoice is payable: not longer than its quote."""
        return max(1, self.ttl_s - self.invoice_slack_s if self.ttl_s > self.invoice_slack_s else self.ttl_s)


@value
class InvoiceMade:
    """The invoice that was asked for."""

    payment_request: str
    payment_hash: bytes


@value
class InvoiceFailed:
    """No invoice could be made. ``reason`` goes to the peer."""

    reason: str


@value
class InvoiceSettled:
    """The job's invoice is paid."""


@value
class InvoiceAccepted:
    """The job's hold invoice is paid: the payment waits to be settled or cancelled."""


@value
class InvoiceLost:
    """The payment that was held went back to the peer before it was settled."""


@value
class QuoteExpired:
    """The quote's time has passed, and its invoice is not paid."""


@value
class ComputeData:
    """Bytes of the backend's result."""

    data: bytes


@value
class ComputeEnded:
    """The backend's result is whole."""


@value
class ComputeFailed:
    """The backend has no result, or broke off. The message goes to the peer."""

    code: ErrorCode
    message: str


@value
class PeerBack:
    """The peer is connected again, and both manifests have gone: what was sent before may be lost."""


@value
class MakeInvoice:
    """Make an invoice over the price with the terms hash as its description hash."""

    description_hash: bytes
    price_msat: int
    expiry_s: int
    hold: bool = False


@value
class SettleInvoice:
    """Take the payment that is held, before the next effect."""


@value
class CancelInvoice:
    """Make an unpaid invoice unpayable; a payment that is held goes back."""

    payment_hash: bytes


@value
class KeepSale:
    """Make a job durable before its quote goes out: a ``Selling`` goes on from it after a restart."""

    request: QuoteRequest
    model: str
    body: bytes
    stream: bool
    quote: QuoteResponse
    payment_hash: bytes


@value
class KeepSent:
    """Make messages of a result durable before they are sent."""

    messages: tuple[Send, ...]


@value
class Compute:
    """Run the job at the backend."""

    task_kind: str
    model: str
    body: bytes
    stream: bool


@value
class StopCompute:
    """Stop the job at the backend."""


SaleEvent = (
    MessageCame
    | InvoiceMade
    | InvoiceFailed
    | InvoiceSettled
    | InvoiceAccepted
    | InvoiceLost
    | QuoteExpired
    | ComputeData
    | ComputeEnded
    | ComputeFailed
    | PeerBack
)
SaleEffect = Send | MakeInvoice | SettleInvoice | CancelInvoice | KeepSale | KeepSent | Compute | StopCompute
