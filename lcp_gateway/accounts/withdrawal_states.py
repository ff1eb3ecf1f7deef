"""The states of a withdrawal: one table, which the code executes and from which the docs' diagram is drawn."""

import enum
from collections.abc import Mapping
from types import MappingProxyType


class WithdrawalState(enum.StrEnum):
    """Where a withdrawal stands. The value is stored, and is the word used in the API, logs, metrics and docs."""

    REQUESTED = "requested"
    """Checked, and not written yet. Never stored."""
    AWAITING_APPROVAL = "awaiting_approval"
    APPROVED = "approved"
    PAYING = "paying"
    UNKNOWN = "unknown"
    SETTLED = "settled"
    FAILED = "failed"
    DENIED = "denied"
    CANCELED = "canceled"


class WithdrawalEvent(enum.StrEnum):
    """The events of a withdrawal."""

    HOLD = "hold"
    """It is above the amount that needs an approval."""
    APPROVE = "approve"
    DENY = "deny"
    CANCEL = "cancel"
    """The customer took it back before it was paid."""
    PAY = "pay"
    """The one call that pays is about to go out."""
    TRANSFER = "transfer"
    """Its invoice is a top-up of this gateway: the money moved inside the ledger, and no payment is made."""
    SETTLE = "settle"
    """The node holds the preimage: the invoice was paid."""
    FAIL = "fail"
    """There is evidence that nothing was paid, or the invoice expired before the call."""
    LOSE_SIGHT = "lose_sight"
    """The call ended, or its gateway did, and it is not known whether it paid."""


_STATE, _EVENT = WithdrawalState, WithdrawalEvent

TRANSITIONS: Mapping[WithdrawalState, Mapping[WithdrawalEvent, WithdrawalState]] = MappingProxyType(
    {
        _STATE.REQUESTED: {
            _EVENT.HOLD: _STATE.AWAITING_APPROVAL,
            _EVENT.PAY: _STATE.PAYING,
            _EVENT.TRANSFER: _STATE.SETTLED,
        },
        _STATE.AWAITING_APPROVAL: {
            _EVENT.APPROVE: _STATE.APPROVED,
            _EVENT.DENY: _STATE.DENIED,
            _EVENT.CANCEL: _STATE.CANCELED,
            _EVENT.FAIL: _STATE.FAILED,
        },
        _STATE.APPROVED: {
            _EVENT.PAY: _STATE.PAYING,
            _EVENT.TRANSFER: _STATE.SETTLED,
            _EVENT.DENY: _STATE.DENIED,
            _EVENT.CANCEL: _STATE.CANCELED,
            _EVENT.FAIL: _STATE.FAILED,
        },
        _STATE.PAYING: {_EVENT.SETTLE: _STATE.SETTLED, _EVENT.FAIL: _STATE.FAILED, _EVENT.LOSE_SIGHT: _STATE.UNKNOWN},
        _STATE.UNKNOWN: {_EVENT.SETTLE: _STATE.SETTLED, _EVENT.FAIL: _STATE.FAILED},
        _STATE.SETTLED: {},
        _STATE.FAILED: {},
        _STATE.DENIED: {},
        _STATE.CANCELED: {},
    }
)

OPEN_STATES = (_STATE.AWAITING_APPROVAL, _STATE.APPROVED, _STATE.PAYING, _STATE.UNKNOWN)
"""States in which the amount and the fee limit are held."""
COUNTED_STATES = (*OPEN_STATES, _STATE.SETTLED)
"""States that count against the limits of a day."""


class IllegalStep(RuntimeError):
    """The table has no such move: a bug in the gateway, and never a reason to pay."""


def step(state: WithdrawalState, event: WithdrawalEvent) -> WithdrawalState:
    """Return the state that follows.

    Raises:
        IllegalStep: the table does not allow ``event`` in ``state``.
    """
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise IllegalStep(f"a withdrawal that is {state} cannot {event}") from None
