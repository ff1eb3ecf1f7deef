"""The store of a node over one SQLite file."""

import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from lcp_gateway.node.lcp.effects import Send
from lcp_gateway.node.lcp.messages import Manifest, Protocol
from lcp_gateway.node.ports import EndedPurchase, PaymentHashUsed, StoredPurchase, StoredSale
from lcp_gateway.node.storage.database import Database, damaged
from lcp_gateway.node.storage.files import RecordDamaged
from lcp_gateway.node.storage.records import (
    Records,
    Row,
    end_without_text,
    read_kept,
    sale_name,
    sent_context,
    write_kept,
    write_sent,
)
from lcp_gateway.node.storage.sealing import open_encryption

T = TypeVar("T")

_DAY_S: Final = 86_400
_SETTLE_INDEX: Final = "settle_index "
_FORGOTTEN_UNTIL: Final = "forgotten_until"
_JOB_KEY: Final = "job_key"
_JOB_KEY_BYTES: Final = 32
_LONGEST_MODEL: Final = 200
"""Of a name in a line of history: a client may have asked for any."""

_HASH_USED: Final = """
    SELECT EXISTS (SELECT 1 FROM purchases WHERE payment_hash = :payment_hash AND job_id != :job_id)
        OR EXISTS (SELECT 1 FROM history
                   WHERE payment_hash = :payment_hash AND kind = 'purchase' AND paid AND job_id != :job_id)
"""
_ADD_LINE: Final = """
    INSERT INTO history (kind, peer_id, job_id, protocol, model, price_msat, fee_msat, payment_hash, preimage,
                         outcome, paid, began_at, ended_at)
    SELECT :kind, peer_id, job_id, protocol, :model, :price_msat, :fee_msat, payment_hash, :preimage,
           :outcome, :paid, began_at, :ended_at
"""


class SqliteStore:
    """``ports.Store`` on a disk: what precedes money or is money outlives a loss of power, the rest the end of the process.

    Use ``open``; every method raises ``StoreUnavailable`` (an ``OSError``) where the database cannot be used.
    """

    keeps_jobs = True

    def __init__(
        self, database: Database, records: Records, *, history_s: int, history_lines: int, clock: Callable[[], float]
    ) -> None:
        self._database = database
        self._records = records
        self._history_s = history_s
        self._history_lines = history_lines
        self._clock = clock

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        key_file: Path | None = None,
        at_rest: Literal["encrypted", "memory"] = "encrypted",
        history_days: int = 90,
        history_lines: int = 100_000,
        clock: Callable[[], float] = time.time,
    ) -> "SqliteStore":
        """Open the database, and make it where it is missing, with its key file (None: the path with ".key" appended).

        With ``at_rest`` "memory" neither requests nor results nor hold preimages are written; those that were sealed before are
        still read, with the key. Lines of history are kept for days, and the last ``history_lines`` of them.

        Raises:
            StoreUnavailable: the database or its key cannot be used; the text says what to do.
        """
        database = Database(path)
        await database.open()
        try:
            key_path = key_file or database.path.with_name(f"{database.path.name}.key")
            seals = at_rest == "encrypted"
            encryption = await database.run(
                lambda connection: open_encryption(connection, key_path, seals=seals), durable=True
            )
        except BaseException:
            await database.close()
            raise
        return cls(
            database,
            Records(encryption, seals=seals),
            history_s=history_days * _DAY_S,
            history_lines=history_lines,
            clock=clock,
        )

    async def close(self) -> None:
        """Finish what waits, and close the file."""
        await self._database.close()

    async def manifests(self) -> dict[tuple[str, Protocol], Manifest]:
        """Return the last manifest of each peer in each version."""

        def read(_: sqlite3.Connection, row: sqlite3.Row) -> tuple[tuple[str, Protocol], Manifest]:
            return (row["peer_id"], Protocol(row["protocol"])), read_kept(Manifest, row["manifest"])

        return dict(await self._all("SELECT * FROM manifests", read))

    async def keep_manifest(self, peer_id: str, protocol: Protocol, manifest: Manifest | None) -> None:
        """Keep a peer's manifest; None removes it, as does one of version 0, which has no form on the wire."""
        key = (peer_id, protocol.value)
        if manifest is None or not manifest.protocol_version:
            await self._run("DELETE FROM manifests WHERE peer_id = ? AND protocol = ?", key)
        else:
            kept = write_kept(protocol, manifest)
            await self._run("INSERT OR REPLACE INTO manifests VALUES (?, ?, ?)", (*key, kept))

    async def keep_purchase(self, purchase: StoredPurchase) -> None:
        """Keep a purchase before it is paid, but for its request's bytes.

        Raises:
            PaymentHashUsed: another purchase that is open, or was paid, has its payment hash.
        """
        began_at = int(self._clock())

        def work(connection: sqlite3.Connection) -> None:
            row = self._records.purchase_row(purchase, began_at)
            if connection.execute(_HASH_USED, row).fetchone()[0]:
                raise PaymentHashUsed
            _insert(connection, "INSERT OR REPLACE INTO purchases", row)

        await self._database.run(work, durable=True)

    async def end_purchase(
        self,
        job_id: bytes,
        *,
        outcome: str,
        paid: bool,
        ended_at: int,
        fee_msat: int | None = None,
        preimage: bytes | None = None,
    ) -> None:
        """Remove a purchase, and keep a line of it; without effect for one that is not kept."""

        def work(connection: sqlite3.Connection) -> None:
            found = connection.execute("SELECT model, price_msat FROM purchases WHERE job_id = ?", (job_id,)).fetchone()
            if found is None:
                return
            model, price_msat = found
            line = {
                "kind": "purchase",
                "model": (model or "")[:_LONGEST_MODEL],
                "price_msat": price_msat,
                "fee_msat": fee_msat,
                "preimage": preimage,
                "outcome": outcome,
                "paid": paid,
                "ended_at": ended_at,
                "of": job_id,
            }
            connection.execute(f"{_ADD_LINE} FROM purchases WHERE job_id = :of", line)
            connection.execute("DELETE FROM purchases WHERE job_id = ?", (job_id,))
            self._prune(connection)

        await self._database.run(work, durable=True)

    async def ended_purchase(self, job_id: bytes) -> EndedPurchase | None:
        """Return what the line of a purchase says."""

        def work(connection: sqlite3.Connection) -> EndedPurchase | None:
            found = connection.execute(
                "SELECT payment_hash, paid, fee_msat, preimage FROM history WHERE kind = 'purchase' AND job_id = ?"
                " ORDER BY id DESC LIMIT 1",
                (job_id,),
            ).fetchone()
            if found is None:
                return None
            payment_hash, paid, fee_msat, preimage = found
            return EndedPurchase(payment_hash=payment_hash, paid=bool(paid), fee_msat=fee_msat, preimage=preimage)

        return await self._database.run(work)

    async def is_hash_used(self, payment_hash: bytes, *, but_for: bytes) -> bool:
        """Return whether another purchase, open or paid, has a payment hash."""
        used = {"payment_hash": payment_hash, "job_id": but_for}
        return await self._database.run(lambda connection: bool(connection.execute(_HASH_USED, used).fetchone()[0]))

    async def forgotten_until(self) -> int:
        """Return the time up to which lines may have been pruned."""
        return int(await self._fact(_FORGOTTEN_UNTIL) or 0)

    async def job_key(self) -> bytes:
        """Return 32 random bytes, made with the first call."""
        made = os.urandom(_JOB_KEY_BYTES)

        def work(connection: sqlite3.Connection) -> bytes:
            connection.execute("INSERT OR IGNORE INTO facts VALUES (?, ?)", (_JOB_KEY, made))
            (secret,) = connection.execute("SELECT value FROM facts WHERE name = ?", (_JOB_KEY,)).fetchone()
            return bytes(secret)

        return await self._database.run(work, durable=True)

    async def purchases(self) -> list[StoredPurchase]:
        """Return the purchases that have not ended, the order's ``request`` empty."""
        return await self._all(
            "SELECT * FROM purchases ORDER BY began_at", lambda _, row: self._records.read_purchase(row)
        )

    async def keep_sale(self, sale: StoredSale) -> None:
        """Keep a sale before its quote goes out, in place of an earlier one of that peer and job."""
        began_at = int(self._clock())
        peer_id, job_id = sale.peer_id, sale.kept.request.job_id

        def work(connection: sqlite3.Connection) -> None:
            row = self._records.sale_row(sale, began_at)
            sealed = self._seal_sent(peer_id, job_id, 0, sale.sent)
            row["last"] = None if sealed else end_without_text(sale.sent)
            connection.execute("DELETE FROM sales WHERE peer_id = ? AND job_id = ?", (peer_id, job_id))
            number = _insert(connection, "INSERT INTO sales", row)
            if sealed:
                connection.execute("INSERT INTO sent VALUES (?, ?, ?)", (number, 0, sealed))

        await self._database.run(work, durable=True)

    async def keep_sent(self, peer_id: str, job_id: bytes, messages: tuple[Send, ...]) -> None:
        """Append messages of a sale's result before they are sent; without effect for a sale that is not kept."""
        if not messages:
            return
        key = (peer_id, job_id)
        if not self._records.seals:
            if (last := end_without_text(messages)) is not None:
                await self._run("UPDATE sales SET last = ? WHERE peer_id = ? AND job_id = ?", (last, *key))
            return

        def work(connection: sqlite3.Connection) -> None:
            found = connection.execute(
                "SELECT number, (SELECT coalesce(max(position), -1) + 1 FROM sent WHERE sale = number)"
                " FROM sales WHERE peer_id = ? AND job_id = ?",
                key,
            ).fetchone()
            if found is not None:
                number, position = found
                sealed = self._seal_sent(peer_id, job_id, position, messages)
                connection.execute("INSERT INTO sent VALUES (?, ?, ?)", (number, position, sealed))

        await self._database.run(work)

    async def end_sale(
        self,
        peer_id: str,
        job_id: bytes,
        *,
        outcome: str,
        price_msat: int,
        paid: bool,
        line: bool,
        model: str,
        ended_at: int,
    ) -> None:
        """Record that a sale has ended, with one line of it if it is to have one; without effect where it is not kept."""
        values = {
            "kind": "sale",
            "model": model[:_LONGEST_MODEL],
            "price_msat": price_msat,
            "fee_msat": None,
            "preimage": None,
            "outcome": outcome,
            "paid": paid,
            "ended_at": ended_at,
            "peer": peer_id,
            "of": job_id,
            "line": line,
        }

        def work(connection: sqlite3.Connection) -> None:
            if line:
                connection.execute(
                    f"{_ADD_LINE} FROM sales WHERE peer_id = :peer AND job_id = :of AND NOT has_line", values
                )
                self._prune(connection)
            connection.execute(
                "UPDATE sales SET ended_at = coalesce(ended_at, :ended_at), has_line = has_line OR :line"
                " WHERE peer_id = :peer AND job_id = :of",
                values,
            )

        await self._database.run(work, durable=line)

    async def forget_sale(self, peer_id: str, job_id: bytes) -> None:
        """Remove a sale, with its request and its result."""
        await self._run("DELETE FROM sales WHERE peer_id = ? AND job_id = ?", (peer_id, job_id))

    async def sales(self) -> list[StoredSale]:
        """Return the sales that are kept, ended or not."""

        def read(connection: sqlite3.Connection, row: sqlite3.Row) -> StoredSale:
            sealed = connection.execute(
                "SELECT position, sealed_messages FROM sent WHERE sale = ? ORDER BY position", (row["number"],)
            )
            return self._records.read_sale(row, sealed)

        return await self._all("SELECT * FROM sales ORDER BY number", read)

    async def settle_index(self, node_id: str) -> int:
        """Return the index of the last settled invoice of that Lightning node that was taken in; 0 at first."""
        return int(await self._fact(_SETTLE_INDEX + node_id) or 0)

    async def keep_settle_index(self, node_id: str, index: int) -> None:
        """Keep that index."""
        await self._run("INSERT OR REPLACE INTO facts VALUES (?, ?)", (_SETTLE_INDEX + node_id, index))

    async def _fact(self, name: str) -> Any:
        def work(connection: sqlite3.Connection) -> Any:
            found = connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
            return found[0] if found else None

        return await self._database.run(work)

    async def _run(self, statement: str, values: tuple[object, ...]) -> None:
        def work(connection: sqlite3.Connection) -> None:
            connection.execute(statement, values)

        await self._database.run(work)

    async def _all(self, statement: str, read: Callable[[sqlite3.Connection, sqlite3.Row], T]) -> list[T]:
        def work(connection: sqlite3.Connection) -> list[T]:
            cursor = connection.cursor()
            cursor.row_factory = sqlite3.Row
            return [read(connection, row) for row in cursor.execute(statement)]

        try:
            return await self._database.run(work)
        except (RecordDamaged, ValueError) as error:
            # A protocol or a number that no version of this program writes is a ValueError.
            raise damaged(self._database.path, str(error)) from error

    def _seal_sent(self, peer_id: str, job_id: bytes, position: int, messages: tuple[Send, ...]) -> bytes | None:
        content = write_sent(messages) if messages else None
        return self._records.seal(sale_name(peer_id, job_id), sent_context(position), content)

    def _prune(self, connection: sqlite3.Connection) -> None:
        for pruned, bound in (
            ("ended_at < ?", int(self._clock()) - self._history_s),
            ("id <= (SELECT max(id) FROM history) - ?", self._history_lines),
        ):
            last = f"SELECT max(began_at) FROM history WHERE {pruned}"  # noqa: S608 - one of two conditions of ours
            (began_at,) = connection.execute(last, (bound,)).fetchone()
            if began_at is not None:
                connection.execute(
                    "INSERT INTO facts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = max(value, excluded.value)",
                    (_FORGOTTEN_UNTIL, began_at),
                )
                connection.execute(f"DELETE FROM history WHERE {pruned}", (bound,))  # noqa: S608 - as above


def _insert(connection: sqlite3.Connection, verb: str, row: Row) -> int | None:
    columns = ", ".join(row)
    places = ", ".join(f":{name}" for name in row)
    return connection.execute(f"{verb} ({columns}) VALUES ({places})", row).lastrowid
