"""Inspection: the checks that a quote passes before it is shown or compared, and again right before it is paid."""

from collections.abc import Callable
from datetime import datetime
from typing import Final

from lcp_gateway.clock import utc_now
from lcp_gateway.purchase.errors import QuoteExpired
from lcp_gateway.purchase.limits import SpendingLimits
from lcp_gateway.purchase.order import Order
from lcp_gateway.purchase.ports import Exposure
from lcp_gateway.purchase.purchase import Purchase
from lcp_gateway.purchase.quote import ProviderSource, Quote

# Named here: see execution.py.
_NODE: Final = ProviderSource.NODE

CheckInvoice = Callable[[Order, Quote], bytes]
"""Checks that a peer's quote is for the task and its invoice for the quote; returns the payment hash of the invoice.

Raises ``Refused`` for a quote that is not what it says it is.
"""


class QuoteInspector:
    """Checks quotes: they match their terms, are within the limits, and their peers are trusted with the price."""

    def __init__(
        self,
        *,
        limits: SpendingLimits,
        exposure: Exposure,
        check_invoice: CheckInvoice,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._limits = limits
        self._exposure = exposure
        self._check_invoice = check_invoice
        self._now = now

    def at_quote(self, order: Order, quote: Quote) -> bytes | None:
        """Check a quote that has just come; return the payment hash of its invoice, None for a node's quote.

        Raises:
            Refused: it may not be bought.
        """
        payment_hash = None
        # The gateway itself estimated the price of a node, from the price list that the operator set.
        if quote.source is not _NODE:
            # Before the invoice, which expires with its quote: a quote that came late is not one that lies.
            if self._now() >= quote.expires_at:
                raise QuoteExpired(
                    "the quote had expired when it came: it took too long, or the provider's clock and the gateway's differ; "
                    "nothing was paid",
                    quote=quote,
                )
            payment_hash = self._check_invoice(order, quote)
            self._exposure.quoted(quote.peer_id)
        self._limits.check_price(order, quote)
        # Weighed, not held: most quotes are asked for and not taken. ``before_paying`` holds it.
        self._exposure.weigh(quote)
        return payment_hash

    def before_paying(self, purchase: Purchase) -> None:
        """Check a quote that is about to be paid, and hold its price of what its peer is trusted with.

        Sets the purchase's payment hash where it has none, and its charge.

        Raises:
            Refused: it may not be bought.
        """
        order, quote = purchase.order, purchase.quote
        self._exposure.check(quote)
        if purchase.payment_hash is None:
            purchase.payment_hash = self.at_quote(order, quote)
        # Again, with the amounts that are recorded now: the limits may have been changed since the quote was inspected.
        self._limits.check_price(order, quote)
        purchase.charge = self._limits.charge_for(order, quote)
