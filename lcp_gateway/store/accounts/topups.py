"""Top-ups: invoices of the operator's node, each credited once when it is paid."""

import secrets
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, RowMapping, bindparam, delete, func, insert, select, update

from lcp_gateway.accounts.models import (
    Cause,
    Credit,
    InvalidAmount,
    Listing,
    TooManyOpenTopups,
    Topup,
    TopupPurpose,
    TopupState,
    check_text,
)
from lcp_gateway.purchase.money import Msat
from lcp_gateway.store.accounts.accounts import check_lives, is_there, make_account, new_account_id
from lcp_gateway.store.accounts.balances import LARGEST_AMOUNT, Balances
from lcp_gateway.store.database import cursors
from lcp_gateway.store.database.engines import Database
from lcp_gateway.store.database.schema import accounts, topups
from lcp_gateway.store.database.statements import MAX_ROWS, fetch, fetch_one, fetch_page, newest_first
from lcp_gateway.store.database.times import from_micros, from_micros_or_none, to_micros

_NAME_OF_PAYERS = "L402"
"""The name of accounts that an L402 payment created."""

_BY_HASH = select(topups).where(topups.c.payment_hash == bindparam("of_hash")).with_for_update()
_SETTLE = (
    update(topups)
    .where(topups.c.id == bindparam("of_topup"))
    .values(
        state=TopupState.SETTLED.value,
        settled_at=bindparam("now"),
        settle_index=bindparam("new_index"),
        received_msat=bindparam("new_received_msat"),
    )
)
_END = (
    update(topups)
    .where(topups.c.id == bindparam("of_topup"), topups.c.state == TopupState.OPEN.value)
    .values(state=bindparam("to_state"))
)
_EXPIRE = (
    update(topups)
    .where(topups.c.state == TopupState.OPEN.value, topups.c.expires_at < bindparam("before"))
    .values(state=TopupState.EXPIRED.value)
)
_FORGET = delete(topups).where(
    topups.c.state.in_((TopupState.EXPIRED.value, TopupState.CANCELED.value)), topups.c.expires_at < bindparam("before")
)


class Topups:
    """The repository of top-ups. Every method raises ``DatabaseUnavailable``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self,
        account_id: str | None,
        *,
        payment_hash: bytes,
        amount_msat: Msat,
        payment_request: str,
        expires_at: datetime,
        at: datetime,
        memo: str = "",
        purpose: TopupPurpose = TopupPurpose.TOPUP,
        most_open: int = 0,
    ) -> Topup:
        """Record an invoice before the payer is shown it. ``most_open`` bounds the unpaid ones of an account; 0: no bound.

        Without an account, for L402, it gets the id of a new one, which is created when the invoice is paid.

        Raises:
            AccountNotFound: there is none of this id.
            TooManyOpenTopups: the account has ``most_open`` unpaid ones.
            InvalidAmount: it cannot be paid.
            InvalidText: the memo cannot be one.
        """
        if not 0 < amount_msat < LARGEST_AMOUNT:
            raise InvalidAmount
        topup = Topup(
            id=f"top_{secrets.token_hex(12)}",
            account_id=account_id or new_account_id(),
            payment_hash=payment_hash,
            amount_msat=amount_msat,
            payment_request=payment_request,
            memo=check_text(memo, "memo", may_be_empty=True),
            state=TopupState.OPEN,
            purpose=purpose,
            created_at=at,
            expires_at=expires_at,
        )

        def work(connection: Connection) -> None:
            if account_id is not None:
                check_lives(connection, account_id)
                if most_open:
                    # The locked row keeps another gateway from counting at the same time.
                    Balances().lock(connection, [account_id])
                    if _count(connection, to_micros(at), account_id, purpose) >= most_open:
                        raise TooManyOpenTopups(most_open)
            connection.execute(insert(topups).values(_values(topup)))

        await self._database.write(work)
        return topup

    async def get(self, topup_id: str) -> Topup | None:
        """Return a top-up, or None."""
        return await fetch_one(self._database, select(topups).where(topups.c.id == topup_id), topup_of)

    async def by_payment_hash(self, payment_hash: bytes) -> Topup | None:
        """Return the top-up whose invoice has this hash, or None."""
        query = select(topups).where(topups.c.payment_hash == payment_hash)
        return await fetch_one(self._database, query, topup_of)

    async def of_living_account(self, payment_hash: bytes) -> Topup | None:
        """Return the top-up whose invoice has this hash; None also where its account was deleted.

        An account that is created when the invoice is paid may not exist yet.
        """
        query = (
            select(topups)
            .join_from(topups, accounts, accounts.c.id == topups.c.account_id, isouter=True)
            .where(topups.c.payment_hash == payment_hash, accounts.c.deleted_at.is_(None))
        )
        return await fetch_one(self._database, query, topup_of)

    async def page(self, account_id: str, *, limit: int = 100, after: str | None = None) -> Listing[Topup]:
        """Return an account's top-ups, the newest first. ``after`` is a top-up's id."""
        query = select(topups).where(topups.c.account_id == account_id)
        query = newest_first(query, topups.c.created_at, topups.c.id, after)
        return await fetch_page(self._database, query, topup_of, limit, lambda last: last.id)

    async def open_ones(self, *, limit: int = MAX_ROWS) -> Sequence[Topup]:
        """Return those that are open, the first to expire first."""
        query = (
            select(topups)
            .where(topups.c.state == TopupState.OPEN.value)
            .order_by(topups.c.expires_at, topups.c.id)
            .limit(limit)
        )
        return await fetch(self._database, query, topup_of)

    async def open_count(
        self, at: datetime, *, account_id: str | None = None, purpose: TopupPurpose | None = None
    ) -> int:
        """Count the unpaid invoices that have not expired: of an account, for a purpose, or all."""
        return await self._database.read(lambda connection: _count(connection, to_micros(at), account_id, purpose))

    async def settle(
        self, payment_hash: bytes, received_msat: Msat, *, settle_index: int, at: datetime, node_id: str | None = None
    ) -> Credit | None:
        """Credit a payment once, however often this is called; return None where no top-up has this hash.

        A payment is credited even to a top-up that expired or was cancelled. ``node_id`` is passed where the settlement
        is the next in the order of that node's, and moves ``followed`` on in the same transaction; not for one that was
        looked up out of order.

        Raises:
            InvalidAmount: no payment is of this amount.
        """
        if not 0 < received_msat < LARGEST_AMOUNT:
            raise InvalidAmount
        now = to_micros(at)

        def work(connection: Connection) -> Credit | None:
            row = connection.execute(_BY_HASH, {"of_hash": payment_hash}).mappings().one_or_none()
            credit = None
            if row is not None:
                # One that was settled inside the ledger received nothing from the node: its payment is money as well.
                is_new = row["state"] != TopupState.SETTLED.value or row["received_msat"] is None
                values = {"now": now, "new_index": settle_index, "new_received_msat": received_msat}
                if is_new:
                    connection.execute(_SETTLE, {"of_topup": row["id"], **values})
                    _credit(connection, topup_of(row), received_msat, at)
                    row = connection.execute(_BY_HASH, {"of_hash": payment_hash}).mappings().one()
                credit = Credit(topup_of(row), is_new)
            if node_id is not None:
                cursors.advance(connection, cursors.settlements_of(node_id), settle_index)
            return credit

        return await self._database.write(work)

    async def followed(self, node_id: str) -> int:
        """Return the settle index up to which the settlements of a node were followed; 0 at the beginning."""
        return await self._database.read(lambda connection: cursors.get(connection, cursors.settlements_of(node_id)))

    async def cancel(self, topup_id: str) -> bool:
        """Cancel an unpaid top-up; return whether it was one."""
        values = {"of_topup": topup_id, "to_state": TopupState.CANCELED.value}
        return await self._database.write(lambda connection: connection.execute(_END, values).rowcount > 0)

    async def make_room(self, at: datetime, *, purpose: TopupPurpose, most_open: int) -> int:
        """Cancel the oldest unpaid top-ups of a purpose, so that fewer than a bound are left; return how many.

        They can still be paid, and are credited then.
        """
        now = to_micros(at)
        count = await self.open_count(at, purpose=purpose)
        if count < most_open:
            return 0
        oldest = (
            select(topups.c.id)
            .where(
                topups.c.state == TopupState.OPEN.value, topups.c.expires_at > now, topups.c.purpose == purpose.value
            )
            .order_by(topups.c.created_at, topups.c.id)
            .limit(count - most_open + 1)
        )

        def work(connection: Connection) -> int:
            canceled = connection.execute(oldest).scalars().all()
            for topup_id in canceled:
                values = {"of_topup": topup_id, "to_state": TopupState.CANCELED.value}
                connection.execute(_END, values)
            return len(canceled)

        return await self._database.write(work)

    async def expire(self, before: datetime) -> int:
        """Mark the unpaid top-ups that expired before a time; return how many.

        Ask the node first: a payment at the last moment is credited all the same, but shown as expired until then.
        """
        return await self._database.write(
            lambda connection: connection.execute(_EXPIRE, {"before": to_micros(before)}).rowcount
        )

    async def forget_unpaid(self, before: datetime) -> int:
        """Delete the expired and cancelled top-ups that ended before a time; return how many.

        Otherwise a client that asks for invoices and never pays them would fill the disk.
        """
        return await self._database.write(
            lambda connection: connection.execute(_FORGET, {"before": to_micros(before)}).rowcount
        )


def _credit(connection: Connection, topup: Topup, received_msat: Msat, at: datetime) -> None:
    if topup.purpose is TopupPurpose.L402 and not is_there(connection, topup.account_id):
        make_account(connection, topup.account_id, _NAME_OF_PAYERS, at)
    moved = Balances()
    moved.move(topup.account_id, received_msat, Cause.TOPUP, topup.id, to_micros(at))
    moved.lock(connection)
    moved.write(connection)


def _count(connection: Connection, now: int, account_id: str | None, purpose: TopupPurpose | None) -> int:
    query = (
        select(func.count())
        .select_from(topups)
        .where(topups.c.state == TopupState.OPEN.value, topups.c.expires_at > now)
    )
    if account_id is not None:
        query = query.where(topups.c.account_id == account_id)
    if purpose is not None:
        query = query.where(topups.c.purpose == purpose.value)
    return connection.execute(query).scalar_one()


def _values(topup: Topup) -> dict[str, object]:
    return {
        "id": topup.id,
        "account_id": topup.account_id,
        "payment_hash": topup.payment_hash,
        "amount_msat": topup.amount_msat,
        "payment_request": topup.payment_request,
        "memo": topup.memo,
        "state": topup.state.value,
        "purpose": topup.purpose.value,
        "created_at": to_micros(topup.created_at),
        "expires_at": to_micros(topup.expires_at),
    }


def topup_of(row: RowMapping) -> Topup:
    """Return a row of the table as a top-up."""
    return Topup(
        id=row["id"],
        account_id=row["account_id"],
        payment_hash=row["payment_hash"],
        amount_msat=row["amount_msat"],
        payment_request=row["payment_request"],
        memo=row["memo"],
        state=TopupState(row["state"]),
        purpose=TopupPurpose(row["purpose"]),
        created_at=from_micros(row["created_at"]),
        expires_at=from_micros(row["expires_at"]),
        settled_at=from_micros_or_none(row["settled_at"]),
        settle_index=row["settle_index"],
        received_msat=row["received_msat"],
    )
