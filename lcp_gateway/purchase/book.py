"""Quotes that were shown to a client and can still be taken, each once."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from lcp_gateway.purchase.errors import PurchaseError, QuoteExpired
from lcp_gateway.purchase.market import Offer
from lcp_gateway.purchase.order import Order
from lcp_gateway.purchase.quote import Quote

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
        """The name by which it is taken."""
        return quote_id(self.offer.quote)


def quote_id(quote: Quote) -> str:
    """Give the name under which a quote can be taken."""
    return f"quote_{quote.job_id.hex()}"


def job_of(name: str) -> bytes | None:
    """Return the job of a quote's name; None for what is none."""
    prefix, _, digits = name.partition("_")
    try:
        job_id = bytes.fromhex(digits)
    except ValueError:
        return None
    return job_id if prefix == "quote" and len(job_id) == _JOB_ID_BYTES else None


class QuoteBook:
    """Holds quotes until they are taken or run out."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._held: OrderedDict[str, HeldQuote] = OrderedDict()

    def hold(self, held: HeldQuote) -> str:
        """Hold a quote; gives its id."""
        self._held[held.id] = held
        while len(self._held) > _MAX_QUOTES:
            self._held.popitem(last=False)
        return held.id

    def has(self, order: Order, name: str) -> bool:
        """Return whether a quote is held that was shown to this credential."""
        held = self._held.get(name)
        return held is not None and held.order.key_id == order.key_id

    def take(self, order: Order, name: str) -> Offer:
        """Give the offer of that id and forget it: nobody else can take it.

        Raises:
            UnknownQuote: nobody holds such a quote, or it was shown to another credential.
            QuoteForAnotherBody: the request is not the one that was quoted.
            QuoteExpired: it has run out.
        """
        held = self._held.get(name)
        if held is None or held.order.key_id != order.key_id:
            raise UnknownQuote(NO_SUCH_QUOTE)
        quote = held.offer.quote
        if self._now() >= quote.expires_at:
            del self._held[name]
            raise QuoteExpired(
                "the quote has expired; nothing was paid", quote=quote, was_named=True
            )
        same_kind = held.order.task.kind is order.task.kind
        if held.order.body_sha256 != order.body_sha256 or not same_kind:
            raise QuoteForAnotherBody("the quote is for another request", quote=quote)
        del self._held[name]
        return held.offer
