"""Rollouts, held changes, tiers and tenants, and the generation of what runs can see."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"

_COUNTED = {
    "servers": "INSERT OR DELETE OR UPDATE OF current_version_id, removed_at",
    "listings": "INSERT",
    "holds": "INSERT OR UPDATE",
    "rollouts": "INSERT OR UPDATE OF plan, state",
    "tiers": "INSERT OR UPDATE OR DELETE",
    "tenants": "UPDATE OF definition",
}


def _instant(name: str, *, default: bool = False, nullable: bool = True) -> sa.Column[object]:
    return sa.Column(
        name,
        sa.DateTime(timezone=True),
        server_default=sa.text("now()") if default else None,
        nullable=nullable,
    )


def upgrade() -> None:
    """Add the tables and columns; the code of the revision before does not notice them."""
    _tenants_and_tiers()
    _rollouts()
    _holds()
    _calls()
    _generation()


def _tenants_and_tiers() -> None:
    op.add_column(
        "tenants",
        sa.Column("ordinal", sa.BigInteger(), sa.Identity(always=False), nullable=False),
    )
    op.create_unique_constraint(op.f("uq_tenants_ordinal"), "tenants", ["ordinal"])
    op.add_column(
        "tenants",
        sa.Column("definition", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False),
    )
    op.create_table(
        "tiers",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("definition", postgresql.JSONB(), nullable=False),
        _instant("created_at", default=True, nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_tiers")),
    )
    op.create_table(
        "budgets",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("tokens", sa.Double(), nullable=False),
        _instant("filled_at", nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_budgets_tenant_id")),
        sa.PrimaryKeyConstraint("tenant_id", name=op.f("pk_budgets")),
    )


def _rollouts() -> None:
    op.add_column("servers", sa.Column("previous_version_id", sa.BigInteger(), nullable=True))
    op.create_table(
        "rollouts",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("server_name", sa.Text(), nullable=False),
        sa.Column("stable_version_id", sa.BigInteger(), nullable=False),
        sa.Column("canary_version_id", sa.BigInteger(), nullable=False),
        sa.Column("plan", postgresql.JSONB(), nullable=False),
        sa.Column("state", sa.Text(), server_default="active", nullable=False),
        sa.Column("report", postgresql.JSONB(), nullable=True),
        sa.Column("stale", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("refresh_error", postgresql.JSONB(), nullable=True),
        _instant("refreshed_at"),
        _instant("started_at", default=True, nullable=False),
        _instant("ended_at"),
        sa.Column("ended_by", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "state IN ('active', 'promoted', 'rolled_back', 'replaced')",
            name=op.f("ck_rollouts_state"),
        ),
        sa.ForeignKeyConstraint(
            ["server_name"], ["servers.name"], name=op.f("fk_rollouts_server_name")
        ),
        sa.ForeignKeyConstraint(
            ["stable_version_id"],
            ["server_versions.id"],
            name=op.f("fk_rollouts_stable_version_id"),
        ),
        sa.ForeignKeyConstraint(
            ["canary_version_id"],
            ["server_versions.id"],
            name=op.f("fk_rollouts_canary_version_id"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rollouts")),
    )
    op.create_index(
        "uq_rollouts_active",
        "rollouts",
        ["server_name"],
        unique=True,
        postgresql_where=sa.text("state = 'active'"),
    )


def _holds() -> None:
    op.create_table(
        "holds",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("server_version_id", sa.BigInteger(), nullable=False),
        sa.Column("tool", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("tool_version_id", sa.BigInteger(), nullable=True),
        sa.Column("baseline_version_id", sa.BigInteger(), nullable=True),
        sa.Column("change", postgresql.JSONB(), nullable=False),
        sa.Column("state", sa.Text(), server_default="open", nullable=False),
        _instant("created_at", default=True, nullable=False),
        _instant("decided_at"),
        sa.Column("decided_by", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "state IN ('open', 'accepted', 'rejected', 'withdrawn', 'superseded')",
            name=op.f("ck_holds_state"),
        ),
        sa.ForeignKeyConstraint(
            ["server_version_id"],
            ["server_versions.id"],
            name=op.f("fk_holds_server_version_id"),
        ),
        sa.ForeignKeyConstraint(
            ["tool_version_id"], ["tool_versions.id"], name=op.f("fk_holds_tool_version_id")
        ),
        sa.ForeignKeyConstraint(
            ["baseline_version_id"],
            ["server_versions.id"],
            name=op.f("fk_holds_baseline_version_id"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_holds")),
    )
    op.create_index(
        "uq_holds_blocking",
        "holds",
        ["server_version_id", "tool"],
        unique=True,
        postgresql_where=sa.text("state IN ('open', 'rejected')"),
    )


def _calls() -> None:
    op.add_column("runs", sa.Column("exposure", sa.Text(), server_default="all", nullable=False))
    op.create_check_constraint(op.f("ck_runs_exposure"), "runs", "exposure IN ('all', 'search')")
    op.add_column("calls", sa.Column("deadline_s", sa.Double(), nullable=True))
    op.add_column("calls", sa.Column("decided_by", sa.Text(), nullable=True))
    op.add_column("calls", _instant("decided_at"))
    op.add_column("calls", sa.Column("result_shape", sa.Text(), nullable=True))
    op.create_index(
        "ix_calls_unfinished",
        "calls",
        ["tenant_id"],
        postgresql_where=sa.text("state IN ('queued', 'running', 'awaiting_approval')"),
    )
    op.create_index("ix_calls_created", "calls", ["created_at"], postgresql_using="brin")


def _generation() -> None:
    """Count each transaction that changes what a run can see, once, as it commits.

    A deferred trigger takes the one row's lock when all others are held already, so that writers
    of several servers cannot end up waiting for each other. It also counts what the code of the
    revision before writes.
    """
    op.create_table(
        "registry_state",
        sa.Column("only", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("generation", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("changed_by", sa.Text(), nullable=True),
        sa.CheckConstraint('"only"', name=op.f("ck_registry_state_one_row")),
        sa.PrimaryKeyConstraint("only", name=op.f("pk_registry_state")),
    )
    op.execute("INSERT INTO registry_state DEFAULT VALUES")
    op.execute(
        """
        CREATE FUNCTION toolfleet_count_generation() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            UPDATE registry_state
            SET generation = generation + 1, changed_by = pg_current_xact_id()::text
            WHERE changed_by IS DISTINCT FROM pg_current_xact_id()::text;
            RETURN NULL;
        END $$
        """
    )
    for table, changes in _COUNTED.items():
        op.execute(
            f"CREATE CONSTRAINT TRIGGER count_generation AFTER {changes} ON {table}"
            " DEFERRABLE INITIALLY DEFERRED"
            " FOR EACH ROW EXECUTE FUNCTION toolfleet_count_generation()"
        )


def downgrade() -> None:
    """Drop all of it; rollouts, holds, tiers and tenants' definitions are lost."""
    for table in _COUNTED:
        op.execute(f"DROP TRIGGER count_generation ON {table}")
    op.execute("DROP FUNCTION toolfleet_count_generation()")
    op.drop_table("registry_state")
    op.drop_index("ix_calls_created", table_name="calls")
    op.drop_index("ix_calls_unfinished", table_name="calls")
    for column in ("result_shape", "decided_at", "decided_by", "deadline_s"):
        op.drop_column("calls", column)
    op.drop_column("runs", "exposure")
    op.drop_table("holds")
    op.drop_table("rollouts")
    op.drop_column("servers", "previous_version_id")
    op.drop_table("budgets")
    op.drop_table("tiers")
    op.drop_column("tenants", "definition")
    op.drop_column("tenants", "ordinal")
