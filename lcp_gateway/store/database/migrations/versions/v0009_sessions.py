"""Sessions of the web console, invites, and which accounts were opened by their holders."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0006"
branch_labels = None
depends_on = None

_OPENED = sa.text("registered = 'open' AND deleted_at IS NULL")


def upgrade() -> None:
    """Add them. Accounts that are there already were opened by the operator."""
    op.create_table(
        "sessions",
        sa.Column("hash", sa.LargeBinary(32), primary_key=True),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("account_id", sa.Text),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("proof", sa.LargeBinary(32)),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("seen_at", sa.BigInteger, nullable=False),
        sa.Column("idle_ends_at", sa.BigInteger, nullable=False),
        sa.Column("ends_at", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_sessions_key_id", "sessions", ["key_id"])
    op.create_index("ix_sessions_account_id", "sessions", ["account_id"])
    op.create_index("ix_sessions_idle_ends_at", "sessions", ["idle_ends_at"])
    op.create_table(
        "invites",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("hash", sa.LargeBinary(32), nullable=False, unique=True),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("used_at", sa.BigInteger),
        sa.Column("revoked_at", sa.BigInteger),
        sa.Column("account_id", sa.Text),
    )
    op.create_index("ix_invites_created_at", "invites", ["created_at", "id"])
    op.add_column("accounts", sa.Column("registered", sa.Text))
    op.create_index("ix_accounts_opened", "accounts", ["created_at"], sqlite_where=_OPENED, postgresql_where=_OPENED)
