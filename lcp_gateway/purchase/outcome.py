"""The end of a paid purchase: one table of causes and received data, which decides about charge and blame.

The code executes the table, and docs/money.md prints it. Nothing else decides whether a customer is charged for a
purchase that was paid, or whether its provider is blamed.
"""

import enum
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Protocol

from lcp_gateway.purchase.order import Task
from lcp_gateway.purchase.states import PurchaseEvent


class EndedBy(enum.StrEnum):
    """The party that ended a purchase. The value is stored, and printed by ``purchases show``."""

    PROVIDER = "provider"
    """It finished, failed, or took longer than it may."""
    CLIENT = "client"
    """It left, cancelled, or did not read until the time was over."""
    GATEWAY = "gateway"
    """It is shutting down, or has no room for the result."""
    OPERATOR = "operator"
    """The gateway was killed or crashed, or a person resolved the purchase."""
    UNKNOWN = "unknown"
    """The connection was lost while the call ran, and later evidence showed that it was paid."""


class Received(enum.StrEnum):
    """The data received for the payment. The value is stored, and printed by ``purchases show``."""

    NOTHING = "nothing"
    """Not one byte of a streamed result, or an error in place of a result."""
    PART = "part"
    """The beginning of a streamed result; or a result in one piece is still awaited."""
    ALTERED = "altered"
    """All of it, and its hash, length or status is wrong."""
    ERROR = "error"
    """All of it, hash and length are right, and it holds an error instead of a result."""
    EMPTY = "empty"
    """All of it, hash and length are right, and it is empty or not of the kind that was asked for."""
    WHOLE = "whole"
    """The whole result, and everything about it is right."""
    UNKNOWN = "unknown"
    """It cannot be known, and counts as nothing."""


@dataclass(frozen=True, slots=True)
class Ruling:
    """The consequences of an ending.

    ``keeps_charge`` says that the customer pays; otherwise the charge is given back as ``refund_undelivered`` and the
    limits of refunds say. ``blames_provider`` says that the purchase counts as lost to its provider.
    """

    event: PurchaseEvent
    keeps_charge: bool
    blames_provider: bool


_DELIVERED = Ruling(PurchaseEvent.DELIVER, keeps_charge=True, blames_provider=False)
_FAILED = Ruling(PurchaseEvent.FAIL_DELIVERY, keeps_charge=False, blames_provider=True)
# The client wanted no more of the result that its provider was sending.
_LEFT = Ruling(PurchaseEvent.ABANDON, keeps_charge=True, blames_provider=False)
# The client left, and its provider had been paid and had sent nothing.
_LEFT_WITH_NOTHING = Ruling(PurchaseEvent.ABANDON, keeps_charge=True, blames_provider=True)

_ALWAYS_FAILED = dict.fromkeys(EndedBy, _FAILED)

RULINGS: Mapping[Received, Mapping[EndedBy, Ruling]] = MappingProxyType(
    {
        Received.NOTHING: _ALWAYS_FAILED | {EndedBy.CLIENT: _LEFT_WITH_NOTHING},
        Received.PART: _ALWAYS_FAILED | {EndedBy.CLIENT: _LEFT},
        # A wrong hash or length is always the provider's fault, whatever reader and client did meanwhile.
        Received.ALTERED: _ALWAYS_FAILED,
        Received.ERROR: _ALWAYS_FAILED,
        Received.EMPTY: _ALWAYS_FAILED,
        Received.WHOLE: dict.fromkeys(EndedBy, _DELIVERED),
        # In doubt the customer is not charged.
        Received.UNKNOWN: _ALWAYS_FAILED,
    }
)


class Ending(NamedTuple):
    """How a paid purchase ended."""

    ended_by: EndedBy
    received: Received

    @property
    def ruling(self) -> Ruling:
        """The consequences."""
        return RULINGS[self.received][self.ended_by]


LOST_BY_CRASH = Ending(EndedBy.OPERATOR, Received.UNKNOWN)
"""Paid by a process that is gone: how much its client received cannot be known."""
FOUND_PAID = Ending(EndedBy.UNKNOWN, Received.NOTHING)
"""Found to be paid after the call had ended without a result."""


class Judge(Protocol):
    """Reads the bytes of one result as they come and judges them. Never raises and never delays them.

    ``free_bytes`` is how many of them the client may get now: bytes that mark the end of a result wait until the result
    is known to be whole. ``is_complete`` says that the result's own end has come, by an end mark or an error;
    ``is_flooded`` that too much follows it, and ``shows_error`` that the provider's error is among the free bytes.
    """

    @property
    def free_bytes(self) -> int: ...  # noqa: D102 - above

    @property
    def is_complete(self) -> bool: ...  # noqa: D102 - above

    @property
    def is_flooded(self) -> bool: ...  # noqa: D102 - above

    @property
    def shows_error(self) -> bool: ...  # noqa: D102 - above

    def feed(self, chunk: bytes) -> None:
        """Read the next bytes."""
        ...

    def feed_ordinary(self, chunk: bytes) -> bool:
        """Read the next bytes if they are free, and neither end nor fail anything; else return False, having read nothing."""
        ...

    def received(self) -> Received:
        """Return the verdict, once hash, length and status are known to be right: ``WHOLE``, or the flaw."""
        ...


JudgeFactory = Callable[[Task, str, str], Judge]
"""Makes the judge of a task's result, which comes with a content type and a content encoding."""


class _Satisfied:
    """Takes every result for whole."""

    __slots__ = ()
    free_bytes = sys.maxsize
    is_complete = is_flooded = shows_error = False

    def feed(self, chunk: bytes) -> None:
        pass

    def feed_ordinary(self, chunk: bytes) -> bool:  # noqa: ARG002 - it takes every chunk alike
        return True

    def received(self) -> Received:
        return Received.WHOLE


_SATISFIED = _Satisfied()


def no_judge(task: Task, content_type: str, content_encoding: str) -> Judge:  # noqa: ARG001 - it takes every result alike
    """Take every result whose hash, length and status are right for whole."""
    return _SATISFIED
