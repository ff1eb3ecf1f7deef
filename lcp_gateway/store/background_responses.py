"""Background responses that run: one row each, so that a client that polls after a restart gets their status."""

from collections.abc import Mapping
from datetime import datetime, timedelta

from sqlalchemy import Connection, RowMapping, bindparam, delete, insert, select

from lcp_gateway.purchase.journal import JournalUnavailable, RepeatIdentity, RequestRepeated
from lcp_gateway.purchase.records import PurchaseRecord
from lcp_gateway.purchase.states import VERDICTS, Verdict
from lcp_gateway.responses.background import BackgroundRecord
from lcp_gateway.store.database.engines import Database, DatabaseUnavailable
from lcp_gateway.store.database.schema import background_jobs, purchases
from lcp_gateway.store.database.times import from_micros, to_micros
from lcp_gateway.store.journal.purchases import record_of
from lcp_gateway.store.journal.repeats import find_earlier

_FORGET = delete(background_jobs).where(background_jobs.c.id == bindparam("of_job"))
_ONE = select(background_jobs).where(background_jobs.c.id == bindparam("of_job"))
# A clock that was set back may have put a purchase before its response. Short enough for a fast query.
_CLOCK_SLACK = timedelta(hours=1)
_NEWEST = (
    select(purchases)
    .where(
        purchases.c.paying_at >= bindparam("since"),
        purchases.c.key_id == bindparam("of_key"),
        purchases.c.request_id == bindparam("of_job"),
    )
    .order_by(purchases.c.paying_at.desc())
    .limit(1)
)
_FORGET_OLD = delete(background_jobs).where(background_jobs.c.created_at < bindparam("before"))


class BackgroundRows:
    """The repository of background responses. Every method but ``record`` raises ``DatabaseUnavailable``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record(
        self, job_id: str, *, key_id: str, model: str, at: datetime, repeat: RepeatIdentity | None = None
    ) -> None:
        """Insert a background response before its client gets the id.

        Raises:
            RequestRepeated: the journal has a purchase of the same request; nothing was written.
            JournalUnavailable: it cannot be written.
        """
        row = {
            "id": job_id,
            "key_id": key_id,
            "model": model,
            "created_at": to_micros(at),
            "owner": self._database.owner,
        }

        def work(connection: Connection) -> None:
            owner = self._database.owner
            if repeat and (found := find_earlier(connection, repeat, owner=owner, at=at)):
                raise RequestRepeated(None, found)
            connection.execute(insert(background_jobs), row)

        try:
            await self._database.write(work)
        except DatabaseUnavailable as error:
            raise JournalUnavailable(f"the journal cannot be written: {error.reason}; nothing was paid") from error

    async def forget(self, job_id: str) -> None:
        """Delete the row of a response that has ended, if there is one."""
        await self._database.write(lambda connection: connection.execute(_FORGET, {"of_job": job_id}).rowcount)

    async def forget_older(self, before: datetime) -> int:
        """Delete the rows that were inserted before a time; return how many."""
        return await self._database.write(
            lambda connection: connection.execute(_FORGET_OLD, {"before": to_micros(before)}).rowcount
        )

    async def find(self, job_id: str, key_id: str) -> BackgroundRecord | None:
        """Return a background response of a credential; None where there is none, or it is another's."""
        # A read first: a client that polls a missing id does not wait for the writer.
        row = await self._database.read(
            lambda connection: connection.execute(_ONE, {"of_job": job_id}).mappings().one_or_none()
        )
        if row is None or row["key_id"] != key_id:
            return None
        # Only a write transaction can find out whether the owner lives.
        return await self._database.write(lambda connection: self._left(connection, row))

    def _left(self, connection: Connection, row: RowMapping) -> BackgroundRecord:
        owner, created_at = row["owner"], from_micros(row["created_at"])
        lives = owner != self._database.owner and not self._database.is_gone(connection, owner)
        asked = {"since": to_micros(created_at - _CLOCK_SLACK), "of_key": row["key_id"], "of_job": row["id"]}
        found = connection.execute(_NEWEST, asked).mappings().one_or_none()
        return BackgroundRecord(
            id=row["id"],
            model=row["model"],
            created_at=created_at,
            elsewhere=lives,
            money=_money(None if found is None else record_of(found)),
        )


def _money(found: PurchaseRecord | None) -> Mapping[str, object]:
    if found is None:
        return {"payment": Verdict.NONE.value}
    money: dict[str, object] = {
        "payment": VERDICTS[found.state].value,
        "state": found.state.value,
        "job_id": found.job_id.hex(),
        "price_msat": found.price_msat,
        "peer_id": found.peer_id,
    }
    if found.charge is not None:
        is_unknown = VERDICTS[found.state] is Verdict.UNKNOWN
        money["charged_msat"] = found.charge.amount_msat if is_unknown else found.charged_msat
    if found.refund is not None:
        money["refund"] = found.refund.value
    return money
