"""What a node reports of its work, for metrics: events as they happen, and figures of the moment when they are asked for."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol as Interface


class Role(enum.StrEnum):
    """On which side of a job this node is."""

    BUYER = "buyer"
    SELLER = "seller"


class JobEnd(enum.StrEnum):
    """How a job ended. The operator's line of a sale in the store has the same word."""

    DELIVERED = "delivered"
    REFUSED = "refused"
    """The seller answered the request with an error, or the buyer did not take the quote."""
    EXPIRED = "expired"
    """A quote that was not paid in its time."""
    UNPAID = "unpaid"
    """The payment failed, or a hold invoice was cancelled: the buyer has its money."""
    CANCELLED = "cancelled"
    FAILED = "failed"
    """It was paid, and the seller says that there is no result."""
    LOST = "lost"
    """It was paid, and the result did not come, or not whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFigures:
    """A node at this moment. Links are counted by ("ready" or "connected", protocol version 2 or 3).

    ``quoted`` are quotes that are neither paid nor expired, ``running`` jobs that are paid and not ended, both by role.
    ``queued_messages`` and ``queued_bytes`` wait to be handed to the Lightning node, over all peers; ``deepest_queue_messages``
    is the longest queue of one peer. ``invoices_up`` is None where nothing is sold.
    """

    lightning_up: bool
    invoices_up: bool | None = None
    links: Mapping[tuple[str, int], int] = field(default_factory=dict)
    quoted: Mapping[Role, int] = field(default_factory=dict)
    running: Mapping[Role, int] = field(default_factory=dict)
    queued_messages: int = 0
    queued_bytes: int = 0
    deepest_queue_messages: int = 0


class NodeObserver(Interface):
    """Takes reports. Calls are cheap, made on the event loop, decide nothing and raise nothing."""

    def message(self, *, sent: bool, protocol: int, byte_count: int) -> None:
        """Count a message of LCP version 2 or 3 that was sent to a peer, or came from one; bytes of its payload."""
        ...

    def job_ended(self, *, role: Role, end: JobEnd, model: str, paid_msat: int = 0, fee_msat: int = 0) -> None:
        """Count a job that ended: the price if its payment settled, to this node or by it, and a buyer's routing fee."""
        ...


class Unobserved:
    """An observer that takes no notice."""

    def message(self, *, sent: bool, protocol: int, byte_count: int) -> None:
        """Do nothing."""

    def job_ended(self, *, role: Role, end: JobEnd, model: str, paid_msat: int = 0, fee_msat: int = 0) -> None:
        """Do nothing."""
