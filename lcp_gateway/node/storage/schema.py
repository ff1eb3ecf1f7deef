"""The tables of a node's database, and the steps from each version of them to the next.

Messages of the protocol are kept as they go over the wire: type and payload. A column ``sealed_…`` is ciphertext, or NULL where
the operator keeps requests and results off the disk. A price or an expiry beyond 63 bits is cut to them in its column; the
quote has it whole.
"""

import sqlite3
from collections.abc import Sequence
from typing import Final

from lcp_gateway.node.storage.files import RecordDamaged, StoreUnavailable

APPLICATION_ID: Final = 0x4C43504E
"""Tells a node's database from other SQLite files: "LCPN"."""

STEPS: Final[Sequence[Sequence[str]]] = (
    (
        # ``settle_index NODE_ID``: the last settled invoice that was taken in; ``key_check``: decrypts with the right key alone;
        # ``job_key``: by it ids of jobs are known again; ``forgotten_until``: when the youngest line that was pruned began.
        """CREATE TABLE facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID""",
        """CREATE TABLE manifests (
            peer_id TEXT NOT NULL, protocol INTEGER NOT NULL, manifest BLOB NOT NULL,
            PRIMARY KEY (peer_id, protocol)
        ) WITHOUT ROWID""",
        # Params that name a model and nothing else are ``model``; others are sealed.
        """CREATE TABLE purchases (
            job_id BLOB PRIMARY KEY, peer_id TEXT NOT NULL, protocol INTEGER NOT NULL, task_kind TEXT NOT NULL,
            model TEXT, sealed_params BLOB, content_type TEXT NOT NULL, params_content_type TEXT,
            quote BLOB NOT NULL, price_msat INTEGER NOT NULL, quote_expiry INTEGER NOT NULL, payment_hash BLOB NOT NULL,
            manifest BLOB NOT NULL, began_at INTEGER NOT NULL
        )""",
        # ``last``: the end of the result, without its text; for sales whose messages are not kept. ``delivered_at``: when the
        # whole result was kept; the sale stays a while, to be sent again.
        """CREATE TABLE sales (
            number INTEGER PRIMARY KEY, peer_id TEXT NOT NULL, job_id BLOB NOT NULL, protocol INTEGER NOT NULL,
            request BLOB NOT NULL, model TEXT NOT NULL, stream INTEGER NOT NULL,
            quote BLOB NOT NULL, price_msat INTEGER NOT NULL, quote_expiry INTEGER NOT NULL, payment_hash BLOB NOT NULL,
            sealed_body BLOB, sealed_preimage BLOB, last BLOB, began_at INTEGER NOT NULL, delivered_at INTEGER,
            UNIQUE (peer_id, job_id)
        )""",
        """CREATE TABLE sent (
            sale INTEGER NOT NULL REFERENCES sales (number) ON DELETE CASCADE, position INTEGER NOT NULL,
            sealed_messages BLOB NOT NULL, PRIMARY KEY (sale, position)
        )""",
        """CREATE TABLE history (
            id INTEGER PRIMARY KEY, kind TEXT NOT NULL, peer_id TEXT NOT NULL, job_id BLOB NOT NULL,
            protocol INTEGER NOT NULL, model TEXT NOT NULL, price_msat INTEGER NOT NULL, fee_msat INTEGER,
            payment_hash BLOB NOT NULL, preimage BLOB, outcome TEXT NOT NULL, paid INTEGER NOT NULL,
            began_at INTEGER NOT NULL, ended_at INTEGER NOT NULL
        )""",
        "CREATE INDEX history_by_end ON history (ended_at)",
    ),
    (
        # A sale that has ended, in whatever way, has its line of history at once: ``has_line``; it stays to be sent again.
        "ALTER TABLE sales RENAME COLUMN delivered_at TO ended_at",
        "ALTER TABLE sales ADD COLUMN has_line INTEGER NOT NULL DEFAULT 0",
        """INSERT INTO history (kind, peer_id, job_id, protocol, model, price_msat, payment_hash, outcome, paid,
                                began_at, ended_at)
            SELECT 'sale', peer_id, job_id, protocol, model, price_msat, payment_hash, 'delivered', 1, began_at, ended_at
            FROM sales WHERE ended_at IS NOT NULL ORDER BY ended_at""",
        "UPDATE sales SET has_line = 1 WHERE ended_at IS NOT NULL",
        "CREATE INDEX history_by_job ON history (job_id)",
        "CREATE INDEX history_by_hash ON history (payment_hash)",
        # The id of the Lightning node that pays; empty for a purchase of an earlier version, of which it is not known.
        "ALTER TABLE purchases ADD COLUMN payer TEXT NOT NULL DEFAULT ''",
    ),
)
"""One list of statements for each version. A step is never changed once it was released: a new one is added."""


def migrate(connection: sqlite3.Connection, steps: Sequence[Sequence[str]] = STEPS) -> None:
    """Bring the tables to the last version, each step in a transaction of its own.

    Raises:
        StoreUnavailable: they are of a newer version.
    """
    version = read_version(connection)
    if version > len(steps):
        raise StoreUnavailable(
            f"its tables are of version {version}, made by a newer program: this one knows {len(steps)}"
        )
    for number, statements in enumerate(steps[version:], version + 1):
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in statements:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={number}")
            connection.execute("COMMIT")
        except BaseException:
            connection.rollback()
            raise


def check_file(connection: sqlite3.Connection) -> None:
    """Check that a file is a node's database, and whole.

    Raises:
        StoreUnavailable: it is another program's.
        RecordDamaged: it is empty, or its pages do not fit together.
        sqlite3.DatabaseError: it is no SQLite file.
    """
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    if not pages:
        # A new database is put in place whole.
        raise RecordDamaged("the file is empty")
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    if application != APPLICATION_ID:
        raise StoreUnavailable("it is a database of another program")
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise RecordDamaged(found)


def read_version(connection: sqlite3.Connection) -> int:
    """Return the version of the tables; 0 for a new file."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)
