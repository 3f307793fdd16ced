"""Who is signed in to the console: sessions that any API process knows, and that end in the record.

A session is stored as the hash of what the browser keeps. One that began with a key is good for as
long as the key is, and does what the key may do now; one that began with a token lasts no longer
than the token did.
"""

from __future__ import annotations

import hashlib
import secrets
from datetime import timedelta
from typing import Final

from sqlalchemy import text

from registry import audit
from registry.database import Database, to_json
from registry.errors import Code, FleetError
from registry.scopes import Scopes
from registry.tenants import Actor, Role

KEPT_AFTER_END: Final = timedelta(days=30)
_BYTES: Final = 32


async def begin(database: Database, actor: Actor, *, lifetime: timedelta, source: str) -> str:
    """Store a session of who was just let in; return what the browser keeps.

    Sessions that ended `KEPT_AFTER_END` ago are forgotten.
    """
    token = secrets.token_urlsafe(_BYTES)
    stored = {
        "key_id": actor.key_id,
        "name": actor.name,
        "role": actor.role.value,
        "tenant": actor.tenant,
        "scopes": actor.scopes.as_dict() if actor.scopes is not None else None,
        "kind": actor.kind,
    }
    async with database.transaction() as connection:
        await connection.execute(
            text(
                "DELETE FROM console_sessions"
                " WHERE expires_at < clock_timestamp() - CAST(:kept AS interval)"
            ),
            {"kept": KEPT_AFTER_END},
        )
        await connection.execute(
            text(
                "INSERT INTO console_sessions (digest, key_id, actor, expires_at) VALUES"
                " (:digest, :key, CAST(:actor AS jsonb),"
                " clock_timestamp() + CAST(:lifetime AS interval))"
            ),
            {
                "digest": digest(token),
                "key": actor.key_id if actor.kind == "key" else None,
                "actor": to_json(stored),
                "lifetime": lifetime,
            },
        )
        await audit.record(
            connection,
            actor.label,
            "console.signed_in",
            {"name": actor.name, "source": source},
            tenant=actor.tenant,
        )
    return token


async def read(database: Database, token: str) -> Actor:
    """Return whose session it is; raise `unauthenticated` for one that is unknown or has ended."""
    rows = await database.statement(
        "SELECT s.actor, k.id, k.name, k.role, k.tenant_id, k.scopes FROM console_sessions s"
        " LEFT JOIN api_keys k ON k.id = s.key_id"
        " WHERE s.digest = %(digest)s AND s.ended_at IS NULL AND s.expires_at > clock_timestamp()"
        " AND (s.key_id IS NULL OR (k.id IS NOT NULL AND k.revoked_at IS NULL"
        "  AND COALESCE(k.expires_at > clock_timestamp(), true)))",
        digest=digest(token),
    )
    if not rows:
        raise FleetError(
            Code.UNAUTHENTICATED,
            "the session is not known, or has ended",
            hint="sign in at /console/sign-in",
        )
    (row,) = rows
    if row["id"] is not None:
        scopes = None if row["scopes"] is None else Scopes.model_validate(row["scopes"])
        return Actor(row["id"], row["name"], Role(row["role"]), row["tenant_id"], scopes)
    stored = row["actor"]
    scopes = None if stored["scopes"] is None else Scopes.model_validate(stored["scopes"])
    return Actor(**{**stored, "role": Role(stored["role"]), "scopes": scopes})


async def end(database: Database, token: str, actor: Actor) -> None:
    """End a session, once."""
    async with database.transaction() as connection:
        ended = await connection.execute(
            text(
                "UPDATE console_sessions SET ended_at = clock_timestamp()"
                " WHERE digest = :digest AND ended_at IS NULL RETURNING digest"
            ),
            {"digest": digest(token)},
        )
        if ended.first() is not None:
            await audit.record(
                connection,
                actor.label,
                "console.signed_out",
                {"name": actor.name},
                tenant=actor.tenant,
            )


def digest(token: str) -> str:
    """Return what a session is stored by: its 256 bits are random, so there is nothing to guess."""
    return hashlib.sha256(token.encode()).hexdigest()
