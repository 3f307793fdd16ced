"""Where large results are kept."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create the tables of artifacts."""
    op.create_table(
        "artifacts",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("call_id", sa.Text(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("media_type", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("kept", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["call_id"], ["calls.id"], name=op.f("fk_artifacts_call_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_artifacts")),
        sa.UniqueConstraint("call_id", "fence", name=op.f("uq_artifacts_call_id_fence")),
    )
    op.create_index(
        "ix_artifacts_unkept",
        "artifacts",
        ["created_at"],
        unique=False,
        postgresql_where=sa.text("NOT kept"),
    )
    op.create_table(
        "artifact_chunks",
        sa.Column("artifact_id", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["artifact_id"],
            ["artifacts.id"],
            name=op.f("fk_artifact_chunks_artifact_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("artifact_id", "number", name=op.f("pk_artifact_chunks")),
    )


def downgrade() -> None:
    """Drop the tables of artifacts; what they hold is lost."""
    op.drop_table("artifact_chunks")
    op.drop_index(
        "ix_artifacts_unkept", table_name="artifacts", postgresql_where=sa.text("NOT kept")
    )
    op.drop_table("artifacts")
