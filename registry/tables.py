"""The record: every table of the registry, as SQLAlchemy Core.

Invariants:
 1. `servers`, `server_versions`, `tool_versions`, `listings` and `snapshots` rows never change,
    apart from the pointers and flags of `servers`, and from how the secrets in a version's
    definition are written: in the clear by earlier releases, sealed since.
 2. A call's state changes only along `registry.calls.TRANSITIONS`, each change with its audit line.
 3. (tenant, idempotency key) names at most one call.
 4. Rows of `audit` and its `audit_*` records are only added, but for what a signed cut removes.
 5. Whatever a run can see (servers, versions, listings, offerings, holds, rollouts, tiers, tenants)
    changes together with `registry_state.generation` (a trigger at commit): equal generation,
    equal offer.
"""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    JSON,
    REAL,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_N_label)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_instant = DateTime(timezone=True)
_now = func.now()

tenants = Table(
    "tenants",
    metadata,
    Column("id", Text, primary_key=True),
    Column("created_at", _instant, nullable=False, server_default=_now),
    Column("ordinal", BigInteger, Identity(), nullable=False, unique=True),
    Column("definition", JSONB, nullable=False, server_default=text("'{}'")),
)

tiers = Table(
    "tiers",
    metadata,
    Column("name", Text, primary_key=True),
    Column("definition", JSONB, nullable=False),
    Column("created_at", _instant, nullable=False, server_default=_now),
)

# Rates were counted here before there was `workers.limits_redis`; the code of that day still does.
budgets = Table(
    "budgets",
    metadata,
    Column("tenant_id", Text, ForeignKey("tenants.id"), primary_key=True),
    Column("tokens", Double, nullable=False),
    Column("filled_at", _instant, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("secret_hash", Text, nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("tenant_id", Text, ForeignKey("tenants.id")),
    Column("created_at", _instant, nullable=False, server_default=_now),
    Column("expires_at", _instant),
    Column("revoked_at", _instant),
    Column("scopes", JSONB),
    Column("last_used_at", _instant),
    CheckConstraint("role IN ('operator', 'tenant', 'approver', 'auditor')", name="role"),
    CheckConstraint("role <> 'tenant' OR tenant_id IS NOT NULL", name="tenant_of_role"),
)

servers = Table(
    "servers",
    metadata,
    Column("name", Text, primary_key=True),
    Column("current_version_id", BigInteger),
    Column("previous_version_id", BigInteger),
    Column("stale", Boolean, nullable=False, server_default=text("true")),
    Column("refresh_error", JSONB),
    Column("refreshed_at", _instant),
    Column("created_at", _instant, nullable=False, server_default=_now),
    Column("removed_at", _instant),
)

data_keys = Table(
    "data_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant_id", Text, nullable=False),
    Column("wrapped_by", Text, nullable=False),
    Column("wrapped", LargeBinary, nullable=False),
    Column("created_at", _instant, nullable=False, server_default=_now),
    Column("rewrapped_at", _instant),
)

# `version` says what is sealed, `serial` what was changed last; see registry.credential_store.
credentials = Table(
    "credentials",
    metadata,
    Column("tenant_id", Text, nullable=False),
    Column("server_name", Text, ForeignKey("servers.name"), nullable=False),
    Column("kind", Text, nullable=False),
    Column("definition", JSONB, nullable=False),
    Column("secret_names", ARRAY(Text), nullable=False),
    Column("data_key_id", Text, ForeignKey("data_keys.id")),
    Column("sealed", LargeBinary),
    Column("version", BigInteger, nullable=False),
    Column("serial", BigInteger, nullable=False),
    Column("state", Text, nullable=False, server_default="ready"),
    Column("problem", JSONB),
    Column("failures", Integer, nullable=False, server_default="0"),
    Column("retry_at", _instant),
    Column("renewed_at", _instant),
    Column("renew_at", _instant),
    Column("expires_at", _instant),
    Column("forced_at", _instant),
    Column("renewing_by", Text),
    Column("renewing_until", _instant),
    Column("created_at", _instant, nullable=False, server_default=_now),
    Column("changed_at", _instant, nullable=False, server_default=_now),
    Column("changed_by", Text, nullable=False),
    PrimaryKeyConstraint("tenant_id", "server_name"),
    CheckConstraint("state IN ('ready', 'needs_consent', 'removed')", name="state"),
    Index("ix_credentials_serial", "server_name", "serial"),
)

server_versions = Table(
    "server_versions",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("server_name", Text, ForeignKey("servers.name"), nullable=False),
    Column("version", Text, nullable=False),
    Column("definition", JSONB, nullable=False),
    Column("digest", Text, nullable=False),
    Column("created_at", _instant, nullable=False, server_default=_now),
    UniqueConstraint("server_name", "version"),
)

rollouts = Table(
    "rollouts",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("server_name", Text, ForeignKey("servers.name"), nullable=False),
    Column("stable_version_id", BigInteger, ForeignKey("server_versions.id"), nullable=False),
    Column("canary_version_id", BigInteger, ForeignKey("server_versions.id"), nullable=False),
    Column("plan", JSONB, nullable=False),
    Column("state", Text, nullable=False, server_default="active"),
    Column("report", JSONB),
    Column("stale", Boolean, nullable=False, server_default=text("true")),
    Column("refresh_error", JSONB),
    Column("refreshed_at", _instant),
    Column("started_at", _instant, nullable=False, server_default=_now),
    Column("ended_at", _instant),
    Column("ended_by", Text),
    CheckConstraint("state IN ('active', 'promoted', 'rolled_back', 'replaced')", name="state"),
    Index(
        "uq_rollouts_active", "server_name", unique=True, postgresql_where=text("state = 'active'")
    ),
)

tool_versions = Table(
    "tool_versions",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("server_name", Text, ForeignKey("servers.name"), nullable=False),
    Column("name", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("definition", JSONB, nullable=False),
    Column("created_at", _instant, nullable=False, server_default=_now),
    UniqueConstraint("server_name", "digest"),
)

# Written by a trigger of tool_versions (migration 0003); see registry.selection.
tool_terms = Table(
    "tool_terms",
    metadata,
    Column("lexeme", Text, nullable=False),
    Column("tool_version_id", BigInteger, nullable=False, autoincrement=False),
    Column("weight", REAL, nullable=False),
    PrimaryKeyConstraint("lexeme", "tool_version_id", postgresql_include=["weight"]),
)

listings = Table(
    "listings",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("server_version_id", BigInteger, ForeignKey("server_versions.id"), nullable=False),
    Column("digest", Text, nullable=False),
    Column("tool_version_ids", ARRAY(BigInteger), nullable=False),
    Column("changes", JSONB, nullable=False),
    Column("created_at", _instant, nullable=False, server_default=_now),
    Index("ix_listings_version", "server_version_id", "id"),
)

holds = Table(
    "holds",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("server_version_id", BigInteger, ForeignKey("server_versions.id"), nullable=False),
    Column("tool", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("tool_version_id", BigInteger, ForeignKey("tool_versions.id")),
    Column("baseline_version_id", BigInteger, ForeignKey("server_versions.id")),
    Column("change", JSONB, nullable=False),
    Column("state", Text, nullable=False, server_default="open"),
    Column("created_at", _instant, nullable=False, server_default=_now),
    Column("decided_at", _instant),
    Column("decided_by", Text),
    CheckConstraint(
        "state IN ('open', 'accepted', 'rejected', 'withdrawn', 'superseded')", name="state"
    ),
    Index(
        "uq_holds_blocking",
        "server_version_id",
        "tool",
        unique=True,
        postgresql_where=text("state IN ('open', 'rejected')"),
    ),
)

registry_state = Table(
    "registry_state",
    metadata,
    Column("only", Boolean, primary_key=True, server_default=text("true")),
    Column("generation", BigInteger, nullable=False, server_default="0"),
    Column("changed_by", Text),
    CheckConstraint('"only"', name="one_row"),
)

snapshots = Table(
    "snapshots",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("tools", JSONB, nullable=False),
    Column("created_at", _instant, nullable=False, server_default=_now),
)

runs = Table(
    "runs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant_id", Text, ForeignKey("tenants.id"), nullable=False),
    Column("snapshot_digest", Text, ForeignKey("snapshots.digest"), nullable=False),
    Column("actor", Text, nullable=False),
    Column("state", Text, nullable=False, server_default="open"),
    Column("created_at", _instant, nullable=False, server_default=_now),
    Column("expires_at", _instant, nullable=False),
    Column("ended_at", _instant),
    Column("exposure", Text, nullable=False, server_default="all"),
    Column("servers", ARRAY(Text)),
    CheckConstraint("state IN ('open', 'closed', 'cancelled')", name="state"),
    CheckConstraint("exposure IN ('all', 'search')", name="exposure"),
    Index("ix_runs_newest", "created_at", "id"),
    Index("ix_runs_open", "expires_at", postgresql_where=text("state = 'open'")),
)

workers = Table(
    "workers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("server_name", Text, nullable=False),
    Column("hostname", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("started_at", _instant, nullable=False, server_default=_now),
    Column("lease_until", _instant, nullable=False),
    Column("stopped_at", _instant),
    Column("drain_requested_at", _instant),
)

calls = Table(
    "calls",
    metadata,
    Column("id", Text, primary_key=True),
    Column("run_id", Text, ForeignKey("runs.id"), nullable=False),
    Column("tenant_id", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("tool", Text, nullable=False),
    Column("server_name", Text, nullable=False),
    Column("server_version_id", BigInteger, nullable=False),
    Column("tool_version_id", BigInteger, nullable=False),
    Column("delivery", Text, nullable=False),
    Column("call_timeout_s", Double, nullable=False),
    Column("arguments", JSON, nullable=False),
    Column("arguments_digest", Text, nullable=False),
    Column("idempotency_key", Text),
    Column("traceparent", Text),
    Column("reply_to", Text),
    Column("replied_at", _instant),
    Column("priority", SmallInteger, nullable=False, server_default="5"),
    Column("state", Text, nullable=False, server_default="queued"),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("fence", BigInteger, nullable=False, server_default="0"),
    Column("worker_id", Text),
    Column("deadline_at", _instant, nullable=False),
    Column("created_at", _instant, nullable=False, server_default=func.clock_timestamp()),
    Column("queued_at", _instant, nullable=False, server_default=func.clock_timestamp()),
    Column("sent_at", _instant, nullable=False, server_default=func.clock_timestamp()),
    Column("not_before", _instant),
    Column("started_at", _instant),
    Column("ended_at", _instant),
    Column("stop_requested_at", _instant),
    Column("stop_reason", Text),
    Column("is_error", Boolean),
    Column("result", JSON),
    Column("error", JSONB),
    Column("timings", JSONB),
    Column("deadline_s", Double),
    Column("decided_by", Text),
    Column("decided_at", _instant),
    Column("result_shape", Text),
    Column("method", Text, nullable=False, server_default="tools/call"),
    Column("answers", ARRAY(Text)),
    Column("log_level", Text),
    Column("trace", JSON),
    Column("open_questions", SmallInteger, nullable=False, server_default="0"),
    Index(
        "uq_calls_idempotency",
        "tenant_id",
        "idempotency_key",
        unique=True,
        postgresql_where=text("idempotency_key IS NOT NULL"),
    ),
    Index("ix_calls_queued", "server_name", "queued_at", postgresql_where=text("state = 'queued'")),
    Index(
        "ix_calls_parked",
        "not_before",
        postgresql_where=text("state = 'queued' AND not_before IS NOT NULL"),
    ),
    Index("ix_calls_running", "worker_id", postgresql_where=text("state = 'running'")),
    Index(
        "ix_calls_unreplied",
        "ended_at",
        postgresql_where=text("reply_to IS NOT NULL AND replied_at IS NULL"),
    ),
    Index("ix_calls_run_newest", "run_id", "created_at", "id"),
    Index(
        "ix_calls_unfinished",
        "tenant_id",
        postgresql_where=text("state IN ('queued', 'running', 'awaiting_approval')"),
    ),
    Index("ix_calls_created", "created_at", postgresql_using="brin"),
    Index("ix_calls_newest", "created_at", "id"),
    Index(
        "ix_calls_trace",
        text("substr(traceparent, 4, 32)"),
        postgresql_where=text("traceparent IS NOT NULL"),
    ),
    Index(
        "ix_calls_failures",
        "server_name",
        text("created_at DESC"),
        postgresql_where=text(
            "state IN ('failed', 'expired', 'outcome_unknown')"
            " AND (error ->> 'code') IS DISTINCT FROM 'breaker_open'"
        ),
    ),
)

artifacts = Table(
    "artifacts",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant_id", Text, nullable=False),
    Column("call_id", Text, ForeignKey("calls.id", ondelete="CASCADE"), nullable=False),
    Column("fence", BigInteger, nullable=False),
    Column("media_type", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("kept", Boolean, nullable=False, server_default=text("false")),
    Column("created_at", _instant, nullable=False, server_default=_now),
    UniqueConstraint("call_id", "fence"),
    Index("ix_artifacts_unkept", "created_at", postgresql_where=text("NOT kept")),
)

artifact_chunks = Table(
    "artifact_chunks",
    metadata,
    Column("artifact_id", Text, ForeignKey("artifacts.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("data", LargeBinary, nullable=False),
)

# What a server asked whoever made a call, while it ran (`registry.questions`).
questions = Table(
    "questions",
    metadata,
    Column("call_id", Text, ForeignKey("calls.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("key", Text),
    Column("fence", BigInteger, nullable=False),
    Column("dispatch", Integer, nullable=False),
    Column("method", Text, nullable=False),
    Column("params", JSON),
    Column("state", Text, nullable=False, server_default="open"),
    Column("answer", JSON),
    Column("asked_at", _instant, nullable=False, server_default=func.clock_timestamp()),
    Column("answered_at", _instant),
    Column("answered_by", Text),
    CheckConstraint("state IN ('open', 'answered', 'withdrawn')", name="state"),
    Index(
        "uq_questions_key",
        "call_id",
        "key",
        unique=True,
        postgresql_where=text("key IS NOT NULL"),
    ),
)

# A client's connection by the revisions that have sessions; its run is what it may call.
mcp_sessions = Table(
    "mcp_sessions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant_id", Text, nullable=False),
    Column("run_id", Text, ForeignKey("runs.id"), nullable=False),
    Column("owns_run", Boolean, nullable=False),
    Column("actor", Text, nullable=False),
    Column("server_name", Text),
    Column("revision", Text, nullable=False),
    Column("client", JSONB, nullable=False),
    Column("log_level", Text),
    Column("created_at", _instant, nullable=False, server_default=func.clock_timestamp()),
    Column("ended_at", _instant),
)

# Who is signed in to the console, by the digest of what the browser keeps.
console_sessions = Table(
    "console_sessions",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("key_id", Text),
    Column("actor", JSONB, nullable=False),
    Column("created_at", _instant, nullable=False, server_default=func.clock_timestamp()),
    Column("expires_at", _instant, nullable=False),
    Column("ended_at", _instant),
)

# What a version of a server has beside its tools, as it listed them last.
offerings = Table(
    "offerings",
    metadata,
    Column("server_version_id", BigInteger, ForeignKey("server_versions.id"), primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("body", JSON, nullable=False),
    Column("digest", Text, nullable=False),
    Column("listed_at", _instant, nullable=False, server_default=func.clock_timestamp()),
    CheckConstraint("kind IN ('about', 'prompts', 'resources', 'templates')", name="kind"),
)

# Which resources somebody wants to hear of, and until when (`registry.interests`).
resource_interests = Table(
    "resource_interests",
    metadata,
    Column("holder", Text, primary_key=True),
    Column("server_name", Text, primary_key=True),
    Column("uri", Text, primary_key=True),
    Column("server_version_id", BigInteger, nullable=False),
    Column("tenant_id", Text, nullable=False),
    Column("until", _instant, nullable=False),
    Index("ix_resource_interests_server", "server_name", "until"),
)

# Rows of these two are never changed nor deleted (triggers, migration 0009); see registry.bindings.
approvals = Table(
    "approvals",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("call_id", Text, nullable=False),
    Column("tenant_id", Text, nullable=False),
    Column("binding", Text, nullable=False),
    Column("approve", Boolean, nullable=False),
    Column("decided_by", Text, nullable=False),
    Column("decided_at", _instant, nullable=False),
    Column("holds_until", _instant, nullable=False),
    Column("closes", Boolean, nullable=False),
    Column("reason", Text),
    Column("seal", Text, nullable=False),
    UniqueConstraint("call_id", "decided_by", "approve"),
    Index("uq_approvals_closing", "call_id", unique=True, postgresql_where=text("closes")),
)

approval_uses = Table(
    "approval_uses",
    metadata,
    Column("call_id", Text, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("fence", BigInteger, nullable=False),
    Column("worker_id", Text, nullable=False),
    Column("used_at", _instant, nullable=False, server_default=func.clock_timestamp()),
)

# A call that waits has its notice from the moment that it waits (a trigger, migration 0009).
approval_notices = Table(
    "approval_notices",
    metadata,
    Column("call_id", Text, ForeignKey("calls.id", ondelete="CASCADE"), primary_key=True),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("due_at", _instant, nullable=False, server_default=func.clock_timestamp()),
    Column("delivered_at", _instant),
    Column("given_up_at", _instant),
    Column("problem", Text),
    Index(
        "ix_approval_notices_due",
        "due_at",
        postgresql_where=text("delivered_at IS NULL AND given_up_at IS NULL"),
    ),
)

audit = Table(
    "audit",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("at", _instant, nullable=False, server_default=func.clock_timestamp()),
    Column("tenant_id", Text),
    Column("actor", Text, nullable=False),
    Column("event", Text, nullable=False),
    Column("run_id", Text),
    Column("call_id", Text),
    Column("details", JSONB, nullable=False, server_default=text("'{}'")),
    Column(
        "xid",
        BigInteger,
        nullable=False,
        server_default=text("CAST(CAST(pg_current_xact_id() AS text) AS bigint)"),
    ),
    Index("ix_audit_call", "call_id", postgresql_where=text("call_id IS NOT NULL")),
    Index("ix_audit_xid", "xid"),
)

# The place of each entry in its chain, by `registry.sealing`; a trigger keeps all of these, and
# the entries, from being changed (migration 0007).
audit_seals = Table(
    "audit_seals",
    metadata,
    Column("chain", Text, primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("entry_id", BigInteger, nullable=False, unique=True),
    Column("hash", LargeBinary, nullable=False),
)

audit_chains = Table(
    "audit_chains",
    metadata,
    Column("chain", Text, primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Column("signed_seq", BigInteger, nullable=False, server_default="0"),
    Column("signed_hash", LargeBinary),
)

audit_sealer = Table(
    "audit_sealer",
    metadata,
    Column("only", Boolean, primary_key=True, server_default=text("true")),
    Column("sealed_below", BigInteger, nullable=False, server_default="0"),
    Column("cluster", Text),
    CheckConstraint('"only"', name="one_row"),
)

audit_checkpoints = Table(
    "audit_checkpoints",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("at", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("body", Text, nullable=False),
)

audit_cuts = Table(
    "audit_cuts",
    metadata,
    Column("chain", Text, primary_key=True),
    Column("to_seq", BigInteger, primary_key=True, autoincrement=False),
    Column("body", Text, nullable=False),
)
