"""Keys: their hashes, what they may do, and a count of changes by which others keep up."""

import json
import secrets
from collections.abc import Collection
from datetime import datetime
from functools import lru_cache

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

from lcp_gateway.accounts.callers import KeyRules, Scope
from lcp_gateway.accounts.keys import generate_key
from lcp_gateway.accounts.models import (
    InvalidAmount,
    KeyChanges,
    KeyKind,
    KeyRecord,
    Listing,
    NewKey,
    check_text,
)
from lcp_gateway.purchase.money import Msat
from lcp_gateway.store.accounts.accounts import check_lives
from lcp_gateway.store.accounts.admin_log import write_act
from lcp_gateway.store.accounts.balances import LARGEST_AMOUNT
from lcp_gateway.store.database import cursors
from lcp_gateway.store.database.engines import Database
from lcp_gateway.store.database.schema import keys
from lcp_gateway.store.database.times import from_micros, to_micros

_MOST = 1_000
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
    """The keys of accounts. Every method raises ``DatabaseUnavailable``; ``actor`` is who did it, for the log of acts."""

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
        """Make a key. Its text is in what this gives, and can never be had again.

        Raises:
            NoSuchAccount: there is none of this id.
            BadText: the name, or that of a model, cannot be one.
            BadAmount: a limit is negative, or more than anybody has.
        """
        name = check_text(name, "name")
        _check(rules)
        made = generate_key()
        key_id = f"key_{secrets.token_hex(8)}"

        def work(connection: Connection) -> KeyRecord:
            check_lives(connection, account_id)
            record = KeyRecord(
                id=key_id,
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
            write_act(
                connection,
                at,
                actor,
                "key.create",
                key_id,
                account_id=account_id,
                scopes=sorted(rules.scopes),
            )
            return record

        return NewKey(await self._database.write(work), made.text)

    async def revoke(self, key_id: str, *, actor: str, at: datetime) -> KeyRecord | None:
        """Let a key in no more; gives it as it is now, or None where there is none. Once is enough, twice is no error."""
        values = {"of_key": key_id, "now": to_micros(at)}

        def work(connection: Connection) -> KeyRecord | None:
            number = cursors.take_next(connection, cursors.KEYS)
            if connection.execute(_REVOKE, {**values, "number": number}).rowcount:
                write_act(connection, at, actor, "key.revoke", key_id)
            return _one(connection, select(keys).where(keys.c.id == key_id))

        return await self._database.write(work)

    async def get(self, key_id: str) -> KeyRecord | None:
        """Give one key, revoked or not."""
        query = select(keys).where(keys.c.id == key_id)
        return await self._database.read(lambda connection: _one(connection, query))

    async def by_hash(self, key_hash: bytes) -> KeyRecord | None:
        """Give the key whose SHA-256 this is, revoked or not."""
        query = select(keys).where(keys.c.hash == key_hash)
        return await self._database.read(lambda connection: _one(connection, query))

    async def page(
        self, account_id: str | None = None, *, limit: int = 100, after: str | None = None
    ) -> Listing[KeyRecord]:
        """Give an account's keys, or all, the newest first, at most 1,000 at a time. ``after`` is a key's id."""
        limit = max(1, min(limit, _MOST))
        query = select(keys)
        if account_id is not None:
            query = query.where(keys.c.account_id == account_id)
        if after is not None:
            query = query.where(_older_than(after))
        query = query.order_by(keys.c.created_at.desc(), keys.c.id.desc()).limit(limit + 1)
        found = await self._database.read(lambda connection: _all(connection, query))
        return Listing(found[:limit], found[limit - 1].id if len(found) > limit else None)

    async def load_all(self) -> KeyChanges:
        """Give every key that is not revoked, for a cache."""
        return await self._changes(select(keys).where(keys.c.revoked_at.is_(None)))

    async def changed_since(self, number: int) -> KeyChanges:
        """Give the keys, revoked ones as well, that changed after what ``upto`` was before. Costs little when none did."""
        return await self._changes(
            select(keys).where(keys.c.change > number).order_by(keys.c.change)
        )

    async def _changes(self, query: Select[*tuple[object, ...]]) -> KeyChanges:
        def work(connection: Connection) -> KeyChanges:
            upto = cursors.get(connection, cursors.KEYS)
            return KeyChanges(_all(connection, query), upto)

        # A revoked key must be known as one however many others read.
        return await self._database.read_reserved(work)


def _check(rules: KeyRules) -> None:
    if any(not 0 <= getattr(rules, number) < LARGEST_AMOUNT for number in _NUMBERS):
        raise InvalidAmount
    if len(rules.models) > _MOST_MODELS:
        raise InvalidAmount
    for model in rules.models:
        check_text(model, "model's name")


def _older_than(key_id: str) -> ColumnElement[bool]:
    created_at = select(keys.c.created_at).where(keys.c.id == key_id).scalar_subquery()
    return or_(
        keys.c.created_at < created_at,
        and_(keys.c.created_at == created_at, keys.c.id < key_id),
    )


def _one(connection: Connection, query: Select[*tuple[object, ...]]) -> KeyRecord | None:
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else _record(row)


def _all(connection: Connection, query: Select[*tuple[object, ...]]) -> list[KeyRecord]:
    return [_record(row) for row in connection.execute(query).mappings()]


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


def _record(row: RowMapping) -> KeyRecord:
    expires_at, revoked_at = row["expires_at"], row["revoked_at"]
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
            expires_at=None if expires_at is None else from_micros(expires_at),
        ),
        created_at=from_micros(row["created_at"]),
        revoked_at=None if revoked_at is None else from_micros(revoked_at),
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
