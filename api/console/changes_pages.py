"""The pages of what changes under runs: held changes to decide about, and a server's listings.

For operators: it quotes what was screened out, which nobody else is to read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fastapi import APIRouter, Depends, Path, Request
from starlette.responses import Response

from api.administration import visible_server
from api.auth import actor_of, operators_only
from api.console.page import ConsoleRoute, back_to, form_of, page
from api.console.rollout_pages import shown_rollouts
from api.operations import label
from api.rest import operations_of
from registry import catalog, holds, ingest, rollouts
from registry.database import Database
from registry.definition_lines import Part, changed_parts
from registry.holds import UNUSABLE, Hold, HoldState

MOST_SHOWN: Final = 40
"""Held changes with all that is to be known of them; of more the rest is counted."""
MEANING: Final = {
    "annotation_flip": "The tool no longer claims to be as harmless as it did.",
    "breaking": "Callers that were written for the tool as it was may fail.",
    "removed": "The server does not list the tool any more.",
    "widening": "The tool takes more than it did, or promises more.",
    "added": "The tool was not there before.",
    "description": "Texts that models read have changed.",
    "unusable": "The tool cannot be offered, whatever is decided: its server has to be mended.",
    "suspicious": "The tool hides text from people, or tells models what to do.",
}
REACTIONS: Final = {
    "accept": "taken in",
    "accepted": "accepted by an operator",
    "alert": "taken in, with an alert",
    "hold": "held",
}
_OPERATORS: Final = [Depends(operators_only)]
_ID: Final = Path(ge=1, lt=2**63)

router = APIRouter(route_class=ConsoleRoute)


@dataclass(frozen=True)
class ShownHold:
    """A held change with what an operator has to see before deciding about it."""

    hold: Hold
    meaning: str
    parts: tuple[Part, ...]
    instead: str | None
    """The version whose tool is offered meanwhile."""

    @property
    def acceptable(self) -> bool:
        """Say whether it can be accepted."""
        return self.hold.kind != UNUSABLE

    @property
    def rejected(self) -> bool:
        """Say whether somebody has kept it out already."""
        return self.hold.state is HoldState.REJECTED


@router.get("/changes", tags=["changes"], dependencies=_OPERATORS)
async def changes(request: Request) -> Response:
    """Show every held change, the oldest first, and the rollouts."""
    database = operations_of(request).database
    held = sorted(await holds.list_holds(database), key=lambda hold: hold.id)
    return page(
        request,
        "changes.html",
        held=await _shown(database, held[:MOST_SHOWN]),
        more=max(0, len(held) - MOST_SHOWN),
        active=await shown_rollouts(database, await rollouts.active_rollouts(database), held),
        ended=await rollouts.ended_rollouts(database),
    )


@router.get("/servers/{name}/changes", tags=["changes"], dependencies=_OPERATORS)
async def server_changes(request: Request, name: str) -> Response:
    """Show how a server's listings changed, what was decided, and the versions it had."""
    server = await visible_server(request, name)
    database, name = operations_of(request).database, server.definition.name
    every = await holds.list_holds(database, name, everything=True, limit=100)
    return page(
        request,
        "server_changes.html",
        server=server,
        reactions=REACTIONS,
        listings=await ingest.list_changes(database, name),
        held=[hold for hold in every if hold.state in {HoldState.OPEN, HoldState.REJECTED}],
        decided=[hold for hold in every if hold.state not in {HoldState.OPEN, HoldState.REJECTED}],
        versions=await catalog.list_versions(database, name),
        previous=await catalog.previous_version(database, name),
        rollouts=await rollouts.list_rollouts(database, name),
    )


@router.post("/servers/{name}/changes/{hold_id}/accept", tags=["changes"], dependencies=_OPERATORS)
async def accept(request: Request, name: str, hold_id: int = _ID) -> Response:
    """Take a held change in."""
    await visible_server(request, name)
    database = operations_of(request).database
    await ingest.accept(database, name, hold_id, actor=label(actor_of(request)))
    return back_to("/console/changes")


@router.post("/servers/{name}/changes/{hold_id}/reject", tags=["changes"], dependencies=_OPERATORS)
async def reject(request: Request, name: str, hold_id: int = _ID) -> Response:
    """Keep a held change out."""
    await visible_server(request, name)
    database = operations_of(request).database
    await ingest.reject(database, name, hold_id, actor=label(actor_of(request)))
    return back_to("/console/changes")


@router.post("/servers/{name}/restore", tags=["rollouts"], dependencies=_OPERATORS)
async def restore(request: Request, name: str) -> Response:
    """Serve the version again that was current before this one, if it is the one that is meant."""
    server = await visible_server(request, name)
    wanted = (await form_of(request)).get("version", "")
    actor = label(actor_of(request))
    await catalog.serve_previous(
        operations_of(request).database, server.definition.name, actor=actor, wanted=wanted
    )
    return back_to(f"/console/servers/{server.definition.name}/changes")


async def _shown(database: Database, held: Sequence[Hold]) -> list[ShownHold]:
    definitions = await holds.definitions(database, held)
    instead = await holds.substitutes(database, held)
    # Comparing large definitions takes a while, and nobody else is to wait for it.
    parts = await asyncio.to_thread(lambda: [_parts(hold, definitions) for hold in held])
    return [
        ShownHold(hold, MEANING.get(hold.kind, ""), of_it, instead.get(hold.id))
        for hold, of_it in zip(held, parts, strict=True)
    ]


def _parts(
    hold: Hold, definitions: Mapping[tuple[str, str], Mapping[str, Any]]
) -> tuple[Part, ...]:
    """Return what changed, as far as both sides are known: what is unusable was never stored."""
    sides = [hold.change.get("before"), hold.pending]
    known = [definitions.get((hold.server, digest)) if digest else None for digest in sides]
    if any(digest and side is None for digest, side in zip(sides, known, strict=True)):
        return ()
    return changed_parts(*known)
