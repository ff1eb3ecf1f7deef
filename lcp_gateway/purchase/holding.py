"""Quotes that are held for the client: what was only asked for, and what a limit refused that may be raised."""

from dataclasses import replace

from lcp_gateway.purchase.book import HeldQuote, QuoteBook
from lcp_gateway.purchase.candidate import Candidate
from lcp_gateway.purchase.errors import Refused
from lcp_gateway.purchase.market import Offer
from lcp_gateway.purchase.order import Order
from lcp_gateway.purchase.purchase import Purchase


class Holding:
    """Holds quotes without the bodies that they are for: these come again with the request that takes one."""

    def __init__(self, book: QuoteBook) -> None:
        self._book = book

    def take(self, order: Order, quote_name: str | None) -> Offer | None:
        """Give the quote that a request names; None where it names none.

        Raises:
            UnknownQuote, QuoteForAnotherBody, QuoteExpired: see ``QuoteBook.take``.
        """
        if quote_name is None:
            return None
        held = self._book.take(order, quote_name)
        # Without its payment hash, so that it is inspected again: limits may differ from when it was shown.
        bought = order.for_task(held.candidate.adapt(order.task))
        return replace(held, order=bought, payment_hash=None)

    def has(self, order: Order, quote_name: str) -> bool:
        """Return whether a quote of that name is held for the credential of an order."""
        return self._book.has(order, quote_name)

    def hold(self, order: Order, offer: Offer) -> HeldQuote:
        """Hold a quote for an order."""
        held = HeldQuote(
            order.without_body(), replace(offer, order=offer.order.without_body(), rest=())
        )
        self._book.hold(held)
        return held

    def hold_if_good(
        self, order: Order, error: Exception, purchase: Purchase | None = None
    ) -> bool:
        """Hold the quote of a refusal that may pass later; tells whether there is one. ``purchase`` is what was refused."""
        if isinstance(error, Refused) and error.may_pass_later and error.quote is not None:
            bought = None if purchase is None else purchase.candidate
            whose = error.candidate or bought or Candidate(error.quote.peer_id)
            self.hold(order, Offer(order, whose, error.quote, None))
            return True
        return False
