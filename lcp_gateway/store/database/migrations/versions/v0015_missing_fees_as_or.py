"""The condition of the index of missing fees without a list: SQLite built a table of three words, three times a purchase."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

_HAS_NO_FEE = sa.text(
    "kind = 'lcp' AND fee_msat IS NULL AND payment_hash IS NOT NULL"
    " AND (state = 'settled' OR state = 'delivered' OR state = 'undelivered')"
)


def upgrade() -> None:
    """Make the index again: the same rows, in the same order."""
    op.drop_index("ix_purchases_no_fee", "purchases")
    op.create_index(
        "ix_purchases_no_fee",
        "purchases",
        ["updated_at", "job_id"],
        sqlite_where=_HAS_NO_FEE,
        postgresql_where=_HAS_NO_FEE,
    )
