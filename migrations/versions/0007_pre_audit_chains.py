"""The audit in hash chains, one per tenant, and kept from being changed.

Old code only inserts entries, which it may; the steward of this release seals them.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

_XID = "CAST(CAST(pg_current_xact_id() AS text) AS bigint)"
_KEPT = ("audit", "audit_seals", "audit_checkpoints", "audit_cuts")

# A row goes only where a cut, which the steward signs, says that its chain begins after it.
# Whether the cut was signed by whom it should be is for the verifier to see.
_KEEP = """
    CREATE FUNCTION toolfleet_keep_audit() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'DELETE' AND TG_LEVEL = 'ROW' THEN
            IF TG_TABLE_NAME = 'audit' THEN
                IF EXISTS (
                    SELECT FROM audit_seals s JOIN audit_cuts c ON c.chain = s.chain
                    WHERE s.entry_id = OLD.id AND c.to_seq >= s.seq) THEN
                    RETURN OLD;
                END IF;
            ELSIF EXISTS (
                SELECT FROM audit_cuts c WHERE c.chain = OLD.chain AND c.to_seq >= OLD.seq) THEN
                RETURN OLD;
            END IF;
        END IF;
        RAISE EXCEPTION 'the audit is only ever added to: % of % is refused', TG_OP, TG_TABLE_NAME
            USING ERRCODE = 'insufficient_privilege',
            HINT = 'old entries are removed by `toolfleet audit prune`';
    END $$
"""


def upgrade() -> None:
    """Make the chains' tables, and refuse what would change the audit."""
    # Each transaction's number says which entries were committed before which.
    op.add_column(
        "audit", sa.Column("xid", sa.BigInteger(), server_default=sa.text(_XID), nullable=False)
    )
    op.create_index("ix_audit_xid", "audit", ["xid"])
    _chains()
    _signed()
    op.execute(_KEEP)
    for table in _KEPT:
        row_events = "DELETE" if table in {"audit", "audit_seals"} else ""
        events = "UPDATE OR TRUNCATE" if row_events else "UPDATE OR DELETE OR TRUNCATE"
        _refuse(table, "keep", events, "STATEMENT")
        if row_events:
            _refuse(table, "keep_rows", row_events, "ROW")


def _chains() -> None:
    op.create_table(
        "audit_seals",
        sa.Column("chain", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("entry_id", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("chain", "seq", name=op.f("pk_audit_seals")),
        sa.UniqueConstraint("entry_id", name=op.f("uq_audit_seals_entry_id")),
    )
    op.create_table(
        "audit_chains",
        sa.Column("chain", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("signed_seq", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("signed_hash", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("chain", name=op.f("pk_audit_chains")),
    )
    sealer = op.create_table(
        "audit_sealer",
        sa.Column("only", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("sealed_below", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cluster", sa.Text(), nullable=True),
        sa.CheckConstraint('"only"', name=op.f("ck_audit_sealer_one_row")),
        sa.PrimaryKeyConstraint("only", name=op.f("pk_audit_sealer")),
    )
    op.bulk_insert(sealer, [{"only": True}])


def _signed() -> None:
    op.create_table(
        "audit_checkpoints",
        sa.Column("number", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("at", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_audit_checkpoints")),
    )
    op.create_table(
        "audit_cuts",
        sa.Column("chain", sa.Text(), nullable=False),
        sa.Column("to_seq", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("chain", "to_seq", name=op.f("pk_audit_cuts")),
    )


def _refuse(table: str, name: str, events: str, level: str) -> None:
    op.execute(
        f"CREATE TRIGGER {name} BEFORE {events} ON {table}"
        f" FOR EACH {level} EXECUTE FUNCTION toolfleet_keep_audit()"
    )
    # Also where a session says that it replicates, which switches ordinary triggers off.
    op.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {name}")


def downgrade() -> None:
    """Drop the chains; the entries stay, and can be changed again."""
    op.execute("DROP FUNCTION toolfleet_keep_audit() CASCADE")
    for table in ("audit_cuts", "audit_checkpoints", "audit_sealer", "audit_chains", "audit_seals"):
        op.drop_table(table)
    op.drop_index("ix_audit_xid", table_name="audit")
    op.drop_column("audit", "xid")
