"""List what a server has through a warm session and take the listing into the record.

Its tools by themselves, and what it has beside them by itself: a server that fails at the one is
served with the other.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from registry.database import Database
from registry.errors import FleetError
from registry.ingest import ingest, mark_stale
from registry.offerings import Kind, put_offerings, screened, screened_about
from workers.listing import PROMPTS, RESOURCES, TEMPLATES, Listed
from workers.session import Session

if TYPE_CHECKING:
    from workers.versions import ServedVersion

logger = logging.getLogger("toolfleet.refresh")

MAX_OFFERED_BYTES: Final = 2_000_000
"""Of one list of what a server has beside its tools, as compact JSON."""
_LISTS: Final[tuple[tuple[Kind, str, Listed], ...]] = (
    (Kind.PROMPTS, "prompts", PROMPTS),
    (Kind.RESOURCES, "resources", RESOURCES),
    (Kind.TEMPLATES, "resources", TEMPLATES),
)


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


async def refresh_offerings(database: Database, served: ServedVersion) -> None:
    """List what one server version has beside its tools, as far as it says that it has any.

    A list that fails stays as it is on record; it is tried again with the next listing.
    """
    watch = served.offerings
    watch.begin()
    try:
        key = await served.keyring.listing_key()
        async with served.pool.borrow(key, timeout_s=served.definition.timeouts.connect_s) as lease:
            introduction = lease.session.introduction
            found = await _offerings_of(lease.session)
        changed = await put_offerings(database, served.id, found)
    except FleetError as error:
        logger.warning("what %s has could not be listed: %s", served.name, error.message)
        return
    watch.succeeded(introduction, key, changed=changed)


async def _offerings_of(session: Session) -> dict[Kind, Any]:
    able = session.about["capabilities"]
    found: dict[Kind, Any] = {Kind.ABOUT: screened_about(session.about)}
    for kind, capability, listed in _LISTS:
        if capability not in able:
            found[kind] = []
            continue
        try:
            found[kind] = screened(kind, await session.list_all(listed, MAX_OFFERED_BYTES))
        except FleetError as error:
            logger.warning("%s of %s failed: %s", listed.method, session.server, error.message)
            if session.poisoned or not session.alive:
                raise
    return found
