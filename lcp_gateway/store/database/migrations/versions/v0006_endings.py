"""How a paid purchase ended, and what became of a charge that was to be given back."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_SETTLED = sa.text("state = 'settled'")
_HAS_REFUND = sa.text("refund IS NOT NULL")


def upgrade() -> None:
    """Add the columns. Of purchases that are there already nothing is known of how they ended."""
    for name in ("ended_by", "received", "refund"):
        op.add_column("purchases", sa.Column(name, sa.Text))
    op.create_index("ix_purchases_settled", "purchases", ["owner"], sqlite_where=_SETTLED, postgresql_where=_SETTLED)
    op.create_index(
        "ix_purchases_refund",
        "purchases",
        ["account_id", "paying_at"],
        sqlite_where=_HAS_REFUND,
        postgresql_where=_HAS_REFUND,
    )
