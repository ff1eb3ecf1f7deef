"""Refunds: charges of undelivered purchases that were refunded, withheld, or decided on by the operator."""

from datetime import datetime

from sqlalchemy import Connection, RowMapping, bindparam, select, update

from lcp_gateway.accounts.models import Cause, Listing, PurchaseNotFound, RefundNotWithheld, RefundRecord, check_text
from lcp_gateway.purchase.money import Msat, Refund
from lcp_gateway.purchase.outcome import EndedBy, Received
from lcp_gateway.purchase.states import State
from lcp_gateway.store.accounts.admin_log import write_admin_action
from lcp_gateway.store.accounts.balances import Balances
from lcp_gateway.store.database.engines import Database
from lcp_gateway.store.database.schema import purchases
from lcp_gateway.store.database.statements import fetch_one, fetch_page, newest_first
from lcp_gateway.store.database.times import from_micros, from_micros_or_none, to_micros

_COLUMNS = (
    purchases.c.job_id,
    purchases.c.account_id,
    purchases.c.charge_msat,
    purchases.c.refund,
    purchases.c.model,
    purchases.c.peer_id,
    purchases.c.ended_by,
    purchases.c.received,
    purchases.c.paying_at,
    purchases.c.ended_at,
)
_ONE = select(*_COLUMNS, purchases.c.state).where(purchases.c.job_id == bindparam("of_job")).with_for_update()
_DECIDE = (
    update(purchases)
    .where(
        purchases.c.job_id == bindparam("of_job"),
        # The row is locked and was checked; the condition makes the update safe even without that.
        purchases.c.refund == Refund.WITHHELD.value,
    )
    .values(refund=bindparam("decided"), refund_undelivered=bindparam("given_back"), updated_at=bindparam("now"))
)


class Refunds:
    """The repository of refunds. Every method raises ``DatabaseUnavailable``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(
        self, *, account_id: str | None = None, refund: Refund | None = None, limit: int = 100, after: str | None = None
    ) -> Listing[RefundRecord]:
        """Return refunds of one account or of all, the newest purchase first. ``after`` is a job id in hexadecimal digits."""
        try:
            behind = None if after is None else bytes.fromhex(after)
        except ValueError:
            # No listing has this cursor, and no rows follow it.
            return Listing([], None)
        # Stated so that the index of refunds is used.
        query = select(*_COLUMNS).where(purchases.c.refund.is_not(None))
        if account_id is not None:
            query = query.where(purchases.c.account_id == account_id)
        if refund is not None:
            query = query.where(purchases.c.refund == refund.value)
        query = newest_first(query, purchases.c.paying_at, purchases.c.job_id, behind)
        return await fetch_page(self._database, query, _record, limit, lambda last: last.job_id.hex())

    async def get(self, job_id: bytes) -> RefundRecord | None:
        """Return the refund of one purchase, or None."""
        query = select(*_COLUMNS).where(purchases.c.job_id == job_id, purchases.c.refund.is_not(None))
        return await fetch_one(self._database, query, _record)

    async def decide(
        self, job_id: bytes, *, grant: bool, reason: str, actor: str, at: datetime
    ) -> tuple[RefundRecord, bool]:
        """Refund a withheld charge, or keep it for good; return it, and whether this changed anything.

        The same decision again does not.

        Raises:
            PurchaseNotFound: the journal has no such purchase.
            RefundNotWithheld: its charge waits for no decision, or the other one was made.
            InvalidText: the reason cannot be one.
        """
        reason = check_text(reason, "reason")
        decided = Refund.GRANTED if grant else Refund.DENIED

        def work(connection: Connection) -> tuple[RefundRecord, bool]:
            row = connection.execute(_ONE, {"of_job": job_id}).mappings().one_or_none()
            if row is None:
                raise PurchaseNotFound
            if row["refund"] != Refund.WITHHELD:
                if row["refund"] == decided:
                    return _record(row), False
                found = None if row["refund"] is None else Refund(row["refund"])
                raise RefundNotWithheld(State(row["state"]), found)
            micros, account_id, amount_msat = to_micros(at), row["account_id"], row["charge_msat"]
            connection.execute(
                _DECIDE, {"of_job": job_id, "decided": decided.value, "given_back": grant, "now": micros}
            )
            if grant:
                moved = Balances()
                moved.lock(connection, [account_id])
                moved.move(account_id, amount_msat, Cause.REFUND, f"{job_id.hex()}:0", micros)
                moved.write(connection)
            write_admin_action(
                connection,
                at,
                actor,
                "refund.grant" if grant else "refund.deny",
                job_id.hex(),
                account_id=account_id,
                amount_msat=amount_msat,
                reason=reason,
            )
            return _record(connection.execute(_ONE, {"of_job": job_id}).mappings().one()), True

        return await self._database.write(work)


def _record(row: RowMapping) -> RefundRecord:
    ended_by, received = row["ended_by"], row["received"]
    return RefundRecord(
        job_id=row["job_id"],
        account_id=row["account_id"],
        amount_msat=Msat(row["charge_msat"]),
        refund=Refund(row["refund"]),
        model=row["model"],
        peer_id=row["peer_id"],
        ended_by=None if ended_by is None else EndedBy(ended_by),
        received=None if received is None else Received(received),
        paying_at=from_micros(row["paying_at"]),
        ended_at=from_micros_or_none(row["ended_at"]),
    )
