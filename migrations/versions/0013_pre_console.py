"""What the console needs: who is signed in, newest calls and failures first, workers to drain."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Add the table, the column and the indexes."""
    op.create_table(
        "console_sessions",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Text()),
        sa.Column("actor", JSONB(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            nullable=False,
            server_default=sa.text("clock_timestamp()"),
        ),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_console_sessions")),
    )
    op.create_index("ix_calls_newest", "calls", ["created_at", "id"])
    op.create_index(
        "ix_calls_trace",
        "calls",
        [sa.text("substr(traceparent, 4, 32)")],
        postgresql_where=sa.text("traceparent IS NOT NULL"),
    )
    op.create_index("ix_runs_newest", "runs", ["created_at", "id"])
    op.create_index(
        "ix_calls_failures",
        "calls",
        ["server_name", sa.text("created_at DESC")],
        postgresql_where=sa.text(
            "state IN ('failed', 'expired', 'outcome_unknown')"
            " AND (error ->> 'code') IS DISTINCT FROM 'breaker_open'"
        ),
    )
    op.add_column("workers", sa.Column("drain_requested_at", sa.DateTime(timezone=True)))


def downgrade() -> None:
    """Remove them."""
    op.drop_index("ix_runs_newest", table_name="runs")
    op.drop_index("ix_calls_trace", table_name="calls")
    op.drop_column("workers", "drain_requested_at")
    op.drop_index("ix_calls_failures", table_name="calls")
    op.drop_index("ix_calls_newest", table_name="calls")
    op.drop_table("console_sessions")
