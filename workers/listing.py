"""A server's list of tools: all its pages, as the server wrote them, within bounds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from pydantic import BaseModel
from pydantic_core import to_json

from registry.errors import Code, FleetError

MAX_PAGES: Final = 200
MAX_TOOLS: Final = 10_000

AskForPage = Callable[[str | None], Awaitable[dict[str, Any]]]


class _Page(BaseModel):
    """One page of ``tools/list``; the tools stay as they came."""

    tools: list[dict[str, Any]]
    nextCursor: str | None = None  # noqa: N815 MCP's own spelling


async def read_pages(
    ask_for_page: AskForPage, server: str, *, max_bytes: int
) -> list[dict[str, Any]]:
    """Return the tools of every page; raise `protocol_error` for a listing without end."""
    tools: list[dict[str, Any]] = []
    seen: set[str] = set()
    room_bytes = max_bytes
    cursor: str | None = None
    for _ in range(MAX_PAGES):
        page = _Page.model_validate(await ask_for_page(cursor))
        tools += page.tools
        room_bytes -= len(to_json(page.tools))
        cursor = page.nextCursor
        if cursor is None:
            return tools
        if cursor in seen:
            raise _refused(server, "repeats a cursor", len(tools))
        if len(tools) > MAX_TOOLS or room_bytes < 0:
            break
        seen.add(cursor)
    bounds = f"{MAX_PAGES} pages, {MAX_TOOLS} tools or {max_bytes} bytes"
    raise _refused(server, f"goes beyond {bounds}", len(tools))


def _refused(server: str, problem: str, count: int) -> FleetError:
    return FleetError(
        Code.PROTOCOL_ERROR,
        f"tools/list of server {server} {problem} (after {count} tools)",
        hint="report it to the server's maintainer",
    )
