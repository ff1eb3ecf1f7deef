"""Who else may do what one provider did not do, and who does it for less."""

from collections.abc import Sequence
from dataclasses import replace

from lcp_gateway.purchase.answers import Answer
from lcp_gateway.purchase.candidate import Candidate
from lcp_gateway.purchase.errors import PaymentFailed, PriceLimitExceeded, PurchaseError
from lcp_gateway.purchase.journal import InsufficientBalance
from lcp_gateway.purchase.market import Market, Offer
from lcp_gateway.purchase.order import Order
from lcp_gateway.purchase.purchase import Purchase
from lcp_gateway.purchase.quote import Source
from lcp_gateway.purchase.states import Verdict

# Failures of a node after which another provider may do the work, because the node itself has not.
_WORTH_ANOTHER = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED", "NOT_FOUND", "DATA_LOSS"})


def others(
    rest: Sequence[Candidate], answer: Answer, purchase: Purchase, error: PaymentFailed
) -> Sequence[Candidate]:
    """Give those of the rest that may do what a node did not do: none once anything was or may have been paid.

    A peer's failed payment is never repeated elsewhere: only a node's refusal is known to have cost nothing.
    """
    if (
        purchase.quote.source is not Source.NODE
        or error.verdict is not Verdict.NONE
        or error.status not in _WORTH_ANOTHER
        or answer.head is not None
    ):
        return ()
    return rest


async def cheaper(
    market: Market, order: Order, candidates: Sequence[Candidate], too_dear: InsufficientBalance
) -> Offer:
    """Give the next offer that asks less than the one that the customer cannot pay.

    Whoever asked as much or more is told that nobody takes the quote.

    Raises:
        InsufficientBalance: there is none; the one that was too dear is told.
    """
    for number, candidate in enumerate(candidates, 1):
        try:
            offer = await market.offer(order, [candidate])
        except PurchaseError as error:
            if isinstance(error, PriceLimitExceeded):
                # The market keeps such a quote for the client, who is told of another one here.
                market.drop([error.quote])
            continue
        if offer.quote.price_msat < (too_dear.quote.price_msat if too_dear.quote else 0):
            return replace(offer, rest=tuple(candidates[number:]))
        market.drop([offer.quote])
    raise too_dear
