"""Where the MCP servers are in the files that desktop clients and editors write.

Pure. The clients agree on an object of servers by name; its key, what stands around it, and
whether comments and trailing commas are allowed differ.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import json5

from registry.errors import Code, FleetError

_KEYS: Final = ("mcpServers", "servers", "context_servers", "mcp.servers")
"""Claude, Cursor and most others; VS Code; Zed; VS Code's and Cursor's settings, in one key."""
_OF_A_SERVER: Final = frozenset({"command", "url", "serverUrl", "httpUrl"})
_EXAMPLE: Final = '{"mcpServers": {"time": {"command": "uvx", "args": ["mcp-server-time"]}}}'


class JsonObject(dict[str, Any]):
    """An object of a file, and the keys that it has more than once (the last one counts)."""

    twice: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Entry:
    """One server as a file has it; ``path`` leads to it, ``inputs`` are those it may refer to."""

    path: str
    name: str
    body: Any
    inputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    left_out: str = ""
    """Why the file itself keeps its client from using the server."""
    twice: bool = False


def read_document(text: str) -> Any:
    """Return a file's JSON, with comments and trailing commas if it has any.

    Raises `invalid_request` naming the place where it is not JSON.
    """
    text = text.removeprefix("\ufeff")
    try:
        try:
            return json.loads(text, object_pairs_hook=_object)
        except ValueError:
            # A hundred times slower, and only few files need it.
            return json5.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        what = str(error) if isinstance(error, ValueError) else "it is too deep"
        raise FleetError(
            Code.INVALID_REQUEST,
            f"the file is not JSON, with or without comments: {what.replace('<string>:', 'line ')}",
        ) from error


def find_entries(document: Any) -> list[Entry]:
    """Return the servers of a client's file in its order; raise `invalid_request` for no such file.

    The object of servers may also be the whole file.
    """
    if isinstance(document, list) or (isinstance(document, dict) and "transport" in document):
        raise FleetError(
            Code.INVALID_REQUEST,
            "the file is a list, or one definition, and not an object of servers by name",
            hint="Toolfleet's own definitions are registered with `toolfleet servers add`",
        )
    containers = list(_containers(document)) if isinstance(document, dict) else []
    if not containers and isinstance(document, JsonObject) and _holds_servers(document):
        containers = [("", document, None)]
    if not containers:
        raise FleetError(
            Code.INVALID_REQUEST,
            "the file holds no object of MCP servers",
            hint=f"it is expected under {', '.join(_KEYS)}, or mcp, as in {_EXAMPLE}",
        )
    return [entry for container in containers for entry in _entries(*container, document)]


def _containers(document: Mapping[str, Any]) -> Iterator[tuple[str, JsonObject, Any]]:
    """Yield path, servers and inputs of each object of servers."""
    for key in _KEYS:
        if isinstance(servers := document.get(key), JsonObject):
            yield key, servers, document.get("inputs")
    nested = document.get("mcp")
    if isinstance(nested, JsonObject):
        if isinstance(servers := nested.get("servers"), JsonObject):
            yield "mcp/servers", servers, nested.get("inputs")
        elif _holds_servers(nested):
            yield "mcp", nested, None


def _holds_servers(container: Mapping[str, Any]) -> bool:
    bodies = container.values()
    return bool(bodies) and all(isinstance(it, dict) and _OF_A_SERVER & set(it) for it in bodies)


def _entries(
    path: str, servers: JsonObject, inputs: Any, document: Mapping[str, Any]
) -> Iterator[Entry]:
    known = inputs if isinstance(inputs, list) else []
    by_id = {str(it["id"]): it for it in known if isinstance(it, dict) and "id" in it}
    for name, body in servers.items():
        where = f"{path}/{name}" if path else name
        left_out = _left_out(name, document.get("mcp"))
        yield Entry(where, name, body, by_id, left_out, name in servers.twice)


def _left_out(name: str, rules: Any) -> str:
    """Say which of Gemini CLI's lists keeps a server out."""
    allowed = rules.get("allowed") if isinstance(rules, dict) else None
    excluded = rules.get("excluded") if isinstance(rules, dict) else None
    if isinstance(excluded, list) and name in excluded:
        return "the file's mcp.excluded names it"
    if isinstance(allowed, list) and name not in allowed:
        return "the file's mcp.allowed does not name it"
    return ""


def _object(pairs: Iterable[tuple[str, Any]]) -> JsonObject:
    pairs = list(pairs)
    found = JsonObject(pairs)
    times = Counter(name for name, _ in pairs)
    found.twice = frozenset(name for name, count in times.items() if count > 1)
    return found
