"""Repeats of requests in the journal: the earlier purchase of the same request, and the release of its repeat key."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, bindparam, literal_column, null, select, update

from lcp_gateway.purchase.journal import EarlierPurchase, Intent, RepeatIdentity
from lcp_gateway.purchase.money import Charge, Msat, Refund
from lcp_gateway.purchase.quote import ProviderSource, Quote
from lcp_gateway.purchase.states import State
from lcp_gateway.store.database.schema import purchases
from lcp_gateway.store.database.statements import AnySelect, Parameters, Row, execute_in, execute_many
from lcp_gateway.store.database.times import from_micros, to_micros
from lcp_gateway.store.journal.purchases import CHARGE_COLUMNS, charge_of

# A literal, since all parameters of such a statement are lists.
_NOT_PAID: ColumnElement[str] = literal_column(f"'{State.NOT_PAID.value}'")


@dataclass(frozen=True, slots=True)
class _Found:
    """A purchase as it was found."""

    charge: Charge | None
    job_id: bytes
    state: str
    owner: str
    key_id: str
    request_id: str
    peer_id: str
    price_msat: int
    expires_at: int
    terms_hash: bytes
    protocol_version: int
    kind: str
    paying_at: int
    repeat_key: bytes | None
    repeat_body: bytes | None
    repeat_until: int | None
    refund: str | None

    def earlier(self) -> EarlierPurchase:
        """Return it without its invoice."""
        quote = Quote(
            peer_id=self.peer_id,
            job_id=self.job_id,
            price_msat=Msat(self.price_msat),
            expires_at=from_micros(self.expires_at),
            terms_hash=self.terms_hash,
            payment_request="",
            protocol_version=self.protocol_version,
            source=ProviderSource(self.kind),
        )
        return EarlierPurchase(
            quote,
            State(self.state),
            self.key_id,
            self.request_id,
            self.repeat_body,
            self.charge,
            None if self.refund is None else Refund(self.refund),
        )


# The charge, which is the first field, has several columns.
_OWN = tuple(field.name for field in fields(_Found))[1:]
_COLUMNS = tuple(purchases.c[name] for name in (*_OWN, *CHARGE_COLUMNS))
_ONE = select(*_COLUMNS).where(purchases.c.job_id == bindparam("of_job"))
_RELEASE = (
    update(purchases).where(purchases.c.job_id == bindparam("of_job")).values(repeat_key=null(), repeat_until=null())
)


def _by_key(parameters: Parameters) -> AnySelect:
    (keys,) = parameters
    # Not locked: rows are locked in the order of their jobs, and one that changes meanwhile is asked for again.
    return select(*_COLUMNS).where(purchases.c.repeat_key.in_(keys))


def _by_body(parameters: Parameters) -> AnySelect:
    bodies, (since,) = parameters
    return (
        select(*_COLUMNS)
        .where(purchases.c.paying_at >= since, purchases.c.repeat_body.in_(bodies), purchases.c.state != _NOT_PAID)
        .order_by(purchases.c.paying_at)
    )


class Repeats:
    """The earlier purchases of the requests of one transaction, with those that the transaction itself writes.

    Requests without a repeat key that are no retries need no query.
    """

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._by_key: dict[bytes, _Found] = {}
        self._by_body: dict[bytes, _Found] = {}
        self._taken: dict[bytes, EarlierPurchase] = {}
        self._too_old: set[bytes] = set()

    def look_up(self, connection: Connection, identities: Sequence[RepeatIdentity]) -> None:
        """Find the purchases of the same requests."""
        keys = {identity.key for identity in identities if identity.key is not None}
        if keys:
            found = execute_in(connection, _by_key, sorted(keys))
            self._by_key = {row.repeat_key: row for row in map(_row, found) if row.repeat_key}
        since = {
            identity.body: to_micros(identity.first_try_since)
            for identity in identities
            if identity.first_try_since is not None
        }
        if since:
            found = execute_in(connection, _by_body, sorted(since), [min(since.values())])
            for row in map(_row, found):
                # Its own purchases a process knows itself: the query is for first tries that came to other processes.
                if row.repeat_body and row.owner != self._owner:
                    self._by_body[row.repeat_body] = row

    def earlier(self, identity: RepeatIdentity, at_micros: int) -> EarlierPurchase | None:
        """Return the purchase that a request at this time would repeat, or None."""
        if identity.key is not None:
            if (taken := self._taken.get(identity.key)) is not None:
                return taken
            if (row := self._by_key.get(identity.key)) is not None:
                if (row.repeat_until or 0) > at_micros:
                    return row.earlier()
                self._too_old.add(row.job_id)
        if identity.first_try_since is not None:
            row = self._by_body.get(identity.body)
            if row is not None and row.paying_at >= to_micros(identity.first_try_since):
                return row.earlier()
        return None

    def take(self, intent: Intent) -> None:
        """Add an intent that this transaction writes."""
        repeat = intent.repeat
        if repeat is not None and repeat.key is not None:
            self._taken[repeat.key] = EarlierPurchase(
                intent.quote, State.PAYING, intent.key_id, intent.request_id, repeat.body, intent.charge
            )

    def release(self, connection: Connection) -> None:
        """Release the repeat keys of this transaction that have expired; before the intents are written."""
        if self._too_old:
            release_keys(connection, sorted(self._too_old))


def release_keys(connection: Connection, job_ids: Sequence[bytes]) -> None:
    """Make the repeat keys of purchases free again."""
    rows: list[Row] = [{"of_job": job_id} for job_id in job_ids]
    execute_many(connection, _RELEASE, rows)


def find_earlier(
    connection: Connection, identity: RepeatIdentity, *, owner: str, at: datetime
) -> EarlierPurchase | None:
    """Return the earlier purchase of the same request, in the caller's transaction; None where there is none."""
    if identity.key is None and identity.first_try_since is None:
        return None
    repeats = Repeats(owner)
    repeats.look_up(connection, [identity])
    return repeats.earlier(identity, to_micros(at))


def find_job(connection: Connection, job_id: bytes) -> EarlierPurchase | None:
    """Return the purchase of a job, or None."""
    row = connection.execute(_ONE, {"of_job": job_id}).one_or_none()
    return None if row is None else _row(row).earlier()


def _row(row: Sequence[Any]) -> _Found:
    return _Found(charge_of(*row[len(_OWN) :]), *row[: len(_OWN)])
