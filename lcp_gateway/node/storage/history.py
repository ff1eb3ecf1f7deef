"""Reading of a node's sales and purchases, ended and open, by another process while the node runs. Nothing sealed is read."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from lcp_gateway.node.lcp.messages import Protocol
from lcp_gateway.node.storage.database import connect, unavailable
from lcp_gateway.node.storage.files import StoreUnavailable
from lcp_gateway.node.storage.schema import APPLICATION_ID, STEPS, read_version

T = TypeVar("T")

Kind = Literal["sale", "purchase"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryLine:
    """A sale or a purchase that has ended. ``fee_msat`` and ``preimage`` are known of purchases alone; times are Unix seconds."""

    id: int
    kind: Kind
    peer_id: str
    job_id: bytes
    protocol: Protocol
    model: str
    price_msat: int
    fee_msat: int | None
    payment_hash: bytes
    preimage: bytes | None
    outcome: str
    paid: bool
    began_at: int
    ended_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryTotal:
    """The lines of one kind, day (UTC, "2026-11-30"), peer, model and outcome together."""

    kind: Kind
    day: str
    peer_id: str
    model: str
    outcome: str
    paid: bool
    jobs: int
    price_msat: int
    fee_msat: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenJob:
    """A sale that is quoted or runs, or a purchase that may be paid. ``sending``: a part of the sale's result was sent."""

    kind: Kind
    peer_id: str
    job_id: bytes
    protocol: Protocol
    model: str
    price_msat: int
    payment_hash: bytes
    began_at: int
    quote_expiry: int
    sending: bool


_OPEN_JOBS = """
    SELECT 'sale' AS kind, peer_id, job_id, protocol, model, price_msat, payment_hash, began_at, quote_expiry,
           last IS NOT NULL OR EXISTS (SELECT 1 FROM sent WHERE sale = number) AS sending
    FROM sales WHERE ended_at IS NULL
    UNION ALL
    SELECT 'purchase', peer_id, job_id, protocol, coalesce(model, ''), price_msat, payment_hash, began_at, quote_expiry,
           0 FROM purchases
    ORDER BY began_at, kind, job_id
"""
_TOTALS = """
    SELECT kind, date(ended_at, 'unixepoch') AS day, peer_id, model, outcome, paid, count(*) AS jobs,
           CAST(total(price_msat) AS INTEGER) AS price_msat, CAST(total(fee_msat) AS INTEGER) AS fee_msat
    FROM history WHERE ended_at >= ? GROUP BY kind, day, peer_id, model, outcome, paid
    ORDER BY kind, day, peer_id, model, outcome, paid
"""


class HistoryReader:
    """A database that ``open_history`` has opened for reading."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path = path
        self._connection = connection

    def lines(
        self, kind: Kind | None = None, *, since: int = 0, before_id: int | None = None, limit: int = 100
    ) -> list[HistoryLine]:
        """Return lines that ended at ``since`` or later, the last first; ``before_id`` is the id of the last line seen.

        Raises:
            StoreUnavailable: the database cannot be read.
        """
        rows = self._all(
            "SELECT * FROM history WHERE (:kind IS NULL OR kind = :kind) AND ended_at >= :since"
            " AND (:before IS NULL OR id < :before) ORDER BY id DESC LIMIT :limit",
            {"kind": kind, "since": since, "before": before_id, "limit": limit},
        )
        return [
            HistoryLine(**{**row, "protocol": Protocol(row["protocol"]), "paid": bool(row["paid"])}) for row in rows
        ]

    def totals(self, since: int = 0) -> list[HistoryTotal]:
        """Return sums over the lines that ended at ``since`` or later.

        Raises:
            StoreUnavailable: the database cannot be read.
        """
        return [HistoryTotal(**{**row, "paid": bool(row["paid"])}) for row in self._all(_TOTALS, (since,))]

    def open_jobs(self) -> list[OpenJob]:
        """Return the sales and the purchases that have not ended, the oldest first.

        Raises:
            StoreUnavailable: the database cannot be read.
        """
        return [
            OpenJob(**{**row, "protocol": Protocol(row["protocol"]), "sending": bool(row["sending"])})
            for row in self._all(_OPEN_JOBS, ())
        ]

    def _all(self, statement: str, values: tuple[int, ...] | dict[str, str | int | None]) -> list[sqlite3.Row]:
        try:
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise unavailable(self._path, error) from error


@contextmanager
def open_history(path: Path) -> Iterator[HistoryReader]:
    """Open a node's database for reading, whether the node runs or not.

    Raises:
        StoreUnavailable: there is none, it is no node's, or it is of another version than this program's.
    """
    if not path.exists():
        raise StoreUnavailable(f"{path}: no node has kept anything here yet")
    try:
        connection = connect(path, "ro")
    except sqlite3.Error as error:
        raise unavailable(path, error) from error
    with closing(connection):
        connection.row_factory = sqlite3.Row
        _check(path, connection)
        yield HistoryReader(path, connection)


def _check(path: Path, connection: sqlite3.Connection) -> None:
    try:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        version = read_version(connection)
    except sqlite3.Error as error:
        raise unavailable(path, error) from error
    if application != APPLICATION_ID:
        raise StoreUnavailable(f"{path}: it is a database of another program")
    if version != len(STEPS):
        raise StoreUnavailable(
            f"{path}: its tables are of version {version}, this program's of {len(STEPS)}: use the node's own program"
        )
