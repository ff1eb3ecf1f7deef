"""Events and effects of a job that is sold."""

from dataclasses import dataclass

from lcp_gateway.lightning.error_codes import ErrorCode
from lcp_gateway.node.lcp.effects import MessageCame, Send
from lcp_gateway.node.lcp.messages import QuoteRequest, QuoteResponse
from lcp_gateway.node.lcp.pricing import NO_SURGE, Surge


@dataclass(frozen=True, slots=True)
class SaleTerms:
    """How long quotes live, how much sooner their invoices end, and the surcharge; seconds."""

    ttl_s: int = 300
    invoice_slack_s: int = 5
    surge: Surge = NO_SURGE

    @property
    def invoice_expiry_s(self) -> int:
        """Return how long an invoice is payable: not longer than its quote."""
        return max(1, self.ttl_s - self.invoice_slack_s if self.ttl_s > self.invoice_slack_s else self.ttl_s)


@dataclass(frozen=True, slots=True)
class InvoiceMade:
    """The invoice that was asked for."""

    payment_request: str
    payment_hash: bytes


@dataclass(frozen=True, slots=True)
class InvoiceFailed:
    """No invoice could be made. ``reason`` goes to the peer."""

    reason: str


@dataclass(frozen=True, slots=True)
class InvoiceSettled:
    """The job's invoice is paid."""


@dataclass(frozen=True, slots=True)
class ComputeData:
    """Bytes of the backend's result."""

    data: bytes


@dataclass(frozen=True, slots=True)
class ComputeEnded:
    """The backend's result is whole."""


@dataclass(frozen=True, slots=True)
class ComputeFailed:
    """The backend has no result, or broke off. The message goes to the peer."""

    code: ErrorCode
    message: str


@dataclass(frozen=True, slots=True)
class PeerBack:
    """The peer is connected again, and both manifests have gone: what was sent before may be lost."""


@dataclass(frozen=True, slots=True)
class MakeInvoice:
    """Make an invoice over the price with the terms hash as its description hash."""

    description_hash: bytes
    price_msat: int
    expiry_s: int


@dataclass(frozen=True, slots=True)
class CancelInvoice:
    """Make an unpaid invoice unpayable."""

    payment_hash: bytes


@dataclass(frozen=True, slots=True)
class KeepSale:
    """Make a job durable before its quote goes out: ``Selling.restore`` goes on from it."""

    request: QuoteRequest
    model: str
    body: bytes
    stream: bool
    quote: QuoteResponse
    payment_hash: bytes


@dataclass(frozen=True, slots=True)
class KeepSent:
    """Make messages of a result durable before they are sent."""

    messages: tuple[Send, ...]


@dataclass(frozen=True, slots=True)
class Compute:
    """Run the job at the backend."""

    task_kind: str
    model: str
    body: bytes
    stream: bool


@dataclass(frozen=True, slots=True)
class StopCompute:
    """Stop the job at the backend."""


SaleEvent = (
    MessageCame | InvoiceMade | InvoiceFailed | InvoiceSettled | ComputeData | ComputeEnded | ComputeFailed | PeerBack
)
SaleEffect = Send | MakeInvoice | CancelInvoice | KeepSale | KeepSent | Compute | StopCompute
