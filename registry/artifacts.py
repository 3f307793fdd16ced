"""Results that are too large for the ledger: stored in chunks, and linked to from their call.

1. An artifact is stored before the end of its call: what a succeeded call links to is there.
2. An artifact belongs to one attempt of one call. If that attempt did not end the call as
   succeeded, `sweep` removes it.
3. A row is at most `CHUNK_BYTES`, so neither writing nor reading one holds up an event loop.
4. An artifact goes with its call, and never changes.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import insert, text
from sqlalchemy.dialects.postgresql import insert as insert_if_new

from registry.database import Database
from registry.errors import Code, FleetError
from registry.tables import artifact_chunks, artifacts

CHUNK_BYTES: Final = 256 * 1024
MEDIA_TYPE: Final = "application/json"
_ID: Final = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class NewArtifact:
    """A redacted result that is about to be stored, by the attempt that ``fence`` names."""

    tenant_id: str
    call_id: str
    fence: int
    sha256: str
    content: bytes = field(repr=False)
    id: str = field(default_factory=lambda: secrets.token_hex(16))


@dataclass(frozen=True)
class Artifact:
    """A stored artifact; `read` gives its content."""

    id: str
    call_id: str
    media_type: str
    size_bytes: int
    sha256: str


def link(
    artifact: NewArtifact, tool: str, *, is_error: bool, structured: bool, preview: str
) -> dict[str, Any]:
    """Return the MCP result that a caller gets in the place of a large one.

    It has no structured content, also where the tool has an output schema: a part of it would not
    fit the schema. ``omitted`` in the metadata says so, and the artifact has it.
    """
    size_bytes = len(artifact.content)
    about = {
        "id": artifact.id,
        "sha256": artifact.sha256,
        "size_bytes": size_bytes,
        "href": f"/v1/artifacts/{artifact.id}",
        "omitted": ["structuredContent"] if structured else [],
    }
    return {
        "content": [
            {"type": "text", "text": preview},
            {
                "type": "resource_link",
                "uri": f"toolfleet://artifacts/{artifact.id}",
                "name": f"{tool} result",
                "description": f"The whole result of {tool} ({size_bytes} bytes of JSON); the text "
                "before this is how it begins",
                "mimeType": MEDIA_TYPE,
                "size": size_bytes,
            },
        ],
        "isError": is_error,
        "_meta": {"toolfleet/artifact": about},
    }


async def store(database: Database, artifact: NewArtifact) -> None:
    """Store an artifact; harmless when it is stored already. Raises `store_unavailable`."""
    row = {
        "id": artifact.id,
        "tenant_id": artifact.tenant_id,
        "call_id": artifact.call_id,
        "fence": artifact.fence,
        "media_type": MEDIA_TYPE,
        "size_bytes": len(artifact.content),
        "sha256": artifact.sha256,
    }
    async with database.transaction() as connection:
        new = insert_if_new(artifacts).values(row).on_conflict_do_nothing(index_elements=["id"])
        if (await connection.execute(new.returning(artifacts.c.id))).first() is None:
            return
        for number, start in enumerate(range(0, len(artifact.content), CHUNK_BYTES)):
            chunk = artifact.content[start : start + CHUNK_BYTES]
            await connection.execute(
                insert(artifact_chunks).values(artifact_id=artifact.id, number=number, data=chunk)
            )


async def find(database: Database, artifact_id: str, *, tenant: str | None) -> Artifact:
    """Return an artifact; raise `not_found`, also for one of another tenant (None: of any)."""
    rows: list[dict[str, Any]] = []
    if _ID.fullmatch(artifact_id):
        rows = await database.statement(
            "SELECT id, call_id, media_type, size_bytes, sha256 FROM artifacts"
            " WHERE id = %(id)s AND (%(tenant)s::text IS NULL OR tenant_id = %(tenant)s)",
            id=artifact_id,
            tenant=tenant,
        )
    if not rows:
        raise FleetError(
            Code.NOT_FOUND,
            f"there is no artifact {artifact_id}",
            hint="use the id in the call's result, under _meta",
        )
    return Artifact(**rows[0])


async def read(database: Database, artifact: Artifact) -> AsyncIterator[bytes]:
    """Yield an artifact's content, one row at a time; raise `not_found` if it goes meanwhile."""
    for number in range(-(-artifact.size_bytes // CHUNK_BYTES)):
        rows = await database.statement(
            "SELECT data FROM artifact_chunks WHERE artifact_id = %(id)s AND number = %(number)s",
            id=artifact.id,
            number=number,
        )
        if not rows:
            raise FleetError(Code.NOT_FOUND, f"artifact {artifact.id} was deleted meanwhile")
        yield rows[0]["data"]


async def sweep(database: Database, age: timedelta) -> int:
    """Remove what is older than ``age`` and was not kept by its call; return how many."""
    async with database.transaction() as connection:
        await connection.execute(
            text(
                "UPDATE artifacts a SET kept = true FROM calls c"
                " WHERE NOT a.kept AND a.created_at < now() - CAST(:age AS interval)"
                " AND c.id = a.call_id AND c.fence = a.fence AND c.state = 'succeeded'"
            ),
            {"age": age},
        )
        gone = await connection.execute(
            text(
                "DELETE FROM artifacts"
                " WHERE NOT kept AND created_at < now() - CAST(:age AS interval)"
            ),
            {"age": age},
        )
        return gone.rowcount
