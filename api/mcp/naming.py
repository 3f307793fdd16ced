"""What tools are called where only one server's are meant: as the server calls them, unprefixed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from weakref import WeakKeyDictionary

from api.mcp.asked import Asked
from registry.discovery import CALL_TOOL, FIND_TOOLS
from registry.errors import Code, FleetError
from registry.runs import Exposure, Run
from registry.snapshots import Snapshot

OWN: Final = frozenset({FIND_TOOLS["name"], CALL_TOOL["name"]})

_bare: WeakKeyDictionary[Snapshot, dict[str, Mapping[str, str]]] = WeakKeyDictionary()


def known_names(asked: Asked, run: Run) -> Mapping[str, Any]:
    """Return a run's tools that a request means, by the names that it knows them by."""
    return run.tools if asked.server is None else full_names(run.manifest, asked.server)


def full_name(asked: Asked, run: Run, name: str) -> str:
    """Return a tool's name in a run, from the one that a request knows it by.

    Raises `unknown_tool` where the request is about one server, and that has no such tool.
    """
    if asked.server is None or (run.exposure is Exposure.SEARCH and name in OWN):
        return name
    found = full_names(run.manifest, asked.server).get(name)
    if found is None:
        raise FleetError(
            Code.UNKNOWN_TOOL,
            f"server {asked.server!r} has no tool named {name!r} in run {run.id}",
            hint="tools/list shows its tools",
        )
    return found


def full_names(snapshot: Snapshot, server: str) -> Mapping[str, str]:
    """Return the names of a server's tools in a snapshot by what the server calls them."""
    known = _bare.setdefault(snapshot, {})
    if server not in known:
        known[server] = {
            entry.tool.upstream_name: entry.tool.name
            for entry in snapshot.entries
            if entry.tool.server == server
        }
    return known[server]
