"""The tables: purchases, the states they went through, and what is counted against budgets.

Amounts are millisatoshi, hashes are 32 bytes, times are microseconds since 1970 in UTC (``times``). No column can hold
a prompt or an output.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    text,
)

from lcp_gateway.purchase.states import State

HEAD = "0001"
"""The newest migration: what ``alembic_version`` holds when the tables are as below."""

OPEN_STATES = (State.PAYING, State.UNKNOWN)
"""States in which it is not known whether money moved."""

_IS_OPEN = text("state IN ('paying', 'unknown')")

metadata = MetaData()

purchases = Table(
    "purchases",
    metadata,
    # The primary key is the last guard against paying twice: the database takes one intent for a job, ever.
    Column("job_id", LargeBinary(32), primary_key=True),
    Column("payment_hash", LargeBinary(32), index=True),
    Column("state", Text, nullable=False),
    # Where it was bought: a value of ``Source``.
    Column("kind", Text, nullable=False),
    Column("task_kind", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("peer_id", Text, nullable=False),
    Column("upstream", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("price_msat", BigInteger, nullable=False),
    Column("fee_cap_msat", BigInteger, nullable=False),
    Column("fee_msat", BigInteger),
    Column("runner_up_msat", BigInteger),
    Column("terms_hash", LargeBinary(32), nullable=False),
    Column("payment_request", Text, nullable=False),
    Column("protocol_version", Integer, nullable=False),
    Column("request_sha256", LargeBinary(32), nullable=False),
    Column("request_bytes", BigInteger, nullable=False),
    Column("stream", Boolean, nullable=False),
    Column("result_sha256", LargeBinary(32)),
    Column("result_bytes", BigInteger),
    Column("preimage", LargeBinary(32)),
    Column("expires_at", BigInteger, nullable=False),
    Column("paying_at", BigInteger, nullable=False),
    Column("ended_at", BigInteger),
    Column("updated_at", BigInteger, nullable=False),
    # The process that wrote the intent, and its own number for it: together they tell one intent from every other.
    Column("owner", Text, nullable=False),
    Column("intent_no", BigInteger, nullable=False),
    Index("ix_purchases_paying_at", "paying_at", "job_id"),
    Index(
        "ix_purchases_open", "state", "paying_at", sqlite_where=_IS_OPEN, postgresql_where=_IS_OPEN
    ),
)

purchase_states = Table(
    "purchase_states",
    metadata,
    Column(
        "job_id",
        LargeBinary(32),
        ForeignKey("purchases.job_id", ondelete="CASCADE"),
        primary_key=True,
    ),
    # No state can be entered twice, so the state itself completes the key.
    Column("state", Text, primary_key=True),
    Column("at", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

budget_spend = Table(
    "budget_spend",
    metadata,
    # '' for the whole gateway, 'key:<id>' for one credential.
    Column("scope", Text, primary_key=True),
    Column("starts_at", BigInteger, primary_key=True, autoincrement=False),
    Column("period", Text, primary_key=True),
    Column("spent_msat", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
