"""What a repeat of a request is recognised by after a restart and in other processes; and the journal's identity."""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_HAS_REPEAT_KEY = sa.text("repeat_key IS NOT NULL")
_ID_BYTES = 16
_SECRET_BYTES = 32


def upgrade() -> None:
    """Add them. The repeats of purchases that are there already are not recognised."""
    for column in (
        sa.Column("repeat_key", sa.LargeBinary(32)),
        sa.Column("repeat_body", sa.LargeBinary(32)),
        sa.Column("repeat_until", sa.BigInteger),
    ):
        op.add_column("purchases", column)
    op.create_index(
        "uq_purchases_repeat_key",
        "purchases",
        ["repeat_key"],
        unique=True,
        sqlite_where=_HAS_REPEAT_KEY,
        postgresql_where=_HAS_REPEAT_KEY,
    )
    op.drop_index("ix_purchases_paying_at", "purchases")
    op.create_index("ix_purchases_paying_at", "purchases", ["paying_at", "job_id", "repeat_body"])
    identity = op.create_table(
        "journal_identity",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("value", sa.LargeBinary, nullable=False),
        sqlite_with_rowid=False,
    )
    rows = [{"name": "id", "value": secrets.token_bytes(_ID_BYTES)}]
    if op.get_bind().dialect.name != "sqlite":
        # A SQLite journal keeps its secret in a file beside it.
        rows.append({"name": "secret", "value": secrets.token_bytes(_SECRET_BYTES)})
    op.bulk_insert(identity, rows)
