"""Events and effects that every machine of the protocol has: a machine takes an event and returns effects, in their order."""

from dataclasses import dataclass

from lcp_gateway.node.lcp.messages import Message


@dataclass(frozen=True, slots=True)
class MessageCame:
    """The peer sent a message of this version."""

    message: Message


@dataclass(frozen=True, slots=True)
class TimerFired:
    """The time of the last ``SetTimer`` has come."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send a custom message to the peer."""

    message_type: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Report ``TimerFired`` at this time, in place of an earlier one that has not fired."""

    at: float
