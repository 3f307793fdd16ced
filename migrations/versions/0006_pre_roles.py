"""Keys of approvers and auditors, for one tenant or for all."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"

_ROLE = "ck_api_keys_role"
_TENANT = "ck_api_keys_tenant_of_role"


def upgrade() -> None:
    """Allow the two roles; a key of role tenant still names its tenant."""
    op.drop_constraint(op.f(_ROLE), "api_keys")
    op.drop_constraint(op.f(_TENANT), "api_keys")
    op.create_check_constraint(
        op.f(_ROLE), "api_keys", "role IN ('operator', 'tenant', 'approver', 'auditor')"
    )
    op.create_check_constraint(
        op.f(_TENANT), "api_keys", "role <> 'tenant' OR tenant_id IS NOT NULL"
    )


def downgrade() -> None:
    """Take the two roles back, and the keys that have them."""
    op.execute("DELETE FROM api_keys WHERE role IN ('approver', 'auditor')")
    op.drop_constraint(op.f(_ROLE), "api_keys")
    op.drop_constraint(op.f(_TENANT), "api_keys")
    op.create_check_constraint(op.f(_ROLE), "api_keys", "role IN ('operator', 'tenant')")
    op.create_check_constraint(
        op.f(_TENANT), "api_keys", "role = 'operator' OR tenant_id IS NOT NULL"
    )
