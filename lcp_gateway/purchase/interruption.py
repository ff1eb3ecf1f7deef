"""Purchases that the gateway itself ends: why, and the error that says so."""

import enum

from lcp_gateway.purchase.errors import PurchaseError
from lcp_gateway.purchase.outcome import EndedBy
from lcp_gateway.purchase.purchase import Purchase
from lcp_gateway.purchase.states import Verdict


class Reason(enum.StrEnum):
    """Why the gateway ended a purchase itself; the value is the error's code."""

    NOBODY_WAITS = "nobody_waits"
    SHUTTING_DOWN = "shutting_down"
    ENDED = "ended"
    TAKEN_OVER = "taken_over"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"


_ENDED_BY = {
    Reason.NOBODY_WAITS: EndedBy.CLIENT,
    Reason.SHUTTING_DOWN: EndedBy.GATEWAY,
    Reason.ENDED: EndedBy.GATEWAY,
    Reason.TAKEN_OVER: EndedBy.GATEWAY,
    Reason.CANCELLED: EndedBy.CLIENT,
}

_WORDS = {
    Reason.NOBODY_WAITS: "nobody waited for the answer any more",
    Reason.SHUTTING_DOWN: "the gateway is shutting down and could not wait for this any longer",
    Reason.ENDED: "the gateway ended the request",
    Reason.TAKEN_OVER: "another gateway took the request over; nothing was paid here",
    Reason.TIMED_OUT: "the purchase took longer than this gateway allows",
    Reason.CANCELLED: "the client cancelled it",
}


def party_of(reason: Reason, purchase: Purchase) -> EndedBy:
    """Return the party that an interruption is due to; the end of the time is its readers' doing or its provider's."""
    if reason is Reason.TIMED_OUT:
        return EndedBy.CLIENT if purchase.held_up_by_readers() else EndedBy.PROVIDER
    return _ENDED_BY[reason]


class Interrupted(PurchaseError):
    """The gateway itself ended the purchase."""

    def __init__(self, reason: Reason, purchase: Purchase | None) -> None:
        super().__init__(_WORDS[reason], quote=None if purchase is None else purchase.quote)
        self.code = reason.value
        self.verdict = Verdict.NONE if purchase is None else purchase.verdict
