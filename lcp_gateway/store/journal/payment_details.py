"""Fees and preimages of paid purchases, which only lnd knows: the missing ones, and those that lnd reported."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TypeVar

from sqlalchemy import Connection, and_, or_, select

from lcp_gateway.lightning.lnd.payment_details import FoundDetails, MissingDetails
from lcp_gateway.purchase.journal import JournalUnavailable
from lcp_gateway.purchase.states import State
from lcp_gateway.store.database import cursors
from lcp_gateway.store.database.engines import Database, DatabaseUnavailable
from lcp_gateway.store.database.schema import HAS_NO_FEE, purchases
from lcp_gateway.store.database.statements import AnySelect, Parameters, execute_in
from lcp_gateway.store.database.times import from_micros, to_micros
from lcp_gateway.store.journal.transaction import JournalTransaction, UpdateEntry

T = TypeVar("T")

# Few enough that an intent which comes meanwhile does not wait for long.
_WRITTEN_AT_ONCE = 64
# Unknown purchases are the reconciler's, which records fee and preimage with the state.
_LEARNS = frozenset({State.PAYING, State.SETTLED, State.DELIVERED, State.UNDELIVERED})
_MISSING = (
    select(purchases.c.job_id, purchases.c.payment_hash, purchases.c.updated_at)
    .where(HAS_NO_FEE)
    .order_by(purchases.c.updated_at, purchases.c.job_id)
)
_OLDEST = select(purchases.c.paying_at).where(HAS_NO_FEE).order_by(purchases.c.paying_at).limit(1)


def _of_hashes(parameters: Parameters) -> AnySelect:
    (hashes,) = parameters
    return (
        select(purchases.c.payment_hash, purchases.c.job_id, purchases.c.fee_msat, purchases.c.state)
        .where(purchases.c.payment_hash.in_(hashes))
        .order_by(purchases.c.paying_at, purchases.c.job_id)
    )


class PaymentDetails:
    """The journal as ``lightning.lnd.payment_details`` reads and writes it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def any_missing(self) -> bool:
        """Return whether there is a paid purchase without a fee."""
        return await self._read(lambda it: it.execute(_MISSING.limit(1)).first() is not None)

    async def oldest_missing(self) -> datetime | None:
        """Return when the oldest of them was paid."""
        paying_at = await self._read(lambda it: it.execute(_OLDEST).scalar())
        return None if paying_at is None else from_micros(paying_at)

    async def awaited(self, hashes: Sequence[bytes]) -> Mapping[bytes, Sequence[bytes]]:
        """Return the jobs of these payments that have no fee, or none yet."""
        rows = await self._read(lambda it: execute_in(it, _of_hashes, hashes))
        jobs: dict[bytes, list[bytes]] = {}
        for payment_hash, job_id, fee_msat, state in rows:
            if state == State.NOT_PAID:
                continue
            # A job that needs no details keeps its place: the fee is that of the first.
            learns = fee_msat is None and state in _LEARNS
            jobs.setdefault(payment_hash, []).append(job_id if learns else b"")
        return {payment_hash: found for payment_hash, found in jobs.items() if any(found)}

    async def missing(self, since: datetime, until: datetime, *, after: bytes, limit: int) -> Sequence[MissingDetails]:
        """Return paid purchases without a fee whose rows changed in that time, in order of time and job."""
        begin, row = to_micros(since), purchases.c
        query = _MISSING.where(
            row.updated_at >= begin,
            or_(row.updated_at > begin, and_(row.updated_at == begin, row.job_id > after)),
            row.updated_at < to_micros(until),
        ).limit(limit)
        found = await self._read(lambda it: it.execute(query).all())
        return [MissingDetails(job_id, of, from_micros(at)) for job_id, of, at in found]

    async def followed(self, node_id: str) -> int:
        """Return the index up to which a node's payments were read; 0 where none were."""
        return await self._read(lambda it: cursors.get(it, cursors.payments_of(node_id)))

    async def learn(self, found: Sequence[FoundDetails], at: datetime, *, node_id: str, followed: int | None) -> None:
        """Record the details that were found, and only then how far the node's payments were read."""
        updates = [UpdateEntry(it.job_id, None, at, it.update) for it in found]
        for begin in range(0, len(updates), _WRITTEN_AT_ONCE):
            batch = JournalTransaction(self._database.owner, updates[begin : begin + _WRITTEN_AT_ONCE], [])
            await self._write(batch.write)
        if followed is not None:
            name = cursors.payments_of(node_id)
            if await self._read(lambda it: cursors.get(it, name)) < followed:
                await self._write(lambda it: cursors.advance(it, name, followed))

    async def restart_following(self, node_id: str) -> None:
        """Set the position in the node's payments back to the beginning."""
        await self._write(lambda it: cursors.restart(it, cursors.payments_of(node_id)))

    async def _read(self, work: Callable[[Connection], T]) -> T:
        try:
            return await self._database.read(work)
        except DatabaseUnavailable as error:
            raise JournalUnavailable(error.reason) from error

    async def _write(self, work: Callable[[Connection], T]) -> T:
        try:
            return await self._database.write(work)
        except DatabaseUnavailable as error:
            raise JournalUnavailable(error.reason) from error
