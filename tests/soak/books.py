"""Reads a journal and its ledger, on SQLite and PostgreSQL alike, for the reference model."""

from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Connection, text

from lcp_gateway.store.accounts.ledger import audit
from lcp_gateway.store.database.engines import open_database

PURCHASES = """
SELECT job_id, state, account_id, key_id, model, price_msat, fee_cap_msat, fee_msat, charge_msat, request_sha256,
       paying_at, ended_by, received, refund, owner
FROM purchases
"""
ENTRIES = "SELECT book, cause, cause_id, amount_msat FROM ledger_entries WHERE book LIKE 'customer:%'"
BALANCES = "SELECT account_id, balance_msat, held_msat FROM balances"
COUNTED = "SELECT coalesce(sum(spent_msat), 0) FROM budget_spend WHERE scope = '' AND period = 'month'"


@dataclass(frozen=True)
class Bought:
    """One purchase as the journal has it."""

    job_id: str
    state: str
    account_id: str
    key_id: str
    model: str
    price_msat: int
    counted_msat: int
    charge_msat: int
    body_sha256: str
    paying_at: datetime
    ended_by: str | None
    received: str | None
    refund: str | None
    owner: str


@dataclass
class Books:
    """The journal and the ledger at one moment. ``taken`` is the sum of each job's entries in its account."""

    purchases: dict[str, Bought]
    taken: dict[str, int]
    adjusted: dict[str, int]
    balances: dict[str, tuple[int, int]]
    counted_msat: int
    audit_problems: list[str]


def _books(connection: Connection) -> Books:
    purchases = {}
    for row in connection.execute(text(PURCHASES)):
        fee_msat = row.fee_cap_msat if row.fee_msat is None else row.fee_msat
        purchases[bytes(row.job_id).hex()] = Bought(
            bytes(row.job_id).hex(),
            row.state,
            row.account_id,
            row.key_id,
            row.model,
            row.price_msat,
            row.price_msat + fee_msat,
            row.charge_msat,
            bytes(row.request_sha256).hex(),
            datetime.fromtimestamp(row.paying_at / 1_000_000, UTC),
            row.ended_by,
            row.received,
            row.refund,
            row.owner,
        )
    taken: dict[str, int] = defaultdict(int)
    adjusted: dict[str, int] = defaultdict(int)
    for book, cause, cause_id, amount_msat in connection.execute(text(ENTRIES)):
        if cause in {"purchase", "refund"}:
            taken[cause_id.partition(":")[0]] -= amount_msat
        else:
            adjusted[book.removeprefix("customer:")] += amount_msat
    balances = {
        account_id: (balance_msat, held_msat)
        for account_id, balance_msat, held_msat in connection.execute(text(BALANCES))
    }
    counted_msat = int(connection.execute(text(COUNTED)).scalar_one())
    return Books(purchases, taken, adjusted, balances, counted_msat, list(audit(connection).problems))


async def read_books(journal: str) -> Books:
    database = await open_database(Path(journal) if "://" not in journal else journal)
    try:
        return await database.read(_books)
    finally:
        await database.close()
