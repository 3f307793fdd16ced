"""Indexes of what the console shows live: a run's calls, newest first, and the runs that are open.

The index of a run's calls is replaced by one that keeps them in the order of its pages.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """Add the indexes; remove the one that the first of them stands in for."""
    op.create_index("ix_calls_run_newest", "calls", ["run_id", "created_at", "id"])
    op.create_index(
        "ix_runs_open", "runs", ["expires_at"], postgresql_where=sa.text("state = 'open'")
    )
    op.drop_index("ix_calls_run", table_name="calls")


def downgrade() -> None:
    """Bring the former index back."""
    op.create_index("ix_calls_run", "calls", ["run_id"])
    op.drop_index("ix_runs_open", table_name="runs")
    op.drop_index("ix_calls_run_newest", table_name="calls")
