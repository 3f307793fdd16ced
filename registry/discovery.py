"""Finding tools: the subset that fits an intent, and the two tools that stand for all others.

A run with exposure ``search`` shows a model `FIND_TOOLS` and `CALL_TOOL` alone, so that a fleet of
thousands of tools costs the model's context two. Both end in the run's own snapshot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncConnection

from registry.errors import Code, FleetError
from registry.selection import rank
from registry.snapshots import Snapshot, shown

DEFAULT_LIMIT: Final = 20
LARGEST_LIMIT: Final = 200
LONGEST_INTENT: Final = 4_000

FIND_TOOLS: Final[dict[str, Any]] = {
    "name": "find_tools",
    "description": (
        "Find the tools that fit a task. Returns their names, descriptions and input schemas; call "
        "one of them with call_tool."
    ),
    "inputSchema": {
        "type": "object",
        "properties": {
            "query": {
                "type": "string",
                "minLength": 1,
                "maxLength": LONGEST_INTENT,
                "description": "What is to be done, in plain words.",
            },
            "limit": {
                "type": "integer",
                "minimum": 1,
                "maximum": 50,
                "default": 10,
                "description": "How many tools to return at most.",
            },
        },
        "required": ["query"],
        "additionalProperties": False,
    },
    "annotations": {"readOnlyHint": True},
}
CALL_TOOL: Final[dict[str, Any]] = {
    "name": "call_tool",
    "description": "Call a tool that find_tools returned.",
    "inputSchema": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "description": "The tool's name."},
            "arguments": {
                "type": "object",
                "default": {},
                "description": "Its arguments, as its input schema says.",
            },
        },
        "required": ["name"],
        "additionalProperties": False,
    },
}
_FOUND_BY_DEFAULT: Final = 10


async def best_fitting(
    connection: AsyncConnection, snapshot: Snapshot, intent: str, limit: int
) -> list[str]:
    """Return the names of the tools that fit an intent best, the best first; raise what is wrong.

    `invalid_request` for an intent or a limit that is out of bounds.
    """
    if not 1 <= limit <= LARGEST_LIMIT:
        raise FleetError(
            Code.INVALID_REQUEST, f"limit is {limit}; it has to be from 1 to {LARGEST_LIMIT}"
        )
    if "\0" in intent or len(intent) > LONGEST_INTENT:
        raise FleetError(
            Code.INVALID_REQUEST,
            f"the intent has {len(intent)} characters; {LONGEST_INTENT} are allowed, and no NUL",
        )
    names = {tool.tool_version_id: name for name, tool in snapshot.tools.items()}
    ranked = await rank(connection, list(names), intent, limit)
    return [names[id_] for id_ in ranked]


async def find(
    connection: AsyncConnection, snapshot: Snapshot, arguments: dict[str, Any]
) -> dict[str, Any]:
    """Return the result of a call of `FIND_TOOLS` whose arguments were checked."""
    limit = arguments.get("limit", _FOUND_BY_DEFAULT)
    names = await best_fitting(connection, snapshot, arguments["query"], limit)
    found = [shown(snapshot.tools[name]) for name in names]
    return {
        "content": [{"type": "text", "text": _listing(found)}],
        "structuredContent": {"tools": found},
        "isError": False,
    }


def _listing(found: Sequence[dict[str, Any]]) -> str:
    if not found:
        return "No tool fits."
    return "\n".join(f"{tool['name']}: {tool['description'].strip()[:300]}" for tool in found)
