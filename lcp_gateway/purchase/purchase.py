"""A purchase: an order, the quote taken for it, its state, and its early end by the gateway."""

import asyncio
import enum
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Final

from lcp_gateway.purchase.errors import PurchaseError
from lcp_gateway.purchase.journal import RepeatIdentity
from lcp_gateway.purchase.money import Charge, Msat, Refund
from lcp_gateway.purchase.order import Order
from lcp_gateway.purchase.outcome import EndedBy, Ending, Ruling
from lcp_gateway.purchase.quote import Candidate, Quote
from lcp_gateway.purchase.states import VERDICTS, PurchaseEvent, State, Verdict, step

# Named here: see execution.py.
_QUOTED: Final = State.QUOTED


def not_held_up() -> bool:
    """Return False: the purchase waits for no reader."""
    return False


def not_awaited() -> bool:
    """Return False: no client waits for the result."""
    return False


class Purchase:
    """One order, for the task that is really bought, and its quote. Moves only as the state table allows.

    ``payment_hash`` is that of the quote's invoice, where there is one and it was read; ``runner_up_msat`` what the next
    best provider asked; ``charged_msat`` the final price, once that is known. ``charge`` is the customer's, if there is one.

    ``interrupted_by`` is the party because of which the gateway is ending it early, None while it is not.
    ``held_up_by_readers`` returns whether most of its time went by waiting for its readers, ``is_awaited`` whether a client
    still waits for its result. ``ending`` is how it ended, once it was paid and nothing more will come, ``refund`` the
    decision on its charge, where that was to be refunded and once that is known.
    """

    __slots__ = (
        "_decided",
        "_record_delivery",
        "_state",
        "candidate",
        "charge",
        "charged_msat",
        "ending",
        "held_up_by_readers",
        "interrupted_by",
        "is_awaited",
        "order",
        "payment_hash",
        "quote",
        "refund",
        "repeat",
        "runner_up_msat",
    )

    def __init__(
        self,
        order: Order,
        quote: Quote,
        *,
        payment_hash: bytes | None = None,
        runner_up_msat: Msat | None = None,
        candidate: Candidate | None = None,
        repeat: RepeatIdentity | None = None,
    ) -> None:
        self.order = order
        self.quote = quote
        self.candidate = candidate or Candidate(quote.peer_id)
        self.interrupted_by: EndedBy | None = None
        self.held_up_by_readers: Callable[[], bool] = not_held_up
        self.is_awaited: Callable[[], bool] = not_awaited
        self._record_delivery: Callable[[], None] | None = None
        self.ending: Ending | None = None
        self.refund: Refund | None = None
        self.charge: Charge | None = None
        self.charged_msat: Msat | None = None
        self.payment_hash = payment_hash
        self.runner_up_msat = runner_up_msat
        self.repeat = repeat
        self._state = _QUOTED
        self._decided: asyncio.Event | None = None

    @property
    def state(self) -> State:
        """Where the purchase stands."""
        return self._state

    @property
    def verdict(self) -> Verdict:
        """The present verdict on the payment; a free purchase is never paid."""
        return Verdict.NONE if self.costs_nothing else VERDICTS[self._state]

    @property
    def costs_nothing(self) -> bool:
        """Whether neither a provider nor a customer is to pay anything."""
        return self.quote.is_free and (self.charge is None or self.charge.amount_msat == 0)

    @property
    def customer_msat(self) -> Msat | None:
        """The present charge of the customer, or None where there is no customer."""
        if self.charge is None:
            return None
        return self.charge.lowered_to(self.cost_msat).due_msat(self._state)

    @property
    def cost_msat(self) -> Msat:
        """The final price, or while that is not known, the most that it can be."""
        return self.quote.price_msat if self.charged_msat is None else self.charged_msat

    @property
    def blames_provider(self) -> bool:
        """Whether a missing result is the provider's fault."""
        if self.ending is not None:
            return self.ending.ruling.blames_provider
        return self.interrupted_by is not EndedBy.CLIENT

    @property
    def awaits_refund(self) -> bool:
        """Whether its charge is to be refunded and the decision on that is not known yet."""
        return (
            self.charge is not None
            and self.refund is None
            and self._state is State.UNDELIVERED
            and self.charge.refund_undelivered
            and self.charge.amount_msat > 0
        )

    async def wait_for_refund(self, timeout_s: float) -> None:
        """Wait for the decision on a charge that is to be refunded, but not for longer than this."""
        if self.awaits_refund:
            if self._decided is None:
                self._decided = asyncio.Event()
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._decided.wait()

    def hold_delivery(self, record: Callable[[], None]) -> None:
        """Call ``record`` once its client has the whole result or has left."""
        self._record_delivery = record

    def handed_over(self) -> None:
        """Record the delivery if that was held back until now: the client has the result or has left."""
        record, self._record_delivery = self._record_delivery, None
        if record is not None:
            record()

    @property
    def holds_delivery(self) -> bool:
        """Whether its delivery is recorded only when the client has the result."""
        return self._record_delivery is not None

    def record_refund(self, refund: Refund) -> None:
        """Record the decision on its charge."""
        self.refund = refund
        if self.charge is not None:
            is_given_back = refund in {Refund.GIVEN, Refund.GRANTED}
            self.charge = replace(self.charge, refund_undelivered=is_given_back)
        if self._decided is not None:
            self._decided.set()

    def end(self, ending: Ending) -> Ruling:
        """Move a paid purchase to its end as the table of endings says; return the consequences.

        Raises:
            IllegalTransition: it is not paid, or has ended before.
        """
        ruling = ending.ruling
        self.apply(ruling.event)
        self.ending = ending
        if ruling.keeps_charge and self.charge is not None:
            self.charge = replace(self.charge, refund_undelivered=False)
        return ruling

    def apply(self, event: PurchaseEvent) -> State:
        """Move on; return the new state.

        Raises:
            IllegalTransition: the table has no such move.
        """
        self._state = step(self._state, event)
        return self._state


class InterruptReason(enum.StrEnum):
    """Why the gateway ended a purchase itself; the value is the error's code."""

    NO_LISTENER = "nobody_waits"
    SHUTTING_DOWN = "shutting_down"
    ENDED = "ended"
    TAKEN_OVER = "taken_over"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"


_ENDED_BY = {
    InterruptReason.NO_LISTENER: EndedBy.CLIENT,
    InterruptReason.SHUTTING_DOWN: EndedBy.GATEWAY,
    InterruptReason.ENDED: EndedBy.GATEWAY,
    InterruptReason.TAKEN_OVER: EndedBy.GATEWAY,
    InterruptReason.CANCELLED: EndedBy.CLIENT,
}

_MESSAGES = {
    InterruptReason.NO_LISTENER: "no client waited for the result any more",
    InterruptReason.SHUTTING_DOWN: "the gateway is shutting down and could not wait for this any longer",
    InterruptReason.ENDED: "the gateway ended the request",
    InterruptReason.TAKEN_OVER: "another gateway took the request over; nothing was paid here",
    InterruptReason.TIMED_OUT: "the purchase took longer than this gateway allows",
    InterruptReason.CANCELLED: "the client cancelled it",
}


def party_of(reason: InterruptReason, purchase: Purchase) -> EndedBy:
    """Return the party that caused an interruption; a deadline is caused by slow readers or by the provider."""
    if reason is InterruptReason.TIMED_OUT:
        return EndedBy.CLIENT if purchase.held_up_by_readers() else EndedBy.PROVIDER
    return _ENDED_BY[reason]


class Interrupted(PurchaseError):
    """The gateway itself ended the purchase."""

    def __init__(self, reason: InterruptReason, purchase: Purchase | None) -> None:
        super().__init__(_MESSAGES[reason], quote=None if purchase is None else purchase.quote)
        self.code = reason.value
        self.verdict = Verdict.NONE if purchase is None else purchase.verdict
