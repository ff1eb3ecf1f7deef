"""Indexes for lists and sums of the purchases of one account or one key, and for what changed lately."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_HAS_ACCOUNT = sa.text("account_id IS NOT NULL")
_HAS_KEY = sa.text("key_id <> ''")


def upgrade() -> None:
    """Add them."""
    for name, columns, condition in (
        ("ix_purchases_account", ["account_id", "paying_at", "job_id"], _HAS_ACCOUNT),
        ("ix_purchases_key", ["key_id", "paying_at", "job_id"], _HAS_KEY),
        ("ix_purchases_updated_at", ["updated_at", "job_id"], None),
    ):
        op.create_index(name, "purchases", columns, sqlite_where=condition, postgresql_where=condition)
