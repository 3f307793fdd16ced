"""The pages of the audit: its entries newest first, how far it is attested, its verification.

For operators and auditors; who is bound to a tenant gets that tenant's chain and nothing of others.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response, StreamingResponse

from api import auditing
from api.auditing import begin_to_verify, readers_of, tenant_for
from api.auth import actor_of, only
from api.console.page import ConsoleRoute, fragment, page
from api.rest import operations_of
from registry import audit_search
from registry.audit_search import Sought
from registry.chain_heads import MOST_UNSEALED, read_standing
from registry.errors import Code, FleetError
from registry.tenants import Role

FILTERS: Final = ("tenant", "actor", "event", "run", "call", "since", "until")
LONGEST_FILTER: Final = 200
TOLD_EVERY: Final = 5_000
"""After how many entries a verification says how far it is."""
# What is told while the audit is being verified stands here; it comes as it comes.
_HERE: Final = b"<!-- as it comes -->"
_READERS: Final = [Depends(only(Role.OPERATOR, Role.AUDITOR))]

router = APIRouter(route_class=ConsoleRoute)


@router.get("/audit", tags=["audit"], dependencies=_READERS)
async def audit(request: Request) -> Response:
    """Show entries that fit the filters, a page of them, and how far the audit is attested."""
    chosen = _chosen(request)
    tenant = tenant_for(request, chosen.get("tenant"))
    sought = Sought(
        tenant=tenant,
        actor=chosen.get("actor"),
        event=chosen.get("event"),
        run=chosen.get("run"),
        call=chosen.get("call"),
        since=_instant("since", chosen),
        until=_instant("until", chosen),
    )
    database = operations_of(request).database
    found = await audit_search.page(database, sought, before=_before(request))
    older = {**chosen, "before": found.before} if found.before is not None else None
    return page(
        request,
        "audit.html",
        chosen={name: chosen.get(name, "") for name in FILTERS},
        found=found,
        older=urlencode(older) if older else None,
        newest=urlencode(chosen),
        paged=_before(request) is not None,
        standing=await read_standing(database, actor_of(request).tenant),
        uncounted=MOST_UNSEALED,
        linked=actor_of(request).role is Role.OPERATOR,
        bound=actor_of(request).tenant is not None,
    )


@router.get("/audit/verify", tags=["audit"], dependencies=_READERS)
async def verify(request: Request) -> Response:
    """Verify every chain that the caller may read, telling how far it is while it is at it.

    Whoever leaves the page ends the verification.
    """
    tenant = tenant_for(request, _chosen(request).get("tenant"))
    standing = await read_standing(operations_of(request).database, tenant)
    verifying = await begin_to_verify(request, tenant)
    whole = page(request, "audit_verification.html", tenant=tenant, standing=standing)
    head, _, tail = bytes(whole.body).partition(_HERE)

    async def told() -> AsyncIterator[bytes]:
        yield head
        said = -TOLD_EVERY
        try:
            async with aclosing(verifying) as progress:
                async for news in progress:
                    if not isinstance(news, int):
                        yield fragment("audit_verdict.html", verdict=news).encode()
                    elif news - said >= TOLD_EVERY:
                        said = news
                        so_far = {"entries": news, "of": max(standing.sealed, news)}
                        yield fragment("audit_progress.html", **so_far).encode()
        except FleetError as error:
            yield fragment("audit_verdict.html", verdict=None, error=error).encode()
        yield tail

    headers = {name: it for name, it in whole.headers.items() if name != "content-length"}
    return StreamingResponse(readers_of(request).counted(told()), headers=headers)


@router.get("/audit/export", tags=["audit"], dependencies=_READERS)
async def export(request: Request) -> Response:
    """Export the audit, or a tenant's part of it, as the API does."""
    chosen = _chosen(request)
    return await auditing.export_audit(
        request, "jsonl", chosen.get("tenant"), _instant("since", chosen)
    )


def _chosen(request: Request) -> dict[str, str]:
    """Return the filters that are filled in."""
    given = request.query_params
    chosen = {name: given[name].strip() for name in FILTERS if given.get(name, "").strip()}
    for name, value in chosen.items():
        if len(value) > LONGEST_FILTER or "\0" in value:
            raise FleetError(
                Code.INVALID_REQUEST,
                f"the filter {name} is longer than {LONGEST_FILTER} characters, or has a NUL in it",
            )
    return chosen


def _before(request: Request) -> int | None:
    text = request.query_params.get("before", "")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:20]) < 2**63):
        raise FleetError(Code.INVALID_REQUEST, "before is no number of an entry")
    return int(text)


def _instant(name: str, chosen: Mapping[str, str]) -> datetime | None:
    """Return an instant of a filter; one without its offset is in UTC."""
    if name not in chosen:
        return None
    try:
        found = datetime.fromisoformat(chosen[name])
    except ValueError:
        raise FleetError(
            Code.INVALID_REQUEST,
            f"the filter {name} is no date and time, such as 2026-01-31T09:30",
        ) from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
