"""List a server's tools through a warm session and take the listing into the record."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from registry.database import Database
from registry.errors import FleetError
from registry.ingest import ingest, mark_stale

if TYPE_CHECKING:
    from workers.versions import ServedVersion

logger = logging.getLogger("toolfleet.refresh")


async def refresh(database: Database, served: ServedVersion) -> list[dict[str, Any]]:
    """Refresh one server version and return what changed.

    On failure its tools stay marked as stale, with the error on record. Sessions with what a stdio
    server was before it was replaced are retired first, so that its tools are listed, and called,
    by what it is now.
    """
    definition, watch = served.definition, served.watch
    watch.begin()
    if definition.transport != "http":
        served.pool.retire(lambda session: watch.outdated(session.introduction))
    try:
        key = await served.keyring.listing_key()
        async with served.pool.borrow(key, timeout_s=definition.timeouts.connect_s) as lease:
            introduction = lease.session.introduction
            listed = await lease.session.list_tools()
        changes = await ingest(database, served.id, definition, listed)
    except FleetError as error:
        logger.warning("the tools of %s could not be listed: %s", served.name, error.message)
        await mark_stale(database, definition.name, error, version_id=served.id)
        return []
    watch.succeeded(introduction, key, changed=bool(changes))
    if watch.pending:  # it was heard meanwhile that they changed again
        await mark_stale(database, definition.name, version_id=served.id)
    for change in changes:
        if change["reaction"] != "accept":
            logger.warning(
                "server %s: tool %r: %s, %s",
                served.name,
                change["tool"],
                change["change"],
                "held" if change["reaction"] == "hold" else "taken in",
            )
    return changes
