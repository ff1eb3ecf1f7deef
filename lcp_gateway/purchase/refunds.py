"""Refunds: whether a charge that is to be given back is, within what the operator gives back a day without looking."""

import enum
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


class Refund(enum.StrEnum):
    """What became of a charge that was to be given back. The value is stored, and told to the customer."""

    GIVEN = "given"
    """It was given back at once."""
    WITHHELD = "withheld"
    """A limit was reached: the operator decides."""
    GRANTED = "granted"
    """It was withheld, and the operator gave it back."""
    DENIED = "denied"
    """It was withheld, and the operator kept it."""


WORDS: Final = MappingProxyType(
    {
        Refund.GIVEN: "the charge was given back",
        Refund.WITHHELD: "the charge is withheld until the operator decides: a limit of refunds is reached",
        Refund.GRANTED: "the operator gave the charge back",
        Refund.DENIED: "the operator kept the charge",
    }
)
"""What the customer is told."""


@dataclass(frozen=True, slots=True)
class RefundLimits:
    """What is given back at most in a calendar day (UTC) without the operator looking; 0 sets no limit.

    A refund counts with what is given back or with what the provider was paid (price and fee), whichever is more, so that
    the limit bounds what the operator can lose.
    """

    account_day_msat: int = 0
    day_msat: int = 0


NO_LIMITS = RefundLimits()


@dataclass(frozen=True, slots=True)
class RefundDecision:
    """What was decided on the charge of one purchase; ``amount_msat`` is the charge."""

    job_id: bytes
    account_id: str
    amount_msat: int
    refund: Refund
