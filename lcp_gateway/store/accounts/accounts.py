"""Customers' accounts: created, renamed, and deleted down to the bare id."""

import secrets
from datetime import datetime

from sqlalchemy import Connection, RowMapping, bindparam, delete, insert, select, update

from lcp_gateway.accounts.models import Account, AccountNotFound, Balance, BalanceLeft, Listing, check_text
from lcp_gateway.purchase.money import Msat
from lcp_gateway.store.accounts.admin_log import write_admin_action
from lcp_gateway.store.database import cursors
from lcp_gateway.store.database.engines import Database
from lcp_gateway.store.database.schema import accounts, balances, invites, keys, sessions, topups
from lcp_gateway.store.database.statements import fetch_one, fetch_page, newest_first
from lcp_gateway.store.database.times import from_micros, from_micros_or_none, to_micros

_ACCOUNTS = select(accounts, balances.c.balance_msat, balances.c.held_msat).join_from(
    accounts, balances, balances.c.account_id == accounts.c.id
)
_NOT_DELETED = select(accounts.c.id).where(accounts.c.id == bindparam("of_account"), accounts.c.deleted_at.is_(None))
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
_FORGET_NOTE = update(invites).where(invites.c.account_id == bindparam("of_account")).values(note="")
_END_SESSIONS = delete(sessions).where(sessions.c.account_id == bindparam("of_account"))
_FORGET_KEY_NAMES = update(keys).where(keys.c.account_id == bindparam("of_account")).values(name="")
_REVOKE_ALL = (
    update(keys)
    .where(keys.c.account_id == bindparam("of_account"), keys.c.revoked_at.is_(None))
    .values(revoked_at=bindparam("now"), change=bindparam("number"))
)


def new_account_id() -> str:
    """Return a random id."""
    return f"acct_{secrets.token_hex(12)}"


def make_account(
    connection: Connection, account_id: str, name: str, at: datetime, *, registered: str | None = None
) -> None:
    """Insert an account with an empty balance, in the caller's transaction; ``registered`` says how its holder opened it."""
    connection.execute(
        insert(accounts).values(id=account_id, name=name, created_at=to_micros(at), registered=registered)
    )
    connection.execute(insert(balances).values(account_id=account_id, balance_msat=0, held_msat=0))


def forget_account(connection: Connection, account_id: str, *, actor: str, at: datetime) -> None:
    """Delete an account as ``Accounts.delete`` does, in the caller's transaction.

    Raises:
        AccountNotFound: there is none.
    """
    now, of_account = to_micros(at), {"of_account": account_id}
    connection.execute(_FORGET_NOTE, of_account)
    if not connection.execute(_FORGET_NAME, {**of_account, "now": now}).rowcount:
        raise AccountNotFound
    number = cursors.take_next(connection, cursors.KEYS)
    connection.execute(_REVOKE_ALL, {**of_account, "now": now, "number": number})
    connection.execute(_FORGET_KEY_NAMES, of_account)
    connection.execute(_FORGET_MEMOS, of_account)
    connection.execute(_END_SESSIONS, of_account)
    write_admin_action(connection, at, actor, "account.delete", account_id)


def is_there(connection: Connection, account_id: str) -> bool:
    """Return whether there is an account of this id, deleted or not."""
    found = connection.execute(select(accounts.c.id).where(accounts.c.id == account_id))
    return found.scalar() is not None


def check_lives(connection: Connection, account_id: str) -> None:
    """Lock an account against deletion until the commit of the caller's transaction.

    Raises:
        AccountNotFound: there is none, or it was deleted.
    """
    found = connection.execute(_NOT_DELETED.with_for_update(read=True), {"of_account": account_id})
    if found.scalar() is None:
        raise AccountNotFound


class Accounts:
    """The repository of accounts. Every method raises ``DatabaseUnavailable``; ``actor`` is named in the admin log."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, name: str, *, actor: str, at: datetime) -> Account:
        """Create an account with an empty balance.

        Raises:
            InvalidText: the name cannot be one.
        """
        name = check_text(name, "name")
        account_id = new_account_id()

        def work(connection: Connection) -> None:
            make_account(connection, account_id, name, at)
            write_admin_action(connection, at, actor, "account.create", account_id)

        await self._database.write(work)
        return Account(account_id, name, at)

    async def get(self, account_id: str) -> Account | None:
        """Return an account with its balance, deleted or not; None where there never was one."""
        return await fetch_one(self._database, _ACCOUNTS.where(accounts.c.id == account_id), _account)

    async def page(self, *, limit: int = 100, after: str | None = None, with_deleted: bool = False) -> Listing[Account]:
        """Return accounts with their balances, the newest first. ``after`` is an account's id."""
        query = _ACCOUNTS if with_deleted else _ACCOUNTS.where(accounts.c.deleted_at.is_(None))
        query = newest_first(query, accounts.c.created_at, accounts.c.id, after)
        return await fetch_page(self._database, query, _account, limit, lambda last: last.id)

    async def rename(self, account_id: str, name: str, *, actor: str, at: datetime) -> None:
        """Rename an account.

        Raises:
            InvalidText: the name cannot be one.
            AccountNotFound: there is none.
        """
        name = check_text(name, "name")

        def work(connection: Connection) -> None:
            values = {"of_account": account_id, "new_name": name}
            if not connection.execute(_RENAME, values).rowcount:
                raise AccountNotFound
            write_admin_action(connection, at, actor, "account.rename", account_id)

        await self._database.write(work)

    async def delete(self, account_id: str, *, actor: str, at: datetime, forfeit_msat: Msat | None = None) -> None:
        """Delete an account's name, memos, key names and sessions, and revoke its keys; purchases, top-ups and the ledger stay.

        The rest of its balance stays as well, until an adjustment takes it; with ``forfeit_msat`` it has to be that.

        Raises:
            AccountNotFound: there is none.
            BalanceLeft: the balance is not ``forfeit_msat``, or purchases hold a part of it.
        """

        def work(connection: Connection) -> None:
            if forfeit_msat is not None:
                _check_forfeit(connection, account_id, forfeit_msat)
            forget_account(connection, account_id, actor=actor, at=at)

        await self._database.write(work)


def _check_forfeit(connection: Connection, account_id: str, forfeit_msat: Msat) -> None:
    # Locked before the balance, and at once as the deletion needs it: a withdrawal holds the account, then wants the balance.
    if connection.execute(_NOT_DELETED.with_for_update(), {"of_account": account_id}).scalar() is None:
        raise AccountNotFound
    query = select(balances.c.balance_msat, balances.c.held_msat).where(balances.c.account_id == account_id)
    balance_msat, held_msat = connection.execute(query.with_for_update()).one()
    if held_msat or balance_msat != forfeit_msat:
        raise BalanceLeft(Msat(balance_msat), Msat(held_msat))


def _account(row: RowMapping) -> Account:
    return Account(
        row["id"],
        row["name"],
        from_micros(row["created_at"]),
        from_micros_or_none(row["deleted_at"]),
        Balance(Msat(row["balance_msat"]), Msat(row["held_msat"])),
        row["withdrawals_frozen_at"] is not None,
    )
