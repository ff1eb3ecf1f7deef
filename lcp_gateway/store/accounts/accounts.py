"""Customers: made, named, and made nameless when they go."""

import secrets
from datetime import datetime

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    Select,
    and_,
    bindparam,
    insert,
    or_,
    select,
    update,
)

from lcp_gateway.accounts.models import Account, AccountNotFound, Balance, Listing, check_text
from lcp_gateway.purchase.money import Msat
from lcp_gateway.store.accounts.admin_log import write_act
from lcp_gateway.store.database import cursors
from lcp_gateway.store.database.engines import Database
from lcp_gateway.store.database.schema import accounts, balances, keys, topups
from lcp_gateway.store.database.times import from_micros, to_micros

_MOST = 1_000

_ACCOUNTS = select(accounts, balances.c.balance_msat, balances.c.held_msat).join_from(
    accounts, balances, balances.c.account_id == accounts.c.id
)
_LIVES = select(accounts.c.id).where(
    accounts.c.id == bindparam("of_account"), accounts.c.deleted_at.is_(None)
)
_FORGET_NAME = (
    update(accounts)
    .where(accounts.c.id == bindparam("of_account"), accounts.c.deleted_at.is_(None))
    .values(name="", deleted_at=bindparam("now"))
)
_RENAME = (
    update(accounts)
    .where(accounts.c.id == bindparam("of_account"), accounts.c.deleted_at.is_(None))
    .values(name=bindparam("new_name"))
)
_FORGET_MEMOS = update(topups).where(topups.c.account_id == bindparam("of_account")).values(memo="")
_FORGET_KEY_NAMES = update(keys).where(keys.c.account_id == bindparam("of_account")).values(name="")
_REVOKE_ALL = (
    update(keys)
    .where(keys.c.account_id == bindparam("of_account"), keys.c.revoked_at.is_(None))
    .values(revoked_at=bindparam("now"), change=bindparam("number"))
)


def new_account_id() -> str:
    """Return a random id."""
    return f"acct_{secrets.token_hex(12)}"


def make_account(connection: Connection, account_id: str, name: str, at: datetime) -> None:
    """Make an account with nothing on it, in the transaction that is open."""
    connection.execute(insert(accounts).values(id=account_id, name=name, created_at=to_micros(at)))
    connection.execute(insert(balances).values(account_id=account_id, balance_msat=0, held_msat=0))


def is_there(connection: Connection, account_id: str) -> bool:
    """Tell whether there is an account of this id, deleted or not."""
    found = connection.execute(select(accounts.c.id).where(accounts.c.id == account_id))
    return found.scalar() is not None


def check_lives(connection: Connection, account_id: str) -> None:
    """Make sure, within a ``write``, that the account is there and stays until the commit.

    Raises:
        NoSuchAccount: it is not, or was deleted.
    """
    lives = connection.execute(_LIVES.with_for_update(read=True), {"of_account": account_id})
    if lives.scalar() is None:
        raise AccountNotFound


class Accounts:
    """The customers. Every method raises ``DatabaseUnavailable``; ``actor`` is who did it, for the log of acts."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, name: str, *, actor: str, at: datetime) -> Account:
        """Make an account with nothing on it.

        Raises:
            BadText: the name cannot be one.
        """
        name = check_text(name, "name")
        account_id = new_account_id()

        def work(connection: Connection) -> None:
            make_account(connection, account_id, name, at)
            write_act(connection, at, actor, "account.create", account_id)

        await self._database.write(work)
        return Account(account_id, name, at)

    async def get(self, account_id: str) -> Account | None:
        """Give one account, deleted or not, with its balance; None where there never was one."""
        query = _ACCOUNTS.where(accounts.c.id == account_id)

        def work(connection: Connection) -> Account | None:
            row = connection.execute(query).mappings().one_or_none()
            return None if row is None else _account(row)

        return await self._database.read(work)

    async def page(
        self, *, limit: int = 100, after: str | None = None, with_deleted: bool = False
    ) -> Listing[Account]:
        """Give accounts with their balances, the newest first, at most 1,000 at a time. ``after`` is an account's id."""
        limit = max(1, min(limit, _MOST))
        query = _ACCOUNTS.order_by(accounts.c.created_at.desc(), accounts.c.id.desc())
        if not with_deleted:
            query = query.where(accounts.c.deleted_at.is_(None))
        if after is not None:
            query = query.where(_older_than(after))
        found = await self._accounts(query.limit(limit + 1))
        return Listing(found[:limit], found[limit - 1].id if len(found) > limit else None)

    async def rename(self, account_id: str, name: str, *, actor: str, at: datetime) -> None:
        """Give an account another name.

        Raises:
            BadText: the name cannot be one.
            NoSuchAccount: there is none.
        """
        name = check_text(name, "name")

        def work(connection: Connection) -> None:
            values = {"of_account": account_id, "new_name": name}
            if not connection.execute(_RENAME, values).rowcount:
                raise AccountNotFound
            write_act(connection, at, actor, "account.rename", account_id)

        await self._database.write(work)

    async def delete(self, account_id: str, *, actor: str, at: datetime) -> None:
        """Forget whose account it was and revoke its keys. Purchases, top-ups and the ledger stay, with the bare id.

        What is left of its balance stays as well: an adjustment takes it, if it is to go.

        Raises:
            NoSuchAccount: there is none.
        """
        now = to_micros(at)

        def work(connection: Connection) -> None:
            of_account = {"of_account": account_id}
            if not connection.execute(_FORGET_NAME, {**of_account, "now": now}).rowcount:
                raise AccountNotFound
            number = cursors.take_next(connection, cursors.KEYS)
            connection.execute(_REVOKE_ALL, {**of_account, "now": now, "number": number})
            connection.execute(_FORGET_KEY_NAMES, of_account)
            connection.execute(_FORGET_MEMOS, of_account)
            write_act(connection, at, actor, "account.delete", account_id)

        await self._database.write(work)

    async def _accounts(self, query: Select[*tuple[object, ...]]) -> list[Account]:
        return await self._database.read(
            lambda connection: [_account(row) for row in connection.execute(query).mappings()]
        )


def _older_than(account_id: str) -> ColumnElement[bool]:
    created_at = select(accounts.c.created_at).where(accounts.c.id == account_id).scalar_subquery()
    return or_(
        accounts.c.created_at < created_at,
        and_(accounts.c.created_at == created_at, accounts.c.id < account_id),
    )


def _account(row: RowMapping) -> Account:
    deleted_at = row["deleted_at"]
    return Account(
        row["id"],
        row["name"],
        from_micros(row["created_at"]),
        None if deleted_at is None else from_micros(deleted_at),
        Balance(Msat(row["balance_msat"]), Msat(row["held_msat"])),
    )
