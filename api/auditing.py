"""The routes of the audit: read it, verify it, export it; for operators and auditors.

Who is bound to a tenant gets that tenant's chain and nothing of the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from importlib.metadata import version
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response, StreamingResponse

from api import shown
from api.auth import actor_of, only
from api.contract import fails_with
from api.encoding import encode
from api.operations import label
from api.rest import PROBLEMS, operations_of
from api.wire import Instant, StrictRoute, answer
from registry import audit, export
from registry.cef import cef
from registry.checkpoint_file import CheckpointFile
from registry.errors import Code, FleetError
from registry.export import Wanted
from registry.findings import Verdict
from registry.signing import public_file, read_public_keys
from registry.tenants import Role

AT_ONCE: Final = 2
"""How many may read the whole audit at the same time: each keeps a connection to itself."""
NDJSON: Final = "application/x-ndjson"
_READERS: Final = [Depends(only(Role.OPERATOR, Role.AUDITOR))]
_MOST: Final = 1_000
_Text = Annotated[str | None, Query(max_length=200, pattern=r"^[^\x00]*$")]

router = APIRouter(prefix="/v1", route_class=StrictRoute, responses={**PROBLEMS, **fails_with(404)})


class Readers:
    """Who reads the whole audit now."""

    def __init__(self) -> None:
        self._now = 0

    def check(self) -> None:
        """Raise `rate_limited` where one more would be too many."""
        if self._now >= AT_ONCE:
            raise FleetError(
                Code.RATE_LIMITED,
                f"the audit is being exported or verified {self._now} times already",
                hint="wait for one of them to end, or export a tenant's part of it",
                retry_after_s=5,
            )

    async def counted(self, pages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yield what somebody reads, and count them as long as they do."""
        self._now += 1
        try:
            async for page in pages:
                yield page
        finally:
            self._now -= 1


@router.get(
    "/audit",
    tags=["audit"],
    dependencies=_READERS,
    responses={200: {"model": shown.AuditEntries}},
)
async def list_audit(
    request: Request,
    tenant: _Text = None,
    run: _Text = None,
    call: _Text = None,
    event: _Text = None,
    before: Annotated[int | None, Query(ge=1, lt=2**63)] = None,
    limit: Annotated[int, Query(ge=1, le=_MOST)] = 100,
) -> Response:
    """Show what was changed by whom, newest first; ``event`` may be a family such as `call.*`."""
    found = await audit.entries(
        operations_of(request).database,
        tenant=tenant_for(request, tenant),
        run=run,
        call=call,
        event=event,
        before=before,
        limit=limit,
    )
    return answer({"entries": found})


@router.get(
    "/audit/verify",
    tags=["audit"],
    dependencies=_READERS,
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "Lines of JSON: how many `entries` so far, and last the `verdict`",
            "content": {NDJSON: {}},
        }
    },
)
async def verify_audit(request: Request, tenant: _Text = None) -> Response:
    """Verify every chain, as it is in the database, against its seals and checkpoints.

    The checkpoints kept outside the database are taken in where this process can read them.
    """
    verifying = await begin_to_verify(request, tenant)

    async def lines() -> AsyncIterator[bytes]:
        said = -1
        try:
            async with aclosing(verifying) as progress:
                async for news in progress:
                    if not isinstance(news, int):
                        yield encode({"verdict": news.as_dict()}) + b"\n"
                    elif news > said:
                        said = news
                        yield encode({"entries": news}) + b"\n"
        except FleetError as error:
            yield encode({"problem": error.as_dict()}) + b"\n"

    return StreamingResponse(readers_of(request).counted(lines()), media_type=NDJSON)


@router.get(
    "/audit/export",
    tags=["audit"],
    dependencies=_READERS,
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "JSON Lines that `toolfleet audit verify` reads, or lines of CEF",
            "content": {NDJSON: {}, "text/plain": {}},
        }
    },
)
async def export_audit(
    request: Request,
    format: Literal["jsonl", "cef"] = "jsonl",  # noqa: A002 - the parameter's name over HTTP
    tenant: _Text = None,
    since: Instant | None = None,
) -> Response:
    """Export the audit, or a tenant's part of it; the export is an entry of its own."""
    operations, readers = operations_of(request), readers_of(request)
    wanted = Wanted(tenant_for(request, tenant), since)
    readers.check()
    await _note_export(request, format, wanted)
    if format == "jsonl":
        pages, media_type = export.json_lines(operations.database, wanted), NDJSON
    else:
        release = version("toolfleet")

        def line(row: Any) -> bytes:
            return cef(row, release).encode() + b"\n"

        pages = export.cef_lines(operations.database, wanted, line)
        media_type = "text/plain"

    async def content() -> AsyncIterator[bytes]:
        async with aclosing(pages):
            async for page in pages:
                yield b"".join(page)

    headers = {"content-disposition": f'attachment; filename="audit.{format}"'}
    return StreamingResponse(readers.counted(content()), headers=headers, media_type=media_type)


async def begin_to_verify(request: Request, tenant: str | None) -> AsyncGenerator[int | Verdict]:
    """Return what verifies the chains that the caller may read; whoever reads it is `counted`.

    Raises `rate_limited` where too many do so already, `not_found` for another tenant's chain.
    """
    operations = operations_of(request)
    wanted = Wanted(tenant_for(request, tenant))
    readers_of(request).check()
    settings = operations.settings
    keys = await asyncio.to_thread(read_public_keys, public_file(settings.audit_key_path))
    outside = CheckpointFile(settings.audit_checkpoints_path).lines()
    return export.verify(operations.database, wanted, keys, outside)


async def _note_export(request: Request, format_: str, wanted: Wanted) -> None:
    details = {"format": format_, "since": wanted.since.isoformat() if wanted.since else None}
    async with operations_of(request).database.transaction() as connection:
        who = label(actor_of(request))
        await audit.record(connection, who, "audit.exported", details, tenant=wanted.tenant)


def tenant_for(request: Request, tenant: str | None) -> str | None:
    """Return whose entries the caller gets; raise `not_found` for another tenant's."""
    own = actor_of(request).tenant
    if own is not None and tenant not in {None, own}:
        raise FleetError(Code.NOT_FOUND, f"there is no tenant {tenant!r}")
    return own if own is not None else tenant


def readers_of(request: Request) -> Readers:
    """Return who reads the whole audit in this process."""
    readers: Readers = request.app.state.audit_readers
    return readers
