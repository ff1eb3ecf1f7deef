"""What the owner of a node earned by a purchase, and the index by which an owner's purchases are found."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_HAS_PAYEE = sa.text("payee_id IS NOT NULL")


def upgrade() -> None:
    """Add the column and the index. No purchase before has a payee."""
    op.add_column("purchases", sa.Column("earned_msat", sa.BigInteger))
    op.create_index(
        "ix_purchases_payee",
        "purchases",
        ["payee_id", "paying_at", "job_id"],
        sqlite_where=_HAS_PAYEE,
        postgresql_where=_HAS_PAYEE,
    )
