"""A server's lists, of tools and of what else it has: all pages, as it wrote them, within bounds.

The loop reads a small page itself, a process of its own reads a large one; both by `read_page`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from mcp.shared.inbound import find_invalid_x_mcp_header
from pydantic import BaseModel, Field, ValidationError

from registry.errors import Code, FleetError
from workers.scrub import Scrubber

logger = logging.getLogger("toolfleet.listing")

MAX_PAGES: Final = 200
MAX_TOOLS: Final = 2_000
"""A run carries all of them, and so does the context of its model."""
MAX_TOOL_BYTES: Final = 262_144
"""Of one definition, as compact JSON: measured, the worst is read in 5 ms and digested in 100."""
MAX_CURSOR_CHARACTERS: Final = 10_000


@dataclass(frozen=True)
class Listed:
    """One of a server's lists: the request for it, the member that has it, and its items' names."""

    method: str
    member: str
    item: str
    items: str


TOOLS: Final = Listed("tools/list", "tools", "tool", "tools")
PROMPTS: Final = Listed("prompts/list", "prompts", "prompt", "prompts")
RESOURCES: Final = Listed("resources/list", "resources", "resource", "resources")
TEMPLATES: Final = Listed(
    "resources/templates/list", "resourceTemplates", "resource template", "resource templates"
)
BY_METHOD: Final = {it.method: it for it in (TOOLS, PROMPTS, RESOURCES, TEMPLATES)}


class _Page(BaseModel):
    """One page of a list; its items stay as they came."""

    items: list[dict[str, Any]]
    nextCursor: str | None = Field(  # noqa: N815 MCP's own spelling
        default=None, max_length=MAX_CURSOR_CHARACTERS
    )


@dataclass(frozen=True, slots=True)
class Page:
    """One page: its items, each as compact JSON too, and where the next one begins."""

    items: list[dict[str, Any]]
    encoded: list[bytes] = field(repr=False)
    cursor: str | None = None


AskForPage = Callable[[str | None], Awaitable[Page]]


def read_page(result: Any, server: str, scrubber: Scrubber, of: Listed = TOOLS) -> Page:
    """Return a page, its items scrubbed.

    Raises `protocol_error` with the path of what is wrong, `limit_exceeded` for too many items or
    one that is too large.
    """
    try:
        said = {"items": result[of.member]} if of.member in result else {}
        page = _Page.model_validate({**said, "nextCursor": result.get("nextCursor")})
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = [of.member if it == "items" else str(it) for it in first["loc"]]
        path = "/".join(["result", *place])
        raise _refused(server, of, f"is not MCP: {path}: {first['msg']}") from None
    _refuse_many(server, of, len(page.items))
    items: list[dict[str, Any]] = scrubber.json(page.items)
    encoded = [_compact(item) for item in items]
    for item, data in zip(items, encoded, strict=True):
        if len(data) > MAX_TOOL_BYTES:
            name = str(item.get("name"))[:100]
            raise _exceeded(
                server,
                f"defines {of.item} {name!r} in {len(data)} bytes; {MAX_TOOL_BYTES} are allowed",
                hint="shorten its description and its schemas",
                details={of.item: name, "bytes": len(data), "limit": MAX_TOOL_BYTES},
            )
    return Page(items, encoded, page.nextCursor)


async def read_pages(
    ask_for_page: AskForPage, server: str, *, max_bytes: int, of: Listed = TOOLS
) -> list[dict[str, Any]]:
    """Return the items of every page; raise for a listing without end.

    `limit_exceeded` for more than `MAX_TOOLS`, else `protocol_error`.
    """
    items: list[dict[str, Any]] = []
    seen: set[str] = set()
    room_bytes = max_bytes
    cursor: str | None = None
    for _ in range(MAX_PAGES):
        page = await ask_for_page(cursor)
        items += page.items
        _refuse_many(server, of, len(items))
        so_far = f"{len(items)} {of.items} so far"
        room_bytes -= sum(map(len, page.encoded))
        if room_bytes < 0:
            raise _refused(server, of, f"is larger than {max_bytes} bytes ({so_far})")
        cursor = page.cursor
        if cursor is None:
            return items
        if cursor in seen:
            raise _refused(server, of, f"repeats a cursor (after {len(items)} {of.items})")
        seen.add(cursor)
    raise _refused(server, of, f"has more than {MAX_PAGES} pages ({so_far})")


def callable_over_http(tools: list[dict[str, Any]], server: str) -> list[dict[str, Any]]:
    """Return the tools that can be called over HTTP; say in the log which cannot, and why.

    A parameter may ask to be a header too (2026-07-28); a tool with one that cannot be is no tool.
    """
    found = [(tool, find_invalid_x_mcp_header(tool.get("inputSchema"))) for tool in tools]
    for tool, problem in found:
        if problem is not None:
            name = str(tool.get("name"))[:100]
            logger.warning("tool %r of server %s is left out: %s", name, server, problem[:500])
    return [tool for tool, problem in found if problem is None]


def _compact(item: dict[str, Any]) -> bytes:
    text = json.dumps(item, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


def _refuse_many(server: str, of: Listed, count: int) -> None:
    if count > MAX_TOOLS:
        raise _exceeded(
            server,
            f"lists {count} {of.items} or more; {MAX_TOOLS} are allowed",
            hint="have it list fewer, or register it as several servers that list a part each",
            details={of.member: count, "limit": MAX_TOOLS},
        )


def _exceeded(server: str, problem: str, *, hint: str, details: dict[str, Any]) -> FleetError:
    message = f"server {server} {problem}"
    details = {"server": server, **details}
    return FleetError(Code.LIMIT_EXCEEDED, message, hint=hint, details=details)


def _refused(server: str, of: Listed, problem: str) -> FleetError:
    return FleetError(
        Code.PROTOCOL_ERROR,
        f"{of.method} of server {server} {problem}",
        hint="report it to the server's maintainer",
    )
