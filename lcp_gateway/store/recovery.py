"""What becomes of purchases that nobody works on any more: those of dead processes, and those that were unknown."""

from datetime import datetime

from sqlalchemy import Connection, bindparam, select

from lcp_gateway.purchase.journal import Learnt
from lcp_gateway.purchase.quote import Source
from lcp_gateway.purchase.states import State
from lcp_gateway.store.batch import Batch
from lcp_gateway.store.database import Database
from lcp_gateway.store.entries import NOTHING_NEW, NoteEntry
from lcp_gateway.store.tables import purchases

_SWEEP_AT_ONCE = 500

_OWNERS = select(purchases.c.owner).where(purchases.c.state == State.PAYING.value).distinct()
_LEFT_PAYING = (
    select(purchases.c.job_id, purchases.c.kind)
    .where(purchases.c.state == State.PAYING.value, purchases.c.owner == bindparam("of_owner"))
    .order_by(purchases.c.paying_at)
    .limit(_SWEEP_AT_ONCE)
)
# A node has no payment to look up later: what it was handed and did not refuse counts as bought.
_BECOMES = {
    Source.LCP.value: (State.UNKNOWN,),
    Source.NODE.value: (State.SETTLED, State.UNDELIVERED),
}
_STATE = select(purchases.c.state).where(purchases.c.job_id == bindparam("of_job"))

_PATHS = {
    State.SETTLED: (State.SETTLED,),
    State.UNDELIVERED: (State.SETTLED, State.UNDELIVERED),
    State.NOT_PAID: (State.NOT_PAID,),
}


class NotUnknown(Exception):
    """Only what is unknown can be resolved. ``state`` is where the purchase stands; None where there is none."""

    def __init__(self, state: State | None) -> None:
        stands = f"the purchase is {state}, not unknown" if state else "there is no such purchase"
        super().__init__(stands)
        self.state = state


async def sweep(database: Database, at: datetime) -> int:
    """Turn what dead processes left ``paying`` into ``unknown``, or at a node ``undelivered``; gives how many.

    Whether a process is dead is told by its lock, which the system or the server drops with it, and never by time:
    what a live process has under way is not touched. To be called at the start and from time to time.

    Raises:
        DatabaseUnavailable: nothing, or not all, could be written; another call goes on from there.
    """
    total = 0
    while swept := await database.write(lambda connection: _sweep_some(database, connection, at)):
        total += swept
    database.forget_gone()
    return total


async def resolve(
    database: Database,
    job_id: bytes,
    state: State,
    at: datetime,
    learnt: Learnt = NOTHING_NEW,
) -> None:
    """Say, on evidence, what became of an unknown purchase: ``settled``, ``undelivered`` or ``not_paid``.

    ``undelivered`` goes by way of ``settled``. Durable when this returns; budgets follow.

    Raises:
        NotUnknown: the purchase is not unknown, or is none; nothing was changed.
        ValueError: no evidence leads from unknown to this state.
        DatabaseUnavailable: it could not be written.
    """
    path = _PATHS.get(state)
    if path is None:
        raise ValueError(f"an unknown purchase is not resolved as {state}")
    notes = [
        NoteEntry(job_id, step, at, learnt if step is path[0] else NOTHING_NEW) for step in path
    ]

    def work(connection: Connection) -> None:
        stands = connection.execute(_STATE.with_for_update(), {"of_job": job_id}).scalar()
        if stands != State.UNKNOWN:
            raise NotUnknown(State(stands) if stands else None)
        Batch(database.owner, notes, []).write(connection)

    await database.write(work)


def _sweep_some(database: Database, connection: Connection, at: datetime) -> int:
    for owner in sorted(connection.execute(_OWNERS).scalars()):
        if not database.is_gone(connection, owner):
            continue
        left = connection.execute(_LEFT_PAYING, {"of_owner": owner}).all()
        # Another sweeper may have been quicker; its notes and these are the same.
        notes = [NoteEntry(job_id, state, at) for job_id, kind in left for state in _BECOMES[kind]]
        if notes:
            Batch(database.owner, notes, []).write(connection)
            # One owner a transaction, and no more of it than fits into a short one.
            return len(left)
    return 0
