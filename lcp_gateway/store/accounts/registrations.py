"""Accounts that persons open by themselves: with an invite or without, and gone again where they were never used."""

import secrets
from datetime import datetime

from sqlalchemy import Connection, RowMapping, bindparam, exists, insert, select, update

from lcp_gateway.accounts.callers import KeyRules
from lcp_gateway.accounts.invites import InvalidInvite, Invite, NewInvite, generate_code, hash_code
from lcp_gateway.accounts.models import Account, Listing, NewKey, TopupState, check_text
from lcp_gateway.store.accounts.accounts import forget_account, make_account, new_account_id
from lcp_gateway.store.accounts.admin_log import write_admin_action
from lcp_gateway.store.accounts.balances import book_of
from lcp_gateway.store.accounts.keys import check_rules, insert_key
from lcp_gateway.store.database.engines import Database
from lcp_gateway.store.database.schema import accounts, invites, ledger_entries, nodes, topups
from lcp_gateway.store.database.statements import fetch_one, fetch_page, newest_first
from lcp_gateway.store.database.times import from_micros, from_micros_or_none, to_micros

_SIGN_IN_KEY = "sign-in key"
_AT_ONCE = 100

_USE = (
    update(invites)
    .where(
        invites.c.hash == bindparam("of_hash"),
        invites.c.used_at.is_(None),
        invites.c.revoked_at.is_(None),
        invites.c.expires_at > bindparam("now"),
    )
    .values(used_at=bindparam("now"), account_id=bindparam("by_account"))
    .returning(invites.c.id)
)
_REVOKE = (
    update(invites)
    .where(invites.c.id == bindparam("of_invite"), invites.c.used_at.is_(None), invites.c.revoked_at.is_(None))
    .values(revoked_at=bindparam("now"))
)
_OPENED = (
    select(accounts.c.id)
    .where(
        accounts.c.registered == "open",
        accounts.c.deleted_at.is_(None),
        accounts.c.created_at < bindparam("before"),
        ~exists().where(ledger_entries.c.book == "customer:" + accounts.c.id),
        # The owner of a node that has not earned yet.
        ~exists().where(nodes.c.account_id == accounts.c.id),
    )
    .order_by(accounts.c.created_at)
    .limit(_AT_ONCE)
)
_LOCK = select(accounts.c.id).where(accounts.c.id == bindparam("of_account"), accounts.c.deleted_at.is_(None))


class Registrations:
    """The repository of registrations and invites. Every method raises ``DatabaseUnavailable``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def register(
        self, name: str, *, actor: str, at: datetime, rules: KeyRules, invite: str | None = None
    ) -> tuple[Account, NewKey]:
        """Open an account with a key, with an invite where one is given, which is used up by it.

        Raises:
            InvalidText: the name cannot be one.
            InvalidInvite: it cannot be used; nothing was changed.
        """
        name = check_text(name, "name")
        check_rules(rules)
        account_id = new_account_id()

        def work(connection: Connection) -> NewKey:
            detail = {}
            if invite is not None:
                values = {"of_hash": hash_code(invite), "now": to_micros(at), "by_account": account_id}
                used = connection.execute(_USE, values).scalar()
                if used is None:
                    raise InvalidInvite
                detail["invite"] = used
            make_account(connection, account_id, name, at, registered="open" if invite is None else "invite")
            write_admin_action(connection, at, actor, "account.register", account_id, **detail)
            return insert_key(connection, account_id, name=_SIGN_IN_KEY, actor=actor, at=at, rules=rules)

        key = await self._database.write(work)
        return Account(account_id, name, at), key

    async def forget_unfunded(self, before: datetime, at: datetime) -> int:
        """Delete accounts that were opened without an invite before a time and never topped up; return how many.

        One with an open invoice, a node, or any movement in the ledger, stays.
        """
        query = _OPENED.params(before=to_micros(before))
        found = await self._database.read(lambda connection: connection.execute(query).scalars().all())
        gone = 0
        for account_id in found:
            gone += await self._database.write(lambda connection, one=account_id: _forget(connection, one, at))  # type: ignore[misc]
        return gone

    async def create_invite(self, *, note: str, expires_at: datetime, actor: str, at: datetime) -> NewInvite:
        """Create an invite. The result holds its code, which is stored nowhere.

        Raises:
            InvalidText: the note cannot be one.
        """
        note = check_text(note, "note", may_be_empty=True)
        code, invite_id = generate_code(), f"inv_{secrets.token_hex(8)}"
        values = {
            "id": invite_id,
            "hash": hash_code(code),
            "note": note,
            "created_at": to_micros(at),
            "expires_at": to_micros(expires_at),
        }

        def work(connection: Connection) -> None:
            connection.execute(insert(invites).values(values))
            write_admin_action(connection, at, actor, "invite.create", invite_id)

        await self._database.write(work)
        return NewInvite(Invite(invite_id, note, at, expires_at), code)

    async def get_invite(self, invite_id: str) -> Invite | None:
        """Return an invite."""
        return await fetch_one(self._database, select(invites).where(invites.c.id == invite_id), _invite)

    async def invites(self, *, limit: int = 100, after: str | None = None) -> Listing[Invite]:
        """Return invites, the newest first. ``after`` is an invite's id."""
        query = newest_first(select(invites), invites.c.created_at, invites.c.id, after)
        return await fetch_page(self._database, query, _invite, limit, lambda last: last.id)

    async def revoke_invite(self, invite_id: str, *, actor: str, at: datetime) -> Invite | None:
        """Revoke an invite and return it, or None where there is none. One that was used stays as it is."""
        values = {"of_invite": invite_id, "now": to_micros(at)}

        def work(connection: Connection) -> None:
            if connection.execute(_REVOKE, values).rowcount:
                write_admin_action(connection, at, actor, "invite.revoke", invite_id)

        await self._database.write(work)
        return await self.get_invite(invite_id)


def _forget(connection: Connection, account_id: str, at: datetime) -> bool:
    """Delete an account unless it is in use now: looked at again once it is locked, so that no invoice is made meanwhile."""
    if connection.execute(_LOCK.with_for_update(), {"of_account": account_id}).scalar() is None:
        return False
    moved = select(ledger_entries.c.id).where(ledger_entries.c.book == book_of(account_id)).limit(1)
    waits = select(topups.c.id).where(topups.c.account_id == account_id, topups.c.state == TopupState.OPEN.value)
    if connection.execute(moved).first() or connection.execute(waits.limit(1)).first():
        return False
    forget_account(connection, account_id, actor="registration", at=at)
    return True


def _invite(row: RowMapping) -> Invite:
    return Invite(
        id=row["id"],
        note=row["note"],
        created_at=from_micros(row["created_at"]),
        expires_at=from_micros(row["expires_at"]),
        used_at=from_micros_or_none(row["used_at"]),
        revoked_at=from_micros_or_none(row["revoked_at"]),
        account_id=row["account_id"],
    )
