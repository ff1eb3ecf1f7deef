"""Quotes that were shown to a client and can still be taken, each once."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from lcp_gateway.purchase.errors import PurchaseError, QuoteExpired, Refused
from lcp_gateway.purchase.order import Order
from lcp_gateway.purchase.purchase import Purchase
from lcp_gateway.purchase.quote import Candidate, Quote
from lcp_gateway.purchase.quoting import Offer

_MAX_QUOTES = 10_000
_JOB_ID_BYTES = 32
NO_SUCH_QUOTE = "there is no such quote, or it has been taken"


class UnknownQuote(PurchaseError):
    """There is no such quote, or it has been taken."""


class QuoteForAnotherBody(PurchaseError):
    """The quote is for another request."""


@dataclass(frozen=True, slots=True)
class HeldQuote:
    """An offer, and the order that it was made for."""

    order: Order
    offer: Offer

    @property
    def id(self) -> str:
        """The name under which a client takes it."""
        return quote_id(self.offer.quote)


def quote_id(quote: Quote) -> str:
    """Return the name by which a quote can be taken."""
    return f"quote_{quote.job_id.hex()}"


def job_id_of(name: str) -> bytes | None:
    """Return the job id in a quote's name; None for a text that is no such name."""
    prefix, _, digits = name.partition("_")
    try:
        job_id = bytes.fromhex(digits)
    except ValueError:
        return None
    return job_id if prefix == "quote" and len(job_id) == _JOB_ID_BYTES else None


def quote_for(order: Order, offer: Offer) -> HeldQuote:
    """Return an offer for an order as it is held, without bodies."""
    return HeldQuote(order.without_body(), replace(offer, order=offer.order.without_body(), rest=()))


def good_quote(order: Order, error: Exception, purchase: Purchase | None = None) -> HeldQuote | None:
    """Return the quote of a refusal that may pass later, None where there is none. ``purchase`` is the refused one."""
    if not (isinstance(error, Refused) and error.may_pass_later and error.quote is not None):
        return None
    bought = None if purchase is None else purchase.candidate
    candidate = error.candidate or bought or Candidate(error.quote.peer_id)
    return quote_for(order, Offer(order, candidate, error.quote, None))


class HeldQuotes:
    """Holds quotes until they are taken or expire, without bodies: a request that takes a quote sends its body."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._held: OrderedDict[str, HeldQuote] = OrderedDict()

    def keep(self, held: HeldQuote) -> None:
        """Hold a quote."""
        self._held[held.id] = held
        while len(self._held) > _MAX_QUOTES:
            self._held.popitem(last=False)

    def has(self, order: Order, name: str) -> bool:
        """Return whether a quote is held that was shown to the credential of an order."""
        held = self._held.get(name)
        return held is not None and held.order.key_id == order.key_id

    def take(self, order: Order, name: str) -> Offer:
        """Return the offer of that name and drop it: it can be taken once.

        Raises:
            UnknownQuote: no such quote is held, or it was shown to another credential.
            QuoteForAnotherBody: the request is not the one that was quoted.
            QuoteExpired: it has expired.
        """
        held = self._held.get(name)
        try:
            offer = self.redeem(held, order)
        except QuoteExpired:
            del self._held[name]
            raise
        del self._held[name]
        return offer

    def redeem(self, held: HeldQuote | None, order: Order) -> Offer:
        """Return the offer of a quote that is held somewhere, for an order that takes it; drops nothing.

        Raises:
            UnknownQuote, QuoteForAnotherBody, QuoteExpired: as in ``take``.
        """
        if held is None or held.order.key_id != order.key_id:
            raise UnknownQuote(NO_SUCH_QUOTE)
        quote = held.offer.quote
        if self._now() >= quote.expires_at:
            raise QuoteExpired("the quote has expired; nothing was paid", quote=quote, was_named=True)
        same_kind = held.order.task.kind is order.task.kind
        if held.order.body_sha256 != order.body_sha256 or not same_kind:
            raise QuoteForAnotherBody("the quote is for another request", quote=quote)
        # Without its payment hash, so that it is inspected again: limits may differ from when it was shown.
        bought = order.for_task(held.offer.candidate.adapt(order.task))
        return replace(held.offer, order=bought, payment_hash=None)
