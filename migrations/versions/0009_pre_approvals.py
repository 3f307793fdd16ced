"""What was decided about calls that wait, what used it, and who is still to be told of them.

Decisions and uses are written once. A call that waits has its notice from a trigger: in the same
transaction, whichever release submits it, and at no cost to calls that need no approval.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

_NOW = sa.text("clock_timestamp()")
_KEEP = """
CREATE FUNCTION keep_approvals() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'rows of % are never changed', TG_TABLE_NAME;
END $$
"""
_NOTICE = """
CREATE FUNCTION give_notice() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO approval_notices (call_id) VALUES (NEW.id);
    RETURN NULL;
END $$
"""


def upgrade() -> None:
    """Create the tables, and give notice of the calls that wait already."""
    op.create_table(
        "approvals",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("call_id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("binding", sa.Text(), nullable=False),
        sa.Column("approve", sa.Boolean(), nullable=False),
        sa.Column("decided_by", sa.Text(), nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("holds_until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("closes", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text()),
        sa.Column("seal", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_approvals")),
        sa.UniqueConstraint(
            "call_id", "decided_by", "approve", name=op.f("uq_approvals_call_id_decided_by_approve")
        ),
    )
    op.create_index(
        "uq_approvals_closing",
        "approvals",
        ["call_id"],
        unique=True,
        postgresql_where=sa.text("closes"),
    )
    op.create_table(
        "approval_uses",
        sa.Column("call_id", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("worker_id", sa.Text(), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), server_default=_NOW, nullable=False),
        sa.PrimaryKeyConstraint("call_id", "number", name=op.f("pk_approval_uses")),
    )
    op.create_table(
        "approval_notices",
        sa.Column("call_id", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), server_default=_NOW, nullable=False),
        sa.Column("delivered_at", sa.DateTime(timezone=True)),
        sa.Column("given_up_at", sa.DateTime(timezone=True)),
        sa.Column("problem", sa.Text()),
        sa.PrimaryKeyConstraint("call_id", name=op.f("pk_approval_notices")),
        sa.ForeignKeyConstraint(
            ["call_id"],
            ["calls.id"],
            name=op.f("fk_approval_notices_call_id"),
            ondelete="CASCADE",
        ),
    )
    op.create_index(
        "ix_approval_notices_due",
        "approval_notices",
        ["due_at"],
        postgresql_where=sa.text("delivered_at IS NULL AND given_up_at IS NULL"),
    )
    op.execute(_KEEP)
    for table in ("approvals", "approval_uses"):
        op.execute(
            f"CREATE TRIGGER keep_{table} BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}"
            " FOR EACH STATEMENT EXECUTE FUNCTION keep_approvals()"
        )
    op.execute(_NOTICE)
    op.execute(
        "CREATE TRIGGER give_notice AFTER INSERT ON calls FOR EACH ROW"
        " WHEN (NEW.state = 'awaiting_approval') EXECUTE FUNCTION give_notice()"
    )
    op.execute(
        "INSERT INTO approval_notices (call_id)"
        " SELECT id FROM calls WHERE state = 'awaiting_approval'"
    )


def downgrade() -> None:
    """Drop them; a call that was approved and not yet run will then run without its binding."""
    op.execute("DROP TRIGGER give_notice ON calls")
    op.execute("DROP FUNCTION give_notice()")
    op.drop_table("approval_notices")
    op.drop_table("approval_uses")
    op.drop_table("approvals")
    op.execute("DROP FUNCTION keep_approvals()")
