"""An lnd's state, payments and invoices as it reports them, in types that import nothing of gRPC."""

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Final

from lcp_gateway.purchase.money import Msat
from lcp_gateway.upstream_status import UpstreamStatus

INVOICE_PREFIXES: Final = MappingProxyType(
    {"mainnet": "bc", "testnet": "tb", "testnet4": "tb", "signet": "tbs", "regtest": "bcrt", "simnet": "sb"}
)
"""The prefix of invoices on each network, by lnd's name of it."""


@dataclass(frozen=True, slots=True)
class LndInfo:
    """An lnd's own state. ``identity`` is 66 hex digits, ``network`` lnd's name of it ("mainnet", "regtest", …)."""

    identity: str
    alias: str
    version: str
    network: str
    synced_to_chain: bool
    synced_to_graph: bool
    block_height: int
    peers: int
    channels_active: int
    channels_inactive: int
    channels_pending: int

    @property
    def invoice_prefix(self) -> str | None:
        """The prefix of this network's invoices; None for an unknown network."""
        return INVOICE_PREFIXES.get(self.network)


@dataclass(frozen=True, slots=True)
class LndBalance:
    """Sums over all open channels, channel reserves included; ``pending_…`` is in channels that are being opened."""

    local_msat: Msat
    remote_msat: Msat
    unsettled_local_msat: Msat
    pending_local_msat: Msat


class PaymentState(enum.StrEnum):
    """The state of a payment in lnd."""

    IN_FLIGHT = "in_flight"
    """In flight, which may last for days: the expiry of its invoice does not end it."""
    SETTLED = "settled"
    FAILED = "failed"
    UNKNOWN_TO_LND = "unknown_to_lnd"
    """This lnd has no record of it. The caller decides whether that is evidence."""


class FailureReason(enum.StrEnum):
    """Lnd's reason for a failed payment."""

    TIMEOUT = "timeout"
    NO_ROUTE = "no_route"
    ERROR = "error"
    INCORRECT_PAYMENT_DETAILS = "incorrect_payment_details"
    INSUFFICIENT_BALANCE = "insufficient_balance"
    CANCELLED = "cancelled"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class PaymentRecord:
    """One payment in lnd.

    ``payment_hash`` and ``preimage`` are 32 bytes, the latter as lnd returned it and unchecked. Amounts, fee and
    preimage are None where lnd has none; ``created_at`` is aware UTC.
    """

    payment_hash: bytes
    state: PaymentState
    amount_msat: Msat | None = None
    fee_msat: Msat | None = None
    preimage: bytes | None = field(default=None, repr=False)
    failure: FailureReason | None = None
    created_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class PaymentPage:
    """A part of lnd's list of payments, oldest first: each with its index, by which the list is read on.

    ``count`` is how many lnd sent; malformed ones are not among ``payments``.
    """

    payments: Sequence[tuple[int, PaymentRecord]]
    count: int
    first_index: int
    last_index: int

    def records(self) -> Iterator[PaymentRecord]:
        """Yield the payments without their indices."""
        return (record for _, record in self.payments)


class LndError(Exception):
    """A call to lnd failed; ``message`` is lnd's or gRPC's text, ``retryable`` says that a later call may succeed."""

    def __init__(self, status: UpstreamStatus, message: str, *, retryable: bool) -> None:
        super().__init__(f"lnd: {status}: {message}")
        self.status = UpstreamStatus(status)
        self.message = message
        self.retryable = retryable


class InvoiceStatus(enum.StrEnum):
    """The state of an invoice of ours in lnd."""

    OPEN = "open"
    """Not paid. Money may be on its way until lnd cancels the invoice."""
    ACCEPTED = "accepted"
    """A hold invoice whose payment has arrived, and waits to be settled or cancelled."""
    SETTLED = "settled"
    CANCELED = "canceled"
    """It has expired or was withdrawn, and can no longer be paid."""
    UNKNOWN_TO_LND = "unknown_to_lnd"
    """This lnd has no record of it. The caller decides whether that is evidence."""


class InvoiceFlaw(enum.StrEnum):
    """The respect in which an invoice is not the one that was asked for. The value is fit for a metric's label."""

    MALFORMED = "malformed"
    NETWORK = "network"
    PAYEE = "payee"
    AMOUNT = "amount"
    DESCRIPTION = "description"
    PAYMENT_HASH = "payment_hash"
    EXPIRY = "expiry"


class WrongInvoice(Exception):
    """lnd made another invoice than it was asked for, which must not be handed out. ``flaw`` says how it differs."""

    def __init__(self, flaw: InvoiceFlaw) -> None:
        super().__init__(f"lnd made an invoice that is not what was asked for: {flaw}")
        self.flaw = flaw


class SettlementsInterrupted(LndError):
    """The subscription to settlements ended; follow again from the last settle index, after a pause.

    ``status`` is CANCELLED where lnd ended it in good order, as it does when it is stopped.
    """


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """The node that issues invoices: ``node_id`` is 66 hex digits, ``network`` the prefix of its invoices, if known."""

    node_id: str
    network: str | None


@dataclass(frozen=True, slots=True)
class CreatedInvoice:
    """An invoice to be paid; ``payment_hash`` is 32 bytes, ``expires_at`` aware UTC."""

    payment_request: str
    payment_hash: bytes
    add_index: int
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class InvoiceState:
    """The state of an invoice. All fields but ``state`` are None unless it is settled; ``settled_at`` is aware UTC.

    ``amount_paid_msat`` may be more than was asked for. ``preimage`` is 32 bytes that hash to the payment hash.
    """

    state: InvoiceStatus
    amount_paid_msat: Msat | None = None
    settle_index: int | None = None
    settled_at: datetime | None = None
    preimage: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class SettledInvoice:
    """An invoice that was paid, of the gateway or of another program; ``settled_at`` is aware UTC.

    ``settle_index`` grows with each; the last one stored is where to follow on from.
    """

    payment_hash: bytes
    amount_paid_msat: Msat
    settle_index: int
    settled_at: datetime
