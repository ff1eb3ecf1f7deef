"""What a customer is charged: the provider's price with the operator's mark-up."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from lcp_gateway.purchase.money import Msat

PPM_PER_PERCENT: Final = 10_000
_PPM = 1_000_000
_NOTHING = Msat(0)


@dataclass(frozen=True, slots=True)
class Markup:
    """What is added to a price: a share of it in millionths (50,000 is 5 %), and a fixed amount.

    Raises:
        ValueError: one of them is negative.
    """

    ppm: int = 0
    fixed_msat: Msat = _NOTHING

    def __post_init__(self) -> None:
        if self.ppm < 0 or self.fixed_msat < 0:
            raise ValueError("a mark-up is not negative")

    def charge_msat(self, price_msat: int) -> Msat:
        """Give what is charged for something of this price, rounded up."""
        return Msat(price_msat + self.fixed_msat - (-price_msat * self.ppm // _PPM))


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
    crossing_msat = -(-missing_msat * _PPM // gained_ppm)
    return LossRange(0, crossing_msat) if gained_ppm > 0 else LossRange(crossing_msat, None)


@dataclass(frozen=True, slots=True)
class Tariff:
    """The mark-up of each model; ``default`` is that of every other."""

    default: Markup = NO_MARKUP
    by_model: Mapping[str, Markup] = field(default_factory=dict)

    def markup_for(self, model: str) -> Markup:
        """Give the mark-up of a model."""
        return self.by_model.get(model, self.default)

    def charge_msat(self, model: str, price_msat: int) -> Msat:
        """Give what is charged for an answer of this model that is bought at this price."""
        return self.markup_for(model).charge_msat(price_msat)


@dataclass(frozen=True, slots=True)
class Charge:
    """What a customer's account is charged for a purchase.

    ``amount_msat`` is the most that it can be, and is held until more is known. Where the price turns out to be lower,
    ``markup`` tells the charge anew. ``refund_undelivered`` gives it back where no whole result came.
    """

    account_id: str
    amount_msat: Msat
    markup: Markup
    refund_undelivered: bool = False


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
