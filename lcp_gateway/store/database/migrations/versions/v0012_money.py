"""Withdrawals out of balances, nodes that belong to accounts, and which account a purchase's price is earned by."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_OPEN = sa.text("state IN ('awaiting_approval', 'approved', 'paying', 'unknown')")


def upgrade() -> None:
    """Add the tables and columns. Purchases that are there already are earned by no account."""
    op.add_column("purchases", sa.Column("payee_id", sa.Text))
    op.add_column("purchases", sa.Column("commission_ppm", sa.BigInteger))
    op.add_column("accounts", sa.Column("withdrawals_frozen_at", sa.BigInteger))
    op.create_table(
        "withdrawals",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("account_id", sa.Text, sa.ForeignKey("accounts.id"), nullable=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("payment_hash", sa.LargeBinary(32), nullable=False, unique=True),
        sa.Column("payment_request", sa.Text, nullable=False),
        sa.Column("amount_msat", sa.BigInteger, nullable=False),
        sa.Column("fee_limit_msat", sa.BigInteger, nullable=False),
        sa.Column("names_amount", sa.Boolean, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("topup_id", sa.Text),
        sa.Column("node_id", sa.Text),
        sa.Column("owner", sa.Text),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("paying_at", sa.BigInteger),
        sa.Column("absent_at", sa.BigInteger),
        sa.Column("ended_at", sa.BigInteger),
        sa.Column("fee_msat", sa.BigInteger),
        sa.Column("preimage", sa.LargeBinary(32)),
        sa.Column("reason", sa.Text),
        sa.CheckConstraint("amount_msat > 0 AND fee_limit_msat >= 0", name="ck_withdrawals_amounts"),
    )
    op.create_index("ix_withdrawals_account", "withdrawals", ["account_id", "created_at", "id"])
    op.create_index("ix_withdrawals_created_at", "withdrawals", ["created_at", "id"])
    op.create_index(
        "ix_withdrawals_open", "withdrawals", ["state", "created_at"], sqlite_where=_OPEN, postgresql_where=_OPEN
    )
    op.create_table(
        "nodes",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("account_id", sa.Text, sa.ForeignKey("accounts.id"), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("commission_ppm", sa.BigInteger),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("connected_at", sa.BigInteger, nullable=False),
        sa.Column("frozen_at", sa.BigInteger),
    )
    op.create_index("ix_nodes_account_id", "nodes", ["account_id"])
