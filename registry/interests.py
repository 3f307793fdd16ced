"""Which resources callers want to hear of, each until a moment that whoever wants it puts off.

What is wanted is here, because a URI may say much; what travels through Redis when a resource
changed is a key (`key_of`) that means something to who wants it alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from sqlalchemy import text

from registry import audit
from registry.database import Database, to_json
from registry.errors import Code, FleetError

LONGEST_URI: Final = 2_000
MOST_OF_ONE: Final = 500
"""Resources that one session, or one stream, may hear of."""
_FORGOTTEN_AFTER: Final = timedelta(days=1)


@dataclass(frozen=True)
class Interest:
    """One tenant's interest in one resource, by the server's own URI."""

    server: str
    version_id: int
    tenant: str
    uri: str

    @property
    def key(self) -> str:
        """Return what those who want it are told by."""
        return key_of(self.server, self.tenant, self.uri)


def key_of(server: str, tenant: str, uri: str) -> str:
    """Return a key that stands for a tenant's interest in a resource, and does not tell it."""
    return hashlib.sha256(to_json([server, tenant, uri]).encode()).hexdigest()


async def put(
    database: Database,
    holder: str,
    interests: Sequence[Interest],
    *,
    lasts: timedelta,
    actor: str,
    run: str,
) -> None:
    """Note what a holder, a session or a stream, wants to hear of; raise `invalid_request`."""
    async with database.transaction() as connection:
        await connection.execute(
            text(
                "DELETE FROM resource_interests"
                " WHERE until < clock_timestamp() - CAST(:age AS interval)"
            ),
            {"age": _FORGOTTEN_AFTER},
        )
        for it in interests:
            if len(it.uri.encode()) > LONGEST_URI:
                raise FleetError(
                    Code.INVALID_REQUEST,
                    f"a URI that is subscribed to may be {LONGEST_URI} bytes long",
                )
            await connection.execute(_PUT, {**vars(it), "holder": holder, "lasts": lasts})
            details = {"server": it.server, "resource": it.key}
            await audit.record(
                connection, actor, "resource.subscribed", details, tenant=it.tenant, run=run
            )
        held = await connection.execute(
            text("SELECT count(*) FROM resource_interests WHERE holder = :holder"),
            {"holder": holder},
        )
        if held.scalar_one() > MOST_OF_ONE:
            raise FleetError(
                Code.INVALID_REQUEST,
                f"more than {MOST_OF_ONE} resources are subscribed to at once",
                hint="unsubscribe from some of them first",
            )


async def drop(
    database: Database, holder: str, interest: Interest, *, actor: str, run: str
) -> None:
    """Note that a holder wants to hear of a resource no more."""
    async with database.transaction() as connection:
        gone = await connection.execute(
            text(
                "DELETE FROM resource_interests"
                " WHERE holder = :holder AND server_name = :server AND uri = :uri RETURNING uri"
            ),
            {"holder": holder, "server": interest.server, "uri": interest.uri},
        )
        if gone.first() is not None:
            details = {"server": interest.server, "resource": interest.key}
            await audit.record(
                connection,
                actor,
                "resource.unsubscribed",
                details,
                tenant=interest.tenant,
                run=run,
            )


async def held(database: Database, holders: Sequence[str]) -> dict[str, list[Interest]]:
    """Return what holders want to hear of, lapsed or not."""
    rows = await database.statement(
        "SELECT holder, server_name AS server, server_version_id AS version_id,"
        " tenant_id AS tenant, uri FROM resource_interests WHERE holder = ANY(%(holders)s)",
        holders=list(holders),
    )
    found: dict[str, list[Interest]] = {holder: [] for holder in holders}
    for row in rows:
        found[row.pop("holder")].append(Interest(**row))
    return found


async def renew(database: Database, holders: Sequence[str], *, lasts: timedelta) -> None:
    """Put off until when holders want to hear of what they do."""
    async with database.transaction() as connection:
        await connection.execute(
            text(
                "UPDATE resource_interests"
                " SET until = clock_timestamp() + CAST(:lasts AS interval)"
                " WHERE holder = ANY(:holders)"
            ),
            {"holders": list(holders), "lasts": lasts},
        )


async def wanted(database: Database, server: str, worker: str) -> list[Interest]:
    """Return what is wanted of a server now; nothing for any but the first of its workers."""
    rows = await database.statement(
        "SELECT DISTINCT i.server_name AS server, i.server_version_id AS version_id,"
        " i.tenant_id AS tenant, i.uri FROM resource_interests i"
        " WHERE i.server_name = %(server)s AND i.until > clock_timestamp()"
        " AND %(worker)s = (SELECT min(w.id) FROM workers w WHERE w.server_name = %(server)s"
        "  AND w.stopped_at IS NULL AND w.lease_until > clock_timestamp())",
        server=server,
        worker=worker,
    )
    return [Interest(**row) for row in rows]


_PUT: Final = text(
    "INSERT INTO resource_interests"
    " (holder, server_name, uri, server_version_id, tenant_id, until) VALUES"
    " (:holder, :server, :uri, :version_id, :tenant,"
    " clock_timestamp() + CAST(:lasts AS interval))"
    " ON CONFLICT (holder, server_name, uri) DO UPDATE"
    " SET server_version_id = EXCLUDED.server_version_id, until = EXCLUDED.until"
)
