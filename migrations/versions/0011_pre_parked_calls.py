"""Calls that are to wait until an instant before a worker tries them again.

Rates are counted in Redis now; `budgets`, which counted them before, stays for the code that does.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Add the instant; no call that is recorded without one waits."""
    op.add_column("calls", sa.Column("not_before", sa.DateTime(timezone=True)))
    op.create_index(
        "ix_calls_parked",
        "calls",
        ["not_before"],
        postgresql_where=sa.text("state = 'queued' AND not_before IS NOT NULL"),
    )


def downgrade() -> None:
    """Drop the instant: the code before sends what is queued by itself."""
    op.drop_index("ix_calls_parked", "calls")
    op.drop_column("calls", "not_before")
