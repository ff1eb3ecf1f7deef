"""Recovery of purchases that no process works on: the sweep after a crash, and unknown purchases resolved on evidence."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from sqlalchemy import Connection, bindparam, select, text

from lcp_gateway.purchase.journal import NOTHING_NEW, PurchaseUpdate
from lcp_gateway.purchase.money import NO_REFUND_LIMITS, Msat, Refund, RefundDecision, RefundLimits
from lcp_gateway.purchase.outcome import FOUND_PAID, LOST_BY_CRASH
from lcp_gateway.purchase.quote import ProviderSource
from lcp_gateway.purchase.records import NotUnknown
from lcp_gateway.purchase.states import State
from lcp_gateway.store.database.engines import Database
from lcp_gateway.store.database.schema import purchases
from lcp_gateway.store.database.times import to_micros
from lcp_gateway.store.journal.transaction import JournalTransaction, UpdateEntry

_SWEEP_AT_ONCE = 500
_LOOK_AGAIN_S = 1.0

# The states stand in the text as they do in the indexes, so that those are used.
_LEFT_OPEN = (
    text("purchases.state IN ('paying', 'unknown') AND purchases.state = 'paying'"),
    text("purchases.state = 'settled'"),
)
_OWNERS = tuple(select(purchases.c.owner).where(left).distinct() for left in _LEFT_OPEN)
_LEFT_OF_OWNER = tuple(
    select(purchases.c.job_id, purchases.c.kind, purchases.c.state, purchases.c.peer_id, purchases.c.price_msat)
    .where(left, purchases.c.owner == bindparam("of_owner"))
    .order_by(purchases.c.paying_at)
    .limit(_SWEEP_AT_ONCE)
    for left in _LEFT_OPEN
)
_STANDS = select(purchases.c.state, purchases.c.owner).where(purchases.c.job_id == bindparam("of_job"))
_LOST = PurchaseUpdate(ending=LOST_BY_CRASH)


@dataclass(frozen=True, slots=True)
class LostPurchase:
    """A purchase that was paid, or may have been, by a process that is gone; no result counts as delivered."""

    job_id: bytes
    peer_id: str
    price_msat: Msat


@dataclass(slots=True)
class SweepResult:
    """The purchases that a sweep made ``unknown`` and ``undelivered``, and the refunds of their charges."""

    unsettled: list[LostPurchase] = field(default_factory=list)
    lost: list[LostPurchase] = field(default_factory=list)
    refunds: list[RefundDecision] = field(default_factory=list)

    @property
    def unknown(self) -> int:
        """How many became ``unknown``."""
        return len(self.unsettled)

    def __len__(self) -> int:
        """How many purchases it moved on."""
        return self.unknown + len(self.lost)


@dataclass(frozen=True, slots=True)
class Resolved:
    """The state of a purchase after it was resolved, and the refund of its charge."""

    state: State
    refunds: Sequence[RefundDecision]

    @property
    def refund(self) -> Refund | None:
        """The refund of the charge; None where there was none to refund."""
        return self.refunds[0].refund if self.refunds else None


async def sweep(database: Database, at: datetime, refunds: RefundLimits = NO_REFUND_LIMITS) -> SweepResult:
    """Move on the purchases of dead processes: ``paying`` to ``unknown``, or at a node, and ``settled``, to ``undelivered``.

    How much of a settled purchase a dead process had delivered cannot be known: the customer is not charged for it, within
    the limits of ``refunds``. A process is dead when its lock is free, which the system or the server drops with it; the
    age of a purchase is no evidence: the purchases of a live process are not touched. On PostgreSQL the lock has to be free
    for some seconds, so the first calls find nothing. To be called at the start and every few seconds.

    Raises:
        DatabaseUnavailable: not all could be written; another call goes on from there.
    """
    total = SweepResult()
    while part := await database.write(lambda connection: _sweep_some(database, connection, at, refunds)):
        total.unsettled += part.unsettled
        total.lost += part.lost
        total.refunds += part.refunds
    database.forget_gone()
    return total


async def resolve(
    database: Database,
    job_id: bytes,
    state: State,
    at: datetime,
    update: PurchaseUpdate = NOTHING_NEW,
    refunds: RefundLimits = NO_REFUND_LIMITS,
    also: Callable[[Connection], None] = lambda _connection: None,
) -> Resolved:
    """Record, on evidence, the end of an unknown purchase: ``not_paid``, or ``settled``, which becomes ``undelivered``.

    A purchase that was paid and whose call ended without a result is undelivered, whichever part of the gateway finds it
    out. A purchase that a dead gateway left ``settled`` can be resolved likewise, as the sweep does it; where it takes
    some seconds to know that the gateway is dead, this waits. Durable when this returns; budgets follow. ``also`` writes
    in the same transaction.

    Raises:
        NotUnknown: the purchase is neither, or there is none; nothing was changed.
        ValueError: no evidence leads to this state.
        DatabaseUnavailable: it could not be written.
    """
    if state not in {State.NOT_PAID, State.SETTLED, State.UNDELIVERED}:
        raise ValueError(f"an unknown purchase is not resolved as {state}")
    becomes = State.NOT_PAID if state is State.NOT_PAID else State.UNDELIVERED

    def work(connection: Connection) -> Resolved:
        found = connection.execute(_STANDS.with_for_update(), {"of_job": job_id}).one_or_none()
        if found is None:
            raise NotUnknown(None)
        stands = State(found.state)
        ending = None
        if becomes is State.UNDELIVERED:
            ending = FOUND_PAID if stands is State.UNKNOWN else LOST_BY_CRASH
        is_settled = stands is State.SETTLED and becomes is State.UNDELIVERED
        left_settled = is_settled and database.is_gone(connection, found.owner)
        if is_settled and not left_settled and database.may_be_gone(found.owner):
            raise _NotYetGone
        if stands is not State.UNKNOWN and not left_settled:
            raise NotUnknown(stands)
        entry = UpdateEntry(job_id, becomes, at, replace(update, ending=ending))
        outcome = JournalTransaction(database.owner, [entry], [], refunds).write(connection)
        also(connection)
        return Resolved(becomes, outcome.refunds)

    while True:
        try:
            return await database.write(work)
        except _NotYetGone:
            # Its owner takes its lock again, or it counts as gone after some more looks.
            await asyncio.sleep(_LOOK_AGAIN_S)


class _NotYetGone(Exception):
    """The owner's lock is free, but not yet long enough to prove that the owner is gone."""


def _sweep_some(database: Database, connection: Connection, at: datetime, refunds: RefundLimits) -> SweepResult:
    owners = {owner for query in _OWNERS for owner in connection.execute(query).scalars()}
    for owner in sorted(owners):
        if not database.is_gone(connection, owner):
            continue
        swept = SweepResult()
        # Another sweeper may have been quicker; its updates are the same as these.
        updates: list[UpdateEntry] = []
        for job_id, kind, state, peer_id, price_msat in _left(connection, owner):
            left = LostPurchase(job_id, peer_id, Msat(price_msat))
            if state == State.PAYING and kind == ProviderSource.LCP:
                updates.append(UpdateEntry(job_id, State.UNKNOWN, at))
                swept.unsettled.append(left)
                continue
            if state == State.PAYING:
                # A node has no payment to look up later: a request that it got and did not refuse counts as bought.
                updates.append(UpdateEntry(job_id, State.SETTLED, at))
            updates.append(UpdateEntry(job_id, State.UNDELIVERED, at, _LOST))
            swept.lost.append(left)
        if updates:
            # One owner a transaction, and no more of its purchases than fit into a short one.
            swept.refunds += JournalTransaction(database.owner, updates, [], refunds).write(connection).refunds
            return swept
    return SweepResult()


def _left(connection: Connection, owner: str) -> Iterable[tuple[bytes, str, str, str, int]]:
    for query in _LEFT_OF_OWNER:
        for row in connection.execute(query, {"of_owner": owner}):
            yield row.job_id, row.kind, row.state, row.peer_id, row.price_msat


async def state_of_request(database: Database, key_id: str, request_id: str, since: datetime) -> State | None:
    """Return the state of the newest purchase of a request, those not paid left out; None where nothing was paid.

    ``since`` is when a gateway that may be gone took the request up, by its own clock.

    Raises:
        DatabaseUnavailable: the database cannot be read.
    """
    query = (
        select(purchases.c.state)
        .where(
            purchases.c.paying_at >= to_micros(since),
            purchases.c.key_id == key_id,
            purchases.c.request_id == request_id,
            purchases.c.state != State.NOT_PAID.value,
        )
        .order_by(purchases.c.paying_at.desc())
        .limit(1)
    )

    def work(connection: Connection) -> State | None:
        found = connection.execute(query).scalar()
        return None if found is None else State(found)

    return await database.read(work)
