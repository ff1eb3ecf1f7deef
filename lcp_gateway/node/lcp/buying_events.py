"""Events and effects of a job that is bought, and how it ended."""

import enum
from typing import Protocol as Interface

from lcp_gateway.lightning.error_codes import ErrorCode
from lcp_gateway.node.lcp.effects import MessageCame, Send, SetTimer, TimerFired
from lcp_gateway.node.lcp.messages import IDENTITY, JSON, QuoteResponse
from lcp_gateway.values import value


class Outcome(enum.StrEnum):
    """How a job ended for its buyer."""

    DELIVERED = "delivered"
    FAILED = "failed"
    """The seller's result says so."""
    CANCELLED = "cancelled"
    """The seller's result says so, or we cancelled before anything was paid."""
    ERROR = "error"
    """The seller sent an error, or a stream that is not as it should be."""
    NOT_ASKED = "not_asked"
    """The request is more than the seller takes; nothing was sent."""
    NOT_PAYABLE = "not_payable"
    """The quote or its invoice is not what was asked for."""
    NOT_PAID = "not_paid"
    """The payment failed."""
    EXPIRED = "expired"
    """The quote was not accepted in time."""
    SILENT = "silent"
    """The seller said nothing more for too long."""


@value(kw_only=True)
class Order:
    """What is asked for. ``params`` are always sent, empty ones too in 0.2 and none in 0.3."""

    task_kind: str
    params: bytes | None
    request: bytes
    content_type: str = JSON
    params_content_type: str | None = None
    """0.3 only."""


@value
class PeerTimeouts:
    """How long a seller may be silent, in seconds: before its quote, before the first byte of a paid result, between bytes."""

    quote_s: float = 30
    first_byte_s: float = 300
    idle_s: float = 60


class InvoiceFacts(Interface):
    """What an invoice says, once its signature was checked: ``lightning.bolt11.Invoice`` is one."""

    @property
    def network(self) -> str:
        """The prefix of the network, "bcrt" for instance."""

    @property
    def payee(self) -> str:
        """66 lower-case hex digits."""

    @property
    def amount_msat(self) -> int | None:
        """None where the payer chooses."""

    @property
    def description_hash(self) -> bytes | None:
        """32 bytes; None for an invoice with a text."""

    @property
    def payment_hash(self) -> bytes:
        """32 bytes."""

    @property
    def expires_at(self) -> int:
        """Unix seconds."""


@value
class Ask:
    """Ask for a quote: the first event."""


@value
class Accept:
    """Pay the quote, whose invoice was read. The price may be at most ``max_price_msat``, the network that one."""

    invoice: InvoiceFacts
    max_price_msat: int
    network: str


@value
class CancelJob:
    """The caller wants no result any more."""

    reason: str = ""


@value
class PaymentSettled:
    """The payment is known to have arrived."""


@value
class PaymentFailed:
    """The payment is known to have failed for good: no part of it is on its way. ``reason`` is lnd's word."""

    reason: str


@value
class Quoted:
    """The quote, checked against the request. The caller reads its invoice."""

    quote: QuoteResponse


@value
class KeepPurchase:
    """Make the purchase durable, before the next effect: a ``Buying`` goes on from it after a restart."""

    quote: QuoteResponse
    payment_hash: bytes


@value
class Pay:
    """Pay the invoice, once, and report the end of the payment however long it takes."""

    payment_request: str
    price_msat: int


@value
class ResultHead:
    """The result begins. A node's own machine takes no other encoding than identity."""

    content_type: str
    content_encoding: str = IDENTITY


@value
class ResultData:
    """Bytes of the result, as they came: only ``Ended`` tells whether the whole was right."""

    data: bytes


@value
class Ended:
    """The job is over. ``number`` is the error's on the wire of its version; ``message`` is the seller's text or ours."""

    outcome: Outcome
    paid: bool
    message: str = ""
    number: int | None = None
    code: ErrorCode | None = None

    @property
    def manifest_missed(self) -> bool:
        """Whether the seller has no manifest of ours: the link has to send it again, and a new job may be asked for."""
        text = self.code is ErrorCode.INVALID_STATE and "manifest" in self.message
        return self.code is ErrorCode.MANIFEST_REQUIRED or text


BuyingEvent = Ask | MessageCame | Accept | CancelJob | PaymentSettled | PaymentFailed | TimerFired
BuyingEffect = Send | SetTimer | Quoted | KeepPurchase | Pay | ResultHead | ResultData | Ended
