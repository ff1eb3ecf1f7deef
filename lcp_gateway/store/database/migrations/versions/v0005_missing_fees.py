"""An index of the purchases that were paid and whose fee lnd has not reported yet."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_HAS_NO_FEE = sa.text(
    "kind = 'lcp' AND fee_msat IS NULL AND payment_hash IS NOT NULL"
    " AND state IN ('settled', 'delivered', 'undelivered')"
)


def upgrade() -> None:
    """Add the index."""
    op.create_index(
        "ix_purchases_no_fee",
        "purchases",
        ["updated_at", "job_id"],
        sqlite_where=_HAS_NO_FEE,
        postgresql_where=_HAS_NO_FEE,
    )
