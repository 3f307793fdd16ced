"""Lists of what servers have beside their tools: prompts, resources, templates; from the record."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable
from typing import Any, Final

from api.mcp.asked import INVALID_PARAMS, Answered, Asked, RpcError
from api.mcp.listing import TTL_MS
from api.mcp.results import complete as completed
from api.mcp.uris import shown
from registry.offerings import Visible

PAGE: Final = 500


async def list_prompts(asked: Asked) -> Answered:
    """Answer ``prompts/list``."""
    return _page(
        asked,
        "prompts",
        [
            {**prompt, "name": name}
            for it in await visible_to(asked)
            for name, prompt in it.prompts.items()
        ],
    )


async def list_resources(asked: Asked) -> Answered:
    """Answer ``resources/list``."""
    found = await visible_to(asked)
    return _page(asked, "resources", _named(asked, found, "resources", "uri"))


async def list_templates(asked: Asked) -> Answered:
    """Answer ``resources/templates/list``."""
    found = await visible_to(asked)
    return _page(asked, "resourceTemplates", _named(asked, found, "templates", "uriTemplate"))


async def digests(asked: Asked, *, now: bool = False) -> dict[str, str]:
    """Return digests of what ``promptsListChanged`` and ``resourcesListChanged`` are about."""
    found = await visible_to(asked, now=now)
    stored = [(it.server, it.offered.digests, it) for it in found]
    about = {
        "prompts": [[name, has.get("prompts")] for name, has, it in stored if it.prompts],
        "resources": [
            [name, has.get("resources"), has.get("templates")]
            for name, has, it in stored
            if it.resources or it.templates
        ],
    }
    return {name: _digest(it) for name, it in about.items()}


async def visible_to(
    asked: Asked, *, server: str | None = None, now: bool = False
) -> list[Visible]:
    """Return what a caller may use beside tools, by server; of one, if the request names it."""
    run = await asked.run()
    return await asked.operations.beside_tools(
        asked.actor, run, server=asked.server or server, prefixed=asked.server is None, now=now
    )


def _named(asked: Asked, found: Iterable[Visible], what: str, member: str) -> list[dict[str, Any]]:
    if asked.server is not None:
        return [item for it in found for item in getattr(it, what)]
    return [
        {**item, member: shown(it.server, item[member])}
        for it in found
        for item in getattr(it, what)
    ]


def _page(asked: Asked, member: str, items: list[dict[str, Any]]) -> Answered:
    cursor = asked.params.get("cursor")
    answer: dict[str, Any] = {}
    if len(items) > PAGE or cursor is not None:
        digest = _digest(items)[:16]
        start = 0 if cursor is None else _offset(cursor, digest, len(items))
        if start + PAGE < len(items):
            answer["nextCursor"] = _cursor(digest, start + PAGE)
        items = items[start : start + PAGE]
    if asked.revision.stateless:
        answer |= {"ttlMs": TTL_MS, "cacheScope": "private"}
    return completed({member: items, **answer}, asked.revision)


def _cursor(digest: str, offset: int) -> str:
    return base64.urlsafe_b64encode(f"{digest}{offset}".encode()).decode()


def _offset(cursor: Any, digest: str, size: int) -> int:
    """Return where a page begins; raise `RpcError` for a cursor that is not of this list."""
    if isinstance(cursor, str):
        try:
            text = base64.urlsafe_b64decode(cursor).decode()
            offset = int(text[len(digest) :]) if text.startswith(digest) else 0
        except (binascii.Error, ValueError):
            offset = 0
        if 0 < offset < size and offset % PAGE == 0:
            return offset
    raise RpcError(INVALID_PARAMS, "the cursor is not one of this list as it is now: begin anew")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, separators=(",", ":")).encode()).hexdigest()
