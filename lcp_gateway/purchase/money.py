"""Money: amounts in whole millisatoshi, what a customer is charged and refunded, and budgets."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, NewType

from lcp_gateway.constants import MSAT_PER_SAT, PPM
from lcp_gateway.purchase.states import VERDICTS, State, Verdict

Msat = NewType("Msat", int)
"""An amount in millisatoshi (1 sat = 1,000 msat)."""

LARGEST_MSAT = Msat(2**50)
"""11,000 bitcoin: nothing that is real costs so much, and no sum of what is below overflows 64 bits."""


def format_sat(amount: Msat) -> str:
    """Return the amount in sat with three decimals, exactly: 57372 -> ``57.372 sat``."""
    sign = "-" if amount < 0 else ""
    whole, rest = divmod(abs(amount), MSAT_PER_SAT)
    return f"{sign}{whole:,}.{rest:03d} sat"


PPM_PER_PERCENT: Final = 10_000


def to_ppm(percent: float) -> int:
    """Return a percentage in millionths."""
    return round(percent * PPM_PER_PERCENT)


_NOTHING = Msat(0)


@dataclass(frozen=True, slots=True)
class Markup:
    """The addition to a price: a share of it in millionths (50,000 is 5 %), and a fixed amount.

    Raises:
        ValueError: one of them is negative.
    """

    ppm: int = 0
    fixed_msat: Msat = _NOTHING

    def __post_init__(self) -> None:
        if self.ppm < 0 or self.fixed_msat < 0:
            raise ValueError("a mark-up is not negative")

    def charge_msat(self, price_msat: int) -> Msat:
        """Return the charge for this price, rounded up."""
        return Msat(price_msat + self.fixed_msat - (-price_msat * self.ppm // PPM))


NO_MARKUP = Markup()


@dataclass(frozen=True, slots=True)
class LossRange:
    """The prices at which a mark-up does not cover the estimated routing fee; ``below_msat`` is None for no end."""

    from_msat: int
    below_msat: int | None


def loss_range(markup: Markup, fee_ppm: int, fee_base_msat: int) -> LossRange | None:
    """Return the prices at which an operator pays more for the route than the mark-up brings; None where there are none.

    The mark-up brings ``fixed_msat + ppm * price``, the route costs ``fee_base_msat + fee_ppm * price``: two lines,
    which cross at ``(fee_base_msat - fixed_msat) / (ppm - fee_ppm)`` where they do.
    """
    missing_msat = fee_base_msat - markup.fixed_msat
    gained_ppm = markup.ppm - fee_ppm
    if missing_msat <= 0 and gained_ppm >= 0:
        return None
    if missing_msat >= 0 and gained_ppm <= 0:
        return LossRange(0, None)
    crossing_msat = -(-missing_msat * PPM // gained_ppm)
    return LossRange(0, crossing_msat) if gained_ppm > 0 else LossRange(crossing_msat, None)


@dataclass(frozen=True, slots=True)
class Tariff:
    """The mark-up of each model; ``default`` is that of every other."""

    default: Markup = NO_MARKUP
    by_model: Mapping[str, Markup] = field(default_factory=dict)

    def markup_for(self, model: str) -> Markup:
        """Return the mark-up of a model."""
        return self.by_model.get(model, self.default)

    def charge_msat(self, model: str, price_msat: int) -> Msat:
        """Return the charge for a result of this model that is bought at this price."""
        return self.markup_for(model).charge_msat(price_msat)


@dataclass(frozen=True, slots=True)
class Charge:
    """The charge of a purchase to a customer's account.

    ``amount_msat`` is the most that it can be, and is held until more is known. Where the price turns out to be lower,
    the charge is recomputed with ``markup``. ``refund_undelivered`` says that it is refunded where no whole result
    came.
    """

    account_id: str
    amount_msat: Msat
    markup: Markup
    refund_undelivered: bool = False

    def due_msat(self, state: State) -> Msat:
        """The present charge of the customer; the only place that computes it.

        Nothing where nothing was paid, or where the charge of an undelivered purchase is refunded.
        """
        is_refunded = self.refund_undelivered and state is State.UNDELIVERED
        return _NOTHING if is_refunded or VERDICTS[state] is Verdict.NONE else self.amount_msat

    def held_msat(self, state: State) -> Msat:
        """The part of ``due_msat`` that is held: all, while it is not known whether the provider was paid."""
        return self.amount_msat if VERDICTS[state] is Verdict.UNKNOWN else _NOTHING

    def taken_msat(self, state: State) -> Msat:
        """The part of ``due_msat`` that was taken: all of it, once the provider was paid."""
        return self.due_msat(state) if VERDICTS[state] is Verdict.SETTLED else _NOTHING

    def lowered_to(self, price_msat: int) -> "Charge":
        """Return the charge where the provider's price turned out to be lower; it never grows."""
        return replace(self, amount_msat=min(self.amount_msat, self.markup.charge_msat(price_msat)))


class Period(enum.StrEnum):
    """The calendar periods of a budget, in UTC."""

    HOUR = "hour"
    DAY = "day"
    MONTH = "month"


@dataclass(frozen=True, slots=True)
class Budget:
    """At most ``limit_msat`` in each period; for one credential, or for all when ``key_id`` is None."""

    period: Period
    limit_msat: Msat
    key_id: str | None = None


class Refund(enum.StrEnum):
    """The outcome of the refund of a charge. The value is stored and shown to the customer."""

    GIVEN = "given"
    """It was refunded at once."""
    WITHHELD = "withheld"
    """A limit was reached: the operator decides."""
    GRANTED = "granted"
    """It was withheld, and the operator refunded it."""
    DENIED = "denied"
    """It was withheld, and the operator kept it."""


REFUND_MESSAGES: Final = MappingProxyType(
    {
        Refund.GIVEN: "the charge was refunded",
        Refund.WITHHELD: "the charge is withheld until the operator decides: a limit of refunds is reached",
        Refund.GRANTED: "the operator refunded the charge",
        Refund.DENIED: "the operator kept the charge",
    }
)
"""The messages for the customer."""


@dataclass(frozen=True, slots=True)
class RefundLimits:
    """The most that is refunded in a calendar day (UTC) without a decision of the operator; 0 sets no limit.

    A refund counts with the amount refunded or the amount paid to the provider (price and fee), whichever is more, so
    that the limit bounds what the operator can lose.
    """

    account_day_msat: int = 0
    day_msat: int = 0


NO_REFUND_LIMITS = RefundLimits()


@dataclass(frozen=True, slots=True)
class RefundDecision:
    """The decision on the charge of one purchase; ``amount_msat`` is the charge."""

    job_id: bytes
    account_id: str
    amount_msat: int
    refund: Refund
