"""The times of a purchase's states as columns of it, which were rows of a table of their own."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_STATE_TIMES = "SELECT s.at FROM purchase_states s WHERE s.job_id = purchases.job_id AND s.state"


def upgrade() -> None:
    """Move the times, and drop the table. That of the intent is in ``paying_at``, that of the end in ``ended_at``."""
    for name in ("unknown_at", "settled_at"):
        op.add_column("purchases", sa.Column(name, sa.BigInteger))
    op.execute(
        f"UPDATE purchases SET unknown_at = ({_STATE_TIMES} = 'unknown')"  # noqa: S608 - a constant of this module
        f" WHERE EXISTS ({_STATE_TIMES} = 'unknown')"
    )
    op.execute(
        f"UPDATE purchases SET settled_at = ({_STATE_TIMES} = 'settled')"  # noqa: S608 - a constant of this module
        f" WHERE EXISTS ({_STATE_TIMES} = 'settled')"
    )
    op.execute(
        f"UPDATE purchases SET ended_at = ({_STATE_TIMES} = purchases.state)"  # noqa: S608 - a constant of this module
        " WHERE ended_at IS NULL AND state IN ('not_paid', 'delivered', 'undelivered')"
    )
    op.drop_table("purchase_states")
