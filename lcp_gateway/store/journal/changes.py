"""What changed lately, by the time of the change: read in one view, and no row whose change is known already.

A change has the time of the gateway that made it, and becomes visible with its commit, a little later: a reader looks back a
few seconds each time, and tells by ``Watched.seen`` what it has had.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from sqlalchemy import Connection, or_, select

from lcp_gateway.accounts.feed import Changes, Watched
from lcp_gateway.accounts.models import Balance, Topup, TopupState
from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.records import PurchaseRecord
from lcp_gateway.store.accounts.topups import topup_of
from lcp_gateway.store.database.engines import Database
from lcp_gateway.store.database.schema import balances, purchases, topups
from lcp_gateway.store.database.statements import read_records
from lcp_gateway.store.database.times import to_micros
from lcp_gateway.store.journal.purchases import record_of

_MOST_ROWS: Final = 5_000
_MOST_TOPUPS: Final = 1_000


class ChangedRows:
    """Reads changes; implements ``ChangeFeed``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def changes(self, watched: Watched, *, limit: int) -> Changes:
        """Return what changed, ``limit`` purchases at most."""

        def work(connection: Connection) -> Changes:
            found, is_cut = _purchases(connection, watched, limit)
            return Changes(found, is_cut, _balances(connection, watched), _topups(connection, watched))

        return await self._database.read(work)


def _purchases(connection: Connection, watched: Watched, limit: int) -> tuple[Sequence[PurchaseRecord], bool]:
    # The rows are wide, and most of them were seen: their ids and times are in the index.
    query = (
        select(purchases.c.job_id, purchases.c.updated_at)
        .where(purchases.c.updated_at >= to_micros(watched.since))
        .order_by(purchases.c.updated_at.desc(), purchases.c.job_id)
        .limit(_MOST_ROWS)
    )
    if not watched.is_whole:
        query = query.where(
            or_(purchases.c.account_id.in_(watched.account_ids), purchases.c.key_id.in_(watched.key_ids))
        )
    rows = connection.execute(query).all()
    wanted = [job_id for job_id, at in rows if watched.seen.get(job_id) != at]
    is_cut = len(wanted) > limit or len(rows) == _MOST_ROWS
    if not wanted:
        return (), is_cut
    full = select(purchases).where(purchases.c.job_id.in_(wanted[:limit]))
    return sorted(read_records(connection, full, record_of), key=lambda record: record.updated_at), is_cut


def _balances(connection: Connection, watched: Watched) -> Mapping[str, Balance]:
    if not watched.account_ids:
        return {}
    query = select(balances).where(balances.c.account_id.in_(watched.account_ids))
    return {
        row["account_id"]: Balance(Msat(row["balance_msat"]), Msat(row["held_msat"]))
        for row in connection.execute(query).mappings()
    }


def _topups(connection: Connection, watched: Watched) -> Sequence[Topup]:
    if not (watched.is_whole or watched.account_ids):
        return ()
    is_open = topups.c.state == TopupState.OPEN.value
    query = select(topups).where(is_open).order_by(topups.c.expires_at.desc()).limit(_MOST_TOPUPS)
    if not watched.is_whole:
        query = query.where(topups.c.account_id.in_(watched.account_ids))
    found = read_records(connection, query, topup_of)
    ended = watched.open_topups - {topup.id for topup in found}
    if ended:
        found += read_records(connection, select(topups).where(topups.c.id.in_(ended)), topup_of)
    return found
