"""What the MCP face needs: questions back to callers, sessions, what servers have beside tools.

A call is of ``tools/call`` unless it says otherwise, and nobody answers its server's questions:
that is what the code before makes of every call.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0012"
down_revision = "0011"

_NOW = sa.text("clock_timestamp()")


def upgrade() -> None:
    """Add the columns and tables."""
    op.add_column(
        "calls", sa.Column("method", sa.Text(), nullable=False, server_default="tools/call")
    )
    op.add_column("calls", sa.Column("answers", sa.ARRAY(sa.Text())))
    op.add_column("calls", sa.Column("log_level", sa.Text()))
    op.add_column("calls", sa.Column("trace", sa.JSON()))
    op.add_column(
        "calls",
        sa.Column("open_questions", sa.SmallInteger(), nullable=False, server_default="0"),
    )
    op.create_table(
        "questions",
        sa.Column("call_id", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("key", sa.Text()),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("dispatch", sa.Integer(), nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("params", sa.JSON()),
        sa.Column("state", sa.Text(), nullable=False, server_default="open"),
        sa.Column("answer", sa.JSON()),
        sa.Column("asked_at", sa.DateTime(timezone=True), nullable=False, server_default=_NOW),
        sa.Column("answered_at", sa.DateTime(timezone=True)),
        sa.Column("answered_by", sa.Text()),
        sa.CheckConstraint(
            "state IN ('open', 'answered', 'withdrawn')", name=op.f("ck_questions_state")
        ),
        sa.ForeignKeyConstraint(
            ["call_id"],
            ["calls.id"],
            name=op.f("fk_questions_call_id_calls"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("call_id", "number", name=op.f("pk_questions")),
    )
    op.add_column("runs", sa.Column("servers", sa.ARRAY(sa.Text())))
    op.create_index(
        "uq_questions_key",
        "questions",
        ["call_id", "key"],
        unique=True,
        postgresql_where=sa.text("key IS NOT NULL"),
    )
    op.create_table(
        "mcp_sessions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("owns_run", sa.Boolean(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("server_name", sa.Text()),
        sa.Column("revision", sa.Text(), nullable=False),
        sa.Column("client", JSONB(), nullable=False),
        sa.Column("log_level", sa.Text()),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=_NOW),
        sa.Column("ended_at", sa.DateTime(timezone=True)),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_mcp_sessions_run_id_runs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_mcp_sessions")),
    )
    op.create_table(
        "offerings",
        sa.Column("server_version_id", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("listed_at", sa.DateTime(timezone=True), nullable=False, server_default=_NOW),
        sa.CheckConstraint(
            "kind IN ('about', 'prompts', 'resources', 'templates')", name=op.f("ck_offerings_kind")
        ),
        sa.ForeignKeyConstraint(
            ["server_version_id"],
            ["server_versions.id"],
            name=op.f("fk_offerings_server_version_id_server_versions"),
        ),
        sa.PrimaryKeyConstraint("server_version_id", "kind", name=op.f("pk_offerings")),
    )
    op.execute(
        "CREATE CONSTRAINT TRIGGER count_generation AFTER INSERT OR UPDATE OR DELETE ON offerings"
        " DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION toolfleet_count_generation()"
    )
    op.create_table(
        "resource_interests",
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("server_name", sa.Text(), nullable=False),
        sa.Column("uri", sa.Text(), nullable=False),
        sa.Column("server_version_id", sa.BigInteger(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("holder", "server_name", "uri", name=op.f("pk_resource_interests")),
    )
    op.create_index("ix_resource_interests_server", "resource_interests", ["server_name", "until"])


def downgrade() -> None:
    """Drop them; questions that are open are lost, and their calls time out."""
    for table in ("resource_interests", "offerings", "mcp_sessions", "questions"):
        op.drop_table(table)
    op.drop_column("runs", "servers")
    for column in ("open_questions", "trace", "log_level", "answers", "method"):
        op.drop_column("calls", column)
