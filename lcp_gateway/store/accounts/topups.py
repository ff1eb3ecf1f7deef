"""Top-ups: invoices of ours, and the one time that each is credited when it is paid."""

import secrets
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    Select,
    and_,
    bindparam,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)

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
from lcp_gateway.store.database.times import from_micros, to_micros

_MOST = 1_000
_NAME_OF_PAYERS = "L402"
"""The name of accounts that an L402 payment made: of whose they are, nothing is known."""

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
    topups.c.state.in_((TopupState.EXPIRED.value, TopupState.CANCELED.value)),
    topups.c.expires_at < bindparam("before"),
)


class Topups:
    """The top-ups. Every method raises ``DatabaseUnavailable``."""

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
        """Write down an invoice before anybody is shown it. ``most_open`` bounds the unpaid ones of an account; 0 does not.

        Without an account, for L402, the id of one is made up, and the account is made when it is paid.

        Raises:
            NoSuchAccount: there is none of this id.
            TooManyOpen: the account has as many as it may.
            BadAmount: it is not an amount that can be paid.
            BadText: the memo cannot be one.
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
        """Give one top-up, or None."""
        found = await self._topups(select(topups).where(topups.c.id == topup_id))
        return found[0] if found else None

    async def by_payment_hash(self, payment_hash: bytes) -> Topup | None:
        """Give the top-up whose invoice has this hash, or None."""
        found = await self._topups(select(topups).where(topups.c.payment_hash == payment_hash))
        return found[0] if found else None

    async def of_living_account(self, payment_hash: bytes) -> Topup | None:
        """Give the top-up whose invoice has this hash; None also where its account was deleted.

        An account that is made when the invoice is paid may not be there yet.
        """
        found = await self._topups(
            select(topups)
            .join_from(topups, accounts, accounts.c.id == topups.c.account_id, isouter=True)
            .where(topups.c.payment_hash == payment_hash, accounts.c.deleted_at.is_(None))
        )
        return found[0] if found else None

    async def page(
        self, account_id: str, *, limit: int = 100, after: str | None = None
    ) -> Listing[Topup]:
        """Give an account's top-ups, the newest first, at most 1,000 at a time. ``after`` is a top-up's id."""
        limit = max(1, min(limit, _MOST))
        query = select(topups).where(topups.c.account_id == account_id)
        if after is not None:
            query = query.where(_older_than(after))
        query = query.order_by(topups.c.created_at.desc(), topups.c.id.desc()).limit(limit + 1)
        found = await self._topups(query)
        return Listing(found[:limit], found[limit - 1].id if len(found) > limit else None)

    async def open_ones(self, *, limit: int = _MOST) -> Sequence[Topup]:
        """Give those whose end is not known, the first to expire first."""
        return await self._topups(
            select(topups)
            .where(topups.c.state == TopupState.OPEN.value)
            .order_by(topups.c.expires_at, topups.c.id)
            .limit(limit)
        )

    async def open_count(
        self, at: datetime, *, account_id: str | None = None, purpose: TopupPurpose | None = None
    ) -> int:
        """Count what is unpaid and can be paid still: of an account, for a purpose, or in all."""
        return await self._database.read(
            lambda connection: _count(connection, to_micros(at), account_id, purpose)
        )

    async def settle(
        self,
        payment_hash: bytes,
        received_msat: Msat,
        *,
        settle_index: int,
        at: datetime,
        node_id: str | None = None,
    ) -> Credit | None:
        """Credit what was paid, once, however often this is called; None where the invoice is none of ours.

        Money that came is credited, even to a top-up that had expired or was given up. ``node_id`` says that the
        settlement is the next in the order of that node's, and moves ``followed`` on in the same step: not for one that
        was looked up out of order.

        Raises:
            BadAmount: nothing can have been paid like this.
        """
        if not 0 < received_msat < LARGEST_AMOUNT:
            raise InvalidAmount
        now = to_micros(at)

        def work(connection: Connection) -> Credit | None:
            row = connection.execute(_BY_HASH, {"of_hash": payment_hash}).mappings().one_or_none()
            credit = None
            if row is not None:
                is_new = row["state"] != TopupState.SETTLED.value
                values = {"now": now, "new_index": settle_index, "new_received_msat": received_msat}
                if is_new:
                    connection.execute(_SETTLE, {"of_topup": row["id"], **values})
                    _credit(connection, _topup(row), received_msat, at)
                    row = connection.execute(_BY_HASH, {"of_hash": payment_hash}).mappings().one()
                credit = Credit(_topup(row), is_new)
            if node_id is not None:
                cursors.advance(connection, cursors.settlements_of(node_id), settle_index)
            return credit

        return await self._database.write(work)

    async def followed(self, node_id: str) -> int:
        """Give the settle index up to which the settlements of a node were followed; 0 at the beginning."""
        return await self._database.read(
            lambda connection: cursors.get(connection, cursors.settlements_of(node_id))
        )

    async def cancel(self, topup_id: str) -> bool:
        """Give an unpaid top-up up; tells whether it was one."""
        values = {"of_topup": topup_id, "to_state": TopupState.CANCELED.value}
        return await self._database.write(
            lambda connection: connection.execute(_END, values).rowcount > 0
        )

    async def make_room(self, at: datetime, *, purpose: TopupPurpose, most_open: int) -> int:
        """Give up the oldest unpaid top-ups of a purpose, so that fewer than a bound are left; gives how many.

        They can still be paid, and are credited then.
        """
        now = to_micros(at)
        count = await self.open_count(at, purpose=purpose)
        if count < most_open:
            return 0
        oldest = (
            select(topups.c.id)
            .where(
                topups.c.state == TopupState.OPEN.value,
                topups.c.expires_at > now,
                topups.c.purpose == purpose.value,
            )
            .order_by(topups.c.created_at, topups.c.id)
            .limit(count - most_open + 1)
        )

        def work(connection: Connection) -> int:
            given_up = connection.execute(oldest).scalars().all()
            for topup_id in given_up:
                values = {"of_topup": topup_id, "to_state": TopupState.CANCELED.value}
                connection.execute(_END, values)
            return len(given_up)

        return await self._database.write(work)

    async def expire(self, before: datetime) -> int:
        """Mark what is unpaid and ran out before a time; gives how many.

        The node is to be asked first: what was paid at the last moment is credited all the same, but shown as expired
        until then.
        """
        return await self._database.write(
            lambda connection: connection.execute(_EXPIRE, {"before": to_micros(before)}).rowcount
        )

    async def forget_unpaid(self, before: datetime) -> int:
        """Delete what expired or was given up, and could not be paid any more before a time; gives how many.

        Whoever asks for invoices and never pays them is not to fill the disk.
        """
        return await self._database.write(
            lambda connection: connection.execute(_FORGET, {"before": to_micros(before)}).rowcount
        )

    async def _topups(self, query: Select[*tuple[object, ...]]) -> list[Topup]:
        return await self._database.read(
            lambda connection: [_topup(row) for row in connection.execute(query).mappings()]
        )


def _credit(connection: Connection, topup: Topup, received_msat: Msat, at: datetime) -> None:
    if topup.purpose is TopupPurpose.L402 and not is_there(connection, topup.account_id):
        make_account(connection, topup.account_id, _NAME_OF_PAYERS, at)
    moved = Balances()
    moved.move(topup.account_id, received_msat, Cause.TOPUP, topup.id, to_micros(at))
    moved.lock(connection)
    moved.write(connection)


def _count(
    connection: Connection, now: int, account_id: str | None, purpose: TopupPurpose | None
) -> int:
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


def _older_than(topup_id: str) -> ColumnElement[bool]:
    created_at = select(topups.c.created_at).where(topups.c.id == topup_id).scalar_subquery()
    return or_(
        topups.c.created_at < created_at,
        and_(topups.c.created_at == created_at, topups.c.id < topup_id),
    )


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


def _topup(row: RowMapping) -> Topup:
    settled_at = row["settled_at"]
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
        settled_at=None if settled_at is None else from_micros(settled_at),
        settle_index=row["settle_index"],
        received_msat=row["received_msat"],
    )
