"""Tenants and API keys: who asks. A key is stored as a hash and shown once."""

from __future__ import annotations

import hashlib
import os
import secrets
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from sqlalchemy import text

from registry.database import Database
from registry.errors import Code, FleetError
from registry.fields import is_tenant_name

_PREFIX = "tf_"


class Role(StrEnum):
    """What a key may do: operate the fleet, or act for one tenant."""

    OPERATOR = "operator"
    TENANT = "tenant"


@dataclass(frozen=True)
class Actor:
    """Who is asking; ``tenant`` is None for an operator, who may name any."""

    key_id: str
    name: str
    role: Role
    tenant: str | None


async def ensure_tenant(database: Database, tenant: str) -> None:
    """Create a tenant unless it exists."""
    if not is_tenant_name(tenant):
        raise FleetError(
            Code.INVALID_REQUEST,
            f"{tenant!r} is not a tenant name",
            hint="use up to 64 letters, digits, '-' and '_'",
        )
    async with database.transaction() as connection:
        await connection.execute(
            text("INSERT INTO tenants (id) VALUES (:id) ON CONFLICT (id) DO NOTHING"),
            {"id": tenant},
        )


async def create_key(
    database: Database,
    *,
    name: str,
    role: Role,
    tenant: str | None = None,
    lifetime: timedelta | None = None,
) -> tuple[str, str]:
    """Create an API key; return its id and its plaintext, which is stored nowhere."""
    if role is Role.TENANT:
        await ensure_tenant(database, tenant or "")
    key_id = secrets.token_hex(8)
    plaintext = _PREFIX + secrets.token_urlsafe(32)
    async with database.transaction() as connection:
        await connection.execute(
            text(
                "INSERT INTO api_keys (id, secret_hash, name, role, tenant_id, expires_at)"
                " VALUES (:id, :hash, :name, :role, :tenant,"
                " clock_timestamp() + CAST(:lifetime AS interval))"
            ),
            {
                "id": key_id,
                "hash": _hash(plaintext),
                "name": name,
                "role": role.value,
                "tenant": tenant if role is Role.TENANT else None,
                "lifetime": lifetime,
            },
        )
    return key_id, plaintext


async def authenticate(database: Database, plaintext: str) -> Actor:
    """Return who a key stands for; raise `unauthenticated` or `key_expired`."""
    async with database.transaction() as connection:
        row = (
            await connection.execute(
                text(
                    "SELECT id, name, role, tenant_id, revoked_at IS NOT NULL AS revoked,"
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
    return Actor(row.id, row.name, Role(row.role), row.tenant_id)


async def list_keys(database: Database) -> list[dict[str, Any]]:
    """Return every key without its secret, oldest first."""
    async with database.transaction() as connection:
        result = await connection.execute(
            text(
                "SELECT id, name, role, tenant_id, created_at, expires_at, revoked_at"
                " FROM api_keys ORDER BY created_at"
            )
        )
        return [dict(row) for row in result.mappings()]


async def revoke_key(database: Database, key_id: str) -> None:
    """Revoke a key; raise `not_found` when there is none."""
    async with database.transaction() as connection:
        result = await connection.execute(
            text(
                "UPDATE api_keys SET revoked_at = COALESCE(revoked_at, clock_timestamp())"
                " WHERE id = :id RETURNING id"
            ),
            {"id": key_id},
        )
        if result.first() is None:
            raise FleetError(Code.NOT_FOUND, f"there is no API key {key_id}")


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


def _hash(plaintext: str) -> str:
    # A plain hash is enough: the secret has 256 random bits, so there is nothing to guess.
    return hashlib.sha256(plaintext.encode()).hexdigest()
