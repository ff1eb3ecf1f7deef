"""Refunds: the charges that wait for the operator's decision, and what became of them."""

from collections.abc import Iterator
from datetime import datetime

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    and_,
    bindparam,
    false,
    or_,
    select,
    update,
)

from lcp_gateway.accounts.models import (
    Cause,
    Listing,
    PurchaseNotFound,
    RefundNotWithheld,
    RefundRecord,
    check_text,
)
from lcp_gateway.purchase.money import Msat, Refund
from lcp_gateway.purchase.outcome import EndedBy, Received
from lcp_gateway.purchase.states import State
from lcp_gateway.store.accounts.admin_log import write_act
from lcp_gateway.store.accounts.balances import Balances
from lcp_gateway.store.database.engines import Database
from lcp_gateway.store.database.schema import purchases
from lcp_gateway.store.database.times import from_micros, to_micros

_MOST = 1_000


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
_ONE = (
    select(*_COLUMNS, purchases.c.state)
    .where(purchases.c.job_id == bindparam("of_job"))
    .with_for_update()
)
_DECIDE = (
    update(purchases)
    .where(
        purchases.c.job_id == bindparam("of_job"),
        # The row is locked and was looked at; this holds even if neither were so.
        purchases.c.refund == Refund.WITHHELD.value,
    )
    .values(
        refund=bindparam("decided"),
        refund_undelivered=bindparam("given_back"),
        updated_at=bindparam("now"),
    )
)


class Refunds:
    """The charges of undelivered purchases, and the operator's decisions on them. Raises ``DatabaseUnavailable``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(
        self,
        *,
        account_id: str | None = None,
        refund: Refund | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> Listing[RefundRecord]:
        """Return refunds, the newest purchase first, at most 1,000 at a time; of one account or of all."""
        limit = max(1, min(limit, _MOST))
        query = (
            select(*_COLUMNS)
            .where(*_conditions(account_id, refund, after))
            .order_by(purchases.c.paying_at.desc(), purchases.c.job_id.desc())
            .limit(limit + 1)
        )

        def work(connection: Connection) -> list[RefundRecord]:
            return [_record(row) for row in connection.execute(query).mappings()]

        found = await self._database.read(work)
        more = len(found) > limit
        return Listing(found[:limit], found[limit - 1].job_id.hex() if more else None)

    async def get(self, job_id: bytes) -> RefundRecord | None:
        """Return the refund of one purchase, or None."""
        query = select(*_COLUMNS).where(
            purchases.c.job_id == job_id, purchases.c.refund.is_not(None)
        )

        def work(connection: Connection) -> RefundRecord | None:
            row = connection.execute(query).mappings().one_or_none()
            return None if row is None else _record(row)

        return await self._database.read(work)

    async def decide(
        self, job_id: bytes, *, grant: bool, reason: str, actor: str, at: datetime
    ) -> tuple[RefundRecord, bool]:
        """Give a withheld charge back, or keep it for good; return it, and whether this changed anything.

        The same decision again does not.

        Raises:
            NoSuchPurchase: the journal has no such purchase.
            NotWithheld: its charge waits for no decision, or the other one was made.
            BadText: the reason cannot be one.
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
                _DECIDE,
                {"of_job": job_id, "decided": decided.value, "given_back": grant, "now": micros},
            )
            if grant:
                moved = Balances()
                moved.lock(connection, [account_id])
                moved.move(account_id, amount_msat, Cause.REFUND, f"{job_id.hex()}:0", micros)
                moved.write(connection)
            write_act(
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
    ended_by, received, ended_at = row["ended_by"], row["received"], row["ended_at"]
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
        ended_at=None if ended_at is None else from_micros(ended_at),
    )


def _conditions(
    account_id: str | None, refund: Refund | None, after: str | None
) -> Iterator[ColumnElement[bool]]:
    # Said so that the index of refunds is used.
    yield purchases.c.refund.is_not(None)
    if account_id is not None:
        yield purchases.c.account_id == account_id
    if refund is not None:
        yield purchases.c.refund == refund.value
    if after is not None:
        yield _follows(after)


def _follows(place: str) -> ColumnElement[bool]:
    try:
        job_id = bytes.fromhex(place)
    except ValueError:
        # No listing ends there, and nothing follows it.
        return false()
    at = select(purchases.c.paying_at).where(purchases.c.job_id == job_id).scalar_subquery()
    return or_(
        purchases.c.paying_at < at,
        and_(purchases.c.paying_at == at, purchases.c.job_id < job_id),
    )
