"""Limits before a purchase: price caps, budgets, and the loop brake against the same request sent over and over."""

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from lcp_gateway.constants import PPM
from lcp_gateway.purchase.errors import ChargeLimitExceeded, PriceLimitExceeded, Refused
from lcp_gateway.purchase.money import LARGEST_MSAT, Budget, Charge, Msat, Period, Tariff
from lcp_gateway.purchase.order import Order
from lcp_gateway.purchase.quote import ProviderSource, Quote

_NODE: Final = ProviderSource.NODE


@dataclass(frozen=True, slots=True)
class FeeEstimate:
    """The estimate of the routing fee, until lnd reports the real one: a share of the price, and a base."""

    ppm: int = 10_000
    base_msat: int = 1_000

    def fee_msat(self, price_msat: int) -> Msat:
        """Return the fee for a price, rounded up."""
        return Msat(self.base_msat + -(-price_msat * self.ppm // PPM))

    def fee_for(self, quote: Quote) -> Msat:
        """Return the fee for a quote; nothing is routed to a node."""
        return Msat(0) if quote.source is _NODE else self.fee_msat(quote.price_msat)


@dataclass(frozen=True, slots=True)
class SpendingLimits:
    """The operator's limits; 0 and an empty table mean none.

    ``max_price_msat`` and ``model_max_price_msat`` limit the price alone; ``max_total_msat`` and
    ``model_max_total_msat`` price and fee together.
    """

    max_price_msat: int = 0
    max_total_msat: int = 0
    model_max_total_msat: Mapping[str, int] = field(default_factory=dict)
    model_max_price_msat: Mapping[str, int] = field(default_factory=dict)
    budgets: Mapping[Period, int] = field(default_factory=dict)
    key_budgets: Mapping[Period, int] = field(default_factory=dict)
    fee: FeeEstimate = FeeEstimate()
    tariff: Tariff = field(default_factory=Tariff)
    refund_undelivered: bool = False

    def check_price(self, order: Order, quote: Quote) -> None:
        """Check the price of a quote against every cap.

        Raises:
            PriceLimitExceeded: it asks more.
        """
        model = order.task.model
        for max_price_msat in (self.max_price_msat, self.model_max_price_msat.get(model, 0)):
            if max_price_msat and quote.price_msat > max_price_msat:
                raise PriceLimitExceeded(quote, max_price_msat)
        # A larger amount cannot be stored, whatever the operator allows.
        max_total_msat = LARGEST_MSAT - 1
        for cap in (self.max_total_msat, self.model_max_total_msat.get(model, 0)):
            if cap and cap < max_total_msat:
                max_total_msat = cap
        charge = self.charge_for(order, quote)
        if charge is not None:
            # A customer pays the charge, and no fees.
            most_msat = LARGEST_MSAT - 1 if order.limit_msat is None else order.limit_msat
            if charge.amount_msat > most_msat:
                raise ChargeLimitExceeded(quote, charge.amount_msat, most_msat)
        elif order.limit_msat is not None and order.limit_msat < max_total_msat:
            max_total_msat = order.limit_msat
        fee_msat = self.fee.fee_for(quote)
        if quote.price_msat + fee_msat > max_total_msat:
            raise PriceLimitExceeded(quote, max_total_msat, fee_msat=fee_msat)

    def charge_for(self, order: Order, quote: Quote) -> Charge | None:
        """Return the most that the customer is charged for a quote, None where no customer is charged."""
        if order.account_id is None:
            return None
        markup = self.tariff.markup_for(order.task.model)
        amount_msat = markup.charge_msat(quote.price_msat)
        # A provider that is paid on delivery got nothing for a result that did not come: no reason to keep the charge.
        refund = self.refund_undelivered or quote.on_delivery
        return Charge(order.account_id, amount_msat, markup, refund)

    def budgets_for(self, key_id: str) -> Sequence[Budget]:
        """Return the budgets that a purchase of this credential is counted in, besides its own."""
        found = [Budget(period, Msat(limit)) for period, limit in self.budgets.items() if limit]
        if key_id:
            found += [Budget(period, Msat(limit), key_id) for period, limit in self.key_budgets.items() if limit]
        return found


WINDOW_S = 60.0
"""How long an order counts for the loop brake."""
_MAX_BODIES = 10_000


class LoopDetected(Refused):
    """The same body came too often from the same credential."""

    code = "loop_detected"

    def __init__(self, per_minute: int, wait_s: float) -> None:
        super().__init__(f"the same request came more than {per_minute} times in a minute; nothing was paid")
        self.wait_s = wait_s


class LoopBrake:
    """Lets the same body pass ``per_minute`` times for a credential; 0 turns it off."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._seen: OrderedDict[tuple[str, bytes], deque[float]] = OrderedDict()

    def use(self, per_minute: int) -> None:
        """Change the number allowed; orders of the last minute still count."""
        if per_minute == self._per_minute:
            return
        self._per_minute = per_minute
        for name, times in self._seen.items():
            self._seen[name] = deque(times, maxlen=per_minute)

    @property
    def per_minute(self) -> int:
        """How often the same body may pass; 0 where the brake is off."""
        return self._per_minute

    def check(self, order: Order) -> None:
        """Count an order.

        Raises:
            LoopDetected: there were too many like it.
        """
        if not self._per_minute:
            return
        now = self._clock()
        name = (order.key_id, order.body_sha256)
        times = self._seen.setdefault(name, deque(maxlen=self._per_minute))
        self._seen.move_to_end(name)
        while len(self._seen) > _MAX_BODIES:
            self._seen.popitem(last=False)
        if len(times) == self._per_minute and now - times[0] < WINDOW_S:
            raise LoopDetected(self._per_minute, WINDOW_S - (now - times[0]))
        times.append(now)
