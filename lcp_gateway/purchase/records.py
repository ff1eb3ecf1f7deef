"""The journal as it is read: purchases, filters and pages of them, and the sums of spending, peers and budgets."""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from lcp_gateway.purchase.money import Budget, Charge, Msat, Period, Refund
from lcp_gateway.purchase.order import TaskKind
from lcp_gateway.purchase.outcome import RULINGS, EndedBy, Received
from lcp_gateway.purchase.states import State


@dataclass(frozen=True, slots=True)
class PurchaseRecord:
    """One purchase. Hashes are 32 bytes, times aware UTC; None means not known, or not yet.

    ``kind`` is a value of ``ProviderSource``: ``lcp`` of a Lightning peer, ``node`` of a virtual node, which sends no
    invoice. ``paying_at`` is the time of the intent. ``charge`` is None where no customer was charged; its amount is held
    while the purchase is open, and taken once it is settled. ``ended_by`` and ``received`` say how a paid purchase ended
    without a whole result, ``refund`` is the refund of its charge. ``payee_id`` is the account that earns the price without
    the operator's ``commission_ppm``, once it is delivered (``earned_msat``); None where the provider is no node of an account.
    ``response_content_type`` and ``…_encoding`` are terms of a quote of protocol version 3.
    """

    job_id: bytes
    payment_hash: bytes | None
    state: State
    kind: str
    task_kind: TaskKind
    model: str
    peer_id: str
    upstream: str
    key_id: str
    request_id: str
    price_msat: Msat
    fee_cap_msat: Msat
    fee_msat: Msat | None
    runner_up_msat: Msat | None
    terms_hash: bytes
    payment_request: str
    protocol_version: int
    request_sha256: bytes
    request_bytes: int
    stream: bool
    result_sha256: bytes | None
    result_bytes: int | None
    preimage: bytes | None
    expires_at: datetime
    paying_at: datetime
    ended_at: datetime | None
    updated_at: datetime
    owner: str
    charge: Charge | None = None
    ended_by: EndedBy | None = None
    received: Received | None = None
    refund: Refund | None = None
    unknown_at: datetime | None = None
    settled_at: datetime | None = None
    payee_id: str | None = None
    commission_ppm: int | None = None
    earned_msat: int | None = None
    response_content_type: str | None = None
    response_content_encoding: str | None = None

    @property
    def steps(self) -> "Sequence[StateChange]":
        """The states that it went through, in order; those of which the time is not known are left out."""
        times = (
            (State.PAYING, self.paying_at),
            (State.UNKNOWN, self.unknown_at),
            (State.SETTLED, self.settled_at),
            # Only the last state of all is an end.
            (self.state, self.ended_at),
        )
        return [StateChange(state, at) for state, at in times if at is not None]

    @property
    def blames_provider(self) -> bool:
        """Whether the provider is to blame for the loss; also where it is not known how the purchase ended."""
        if self.state is not State.UNDELIVERED:
            return False
        if self.ended_by is None or self.received is None:
            return True
        return RULINGS[self.received][self.ended_by].blames_provider

    @property
    def charged_msat(self) -> Msat:
        """The amount taken from the customer: 0 while it is open, and where it was not paid or was refunded."""
        return Msat(0) if self.charge is None else self.charge.taken_msat(self.state)

    @property
    def cost_msat(self) -> Msat:
        """Price and fee: the real one where it is known, else the estimated one. Also where nothing was paid."""
        fee_msat = self.fee_cap_msat if self.fee_msat is None else self.fee_msat
        return Msat(self.price_msat + fee_msat)


@dataclass(frozen=True, slots=True)
class StateChange:
    """A state and when it was entered."""

    state: State
    at: datetime


@dataclass(frozen=True, slots=True)
class PurchaseCursor:
    """A place in the list of purchases: behind this one."""

    paying_at: datetime
    job_id: bytes


@dataclass(frozen=True, slots=True)
class PurchaseFilter:
    """Restrictions of a list of purchases. ``since`` is included, ``until`` is not; both refer to ``paying_at``."""

    states: Sequence[State] | None = None
    model: str | None = None
    peer_id: str | None = None
    key_id: str | None = None
    account_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    refunds: Sequence[Refund] | None = None


@dataclass(frozen=True, slots=True)
class PurchasePage:
    """Some purchases, the newest first; ``after`` is the cursor of the next page, None at the end."""

    purchases: Sequence[PurchaseRecord]
    after: PurchaseCursor | None


@dataclass(frozen=True, slots=True)
class Spend:
    """Spending in one period, on one model of one peer, with one key.

    ``settled_msat`` is certain, ``unknown_msat`` may turn out not to have been paid; both include fees, estimated where
    the real ones are not known. ``undelivered_msat`` is the part of ``settled_msat`` that brought no result.
    """

    starts_at: datetime
    model: str
    peer_id: str
    key_id: str
    purchases: int
    settled_msat: Msat
    unknown_msat: Msat
    undelivered_msat: Msat


@dataclass(frozen=True, slots=True)
class Outstanding:
    """The open purchases, of which it is not known whether they were paid. ``oldest_at`` is the oldest unknown's time."""

    unknown: int
    unknown_msat: Msat
    oldest_at: datetime | None
    paying: int
    paying_msat: Msat


@dataclass(frozen=True, slots=True)
class PeerTotals:
    """A peer's purchases: counts and msat of the delivered ones, the undelivered ones, and the others.

    ``lost_msat`` is the part of ``undelivered_msat`` that the peer is to blame for.
    """

    peer_id: str
    delivered: int
    delivered_msat: Msat
    undelivered: int
    undelivered_msat: Msat
    not_paid: int
    unknown: int
    unknown_msat: Msat
    lost_msat: Msat


@dataclass(frozen=True, slots=True)
class BudgetState:
    """A budget in its present period, from ``starts_at`` to ``ends_at``."""

    budget: Budget
    spent_msat: Msat
    left_msat: Msat
    starts_at: datetime
    ends_at: datetime


class NotUnknown(Exception):
    """Evidence resolves only a purchase that is unknown, or that a dead gateway left settled.

    ``state`` is that of the purchase; None where there is none.
    """

    def __init__(self, state: State | None) -> None:
        if state is None:
            problem = "there is no such purchase"
        elif state in {State.PAYING, State.SETTLED}:
            problem = f"the purchase is {state}, and the gateway that bought it is running"
        else:
            problem = f"the purchase is {state}, not unknown"
        super().__init__(problem)
        self.state = state


class GroupBy(enum.StrEnum):
    """The property of purchases by which usage is added up."""

    MODEL = "model"
    KEY = "key"
    PEER = "peer"


@dataclass(slots=True)
class UsageSums:
    """Sums over purchases, unpaid ones left out.

    ``undelivered`` counts those that were paid and brought no whole result. The first three amounts are the operator's
    cost, as in ``Spend``. ``charged_msat`` was taken from customers and not refunded, ``held_msat`` is held for purchases
    that have not ended. ``sold_msat`` is the part of ``settled_msat`` that was bought for customers.
    """

    purchases: int = 0
    undelivered: int = 0
    settled_msat: int = 0
    unknown_msat: int = 0
    undelivered_msat: int = 0
    charged_msat: int = 0
    held_msat: int = 0
    sold_msat: int = 0

    def add(self, other: "UsageSums") -> None:
        """Add other sums."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(frozen=True, slots=True)
class UsageReport:
    """Usage in all, by group and by period. A group is a model, a key's id or a provider's id; None is all smaller ones.

    ``groups`` has the largest first, ``data`` the oldest period first.
    """

    totals: UsageSums
    groups: Sequence[tuple[str | None, UsageSums]]
    data: Sequence[tuple[datetime, str | None, UsageSums]]


@dataclass(frozen=True, slots=True)
class KeyUse:
    """The use of a key: its newest purchase, and the amounts that its budgets count in the periods that run now.

    ``resets_at`` is when each of these periods ends.
    """

    last_used_at: datetime | None = None
    spent_msat: Mapping[Period, Msat] = field(default_factory=dict)
    resets_at: Mapping[Period, datetime] = field(default_factory=dict)


class PurchaseBooks(Protocol):
    """The journal as HTTP reads it; ``store/journal/`` implements it, and every method raises ``DatabaseUnavailable``."""

    async def purchase(self, job_id: bytes) -> PurchaseRecord | None:
        """Return a purchase, or None."""
        ...

    async def page(
        self, which: PurchaseFilter, *, limit: int = ..., after: PurchaseCursor | None = ...
    ) -> PurchasePage:
        """Return purchases, the newest first."""
        ...

    async def budgets(self, budgets: Sequence[Budget], at: datetime) -> Sequence[BudgetState]:
        """Return the amounts spent and left of each budget at a time."""
        ...

    async def usage(
        self, by: GroupBy, period: Period, which: PurchaseFilter, *, most: int, by_charge: bool
    ) -> UsageReport:
        """Return usage by period and the ``most`` largest groups."""
        ...

    async def total(self, since: datetime) -> UsageSums:
        """Return the sums of all purchases since a time."""
        ...

    async def key_use(self, key_ids: Sequence[str], at: datetime) -> Mapping[str, KeyUse]:
        """Return the use of each key."""
        ...

    async def outstanding(self) -> Outstanding:
        """Return the sums of the open purchases."""
        ...

    async def peers(self, *, since: datetime | None = ...) -> Sequence[PeerTotals]:
        """Return the totals of each peer."""
        ...

    async def withheld(self) -> tuple[int, Msat]:
        """Return how many charges wait for the operator's decision, and their sum."""
        ...


class Resolutions(Protocol):
    """The decisions of an operator on purchases whose payment is unknown."""

    async def resolve(self, job_id: bytes, state: State, *, reason: str, actor: str, at: datetime) -> None:
        """Record the outcome of an unknown purchase: not paid, or paid and not delivered.

        Raises:
            NotUnknown: it is not unknown, or there is none; nothing was changed.
        """
        ...
