"""What a Lightning node can say of the invoices that it made for us, in types that need no node to be imported."""

import enum
from dataclasses import dataclass, field
from datetime import datetime

from lcp_gateway.lightning.payments import LndError
from lcp_gateway.purchase.money import Msat


class InvoiceStatus(enum.StrEnum):
    """Where an invoice of ours stands in lnd."""

    OPEN = "open"
    """Not paid. Money may be on its way: only lnd says when that can no longer be."""
    SETTLED = "settled"
    CANCELED = "canceled"
    """It has expired or was withdrawn, and nobody can pay it any more."""
    UNKNOWN_TO_LND = "unknown_to_lnd"
    """This lnd has no record of it. Whether that proves anything is for the caller to judge."""


class InvoiceFlaw(enum.StrEnum):
    """In what respect an invoice is not the one that was asked for. The value is fit for a metric's label."""

    MALFORMED = "malformed"
    NETWORK = "network"
    PAYEE = "payee"
    AMOUNT = "amount"
    DESCRIPTION = "description"
    PAYMENT_HASH = "payment_hash"
    EXPIRY = "expiry"


class WrongInvoice(Exception):
    """lnd made another invoice than it was asked for; it must not be shown to anybody. ``flaw`` says how it differs."""

    def __init__(self, flaw: InvoiceFlaw) -> None:
        super().__init__(f"lnd made an invoice that is not what was asked for: {flaw}")
        self.flaw = flaw


class SettlementsInterrupted(LndError):
    """There is nobody to hear of settlements from any more; follow again from the last settle index, after a pause.

    ``status`` is "EOF" where lnd ended the subscription in good order, as it does when it is stopped.
    """


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """Whose invoices they are: ``node_id`` is 66 hex digits, ``network`` the prefix of its invoices, if it is known."""

    node_id: str
    network: str | None


@dataclass(frozen=True, slots=True)
class CreatedInvoice:
    """An invoice to be shown to whoever shall pay it; ``payment_hash`` is 32 bytes, ``expires_at`` aware UTC."""

    payment_request: str
    payment_hash: bytes
    add_index: int
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class InvoiceState:
    """How an invoice stands. Everything but ``state`` is None unless it is settled; ``settled_at`` is aware UTC.

    ``amount_paid_msat`` may be more than was asked for. ``preimage`` is 32 bytes that hash to the payment hash.
    """

    state: InvoiceStatus
    amount_paid_msat: Msat | None = None
    settle_index: int | None = None
    settled_at: datetime | None = None
    preimage: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Settled:
    """An invoice that was paid, ours or another's; ``settled_at`` is aware UTC.

    ``settle_index`` grows with each; one that is stored together with what came of it says where to go on from.
    """

    payment_hash: bytes
    amount_paid_msat: Msat
    settle_index: int
    settled_at: datetime
