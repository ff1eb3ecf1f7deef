"""Forgetting: purchases that ended long ago are deleted, those that are open never are."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, bindparam, delete, func, select

from lcp_gateway.purchase.refunds import Refund
from lcp_gateway.store.database import Database
from lcp_gateway.store.tables import OPEN_STATES, budget_spend, purchases
from lcp_gateway.store.times import LONGEST_PERIOD, to_micros

_OLD = (
    select(purchases.c.job_id)
    .where(
        purchases.c.paying_at < bindparam("before"),
        purchases.c.updated_at < bindparam("before"),
        purchases.c.state.not_in([state.value for state in OPEN_STATES]),
        # A charge that waits for the operator's decision is open too.
        func.coalesce(purchases.c.refund, "") != Refund.WITHHELD.value,
    )
    .order_by(purchases.c.paying_at)
    .limit(bindparam("at_most"))
)
_DELETE = delete(purchases).where(purchases.c.job_id.in_(bindparam("job_ids", expanding=True)))
_DELETE_COUNTERS = delete(budget_spend).where(budget_spend.c.starts_at < bindparam("before"))


@dataclass(frozen=True, slots=True)
class Forgotten:
    """How many rows went."""

    purchases: int
    counters: int


async def forget(database: Database, before: datetime, *, at_once: int = 500) -> Forgotten:
    """Delete what was finished and last changed before a time, in short transactions of ``at_once`` purchases.

    What is open stays, however old. Budgets of periods that had not ended by then stay as they are; the counters of
    periods that had are deleted.

    Raises:
        DatabaseUnavailable: not all could be deleted; another call goes on from there.
    """
    total = 0
    while True:
        gone = await database.write(lambda connection: _forget_some(connection, before, at_once))
        total += gone
        if gone < at_once:
            break
    ended = to_micros(before - LONGEST_PERIOD)
    counters = await database.write(
        lambda connection: connection.execute(_DELETE_COUNTERS, {"before": ended}).rowcount
    )
    return Forgotten(total, counters)


def _forget_some(connection: Connection, before: datetime, at_once: int) -> int:
    job_ids = (
        connection.execute(_OLD, {"before": to_micros(before), "at_most": at_once}).scalars().all()
    )
    if job_ids:
        # Their states go with them.
        connection.execute(_DELETE, {"job_ids": job_ids})
    return len(job_ids)
