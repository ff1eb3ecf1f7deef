"""The tables, their version and their migration: purchases and budgets, customers with their money, background responses.

Amounts are millisatoshi, hashes are 32 bytes, times are microseconds since 1970 in UTC (``times``). No column can hold
a prompt or an output, and none a key.

A transaction that locks rows of several tables takes them in this order, or two gateways would wait for each other:
invites, purchases, budget_spend (the counters of refunds first), the number of withdrawals, accounts, the number of
changes of keys, keys, topups, withdrawals, balances, the positions of settlements, sessions; and the rows of one table in
the order of their keys.
"""

import re

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Connection,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    bindparam,
    column,
    inspect,
    select,
    table,
    text,
)

from lcp_gateway.purchase.states import State

HEAD = "0015"
"""The newest migration: the value of ``alembic_version`` for the tables below."""

OPEN_STATES = (State.PAYING, State.UNKNOWN)
"""States in which it is not known whether money moved."""

_IS_OPEN = text("state IN ('paying', 'unknown')")
HAS_NO_FEE = text(
    "kind = 'lcp' AND fee_msat IS NULL AND payment_hash IS NOT NULL"
    " AND (state = 'settled' OR state = 'delivered' OR state = 'undelivered')"
)
"""The condition of paid purchases whose fee lnd has not reported yet; worded as in the index, so that it is used.

No list of more than two words: SQLite makes a table of each, for each row that it writes.
"""
_SETTLED = text("state = 'settled'")
_HAS_REFUND = text("refund IS NOT NULL")
_HAS_PAYEE = text("payee_id IS NOT NULL")
_HAS_ACCOUNT = text("account_id IS NOT NULL")
HAS_KEY = text("key_id <> ''")
"""The condition of purchases that were made with a key; worded as in the index, so that it is used."""
_OPEN_TOPUP = text("state = 'open'")
_OPENED_ACCOUNT = text("registered = 'open' AND deleted_at IS NULL")
_OPEN_WITHDRAWAL = text("state IN ('awaiting_approval', 'approved', 'paying', 'unknown')")
_HAS_REPEAT_KEY = text("repeat_key IS NOT NULL")
# The only kind of key that SQLite increments by itself.
_NUMBER = BigInteger().with_variant(Integer, "sqlite")

metadata = MetaData()

purchases = Table(
    "purchases",
    metadata,
    # The primary key is the last guard against paying twice: the database takes one intent for a job, ever.
    Column("job_id", LargeBinary(32), primary_key=True),
    Column("payment_hash", LargeBinary(32), index=True),
    Column("state", Text, nullable=False),
    # Where it was bought: a value of ``ProviderSource``.
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
    # The process that wrote the intent, and its own number for it: together they identify the intent.
    Column("owner", Text, nullable=False),
    Column("intent_no", BigInteger, nullable=False),
    # The account that is charged, and how: together null where no customer is. The row says it, not a setting, because
    # another process with other settings may end the purchase.
    Column("account_id", Text),
    # The amount held while the purchase is open, and taken once it is settled; lowered with the price.
    Column("charge_msat", BigInteger),
    Column("markup_ppm", BigInteger),
    Column("markup_msat", BigInteger),
    Column("refund_undelivered", Boolean),
    # How a paid purchase ended without a whole result: values of ``EndedBy`` and ``Received``.
    Column("ended_by", Text),
    Column("received", Text),
    # The refund of a charge that was to be given back: a value of ``Refund``.
    Column("refund", Text),
    # The account that earns the price, where the provider is a node of one, and the operator's commission of it.
    Column("payee_id", Text),
    Column("commission_ppm", BigInteger),
    # What the payee was credited, once it is delivered.
    Column("earned_msat", BigInteger),
    # The hashes by which a repeat of the request is recognised: see ``purchase/idempotency``. The key is a keyed hash, unique
    # until ``repeat_until``, and null again once the purchase is known not to be paid.
    Column("repeat_key", LargeBinary(32)),
    Column("repeat_body", LargeBinary(32)),
    Column("repeat_until", BigInteger),
    # When it entered these states; the time of the first is ``paying_at``, that of the last ``ended_at``.
    Column("unknown_at", BigInteger),
    Column("settled_at", BigInteger),
    # Terms of a quote of protocol version 3: together null where it states neither, and in version 2.
    Column("response_content_type", Text),
    Column("response_content_encoding", Text),
    Index("uq_purchases_repeat_key", "repeat_key", unique=True, sqlite_where=_HAS_REPEAT_KEY),
    # With the body's hash, so that the first try of a retry is found without reading the rows.
    Index("ix_purchases_paying_at", "paying_at", "job_id", "repeat_body"),
    Index("ix_purchases_open", "state", "paying_at", sqlite_where=_IS_OPEN),
    Index("ix_purchases_no_fee", "updated_at", "job_id", sqlite_where=HAS_NO_FEE),
    Index("ix_purchases_settled", "owner", sqlite_where=_SETTLED),
    Index("ix_purchases_refund", "account_id", "paying_at", sqlite_where=_HAS_REFUND),
    Index("ix_purchases_account", *("account_id", "paying_at", "job_id"), sqlite_where=_HAS_ACCOUNT),
    Index("ix_purchases_key", "key_id", "paying_at", "job_id", sqlite_where=HAS_KEY),
    Index("ix_purchases_payee", "payee_id", "paying_at", "job_id", sqlite_where=_HAS_PAYEE),
    Index("ix_purchases_updated_at", "updated_at", "job_id"),
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

accounts = Table(
    "accounts",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("deleted_at", BigInteger),
    # How its holder opened it: 'invite' or 'open'; null for one that the operator or an L402 payment made.
    Column("registered", Text),
    Column("withdrawals_frozen_at", BigInteger),
    Index("ix_accounts_created_at", "created_at", "id"),
    Index("ix_accounts_opened", "created_at", sqlite_where=_OPENED_ACCOUNT),
)

keys = Table(
    "keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("account_id", Text, ForeignKey("accounts.id"), nullable=False, index=True),
    Column("hash", LargeBinary(32), nullable=False, unique=True),
    Column("prefix", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("kind", Text, nullable=False),
    # Lists of words as JSON.
    Column("scopes", Text, nullable=False),
    Column("models", Text, nullable=False),
    Column("max_price_msat", BigInteger, nullable=False),
    Column("requests_per_minute", BigInteger, nullable=False),
    Column("tokens_per_minute", BigInteger, nullable=False),
    Column("budget_hour_msat", BigInteger, nullable=False),
    Column("budget_day_msat", BigInteger, nullable=False),
    Column("budget_month_msat", BigInteger, nullable=False),
    Column("concurrent_jobs", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("revoked_at", BigInteger),
    # Counted over all keys: a gateway that has seen one number asks for the changes above it.
    Column("change", BigInteger, nullable=False, index=True),
)

sessions = Table(
    "sessions",
    metadata,
    # SHA-256 of the browser's token, which is stored nowhere.
    Column("hash", LargeBinary(32), primary_key=True),
    Column("role", Text, nullable=False),
    Column("account_id", Text, index=True),
    Column("key_id", Text, nullable=False, index=True),
    # For a key of the settings: its HMAC under the token, by which a changed key ends the session.
    Column("proof", LargeBinary(32)),
    Column("created_at", BigInteger, nullable=False),
    Column("seen_at", BigInteger, nullable=False),
    Column("idle_ends_at", BigInteger, nullable=False, index=True),
    Column("ends_at", BigInteger, nullable=False),
)

invites = Table(
    "invites",
    metadata,
    Column("id", Text, primary_key=True),
    Column("hash", LargeBinary(32), nullable=False, unique=True),
    Column("note", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("used_at", BigInteger),
    Column("revoked_at", BigInteger),
    # The account that was opened with it.
    Column("account_id", Text),
    Index("ix_invites_created_at", "created_at", "id"),
)

balances = Table(
    "balances",
    metadata,
    Column("account_id", Text, ForeignKey("accounts.id"), primary_key=True),
    Column("balance_msat", BigInteger, nullable=False),
    Column("held_msat", BigInteger, nullable=False),
    # The last guard against spending more than the balance.
    CheckConstraint("held_msat >= 0", name="ck_balances_held"),
    CheckConstraint("balance_msat >= held_msat", name="ck_balances_available"),
)

ledger_entries = Table(
    "ledger_entries",
    metadata,
    Column("id", _NUMBER, primary_key=True),
    # The entries of one movement, which sum to zero.
    Column("tx", BigInteger, nullable=False),
    Column("at", BigInteger, nullable=False),
    # 'customer:<account id>', or one of the operator's.
    Column("book", Text, nullable=False),
    Column("amount_msat", BigInteger, nullable=False),
    Column("cause", Text, nullable=False),
    Column("cause_id", Text, nullable=False),
    # The last guard against counting a cause twice.
    UniqueConstraint("cause", "cause_id", "book", name="uq_ledger_entries_cause"),
    Index("ix_ledger_entries_book", "book", "id"),
)

topups = Table(
    "topups",
    metadata,
    Column("id", Text, primary_key=True),
    # Not a foreign key: the account of an L402 invoice is created when the invoice is settled.
    Column("account_id", Text, nullable=False),
    Column("payment_hash", LargeBinary(32), nullable=False, unique=True),
    Column("amount_msat", BigInteger, nullable=False),
    Column("payment_request", Text, nullable=False),
    Column("memo", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("settled_at", BigInteger),
    Column("settle_index", BigInteger),
    Column("received_msat", BigInteger),
    Index("ix_topups_account", "account_id", "created_at", "id"),
    Index("ix_topups_open", "expires_at", sqlite_where=_OPEN_TOPUP),
)

withdrawals = Table(
    "withdrawals",
    metadata,
    Column("id", Text, primary_key=True),
    Column("account_id", Text, ForeignKey("accounts.id"), nullable=False),
    Column("key_id", Text, nullable=False),
    # The last guard against paying an invoice twice: one withdrawal for a hash, ever.
    Column("payment_hash", LargeBinary(32), nullable=False, unique=True),
    Column("payment_request", Text, nullable=False),
    Column("amount_msat", BigInteger, nullable=False),
    Column("fee_limit_msat", BigInteger, nullable=False),
    # Whether the invoice names the amount; else the call that pays has to.
    Column("names_amount", Boolean, nullable=False),
    Column("state", Text, nullable=False),
    # The top-up whose invoice it is; null where the invoice is of another node.
    Column("topup_id", Text),
    # The node that pays, and the process that sent the payment.
    Column("node_id", Text),
    Column("owner", Text),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("paying_at", BigInteger),
    # When the node was first found to have no payment of this hash, after the sender had ended.
    Column("absent_at", BigInteger),
    Column("ended_at", BigInteger),
    Column("fee_msat", BigInteger),
    Column("preimage", LargeBinary(32)),
    # Why it failed: a value of ``FailedBecause``.
    Column("reason", Text),
    CheckConstraint("amount_msat > 0 AND fee_limit_msat >= 0", name="ck_withdrawals_amounts"),
    Index("ix_withdrawals_account", "account_id", "created_at", "id"),
    Index("ix_withdrawals_created_at", "created_at", "id"),
    Index("ix_withdrawals_open", "state", "created_at", sqlite_where=_OPEN_WITHDRAWAL),
)

nodes = Table(
    "nodes",
    metadata,
    # The provider's id in the catalog and in purchases.
    Column("id", Text, primary_key=True),
    Column("account_id", Text, ForeignKey("accounts.id"), nullable=False, index=True),
    Column("name", Text, nullable=False),
    # The key with which it connected last.
    Column("key_id", Text, nullable=False),
    # The operator's commission; null for that of the settings.
    Column("commission_ppm", BigInteger),
    Column("created_at", BigInteger, nullable=False),
    Column("connected_at", BigInteger, nullable=False),
    Column("frozen_at", BigInteger),
)

watch_state = Table(
    "watch_state",
    metadata,
    # 'settled:<node id>' for the last settlement that was followed, 'payments:<node id>' for the last payment whose fee
    # was recorded, 'keys' for the last change of a key, 'withdrawals' for the number of transactions that began one.
    Column("name", Text, primary_key=True),
    Column("position", BigInteger, nullable=False),
)

admin_log = Table(
    "admin_log",
    metadata,
    Column("id", _NUMBER, primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("target", Text, nullable=False),
    # A JSON object.
    Column("detail", Text, nullable=False),
    Index("ix_admin_log_at", "at", "id"),
)

background_jobs = Table(
    "background_jobs",
    metadata,
    # The id that the client polls, which is the request id of the purchase; nothing of the prompt.
    Column("id", Text, primary_key=True),
    Column("key_id", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    # The process that works on it: where it has ended, the response was cut.
    Column("owner", Text, nullable=False),
    Index("ix_background_jobs_created_at", "created_at"),
)

journal_identity = Table(
    "journal_identity",
    metadata,
    # 'id': 16 random bytes, different in every journal. 'secret': the secret of repeat keys, where it cannot be kept in
    # a file beside the journal.
    Column("name", Text, primary_key=True),
    Column("value", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

# The conditions of partial indexes are SQLite's here; PostgreSQL's are added where its tables are made, since naming them
# would load its dialect.

APPEND_ONLY = ("ledger_entries", "admin_log")
"""Tables whose rows the database does not allow to change or delete."""


_VERSIONS = select(column("version_num", Text)).select_from(table("alembic_version"))
_A_STEP = re.compile(r"\d{4}")


class TooNew(RuntimeError):
    """The database was written by a newer gateway, whose tables this one does not know."""

    def __init__(self, found: str) -> None:
        super().__init__(
            f"the journal's tables are of version {found}, this gateway knows {HEAD}: "
            "run the newer gateway, or point this one at another journal"
        )


def is_current(connection: Connection) -> bool:
    """Return whether the tables are of this version. Imports no Alembic, which takes longer than the rest of the start.

    Raises:
        TooNew: the tables are of a version that this program does not know.
    """
    if not inspect(connection).has_table("alembic_version"):
        return False
    found = connection.execute(_VERSIONS).scalar()
    if found is None or found == HEAD:
        return found == HEAD
    if not _A_STEP.fullmatch(found) or found > HEAD:
        raise TooNew(found)
    return False


def migrate(connection: Connection) -> None:
    """Make the tables, or apply the missing steps, in the transaction that is open; the caller keeps other processes out.

    Raises:
        TooNew: the tables are of a version that this program does not know.
    """
    if is_current(connection):
        return
    if not inspect(connection).has_table("alembic_version"):
        from lcp_gateway.store.database.creation import create_tables  # noqa: PLC0415 - it imports this module

        create_tables(connection)
        return
    from alembic import command  # noqa: PLC0415 - takes half a second, and is hardly ever needed
    from alembic.config import Config  # noqa: PLC0415 - the same

    config = Config()
    config.set_main_option("script_location", "lcp_gateway.store.database:migrations")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


_VALUE = select(journal_identity.c.value).where(journal_identity.c.name == bindparam("of_name"))


def journal_id(connection: Connection) -> bytes:
    """Return the id of the journal."""
    return _value(connection, "id")


def repeat_secret(connection: Connection) -> bytes:
    """Return the secret that the gateways on one server hash repeat keys with."""
    return _value(connection, "secret")


def _value(connection: Connection, name: str) -> bytes:
    value: bytes = connection.execute(_VALUE, {"of_name": name}).scalar_one()
    return value
