"""Retention: ended purchases are deleted when they are old, and old repeat keys are released."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, bindparam, delete, func, select

from lcp_gateway.purchase.money import Refund
from lcp_gateway.store.database import cursors
from lcp_gateway.store.database.engines import Database
from lcp_gateway.store.database.schema import OPEN_STATES, budget_spend, purchases
from lcp_gateway.store.database.times import LONGEST_PERIOD, to_micros
from lcp_gateway.store.journal.repeats import release_keys

_LONGEST_S: Final = 86_400.0
"""How long a repeat key counts at most."""

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
    """How many rows were deleted."""

    purchases: int
    counters: int


async def forget(database: Database, before: datetime, *, at_once: int = 500) -> Forgotten:
    """Delete ended purchases that last changed before a time, in short transactions of ``at_once`` purchases.

    Open purchases stay, however old. Counters of periods that had ended by then are deleted as well.

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
    counters = await database.write(lambda connection: connection.execute(_DELETE_COUNTERS, {"before": ended}).rowcount)
    return Forgotten(total, counters)


def _forget_some(connection: Connection, before: datetime, at_once: int) -> int:
    job_ids = connection.execute(_OLD, {"before": to_micros(before), "at_most": at_once}).scalars().all()
    if job_ids:
        connection.execute(_DELETE, {"job_ids": job_ids})
    return len(job_ids)


_WITH_OLD_KEYS = (
    select(purchases.c.job_id, purchases.c.paying_at, purchases.c.repeat_key)
    .where(purchases.c.paying_at > bindparam("after"), purchases.c.paying_at <= bindparam("upto"))
    .order_by(purchases.c.paying_at)
    .limit(bindparam("at_most"))
)


async def forget_repeat_keys(database: Database, now: datetime, *, at_once: int = 500) -> int:
    """Release expired repeat keys, reading ``at_once`` purchases at most; return how many were read.

    The position is kept in the database, so that no purchase is read twice. To be called from time to time.

    Raises:
        DatabaseUnavailable: nothing was changed.
    """
    upto = to_micros(now) - int(_LONGEST_S * 1_000_000)

    def work(connection: Connection) -> int:
        after = cursors.get(connection, cursors.REPEAT_KEYS)
        old = connection.execute(_WITH_OLD_KEYS, {"after": after, "upto": upto, "at_most": at_once}).all()
        if not old:
            return 0
        if keyed := sorted(job_id for job_id, _, key in old if key is not None):
            release_keys(connection, keyed)
        first, last = old[0].paying_at, old[-1].paying_at
        # There may be more purchases of the last one's time: they are read again.
        is_cut = len(old) == at_once and first < last
        cursors.advance(connection, cursors.REPEAT_KEYS, last - 1 if is_cut else last)
        return len(old)

    return await database.write(work)
