"""What a Lightning node can say of a payment, in types that need no node to be imported."""

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from lcp_gateway.purchase.money import Msat


class PaymentState(enum.StrEnum):
    """Where a payment stands in lnd."""

    IN_FLIGHT = "in_flight"
    """Begun and not ended, which may last for days: the expiry of its invoice does not end it."""
    SETTLED = "settled"
    FAILED = "failed"
    UNKNOWN_TO_LND = "unknown_to_lnd"
    """This lnd has no record of it. Whether that proves anything is for the caller to judge."""


class FailureReason(enum.StrEnum):
    """Why lnd gave a payment up."""

    TIMEOUT = "timeout"
    NO_ROUTE = "no_route"
    ERROR = "error"
    INCORRECT_PAYMENT_DETAILS = "incorrect_payment_details"
    INSUFFICIENT_BALANCE = "insufficient_balance"
    CANCELLED = "cancelled"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class PaymentRecord:
    """What lnd knows of one payment.

    ``payment_hash`` and ``preimage`` are 32 bytes, the latter as lnd gave it and unchecked. Amounts, fee and preimage
    are None where there is nothing to say; ``created_at`` is aware UTC.
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

    ``count`` is how many lnd sent; one of those that cannot be read is not among ``payments``.
    """

    payments: Sequence[tuple[int, PaymentRecord]]
    count: int
    first_index: int
    last_index: int

    def records(self) -> Iterator[PaymentRecord]:
        """Yield the payments without their indices."""
        return (record for _, record in self.payments)


class NodeInfo(Protocol):
    """The identity of a node; ``identity`` is its public key, 66 hex digits."""

    @property
    def identity(self) -> str:
        """The node's public key."""
        ...


class LndError(Exception):
    """A question to lnd had no answer.

    ``status`` is the name of a gRPC status code, ``message`` lnd's or gRPC's text, ``retryable`` says that asking again
    later may help.
    """

    def __init__(self, status: str, message: str, *, retryable: bool) -> None:
        super().__init__(f"lnd: {status}: {message}")
        self.status = status
        self.message = message
        self.retryable = retryable
