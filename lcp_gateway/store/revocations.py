"""Which keys are revoked and which accounts deleted, asked in the very transaction that writes an intent: only there can no revocation come between."""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import BindParameter, Connection, Select, select

from lcp_gateway.store.prepared import execute_in
from lcp_gateway.store.tables import accounts, keys


def _revoked(parameters: Sequence[Sequence[BindParameter[Any]]]) -> Select[*tuple[Any, ...]]:
    (key_ids,) = parameters
    return select(keys.c.id).where(keys.c.id.in_(key_ids), keys.c.revoked_at.is_not(None))


def revoked_of(connection: Connection, key_ids: Collection[str]) -> frozenset[str]:
    """Return those of these keys that are revoked. An id that is no account's key is never one of them."""
    if not key_ids:
        return frozenset()
    return frozenset(key_id for (key_id,) in execute_in(connection, _revoked, sorted(key_ids)))


def _deleted(parameters: Sequence[Sequence[BindParameter[Any]]]) -> Select[*tuple[Any, ...]]:
    (account_ids,) = parameters
    return select(accounts.c.id).where(
        accounts.c.id.in_(account_ids), accounts.c.deleted_at.is_not(None)
    )


def deleted_of(connection: Connection, account_ids: Collection[str]) -> frozenset[str]:
    """Return those of these accounts that were deleted."""
    if not account_ids:
        return frozenset()
    found = execute_in(connection, _deleted, sorted(account_ids))
    return frozenset(account_id for (account_id,) in found)
