"""What a quote of protocol version 3 promises of its response: terms that its hash covers, so that a receipt can be verified."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns. Quotes of version 2 promise nothing."""
    op.add_column("purchases", sa.Column("response_content_type", sa.Text))
    op.add_column("purchases", sa.Column("response_content_encoding", sa.Text))
