"""Keys: their hashes, their rules, and the number of the last change, by which other gateways follow."""

import json
import secrets
from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import datetime
from functools import lru_cache

from sqlalchemy import Connection, RowMapping, bindparam, insert, select, update

from lcp_gateway.accounts.callers import KeyRules, Scope
from lcp_gateway.accounts.keys import generate_key
from lcp_gateway.accounts.models import (
    InvalidAmount,
    KeyChanges,
    KeyIsRevoked,
    KeyKind,
    KeyRecord,
    Listing,
    NewKey,
    check_text,
)
from lcp_gateway.purchase.money import Msat
from lcp_gateway.store.accounts.accounts import check_lives
from lcp_gateway.store.accounts.admin_log import write_admin_action
from lcp_gateway.store.accounts.balances import LARGEST_AMOUNT
from lcp_gateway.store.database import cursors
from lcp_gateway.store.database.engines import Database
from lcp_gateway.store.database.schema import keys
from lcp_gateway.store.database.statements import AnySelect, fetch, fetch_one, fetch_page, newest_first, read_records
from lcp_gateway.store.database.times import from_micros, from_micros_or_none, to_micros

ALLOW_WITHDRAWALS = "key.allow_withdrawals"
"""The action in the admin log by which a key that is there already gets the scope ``withdraw``."""

_MOST_MODELS = 100

_NUMBERS = (
    "max_price_msat",
    "requests_per_minute",
    "tokens_per_minute",
    "budget_hour_msat",
    "budget_day_msat",
    "budget_month_msat",
    "concurrent_jobs",
)
_REVOKE = (
    update(keys)
    .where(keys.c.id == bindparam("of_key"), keys.c.revoked_at.is_(None))
    .values(revoked_at=bindparam("now"), change=bindparam("number"))
)


class Keys:
    """The repository of keys. Every method raises ``DatabaseUnavailable``; ``actor`` is named in the admin log."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self,
        account_id: str,
        *,
        name: str,
        actor: str,
        at: datetime,
        rules: KeyRules = KeyRules(),  # noqa: B008 - frozen
        kind: KeyKind = KeyKind.API,
    ) -> NewKey:
        """Create a key. The result holds its text, which is stored nowhere.

        Raises:
            AccountNotFound: there is none of this id.
            InvalidText: the name, or that of a model, cannot be one.
            InvalidAmount: a limit is negative or too large, or the models are too many.
        """
        name = check_text(name, "name")
        check_rules(rules)

        def work(connection: Connection) -> NewKey:
            check_lives(connection, account_id)
            return insert_key(connection, account_id, name=name, actor=actor, at=at, rules=rules, kind=kind)

        return await self._database.write(work)

    async def revoke(self, key_id: str, *, actor: str, at: datetime) -> KeyRecord | None:
        """Revoke a key and return it, or None where there is none. A key that is revoked stays as it is."""
        values = {"of_key": key_id, "now": to_micros(at)}

        def work(connection: Connection) -> KeyRecord | None:
            number = cursors.take_next(connection, cursors.KEYS)
            if connection.execute(_REVOKE, {**values, "number": number}).rowcount:
                write_admin_action(connection, at, actor, "key.revoke", key_id)
            found = read_records(connection, select(keys).where(keys.c.id == key_id), key_record)
            return found[0] if found else None

        return await self._database.write(work)

    async def change(self, key_id: str, *, actor: str, at: datetime, name: str, rules: KeyRules) -> KeyRecord | None:
        """Give a key another name and other rules; return it, or None where there is none.

        Raises:
            KeyIsRevoked: it stays as it is.
            InvalidText, InvalidAmount: as in ``create``.
        """
        name = check_text(name, "name")
        check_rules(rules)

        def work(connection: Connection) -> KeyRecord | None:
            number = cursors.take_next(connection, cursors.KEYS)
            found = read_records(connection, select(keys).where(keys.c.id == key_id).with_for_update(), key_record)
            if not found:
                return None
            (record,) = found
            if record.revoked_at is not None:
                raise KeyIsRevoked
            changed = replace(record, name=name, rules=rules, change=number)
            connection.execute(update(keys).where(keys.c.id == key_id).values(_values(changed)))
            write_admin_action(
                connection, at, actor, "key.change", key_id, account_id=record.account_id, scopes=sorted(rules.scopes)
            )
            if Scope.WITHDRAW in rules.scopes - record.rules.scopes:
                # The time that its account cannot withdraw begins with it, as with a new key.
                write_admin_action(connection, at, actor, ALLOW_WITHDRAWALS, key_id, account_id=record.account_id)
            return changed

        return await self._database.write(work)

    async def names(self, key_ids: Collection[str]) -> Mapping[str, str]:
        """Return the names of these keys, of those that there are."""
        if not key_ids:
            return {}
        query = select(keys.c.id, keys.c.name).where(keys.c.id.in_(key_ids))
        return dict(await fetch(self._database, query, lambda row: (row["id"], row["name"])))

    async def get(self, key_id: str) -> KeyRecord | None:
        """Return a key, revoked or not."""
        return await fetch_one(self._database, select(keys).where(keys.c.id == key_id), key_record)

    async def page(
        self, account_id: str | None = None, *, limit: int = 100, after: str | None = None
    ) -> Listing[KeyRecord]:
        """Return the keys of an account, or of all, the newest first. ``after`` is a key's id."""
        query = newest_first(select(keys), keys.c.created_at, keys.c.id, after)
        if account_id is not None:
            query = query.where(keys.c.account_id == account_id)
        return await fetch_page(self._database, query, key_record, limit, lambda last: last.id)

    async def load_all(self) -> KeyChanges:
        """Return every key that is not revoked."""
        return await self._changes(select(keys).where(keys.c.revoked_at.is_(None)))

    async def changed_since(self, number: int) -> KeyChanges:
        """Return the keys, revoked ones as well, that changed after the change of this number."""
        return await self._changes(select(keys).where(keys.c.change > number).order_by(keys.c.change))

    async def _changes(self, query: AnySelect) -> KeyChanges:
        def work(connection: Connection) -> KeyChanges:
            upto = cursors.get(connection, cursors.KEYS)
            return KeyChanges(read_records(connection, query, key_record), upto)

        # Other reads must not delay the news that a key was revoked.
        return await self._database.read_reserved(work)


def insert_key(
    connection: Connection,
    account_id: str,
    *,
    name: str,
    actor: str,
    at: datetime,
    rules: KeyRules,
    kind: KeyKind = KeyKind.API,
) -> NewKey:
    """Make a key in the caller's transaction, which has locked or made the account; name and rules were checked."""
    made = generate_key()
    record = KeyRecord(
        id=f"key_{secrets.token_hex(8)}",
        account_id=account_id,
        key_hash=made.hash,
        prefix=made.prefix,
        name=name,
        kind=kind,
        rules=rules,
        created_at=at,
        revoked_at=None,
        change=cursors.take_next(connection, cursors.KEYS),
    )
    connection.execute(insert(keys).values(_values(record)))
    write_admin_action(
        connection, at, actor, "key.create", record.id, account_id=account_id, scopes=sorted(rules.scopes)
    )
    return NewKey(record, made.text)


def check_rules(rules: KeyRules) -> None:
    """Check the limits of a key.

    Raises:
        InvalidAmount: a limit is negative or too large, or the models are too many.
        InvalidText: the name of a model cannot be one.
    """
    if any(not 0 <= getattr(rules, number) < LARGEST_AMOUNT for number in _NUMBERS):
        raise InvalidAmount
    if len(rules.models) > _MOST_MODELS:
        raise InvalidAmount
    for model in rules.models:
        check_text(model, "model's name")


def _values(record: KeyRecord) -> dict[str, object]:
    rules = record.rules
    return {
        "id": record.id,
        "account_id": record.account_id,
        "hash": record.key_hash,
        "prefix": record.prefix,
        "name": record.name,
        "kind": record.kind.value,
        "scopes": _words(rules.scopes),
        "models": _words(rules.models),
        **{number: getattr(rules, number) for number in _NUMBERS},
        "created_at": to_micros(record.created_at),
        "expires_at": None if rules.expires_at is None else to_micros(rules.expires_at),
        "revoked_at": None,
        "change": record.change,
    }


def key_record(row: RowMapping) -> KeyRecord:
    """Return a row as a record."""
    return KeyRecord(
        id=row["id"],
        account_id=row["account_id"],
        key_hash=row["hash"],
        prefix=row["prefix"],
        name=row["name"],
        kind=KeyKind(row["kind"]),
        rules=KeyRules(
            scopes=_scopes(row["scopes"]),
            models=_models(row["models"]),
            max_price_msat=Msat(row["max_price_msat"]),
            requests_per_minute=row["requests_per_minute"],
            tokens_per_minute=row["tokens_per_minute"],
            budget_hour_msat=Msat(row["budget_hour_msat"]),
            budget_day_msat=Msat(row["budget_day_msat"]),
            budget_month_msat=Msat(row["budget_month_msat"]),
            concurrent_jobs=row["concurrent_jobs"],
            expires_at=from_micros_or_none(row["expires_at"]),
        ),
        created_at=from_micros(row["created_at"]),
        revoked_at=from_micros_or_none(row["revoked_at"]),
        change=row["change"],
    )


def _words(words: Collection[str]) -> str:
    return json.dumps(sorted(words))


# Many keys have the same few lists.
@lru_cache(maxsize=256)
def _scopes(words: str) -> frozenset[Scope]:
    return frozenset(Scope(word) for word in json.loads(words))


@lru_cache(maxsize=1024)
def _models(words: str) -> frozenset[str]:
    return frozenset(json.loads(words))
