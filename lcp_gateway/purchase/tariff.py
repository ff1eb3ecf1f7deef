"""What a customer is charged: the provider's price with the operator's mark-up."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lcp_gateway.purchase.money import Msat

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
