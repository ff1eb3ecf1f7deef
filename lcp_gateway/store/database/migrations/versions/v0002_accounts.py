"""Accounts, their keys and top-ups, the ledger, and what a purchase charges to whom."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_OPEN_TOPUP = sa.text("state = 'open'")
_NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_APPEND_ONLY = ("ledger_entries", "admin_log")


def upgrade() -> None:
    """Add them. Purchases that are there already have no account."""
    for column in (
        sa.Column("account_id", sa.Text),
        sa.Column("charge_msat", sa.BigInteger),
        sa.Column("markup_ppm", sa.BigInteger),
        sa.Column("markup_msat", sa.BigInteger),
        sa.Column("refund_undelivered", sa.Boolean),
    ):
        op.add_column("purchases", column)
    _make_accounts()
    _make_ledger()
    for table in _APPEND_ONLY:
        _forbid_changes(table)


def _make_accounts() -> None:
    op.create_table(
        "accounts",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("deleted_at", sa.BigInteger),
    )
    op.create_index("ix_accounts_created_at", "accounts", ["created_at", "id"])
    op.create_table(
        "keys",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("account_id", sa.Text, sa.ForeignKey("accounts.id"), nullable=False),
        sa.Column("hash", sa.LargeBinary(32), nullable=False, unique=True),
        sa.Column("prefix", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("models", sa.Text, nullable=False),
        sa.Column("max_price_msat", sa.BigInteger, nullable=False),
        sa.Column("requests_per_minute", sa.BigInteger, nullable=False),
        sa.Column("tokens_per_minute", sa.BigInteger, nullable=False),
        sa.Column("budget_hour_msat", sa.BigInteger, nullable=False),
        sa.Column("budget_day_msat", sa.BigInteger, nullable=False),
        sa.Column("budget_month_msat", sa.BigInteger, nullable=False),
        sa.Column("concurrent_jobs", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger),
        sa.Column("revoked_at", sa.BigInteger),
        sa.Column("change", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_keys_account_id", "keys", ["account_id"])
    op.create_index("ix_keys_change", "keys", ["change"])
    op.create_table(
        "topups",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("account_id", sa.Text, nullable=False),
        sa.Column("payment_hash", sa.LargeBinary(32), nullable=False, unique=True),
        sa.Column("amount_msat", sa.BigInteger, nullable=False),
        sa.Column("payment_request", sa.Text, nullable=False),
        sa.Column("memo", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("purpose", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("settled_at", sa.BigInteger),
        sa.Column("settle_index", sa.BigInteger),
        sa.Column("received_msat", sa.BigInteger),
    )
    op.create_index("ix_topups_account", "topups", ["account_id", "created_at", "id"])
    op.create_index("ix_topups_open", "topups", ["expires_at"], sqlite_where=_OPEN_TOPUP, postgresql_where=_OPEN_TOPUP)
    op.create_table(
        "watch_state",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("position", sa.BigInteger, nullable=False),
    )


def _make_ledger() -> None:
    op.create_table(
        "balances",
        sa.Column("account_id", sa.Text, sa.ForeignKey("accounts.id"), primary_key=True),
        sa.Column("balance_msat", sa.BigInteger, nullable=False),
        sa.Column("held_msat", sa.BigInteger, nullable=False),
        sa.CheckConstraint("held_msat >= 0", name="ck_balances_held"),
        sa.CheckConstraint("balance_msat >= held_msat", name="ck_balances_available"),
    )
    op.create_table(
        "ledger_entries",
        sa.Column("id", _NUMBER, primary_key=True),
        sa.Column("tx", sa.BigInteger, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("book", sa.Text, nullable=False),
        sa.Column("amount_msat", sa.BigInteger, nullable=False),
        sa.Column("cause", sa.Text, nullable=False),
        sa.Column("cause_id", sa.Text, nullable=False),
        sa.UniqueConstraint("cause", "cause_id", "book", name="uq_ledger_entries_cause"),
    )
    op.create_index("ix_ledger_entries_book", "ledger_entries", ["book", "id"])
    op.create_table(
        "admin_log",
        sa.Column("id", _NUMBER, primary_key=True),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
    )
    op.create_index("ix_admin_log_at", "admin_log", ["at", "id"])


def _forbid_changes(table: str) -> None:
    # Only names of this module stand in the statements.
    if op.get_bind().dialect.name == "sqlite":
        for what in ("update", "delete"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{what} BEFORE {what.upper()} ON {table}"
                f" BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )
        return
    op.execute(
        f"CREATE FUNCTION {table}_append_only() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN RAISE EXCEPTION '{table} is append-only' USING ERRCODE = 'integrity_constraint_violation'; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}"
        f" FOR EACH STATEMENT EXECUTE FUNCTION {table}_append_only()"
    )
