"""A server's list of tools: all its pages, as the server wrote them, within bounds.

The loop reads a small page itself, a process of its own reads a large one; both by `read_page`.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import BaseModel, Field, ValidationError

from registry.errors import Code, FleetError
from workers.scrub import Scrubber

MAX_PAGES: Final = 200
MAX_TOOLS: Final = 2_000
"""A run carries all of them, and so does the context of its model."""
MAX_TOOL_BYTES: Final = 262_144
"""Of one definition, as compact JSON: measured, the worst is read in 5 ms and digested in 100."""
MAX_CURSOR_CHARACTERS: Final = 10_000


class _Page(BaseModel):
    """One page of ``tools/list``; the tools stay as they came."""

    tools: list[dict[str, Any]]
    nextCursor: str | None = Field(  # noqa: N815 MCP's own spelling
        default=None, max_length=MAX_CURSOR_CHARACTERS
    )


@dataclass(frozen=True, slots=True)
class Page:
    """One page: its tools, each as compact JSON too, and where the next one begins."""

    tools: list[dict[str, Any]]
    encoded: list[bytes] = field(repr=False)
    cursor: str | None = None


AskForPage = Callable[[str | None], Awaitable[Page]]


def read_page(result: Any, server: str, scrubber: Scrubber) -> Page:
    """Return a page, its tools scrubbed.

    Raises `protocol_error` with the path of what is wrong, `limit_exceeded` for too many tools or
    one that is too large.
    """
    try:
        page = _Page.model_validate(result)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        path = "/".join(["result", *map(str, first["loc"])])
        raise _refused(server, f"is not MCP: {path}: {first['msg']}") from None
    _refuse_many(server, len(page.tools))
    tools: list[dict[str, Any]] = scrubber.json(page.tools)
    encoded = [_compact(tool) for tool in tools]
    for tool, data in zip(tools, encoded, strict=True):
        if len(data) > MAX_TOOL_BYTES:
            name = str(tool.get("name"))[:100]
            raise _exceeded(
                server,
                f"defines tool {name!r} in {len(data)} bytes; {MAX_TOOL_BYTES} are allowed",
                hint="shorten its description and its schemas",
                details={"tool": name, "bytes": len(data), "limit": MAX_TOOL_BYTES},
            )
    return Page(tools, encoded, page.nextCursor)


async def read_pages(
    ask_for_page: AskForPage, server: str, *, max_bytes: int
) -> list[dict[str, Any]]:
    """Return the tools of every page; raise for a listing without end.

    `limit_exceeded` for more than `MAX_TOOLS`, else `protocol_error`.
    """
    tools: list[dict[str, Any]] = []
    seen: set[str] = set()
    room_bytes = max_bytes
    cursor: str | None = None
    for _ in range(MAX_PAGES):
        page = await ask_for_page(cursor)
        tools += page.tools
        _refuse_many(server, len(tools))
        room_bytes -= sum(map(len, page.encoded))
        if room_bytes < 0:
            raise _refused(server, f"is larger than {max_bytes} bytes ({len(tools)} tools so far)")
        cursor = page.cursor
        if cursor is None:
            return tools
        if cursor in seen:
            raise _refused(server, f"repeats a cursor (after {len(tools)} tools)")
        seen.add(cursor)
    raise _refused(server, f"has more than {MAX_PAGES} pages ({len(tools)} tools so far)")


def _compact(tool: dict[str, Any]) -> bytes:
    text = json.dumps(tool, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


def _refuse_many(server: str, count: int) -> None:
    if count > MAX_TOOLS:
        raise _exceeded(
            server,
            f"lists {count} tools or more; {MAX_TOOLS} are allowed",
            hint="have it list fewer, or register it as several servers that list a part each",
            details={"tools": count, "limit": MAX_TOOLS},
        )


def _exceeded(server: str, problem: str, *, hint: str, details: dict[str, Any]) -> FleetError:
    message = f"server {server} {problem}"
    details = {"server": server, **details}
    return FleetError(Code.LIMIT_EXCEEDED, message, hint=hint, details=details)


def _refused(server: str, problem: str) -> FleetError:
    return FleetError(
        Code.PROTOCOL_ERROR,
        f"tools/list of server {server} {problem}",
        hint="report it to the server's maintainer",
    )
