"""What a key is narrowed to, and when it was last used.

A process of the revision before takes a narrowed key for a whole one: make narrowed keys once every
API process is of this revision.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Add both, empty for every key that there is."""
    op.add_column("api_keys", sa.Column("scopes", JSONB))
    op.add_column("api_keys", sa.Column("last_used_at", sa.DateTime(timezone=True)))


def downgrade() -> None:
    """Take both away, and the keys that would be whole without them."""
    op.execute("DELETE FROM api_keys WHERE scopes IS NOT NULL")
    op.drop_column("api_keys", "last_used_at")
    op.drop_column("api_keys", "scopes")
