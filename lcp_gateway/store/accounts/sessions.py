"""Sessions of the console: by the hash of the browser's token, shared by all gateways on the database."""

from datetime import datetime

from sqlalchemy import Connection, RowMapping, and_, bindparam, delete, insert, select, update

from lcp_gateway.accounts.callers import Caller
from lcp_gateway.accounts.sessions import Role, Session
from lcp_gateway.store.accounts.admin_log import write_admin_action
from lcp_gateway.store.accounts.keys import key_record
from lcp_gateway.store.database.engines import Database
from lcp_gateway.store.database.schema import keys, sessions
from lcp_gateway.store.database.statements import read_records
from lcp_gateway.store.database.times import from_micros, to_micros

_LIVING = select(sessions).where(
    sessions.c.hash == bindparam("of_hash"),
    sessions.c.idle_ends_at > bindparam("now"),
    sessions.c.ends_at > bindparam("now"),
)
_VALID_KEY = select(keys).where(
    keys.c.id == bindparam("of_key"), keys.c.account_id == bindparam("of_account"), keys.c.revoked_at.is_(None)
)
_EXTEND = (
    update(sessions)
    .where(sessions.c.hash == bindparam("of_hash"), sessions.c.seen_at < bindparam("now"))
    .values(seen_at=bindparam("now"), idle_ends_at=bindparam("idle"))
)
_FORGET = delete(sessions).where(
    (sessions.c.idle_ends_at <= bindparam("now")) | (sessions.c.ends_at <= bindparam("now"))
)


class Sessions:
    """The repository of sessions. Every method raises ``DatabaseUnavailable``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, session: Session, *, most: int) -> None:
        """Store a session, and end the longest unused ones of its key above ``most``.

        That of an administrator is recorded in the admin log.
        """
        newest = (
            select(sessions.c.hash)
            .where(sessions.c.key_id == session.key_id)
            .order_by(sessions.c.seen_at.desc(), sessions.c.hash)
            .limit(most)
        )

        def work(connection: Connection) -> None:
            connection.execute(insert(sessions).values(_values(session)))
            connection.execute(
                delete(sessions).where(sessions.c.key_id == session.key_id, sessions.c.hash.not_in(newest))
            )
            if session.role is Role.OPERATOR:
                write_admin_action(
                    connection, session.created_at, f"console:{session.key_id}", "session.create", session.key_id
                )

        await self._database.write(work)

    async def find(self, token_hash: bytes, now: datetime) -> tuple[Session, Caller | None] | None:
        """Return a session that has not ended, with the caller of its customer's key by the rules of now.

        The caller is None for a key of the settings, and for a key that was revoked or has expired.
        """

        def work(connection: Connection) -> tuple[Session, Caller | None] | None:
            found = read_records(connection, _LIVING.params(of_hash=token_hash, now=to_micros(now)), _session)
            if not found:
                return None
            session = found[0]
            if session.account_id is None:
                return session, None
            of_key = _VALID_KEY.params(of_key=session.key_id, of_account=session.account_id)
            valid = read_records(connection, of_key, key_record)
            if not valid or (valid[0].rules.expires_at or session.ends_at) <= now:
                return session, None
            return session, valid[0].caller

        return await self._database.read(work)

    async def extend(self, token_hash: bytes, *, seen_at: datetime, idle_ends_at: datetime) -> None:
        """Record that a session was used; an earlier use than the last one changes nothing."""
        values = {"of_hash": token_hash, "now": to_micros(seen_at), "idle": to_micros(idle_ends_at)}
        await self._database.write(lambda connection: connection.execute(_EXTEND, values))

    async def end(self, token_hash: bytes) -> bool:
        """End a session; return whether there was one."""
        statement = delete(sessions).where(sessions.c.hash == token_hash)
        return bool(await self._database.write(lambda connection: connection.execute(statement).rowcount))

    async def end_all(self, *, account_id: str | None, key_id: str | None = None) -> int:
        """End the sessions of a key, or of all keys of an account; return how many there were."""
        of_key = sessions.c.key_id == key_id if key_id is not None else sessions.c.account_id.is_not(None)
        statement = delete(sessions).where(and_(sessions.c.account_id.is_not_distinct_from(account_id), of_key))
        return await self._database.write(lambda connection: connection.execute(statement).rowcount)

    async def forget_ended(self, now: datetime) -> int:
        """Delete the sessions that have ended by time; return how many."""
        values = {"now": to_micros(now)}
        return await self._database.write(lambda connection: connection.execute(_FORGET, values).rowcount)


def _values(session: Session) -> dict[str, object]:
    return {
        "hash": session.token_hash,
        "role": session.role.value,
        "account_id": session.account_id,
        "key_id": session.key_id,
        "proof": session.proof,
        "created_at": to_micros(session.created_at),
        "seen_at": to_micros(session.seen_at),
        "idle_ends_at": to_micros(session.idle_ends_at),
        "ends_at": to_micros(session.ends_at),
    }


def _session(row: RowMapping) -> Session:
    return Session(
        token_hash=row["hash"],
        role=Role(row["role"]),
        account_id=row["account_id"],
        key_id=row["key_id"],
        proof=row["proof"],
        created_at=from_micros(row["created_at"]),
        seen_at=from_micros(row["seen_at"]),
        idle_ends_at=from_micros(row["idle_ends_at"]),
        ends_at=from_micros(row["ends_at"]),
    )
