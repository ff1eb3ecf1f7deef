"""What may be spent: caps on one purchase, and budgets for many."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lcp_gateway.purchase.errors import ChargeLimitExceeded, PriceLimitExceeded
from lcp_gateway.purchase.money import LARGEST_MSAT, Msat
from lcp_gateway.purchase.order import Order
from lcp_gateway.purchase.quote import Quote, Source
from lcp_gateway.purchase.tariff import Budget, Charge, Period, Tariff

_PPM = 1_000_000


@dataclass(frozen=True, slots=True)
class FeeReckoning:
    """The routing fee that is reckoned with before lnd tells the real one: a share of the price, and a base."""

    ppm: int = 10_000
    base_msat: int = 1_000

    def fee_msat(self, price_msat: int) -> Msat:
        """Give the fee for a price, rounded up."""
        return Msat(self.base_msat + -(-price_msat * self.ppm // _PPM))

    def fee_for(self, quote: Quote) -> Msat:
        """Give the fee for a quote; nothing is routed to a node."""
        return Msat(0) if quote.source is Source.NODE else self.fee_msat(quote.price_msat)


@dataclass(frozen=True, slots=True)
class SpendingLimits:
    """The operator's limits; 0 and an empty table mean none.

    ``max_price_msat`` and ``model_max_price_msat`` look at the price alone; ``max_total_msat`` and
    ``model_max_total_msat`` at price and fee together.
    """

    max_price_msat: int = 0
    max_total_msat: int = 0
    model_max_total_msat: Mapping[str, int] = field(default_factory=dict)
    model_max_price_msat: Mapping[str, int] = field(default_factory=dict)
    budgets: Mapping[Period, int] = field(default_factory=dict)
    key_budgets: Mapping[Period, int] = field(default_factory=dict)
    fee: FeeReckoning = FeeReckoning()
    tariff: Tariff = field(default_factory=Tariff)
    refund_undelivered: bool = False

    def check_price(self, order: Order, quote: Quote) -> None:
        """Let a quote pass that asks no more than every cap allows.

        Raises:
            PriceLimitExceeded: it asks more.
        """
        model_max_msat = self.model_max_price_msat.get(order.task.model, 0)
        for max_price_msat in (self.max_price_msat, model_max_msat):
            if max_price_msat and quote.price_msat > max_price_msat:
                raise PriceLimitExceeded(quote, max_price_msat)
        totals = [self.max_total_msat, self.model_max_total_msat.get(order.task.model, 0)]
        caps = [cap for cap in totals if cap]
        # What is above cannot be written down, whatever the operator allows.
        caps.append(LARGEST_MSAT - 1)
        charge = self.charge_for(order, quote)
        if charge is not None:
            # A customer pays the charge, and no fees.
            most_msat = LARGEST_MSAT - 1 if order.limit_msat is None else order.limit_msat
            if charge.amount_msat > most_msat:
                raise ChargeLimitExceeded(quote, charge.amount_msat, most_msat)
        elif order.limit_msat is not None:
            caps.append(order.limit_msat)
        fee_msat = self.fee.fee_for(quote)
        if quote.price_msat + fee_msat > min(caps):
            raise PriceLimitExceeded(quote, min(caps), fee_msat=fee_msat)

    def charge_for(self, order: Order, quote: Quote) -> Charge | None:
        """Give what the customer is charged for a quote at most, or None where nobody is."""
        if order.account_id is None:
            return None
        markup = self.tariff.markup_for(order.task.model)
        amount_msat = markup.charge_msat(quote.price_msat)
        return Charge(order.account_id, amount_msat, markup, self.refund_undelivered)

    def budgets_for(self, key_id: str) -> Sequence[Budget]:
        """Give the budgets that a purchase of this credential is counted in, besides its own."""
        found = [Budget(period, Msat(limit)) for period, limit in self.budgets.items() if limit]
        if key_id:
            found += [
                Budget(period, Msat(limit), key_id)
                for period, limit in self.key_budgets.items()
                if limit
            ]
        return found
