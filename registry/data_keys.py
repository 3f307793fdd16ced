"""The record of data keys: each is wrapped by a key of the operator, and sealed with by one row.

A row of `credentials` has one, and so has a server version with secrets in its definition.
"""

from __future__ import annotations

import secrets as randomness
from collections.abc import Iterable
from dataclasses import dataclass, field

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from registry import envelope
from registry.database import Database
from registry.envelope import KeyWrapper, Wrapped


@dataclass(frozen=True)
class NewKey:
    """A data key that is not in the record yet; ``tenant`` is whose it is."""

    id: str
    tenant: str
    key: bytes = field(repr=False)
    wrapped: Wrapped


def place_of_key(tenant: str, key_id: str) -> bytes:
    """Return what a wrapped data key is bound to."""
    return envelope.place_of("data key", tenant, key_id)


async def make(keys: KeyWrapper, tenant: str) -> NewKey:
    """Make a data key; raise `credential_unavailable` where there is no key to wrap it with.

    To be called outside of transactions: the key may be far away, in a Vault.
    """
    key_id, key = randomness.token_hex(16), envelope.new_key()
    return NewKey(key_id, tenant, key, await keys.wrap(key, place_of_key(tenant, key_id)))


async def add(connection: AsyncConnection, new: NewKey) -> None:
    """Put a data key into the record, together with what it has sealed."""
    await connection.execute(
        text(
            "INSERT INTO data_keys (id, tenant_id, wrapped_by, wrapped)"
            " VALUES (:id, :tenant, :by, :blob)"
        ),
        {"id": new.id, "tenant": new.tenant, "by": new.wrapped.by, "blob": new.wrapped.blob},
    )


async def remove(connection: AsyncConnection, key_id: str | None) -> None:
    """Remove a data key, if there is one, together with what it has sealed."""
    if key_id is not None:
        await connection.execute(text("DELETE FROM data_keys WHERE id = :id"), {"id": key_id})


async def get(database: Database, key_id: str) -> tuple[str, Wrapped] | None:
    """Return whose a data key is, and how it is wrapped now; None if there is none any more."""
    rows = await database.statement(
        "SELECT tenant_id, wrapped_by, wrapped FROM data_keys WHERE id = %(id)s", id=key_id
    )
    if not rows:
        return None
    return rows[0]["tenant_id"], Wrapped(rows[0]["wrapped_by"], bytes(rows[0]["wrapped"]))


async def find(connection: AsyncConnection, ids: Iterable[str], tenant: str) -> dict[str, Wrapped]:
    """Return how those of these data keys are wrapped that a tenant has, within a transaction."""
    result = await connection.execute(
        text(
            "SELECT id, wrapped_by, wrapped FROM data_keys"
            " WHERE id = ANY(:ids) AND tenant_id = :tenant"
        ),
        {"ids": list(ids), "tenant": tenant},
    )
    return {row.id: Wrapped(row.wrapped_by, bytes(row.wrapped)) for row in result}
