"""List a server's tools through a warm session and take the listing into the record."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from registry.database import Database
from registry.errors import FleetError
from registry.ingest import ingest, mark_stale

if TYPE_CHECKING:
    from workers.versions import ServedVersion

logger = logging.getLogger("toolfleet.refresh")


async def refresh(database: Database, served: ServedVersion) -> None:
    """Refresh one server version; on failure the server stays stale, with the error on record."""
    definition = served.definition
    try:
        key = await served.keyring.listing_key()
        async with served.pool.borrow(key, timeout_s=definition.timeouts.connect_s) as lease:
            listed = await lease.session.list_tools()
        changes = await ingest(database, served.id, definition, listed)
    except FleetError as error:
        logger.warning("the tools of %s could not be listed: %s", definition.name, error.message)
        await mark_stale(database, definition.name, error)
        return
    if changes:
        logger.info("server %s lists other tools: %d changes", definition.name, len(changes))
