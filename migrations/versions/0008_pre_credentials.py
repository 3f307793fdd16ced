"""Credentials of tenants, sealed, and the wrapped data keys that they are sealed with."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"


def _instant(name: str, *, default: bool = False) -> sa.Column[object]:
    return sa.Column(
        name,
        sa.DateTime(timezone=True),
        server_default=sa.text("now()") if default else None,
        nullable=not default,
    )


def upgrade() -> None:
    """Add the tables; the code of the revision before does not notice them."""
    op.execute("CREATE SEQUENCE credential_serials")
    op.create_table(
        "data_keys",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("wrapped_by", sa.Text(), nullable=False),
        sa.Column("wrapped", sa.LargeBinary(), nullable=False),
        _instant("created_at", default=True),
        _instant("rewrapped_at"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_data_keys")),
    )
    op.create_table(
        "credentials",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("server_name", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("definition", postgresql.JSONB(), nullable=False),
        sa.Column("secret_names", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("data_key_id", sa.Text(), nullable=True),
        sa.Column("sealed", sa.LargeBinary(), nullable=True),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("serial", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), server_default="ready", nullable=False),
        sa.Column("problem", postgresql.JSONB(), nullable=True),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        _instant("retry_at"),
        _instant("renewed_at"),
        _instant("renew_at"),
        _instant("expires_at"),
        _instant("forced_at"),
        sa.Column("renewing_by", sa.Text(), nullable=True),
        _instant("renewing_until"),
        _instant("created_at", default=True),
        _instant("changed_at", default=True),
        sa.Column("changed_by", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "state IN ('ready', 'needs_consent', 'removed')", name=op.f("ck_credentials_state")
        ),
        sa.ForeignKeyConstraint(
            ["server_name"], ["servers.name"], name=op.f("fk_credentials_server_name")
        ),
        sa.ForeignKeyConstraint(
            ["data_key_id"], ["data_keys.id"], name=op.f("fk_credentials_data_key_id")
        ),
        sa.PrimaryKeyConstraint("tenant_id", "server_name", name=op.f("pk_credentials")),
    )
    op.create_index("ix_credentials_serial", "credentials", ["server_name", "serial"])


def downgrade() -> None:
    """Drop all of it; the credentials are lost."""
    op.drop_table("credentials")
    op.drop_table("data_keys")
    op.execute("DROP SEQUENCE credential_serials")
