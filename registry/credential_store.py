"""The record of credentials: set, shown, removed, and their data keys wrapped anew.

1. A secret reaches the record sealed, by a data key that is one tenant's alone and that a key of
   the operator wraps. Setting a credential makes a data key of its own: whoever only sets them
   never has to unwrap one.
2. Each change has a serial, drawn under a lock of its server: whoever has seen one of a server's
   serials has missed nothing that has a smaller one.
3. A removed credential leaves a row without content, so that its removal has a serial too.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from registry import audit, catalog, data_keys, envelope
from registry.credential_kinds import Credential, names_of, split
from registry.credentials import SHARED
from registry.data_keys import place_of_key
from registry.database import Database, to_json
from registry.definition_secrets import seal_older
from registry.envelope import KeyWrapper
from registry.errors import Code, FleetError
from registry.fields import is_tenant_name
from registry.stored_credential import Content, StoredCredential, place

_COLUMNS: Final = """
    c.tenant_id, c.server_name, c.definition, c.state, c.version, c.serial, c.sealed, c.data_key_id,
    k.wrapped_by, k.wrapped, c.failures, c.problem, c.renewing_by, clock_timestamp() AS now,
    extract(epoch FROM c.expires_at - clock_timestamp())::float8 AS expires_in_s,
    extract(epoch FROM c.renew_at - clock_timestamp())::float8 AS renew_in_s,
    extract(epoch FROM c.retry_at - clock_timestamp())::float8 AS retry_in_s,
    extract(epoch FROM c.renewing_until - clock_timestamp())::float8 AS renewing_for_s
"""
_FROM: Final = " FROM credentials c LEFT JOIN data_keys k ON k.id = c.data_key_id "
_SHOWN: Final = (
    "SELECT tenant_id, server_name, kind, definition, secret_names, state, version, problem,"
    " failures, retry_at, renewed_at, renew_at, expires_at, created_at, changed_at, changed_by"
    " FROM credentials WHERE state <> 'removed'"
)
_PUT: Final = text(
    """
    INSERT INTO credentials AS c (tenant_id, server_name, kind, definition, secret_names,
        data_key_id, sealed, version, serial, changed_by)
    VALUES (:tenant, :server, :kind, CAST(:definition AS jsonb), CAST(:names AS text[]),
        :key, :sealed, :version, :version, :actor)
    ON CONFLICT (tenant_id, server_name) DO UPDATE SET kind = EXCLUDED.kind,
        definition = EXCLUDED.definition, secret_names = EXCLUDED.secret_names,
        data_key_id = EXCLUDED.data_key_id, sealed = EXCLUDED.sealed, version = EXCLUDED.version,
        serial = EXCLUDED.serial, changed_by = EXCLUDED.changed_by, state = 'ready',
        problem = NULL, failures = 0, retry_at = NULL, renewed_at = NULL, renew_at = NULL,
        expires_at = NULL, forced_at = NULL, renewing_by = NULL, renewing_until = NULL,
        created_at = CASE WHEN c.state = 'removed' THEN clock_timestamp() ELSE c.created_at END,
        changed_at = clock_timestamp()
    """
)


# -- for operators


async def put(
    database: Database,
    keys: KeyWrapper,
    credential: Credential,
    *,
    tenant: str,
    server: str,
    actor: str,
) -> dict[str, Any]:
    """Set a credential in place of whatever there was; return it as `get` does.

    Raises `unknown_server`, `invalid_request` for what is no tenant, `credential_unavailable`
    where there is no key to keep it with.
    """
    if tenant != SHARED and not is_tenant_name(tenant):
        raise FleetError(
            Code.INVALID_REQUEST,
            "the credential is for what is neither a tenant's name nor *",
            hint="use up to 64 letters, digits, '-' and '_', or * for all without one of their own",
        )
    await catalog.get_server(database, server)
    definition, secrets = split(credential)
    new = await data_keys.make(keys, tenant) if secrets else None
    async with database.transaction() as connection:
        version = await next_serial(connection, server)
        before = await _locked(connection, tenant, server)
        sealed = None
        if new is not None:
            await data_keys.add(connection, new)
            where = place(tenant, server, version, definition)
            sealed = envelope.seal(new.key, Content(secrets).encode(), where)
        names = names_of(secrets)
        await connection.execute(
            _PUT,
            {
                "tenant": tenant,
                "server": server,
                "kind": credential.kind,
                "definition": to_json(definition),
                "names": names,
                "key": new.id if new is not None else None,
                "sealed": sealed,
                "version": version,
                "actor": actor,
            },
        )
        await data_keys.remove(connection, before)
        await audited(connection, actor, "set", tenant, server, kind=credential.kind, secrets=names)
    return await get(database, tenant, server)


async def get(database: Database, tenant: str, server: str) -> dict[str, Any]:
    """Return a credential without its secrets; raise `not_found`."""
    async with database.transaction() as connection:
        result = await connection.execute(
            text(_SHOWN + " AND tenant_id = :tenant AND server_name = :server"),
            {"tenant": tenant, "server": server},
        )
        row = result.mappings().first()
    if row is None:
        raise _not_found(tenant, server)
    return dict(row)


async def list_all(database: Database) -> list[dict[str, Any]]:
    """Return every credential without its secrets, by server and tenant."""
    async with database.transaction() as connection:
        result = await connection.execute(text(_SHOWN + " ORDER BY server_name, tenant_id"))
        return [dict(row) for row in result.mappings()]


async def ailing(database: Database) -> list[dict[str, Any]]:
    """Return the credentials that need a consent or were not renewed when tried last."""
    async with database.transaction() as connection:
        result = await connection.execute(
            text(
                _SHOWN + " AND (state = 'needs_consent' OR failures > 0)"
                " ORDER BY server_name, tenant_id"
            )
        )
        return [dict(row) for row in result.mappings()]


async def remove(database: Database, tenant: str, server: str, *, actor: str) -> None:
    """Remove a credential, its secrets and their data key; raise `not_found`."""
    async with database.transaction() as connection:
        serial = await next_serial(connection, server)
        before = await _locked(connection, tenant, server)
        result = await connection.execute(
            text(
                "UPDATE credentials SET state = 'removed', sealed = NULL, data_key_id = NULL,"
                " definition = '{}', secret_names = '{}', problem = NULL, failures = 0,"
                " retry_at = NULL, renewed_at = NULL, renew_at = NULL, expires_at = NULL,"
                " forced_at = NULL, renewing_by = NULL, renewing_until = NULL,"
                " version = :serial, serial = :serial, changed_at = clock_timestamp(),"
                " changed_by = :actor"
                " WHERE tenant_id = :tenant AND server_name = :server AND state <> 'removed'"
                " RETURNING kind"
            ),
            {"tenant": tenant, "server": server, "serial": serial, "actor": actor},
        )
        row = result.first()
        if row is None:
            raise _not_found(tenant, server)
        await data_keys.remove(connection, before)
        await audited(connection, actor, "removed", tenant, server, kind=row.kind)


async def rewrap(database: Database, keys: KeyWrapper, *, actor: str) -> dict[str, Any]:
    """Have every data key wrapped by the current key; say how many were, and by what they are now.

    No credential is touched, and each data key can be read at any time. Secrets that an earlier
    release left in definitions are sealed before: see `seal_older`. What is interrupted goes on
    when it is asked for again. Raises `credential_unavailable`, having done a part.
    """
    older = await seal_older(database, keys, actor=actor)
    async with database.transaction() as connection:
        result = await connection.execute(text("SELECT id FROM data_keys ORDER BY id"))
        ids = [row.id for row in result]
    rewrapped = 0
    for key_id in ids:
        rewrapped += await _rewrap_one(database, keys, key_id, actor)
    async with database.transaction() as connection:
        result = await connection.execute(
            text("SELECT wrapped_by, count(*) AS keys FROM data_keys GROUP BY 1 ORDER BY 1")
        )
        wrapped_by = {row.wrapped_by: row.keys for row in result}
    return {
        "rewrapped": rewrapped,
        "wrapped_by": wrapped_by,
        "definitions_sealed": older["sealed"],
        "definitions_left": older["left"],
    }


async def _rewrap_one(database: Database, keys: KeyWrapper, key_id: str, actor: str) -> bool:
    found = await data_keys.get(database, key_id)
    if found is None:  # its credential was set anew, or removed
        return False
    tenant, before = found
    after = await keys.rewrap(before, place_of_key(tenant, key_id))
    if after.by == before.by:
        return False
    async with database.transaction() as connection:
        result = await connection.execute(
            text(
                "UPDATE data_keys SET wrapped = :blob, wrapped_by = :by,"
                " rewrapped_at = clock_timestamp() WHERE id = :id AND wrapped = :before"
                " RETURNING id"
            ),
            {"id": key_id, "blob": after.blob, "by": after.by, "before": before.blob},
        )
        if result.first() is None:
            return False
        details = {"data_key": key_id, "from": before.by, "to": after.by, "tenant": tenant}
        await audit.record(
            connection, actor, "credential.rewrapped", details, tenant=_tenant_or_none(tenant)
        )
    return True


# -- for workers


async def changes(database: Database, server: str, after: int) -> list[StoredCredential]:
    """Return the credentials for a server that were changed after a serial, removed ones too."""
    rows = await database.statement(
        "SELECT" + _COLUMNS + _FROM + "WHERE c.server_name = %(server)s AND c.serial > %(after)s"
        " ORDER BY c.serial",
        server=server,
        after=after,
    )
    return [StoredCredential.of(row) for row in rows]


async def read(database: Database, tenant: str, server: str) -> StoredCredential | None:
    """Return one credential as it is now, None if there never was one."""
    rows = await database.statement(
        "SELECT"
        + _COLUMNS
        + _FROM
        + "WHERE c.tenant_id = %(tenant)s AND c.server_name = %(server)s",
        tenant=tenant,
        server=server,
    )
    return StoredCredential.of(rows[0]) if rows else None


# -- shared with registry.renewals


async def next_serial(connection: AsyncConnection, server: str) -> int:
    """Return the next serial; until this transaction has ended nobody else draws one there."""
    await connection.execute(
        text(
            "SELECT pg_advisory_xact_lock(hashtextextended('toolfleet.credentials.' || :name, 0))"
        ),
        {"name": server},
    )
    result = await connection.execute(text("SELECT nextval('credential_serials') AS serial"))
    return int(result.scalar_one())


async def audited(
    connection: AsyncConnection, actor: str, what: str, tenant: str, server: str, **details: Any
) -> None:
    """Write the audit entry of a change of a credential, within its transaction."""
    details = {"server": server, "tenant": tenant, **details}
    await audit.record(
        connection, actor, f"credential.{what}", details, tenant=_tenant_or_none(tenant)
    )


def _tenant_or_none(tenant: str) -> str | None:
    return None if tenant == SHARED else tenant


async def _locked(connection: AsyncConnection, tenant: str, server: str) -> str | None:
    """Lock a credential's row against other writers; return the id of its data key."""
    result = await connection.execute(
        text(
            "SELECT data_key_id FROM credentials"
            " WHERE tenant_id = :tenant AND server_name = :server FOR UPDATE"
        ),
        {"tenant": tenant, "server": server},
    )
    return result.scalar_one_or_none()


def _not_found(tenant: str, server: str) -> FleetError:
    return FleetError(
        Code.NOT_FOUND,
        f"there is no stored credential of {tenant!r} for server {server!r}",
        hint="`toolfleet credentials list` shows those there are; those in a file are not stored",
    )
