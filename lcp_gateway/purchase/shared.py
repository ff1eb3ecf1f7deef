"""What several gateways know together of what is being bought and was bought, so that a repeat may come to any of them."""

from dataclasses import dataclass, field
from typing import Protocol

from lcp_gateway.purchase.answers import Answer, Head
from lcp_gateway.purchase.errors import PurchaseError
from lcp_gateway.purchase.memory import AnswerLost, Repeat
from lcp_gateway.purchase.order import Order
from lcp_gateway.purchase.purchase import Purchase
from lcp_gateway.purchase.quote import Quote
from lcp_gateway.purchase.states import Verdict


class LostElsewhere(AnswerLost):
    """Another gateway bought it, or may have, and its answer cannot be had here."""

    request_id = ""
    """The request that bought it, where that is known: what a job in the background is polled by."""

    def __init__(self, message: str, *, verdict: Verdict, quote: Quote | None = None) -> None:
        PurchaseError.__init__(self, message, quote=quote)
        self.verdict = verdict


@dataclass(frozen=True, slots=True)
class Bought:
    """What came of the same order at another gateway: bytes, and the error that cut them short if one did."""

    purchase: Purchase
    head: Head | None
    body: bytes = field(repr=False)
    error: PurchaseError | None

    def give(self, answer: Answer) -> None:
        """Let an answer be this one, to its end."""
        answer.purchase = self.purchase
        if self.head is not None:
            answer.append(self.body)
            answer.begin(self.head)
        if self.error is not None:
            answer.fail(self.error)
        else:
            answer.end()


class Claim(Protocol):
    """The right to buy an order, which no other gateway has at the same time."""

    async def may_pay(self) -> bool:
        """Tell, right before a payment, whether the claim still stands. Once it does not, nothing may be paid."""
        ...

    async def ended(self, answer: Answer) -> None:
        """Let the others have what came of it; what cost nothing may be bought anew. Raises nothing."""
        ...


class SharedAnswers(Protocol):
    """Finds what other gateways buy and bought."""

    async def claim(self, order: Order, repeat: Repeat) -> Claim | Bought:
        """Claim an order that is about to be bought, or give what came of it elsewhere; waits while it is bought there.

        ``ended`` of the claim has to follow. While nothing can be shared every claim is granted, and it is reported.

        Raises:
            KeyReused: the idempotency key came with another body before.
            AnswerLost: it was bought, or may have been, and its answer cannot be had.
            Refused: nobody can tell.
        """
        ...
