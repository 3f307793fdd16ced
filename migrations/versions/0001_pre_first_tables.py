"""The first tables: servers, tools, snapshots, runs, calls, workers, keys, audit."""

from __future__ import annotations

from alembic import op

from registry.tables import metadata

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create every table of the first release."""
    metadata.create_all(op.get_bind())


def downgrade() -> None:
    """Drop every table of the first release."""
    metadata.drop_all(op.get_bind())
