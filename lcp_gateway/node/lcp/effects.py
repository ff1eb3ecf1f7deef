"""Events and effects that every machine of the protocol has: a machine takes an event and returns effects, in their order."""

from lcp_gateway.node.lcp.messages import Message
from lcp_gateway.values import value


@value
class MessageCame:
    """The peer sent a message of this version."""

    message: Message


@value
class TimerFired:
    """The time of the last ``SetTimer`` has come."""


@value
class Send:
    """Send a custom message to the peer."""

    message_type: int
    payload: bytes


@value
class SetTimer:
    """Report ``TimerFired`` at this time, in place of an earlier one that has not fired."""

    at: float
