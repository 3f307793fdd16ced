"""What weight a call has in its server's queue."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the priority; calls that are recorded without one have the default."""
    op.add_column(
        "calls", sa.Column("priority", sa.SmallInteger(), server_default="5", nullable=False)
    )


def downgrade() -> None:
    """Drop the priority."""
    op.drop_column("calls", "priority")
