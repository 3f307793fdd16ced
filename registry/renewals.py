"""Renewing tokens once across the whole fleet: a lease on the row, and compare-and-swap.

1. Whoever renews a credential holds the lease of its row; only one process does at a time.
2. What it got is stored only if the credential is still at the version that it was got with
   (compare-and-swap), and is used by nobody, the finder included, before it is stored.
3. A lease that lapsed is taken over only by who says whose it was: it has to have watched it for
   a while, so that a process that was kept from storing (Postgres away) comes first.
4. A failed renewal changes no state but by `invalid_grant`, and never what is sealed.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final, LiteralString

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from registry.credential_store import audited, next_serial, read
from registry.database import Database, to_json
from registry.oauth import Failure, TokenError
from registry.stored_credential import Content, StoredCredential

FORCED_EVERY: Final = timedelta(seconds=60)
_TAKE: Final[LiteralString] = """
    UPDATE credentials SET renewing_by = %(by)s,
        renewing_until = clock_timestamp() + %(lease)s,
        forced_at = CASE WHEN %(forced)s THEN clock_timestamp() ELSE forced_at END
    WHERE tenant_id = %(tenant)s AND server_name = %(server)s AND version = %(version)s
        AND state = 'ready'
        AND (renewing_by IS NULL
            OR (renewing_until <= clock_timestamp() AND renewing_by = %(abandoned)s))
        AND (retry_at IS NULL OR retry_at <= clock_timestamp())
        AND (NOT %(forced)s OR forced_at IS NULL
            OR forced_at <= clock_timestamp() - %(forced_every)s)
    RETURNING 1
"""


async def take(
    database: Database,
    stored: StoredCredential,
    *,
    by: str,
    lease: timedelta,
    abandoned: str | None = None,
    forced: bool = False,
) -> StoredCredential | None:
    """Take the lease to renew a credential; return it as it is now, None if it is not to be had.

    It is not while it is at another version, is being renewed, waits for its next try or for a
    consent, nor where it was ``forced`` less than a minute ago. A lease of ``abandoned`` that has
    lapsed is taken over.
    """
    rows = await database.statement(
        _TAKE,
        by=by,
        lease=lease,
        tenant=stored.tenant,
        server=stored.server,
        version=stored.version,
        abandoned=abandoned or "",
        forced=forced,
        forced_every=FORCED_EVERY,
    )
    if not rows:
        return None
    now = await read(database, stored.tenant, stored.server)
    return now if now is not None and now.version == stored.version else None


async def keep(
    database: Database,
    stored: StoredCredential,
    key: bytes,
    content: Content,
    *,
    by: str,
    life_s: float | None,
    renew_in_s: float | None,
) -> bool:
    """Store what a renewal brought and give the lease back; say whether it was still wanted."""
    async with database.transaction() as connection:
        version = await next_serial(connection, stored.server)
        kept = await _update(
            connection,
            stored,
            "sealed = :sealed, version = :serial, state = 'ready', problem = NULL, failures = 0,"
            " retry_at = NULL, renewed_at = clock_timestamp(), changed_at = clock_timestamp(),"
            " changed_by = :by,"
            " expires_at = clock_timestamp() + make_interval(secs => CAST(:life AS float8)),"
            " renew_at = clock_timestamp() + make_interval(secs => CAST(:renew AS float8))",
            serial=version,
            sealed=stored.seal(key, content, version),
            by=by,
            life=life_s,
            renew=renew_in_s,
        )
        if kept:
            await _audited(connection, stored, by, "renewed", life_s=life_s)
    return kept


async def fail(
    database: Database, stored: StoredCredential, error: TokenError, *, by: str, pause_s: float
) -> None:
    """Record that a renewal failed, and when to try again; give the lease back.

    `invalid_grant` makes a credential that is still at this version need a consent.
    """
    gone = error.failure is Failure.CONSENT
    async with database.transaction() as connection:
        kept = await _update(
            connection,
            stored,
            "failures = failures + 1, problem = CAST(:problem AS jsonb),"
            " state = CASE WHEN CAST(:gone AS boolean) THEN 'needs_consent' ELSE state END,"
            " retry_at = clock_timestamp() + make_interval(secs => :pause)",
            serial=await next_serial(connection, stored.server),
            problem=to_json({"failure": error.failure.value, "message": error.message}),
            gone=gone,
            pause=pause_s,
        )
        if kept and gone:
            await _audited(connection, stored, by, "needs_consent", problem=error.message)


async def _update(
    connection: AsyncConnection, stored: StoredCredential, changes: str, **values: Any
) -> bool:
    result = await connection.execute(
        text(
            f"UPDATE credentials SET {changes}, serial = :serial, renewing_by = NULL,"  # noqa: S608 - ours
            " renewing_until = NULL"
            " WHERE tenant_id = :tenant AND server_name = :server AND version = :version"
            " AND state = 'ready' RETURNING 1"
        ),
        {**values, "tenant": stored.tenant, "server": stored.server, "version": stored.version},
    )
    return result.first() is not None


async def _audited(
    connection: AsyncConnection, stored: StoredCredential, by: str, what: str, **details: Any
) -> None:
    await audited(
        connection, by, what, stored.tenant, stored.server,
        kind=stored.definition["kind"], version=stored.version, **details,
    )  # fmt: skip
