"""The states of a purchase: one table, which the code executes and from which the docs' diagram is drawn."""

import enum
from collections.abc import Mapping
from types import MappingProxyType


class State(enum.StrEnum):
    """Where a purchase stands. The value is the word used in logs, metrics and docs."""

    QUOTED = "quoted"
    REFUSED = "refused"
    EXPIRED = "expired"
    PAYING = "paying"
    NOT_PAID = "not_paid"
    UNKNOWN = "unknown"
    SETTLED = "settled"
    DELIVERED = "delivered"
    UNDELIVERED = "undelivered"


class PurchaseEvent(enum.StrEnum):
    """The events of a purchase."""

    REFUSE = "refuse"
    """A check refused it."""
    EXPIRE = "expire"
    """The quote expired before it was taken."""
    PAY = "pay"
    """The one call that may pay is about to go out."""
    FAIL_PAYMENT = "fail_payment"
    """There is evidence that nothing was paid."""
    LOSE_SIGHT = "lose_sight"
    """The call ended and it is not known whether it paid."""
    SETTLE = "settle"
    """There is evidence that the payment went through."""
    DELIVER = "deliver"
    """The whole result arrived, and its hash and length are right."""
    FAIL_DELIVERY = "fail_delivery"
    """Paid, and no whole result will come."""
    ABANDON = "abandon"
    """Paid, and the client did not want the rest of its result."""


TRANSITIONS: Mapping[State, Mapping[PurchaseEvent, State]] = MappingProxyType(
    {
        State.QUOTED: {
            PurchaseEvent.REFUSE: State.REFUSED,
            PurchaseEvent.EXPIRE: State.EXPIRED,
            PurchaseEvent.PAY: State.PAYING,
        },
        State.PAYING: {
            PurchaseEvent.FAIL_PAYMENT: State.NOT_PAID,
            PurchaseEvent.LOSE_SIGHT: State.UNKNOWN,
            PurchaseEvent.SETTLE: State.SETTLED,
        },
        State.UNKNOWN: {
            PurchaseEvent.FAIL_PAYMENT: State.NOT_PAID,
            # By the gateway that bought it, after another gateway had mistaken it for dead.
            PurchaseEvent.SETTLE: State.SETTLED,
            # By any other party, which has no result to go with the evidence.
            PurchaseEvent.FAIL_DELIVERY: State.UNDELIVERED,
        },
        State.SETTLED: {
            PurchaseEvent.DELIVER: State.DELIVERED,
            PurchaseEvent.FAIL_DELIVERY: State.UNDELIVERED,
            PurchaseEvent.ABANDON: State.UNDELIVERED,
        },
        State.REFUSED: {},
        State.EXPIRED: {},
        State.NOT_PAID: {},
        State.DELIVERED: {},
        State.UNDELIVERED: {},
    }
)


class Verdict(enum.StrEnum):
    """Whether money was paid, as every response says it in ``X-Lcp-Payment``."""

    NONE = "none"
    SETTLED = "settled"
    UNKNOWN = "unknown"


VERDICTS: Mapping[State, Verdict] = MappingProxyType(
    {
        State.QUOTED: Verdict.NONE,
        State.REFUSED: Verdict.NONE,
        State.EXPIRED: Verdict.NONE,
        State.NOT_PAID: Verdict.NONE,
        # Until more is known of it, a payment under way counts as one that may have happened.
        State.PAYING: Verdict.UNKNOWN,
        State.UNKNOWN: Verdict.UNKNOWN,
        State.SETTLED: Verdict.SETTLED,
        State.DELIVERED: Verdict.SETTLED,
        State.UNDELIVERED: Verdict.SETTLED,
    }
)


class IllegalTransition(RuntimeError):
    """The table has no such move: a bug in the gateway, and never a reason to pay."""


def step(state: State, event: PurchaseEvent) -> State:
    """Return the state that follows.

    Raises:
        IllegalTransition: the table does not allow ``event`` in ``state``.
    """
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise IllegalTransition(f"a {state} purchase cannot {event}") from None
