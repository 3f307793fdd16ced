"""Tenants and API keys: who asks. A key is stored as a hash and shown once."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from registry import audit
from registry.database import Database, to_json
from registry.errors import Code, FleetError
from registry.fields import is_tenant_name
from registry.scopes import Scopes

_PREFIX = "tf_"
LOCAL: Final = "system"
"""Who acts without a key: the fleet itself, or somebody on its machine."""


class Role(StrEnum):
    """What somebody may do: operate the fleet, call tools, decide about calls, or read the audit.

    An approver or auditor who names a tenant sees that tenant's alone.
    """

    OPERATOR = "operator"
    TENANT = "tenant"
    APPROVER = "approver"
    AUDITOR = "auditor"


@dataclass(frozen=True)
class Actor:
    """Who is asking; ``tenant`` is None for who is bound to none, and may name any."""

    key_id: str
    name: str
    role: Role
    tenant: str | None
    scopes: Scopes | None = None
    """What the key is narrowed to within its role; None is no narrowing."""
    kind: str = "key"
    """How the actor showed who it is: by a ``key``, or by a token of an ``oidc`` issuer."""

    @property
    def label(self) -> str:
        """Return how the audit names it."""
        return f"{self.kind}:{self.key_id}"


async def ensure_tenant(database: Database, tenant: str, *, actor: str = LOCAL) -> None:
    """Create a tenant unless it exists."""
    if not is_tenant_name(tenant):
        raise FleetError(
            Code.INVALID_REQUEST,
            f"{tenant!r} is not a tenant name",
            hint="use up to 64 letters, digits, '-' and '_'",
        )
    async with database.transaction() as connection:
        added = await connection.execute(
            text("INSERT INTO tenants (id) VALUES (:id) ON CONFLICT (id) DO NOTHING RETURNING id"),
            {"id": tenant},
        )
        if added.first() is not None:
            await audit.record(connection, actor, "tenant.added", {}, tenant=tenant)


async def create_key(
    database: Database,
    *,
    name: str,
    role: Role,
    tenant: str | None = None,
    lifetime: timedelta | None = None,
    scopes: Scopes | None = None,
    actor: str = LOCAL,
) -> tuple[str, str]:
    """Create an API key; return its id and its plaintext, which is stored nowhere."""
    if role is Role.TENANT or tenant is not None:
        await ensure_tenant(database, tenant or "", actor=actor)
    narrowed = scopes.as_dict() if scopes is not None else {}
    key = {
        "name": name,
        "role": role.value,
        "tenant": None if role is Role.OPERATOR else tenant,
        "scopes": to_json(narrowed) if narrowed else None,
    }
    async with database.transaction() as connection:
        key_id, plaintext = await _insert(connection, key, lifetime)
        details = {"key": key_id, **key, "scopes": narrowed or None}
        await audit.record(connection, actor, "key.created", details, tenant=key["tenant"])
    return key_id, plaintext


async def rotate_key(
    database: Database,
    key_id: str,
    *,
    overlap: timedelta,
    lifetime: timedelta | None = None,
    within: Scopes | None = None,
    actor: str = LOCAL,
) -> tuple[dict[str, Any], str]:
    """Make a key that may do what ``key_id`` may, which expires once ``overlap`` is over.

    Return the new key's row, without a secret, and its plaintext. Raises `not_found` for a key that
    is not there, or was revoked, and `out_of_scope` for one that is wider than ``within``.
    """
    async with database.transaction() as connection:
        result = await connection.execute(
            text(
                "UPDATE api_keys SET expires_at = least(expires_at,"
                " clock_timestamp() + CAST(:overlap AS interval))"
                " WHERE id = :id AND revoked_at IS NULL"
                " RETURNING name, role, tenant_id AS tenant, scopes, expires_at"
            ),
            {"id": key_id, "overlap": overlap},
        )
        row = result.mappings().first()
        if row is None:
            raise _no_key(key_id)
        if within is not None:
            within.refuse_wider(Scopes.model_validate(row["scopes"] or {}))
        key = dict(row)
        until = key.pop("expires_at")
        stored = {**key, "scopes": to_json(key["scopes"]) if key["scopes"] else None}
        new_id, plaintext = await _insert(connection, stored, lifetime)
        details = {"key": key_id, "by": new_id, "expires_at": until.isoformat()}
        await audit.record(connection, actor, "key.rotated", details, tenant=key["tenant"])
    return {"id": new_id, **key, "replaces": key_id, "replaced_expires_at": until}, plaintext


async def _insert(
    connection: AsyncConnection,
    key: dict[str, Any],
    lifetime: timedelta | None,
    plaintext: str | None = None,
) -> tuple[str, str]:
    key_id = secrets.token_hex(8)
    plaintext = plaintext or new_plaintext()
    await connection.execute(
        text(
            "INSERT INTO api_keys (id, secret_hash, name, role, tenant_id, scopes, expires_at)"
            " VALUES (:id, :hash, :name, :role, :tenant, CAST(:scopes AS jsonb),"
            " clock_timestamp() + CAST(:lifetime AS interval))"
        ),
        {"id": key_id, "hash": _hash(plaintext), "lifetime": lifetime, **key},
    )
    return key_id, plaintext


async def authenticate(database: Database, plaintext: str) -> Actor:
    """Return who a key stands for; raise `unauthenticated` or `key_expired`.

    One statement, whether the key is known, revoked or neither.
    """
    async with database.transaction() as connection:
        row = (
            await connection.execute(
                text(
                    "SELECT id, name, role, tenant_id, scopes, revoked_at IS NOT NULL AS revoked,"
                    " COALESCE(expires_at <= clock_timestamp(), false) AS expired"
                    " FROM api_keys WHERE secret_hash = :hash"
                ),
                {"hash": _hash(plaintext)},
            )
        ).first()
    if row is None or row.revoked:
        raise FleetError(
            Code.UNAUTHENTICATED,
            "the API key is not known",
            hint="send a valid key as 'Authorization: Bearer KEY'",
        )
    if row.expired:
        raise FleetError(
            Code.KEY_EXPIRED,
            f"the API key {row.name!r} has expired",
            hint="ask an operator for a new key",
        )
    scopes = None if row.scopes is None else Scopes.model_validate(row.scopes)
    return Actor(row.id, row.name, Role(row.role), row.tenant_id, scopes)


async def note_use(database: Database, key_id: str) -> None:
    """Write when a key was used, once a minute however many processes say it."""
    await database.statement(
        "UPDATE api_keys SET last_used_at = clock_timestamp() WHERE id = %(id)s AND"
        " (last_used_at IS NULL OR last_used_at < clock_timestamp() - interval '1 minute')"
        " RETURNING id",
        id=key_id,
    )


async def list_keys(database: Database) -> list[dict[str, Any]]:
    """Return every key without its secret, oldest first."""
    async with database.transaction() as connection:
        result = await connection.execute(
            text(
                "SELECT id, name, role, tenant_id, scopes, created_at, expires_at, revoked_at,"
                " last_used_at FROM api_keys ORDER BY created_at"
            )
        )
        return [dict(row) for row in result.mappings()]


async def key_names(database: Database, labels: Iterable[str]) -> dict[str, str]:
    """Return the name of each key among these labels of actors (`Actor.label`)."""
    ids = [label.removeprefix("key:") for label in labels if label.startswith("key:")]
    rows = await database.statement(
        "SELECT 'key:' || id AS label, name FROM api_keys WHERE id = ANY(%(ids)s)", ids=ids
    )
    return {row["label"]: row["name"] for row in rows}


async def revoke_key(database: Database, key_id: str, *, actor: str = LOCAL) -> None:
    """Revoke a key, once; raise `not_found` when there is none."""
    async with database.transaction() as connection:
        result = await connection.execute(
            text("SELECT tenant_id, revoked_at FROM api_keys WHERE id = :id FOR UPDATE"),
            {"id": key_id},
        )
        row = result.first()
        if row is None:
            raise _no_key(key_id)
        if row.revoked_at is not None:
            return
        await connection.execute(
            text("UPDATE api_keys SET revoked_at = clock_timestamp() WHERE id = :id"),
            {"id": key_id},
        )
        await audit.record(connection, actor, "key.revoked", {"key": key_id}, tenant=row.tenant_id)


def _no_key(key_id: str) -> FleetError:
    return FleetError(
        Code.NOT_FOUND, f"there is no API key {key_id!r}", hint="GET /v1/keys lists the keys"
    )


async def bootstrap_operator_key(database: Database, path: Path) -> str:
    """Return the local operator's key, kept in ``path`` (mode 0600); make one if need be."""
    if path.exists():
        plaintext = path.read_text().strip()
        try:
            await authenticate(database, plaintext)
        except FleetError as error:
            if error.code not in (Code.UNAUTHENTICATED, Code.KEY_EXPIRED):
                raise
        else:
            return plaintext
    _, plaintext = await create_key(database, name="local operator", role=Role.OPERATOR)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(plaintext + "\n")
    return plaintext


async def adopt_operator_key(database: Database, plaintext: str) -> None:
    """Make a key that was made by `new_plaintext` elsewhere an operator's, unless it is known.

    One that was revoked stays so. Raises `ValueError` for one that might be guessed.
    """
    if not plaintext.startswith(_PREFIX) or len(plaintext) < len(new_plaintext()):
        raise ValueError(
            f"TOOLFLEET_OPERATOR_KEY has to be {_PREFIX!r} and 43 random characters: "
            "`toolfleet secrets FOLDER` makes one"
        )
    key = {"name": "first operator", "role": Role.OPERATOR.value, "tenant": None, "scopes": None}
    async with database.transaction() as connection:
        known = "SELECT FROM api_keys WHERE secret_hash = :hash"
        if (await connection.execute(text(known), {"hash": _hash(plaintext)})).first() is None:
            key_id, _ = await _insert(connection, key, None, plaintext)
            await audit.record(connection, LOCAL, "key.created", {"key": key_id, **key})


def new_plaintext() -> str:
    """Return what a new API key says: 256 random bits."""
    return _PREFIX + secrets.token_urlsafe(32)


def _hash(plaintext: str) -> str:
    # A plain hash is enough: the secret has 256 random bits, so there is nothing to guess.
    return hashlib.sha256(plaintext.encode()).hexdigest()
