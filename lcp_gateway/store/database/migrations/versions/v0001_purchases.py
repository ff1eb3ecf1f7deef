"""Purchases, their states, and what is counted against budgets."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_IS_OPEN = sa.text("state IN ('paying', 'unknown')")


def upgrade() -> None:
    """Make the first tables."""
    op.create_table(
        "purchases",
        sa.Column("job_id", sa.LargeBinary(32), primary_key=True),
        sa.Column("payment_hash", sa.LargeBinary(32)),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("task_kind", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("peer_id", sa.Text, nullable=False),
        sa.Column("upstream", sa.Text, nullable=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("price_msat", sa.BigInteger, nullable=False),
        sa.Column("fee_cap_msat", sa.BigInteger, nullable=False),
        sa.Column("fee_msat", sa.BigInteger),
        sa.Column("runner_up_msat", sa.BigInteger),
        sa.Column("terms_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("payment_request", sa.Text, nullable=False),
        sa.Column("protocol_version", sa.Integer, nullable=False),
        sa.Column("request_sha256", sa.LargeBinary(32), nullable=False),
        sa.Column("request_bytes", sa.BigInteger, nullable=False),
        sa.Column("stream", sa.Boolean, nullable=False),
        sa.Column("result_sha256", sa.LargeBinary(32)),
        sa.Column("result_bytes", sa.BigInteger),
        sa.Column("preimage", sa.LargeBinary(32)),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("paying_at", sa.BigInteger, nullable=False),
        sa.Column("ended_at", sa.BigInteger),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("intent_no", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_purchases_payment_hash", "purchases", ["payment_hash"])
    op.create_index("ix_purchases_paying_at", "purchases", ["paying_at", "job_id"])
    op.create_index(
        "ix_purchases_open", "purchases", ["state", "paying_at"], sqlite_where=_IS_OPEN, postgresql_where=_IS_OPEN
    )
    op.create_table(
        "purchase_states",
        sa.Column(
            "job_id", sa.LargeBinary(32), sa.ForeignKey("purchases.job_id", ondelete="CASCADE"), primary_key=True
        ),
        sa.Column("state", sa.Text, primary_key=True),
        sa.Column("at", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "budget_spend",
        sa.Column("scope", sa.Text, primary_key=True),
        sa.Column("starts_at", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("period", sa.Text, primary_key=True),
        sa.Column("spent_msat", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
