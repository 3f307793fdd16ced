"""Snapshots: the tools that a run sees, immutable and named by their content.

A snapshot's digest is that of its tools' own digests in the order of their names: equal tools,
equal digest. Both are computed once for each tool and kept with it, because a fleet may offer ten
thousand tools of which hardly any changes between two runs.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from registry.database import Database, to_json
from registry.errors import Code, FleetError
from registry.tools import SnapshotTool

MOST_KEPT: Final = 256
MOST_TOOLS_KEPT: Final = 100_000
_FEW: Final = 500


@dataclass(frozen=True)
class Entry:
    """A tool of a snapshot with the text it is stored as; made once, shared by many snapshots."""

    tool: SnapshotTool

    @cached_property
    def text(self) -> str:
        """Return its JSON."""
        return to_json(self.tool.as_dict())

    @cached_property
    def digest(self) -> bytes:
        """Return what its snapshot's digest is made of."""
        body = json.dumps(self.tool.as_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(body.encode()).digest()

    @cached_property
    def shown(self) -> str:
        """Return its JSON as the Model Context Protocol writes a tool."""
        return to_json(shown(self.tool))

    @cached_property
    def needing_approval(self) -> Entry:
        """Return the same tool for tenants whose calls of it need an approval."""
        return self if self.tool.approval else Entry(replace(self.tool, approval=True))


class Snapshot:
    """The tools of a run by model-facing name, in the order of these names."""

    def __init__(self, entries: Iterable[Entry], digest: str | None = None) -> None:
        self.entries = tuple(sorted(entries, key=lambda entry: entry.tool.name))
        self.tools = {entry.tool.name: entry.tool for entry in self.entries}
        self.digest = digest or _digest(self.entries)

    @cached_property
    def shown(self) -> bytes:
        """Return the JSON list of its tools as the Model Context Protocol writes them."""
        return ("[" + ",".join(entry.shown for entry in self.entries) + "]").encode()

    def text(self) -> str:
        """Return the JSON that it is stored as."""
        return "[" + ",".join(entry.text for entry in self.entries) + "]"

    def find(self, tool: str, run_id: str) -> SnapshotTool:
        """Return a tool; raise `unknown_tool` naming the nearest ones."""
        found = self.tools.get(tool)
        if found is None:
            near = get_close_matches(tool, self._alike(tool), n=3)
            raise FleetError(
                Code.UNKNOWN_TOOL,
                f"run {run_id} has no tool named {tool!r}",
                hint=f"did you mean {', '.join(near)}?" if near else "GET the run to see its tools",
            )
        return found

    def _alike(self, tool: str) -> list[str]:
        """Return the names that are worth comparing: all of a few, else those that share a word."""
        if len(self.tools) <= _FEW:
            return list(self.tools)
        words = set(tool.split("_"))
        return [name for name in self.tools if not words.isdisjoint(name.split("_"))][:_FEW]

    def only(self, names: Iterable[str]) -> Snapshot:
        """Return the snapshot of some of its tools."""
        wanted = set(names)
        return Snapshot(entry for entry in self.entries if entry.tool.name in wanted)


def shown(tool: SnapshotTool) -> dict[str, Any]:
    """Return a tool as the Model Context Protocol writes it, under its model-facing name."""
    body: dict[str, Any] = {
        "name": tool.name,
        "description": tool.description,
        "inputSchema": tool.input_schema,
    }
    if tool.output_schema is not None:
        body["outputSchema"] = tool.output_schema
    if tool.annotations is not None:
        body["annotations"] = tool.annotations
    return body


def differences(before: Snapshot, after: Snapshot) -> list[dict[str, Any]]:
    """Return how two snapshots differ, by tool name: added, removed, changed and in which fields.

    What a schema's change means is `registry.diff`'s to say; here it is routing and content.
    """
    found: list[dict[str, Any]] = []
    for name in sorted(before.tools.keys() | after.tools.keys()):
        old, new = before.tools.get(name), after.tools.get(name)
        if old == new:
            continue
        if old is None or new is None:
            found.append({"tool": name, "change": "removed" if new is None else "added"})
            continue
        was, now = old.as_dict(), new.as_dict()
        fields = sorted(field for field in was | now if was.get(field) != now.get(field))
        found.append({"tool": name, "change": "changed", "fields": fields})
    return found


class Shelf:
    """The snapshots of the record that this process has at hand, the ones used last."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._kept: OrderedDict[str, Snapshot] = OrderedDict()
        self._tools = 0

    async def get(self, digest: str) -> Snapshot:
        """Return a snapshot of the record by its digest; raise `not_found`."""
        kept = self._kept.get(digest)
        if kept is not None:
            self._kept.move_to_end(digest)
            return kept
        rows = await self._database.statement(
            "SELECT tools FROM snapshots WHERE digest = %(digest)s", digest=digest
        )
        if not rows:
            raise FleetError(Code.NOT_FOUND, f"there is no snapshot {digest}")
        tools = (Entry(SnapshotTool.from_dict(body)) for body in rows[0]["tools"])
        snapshot = Snapshot(tools, digest)
        self._keep(snapshot)
        return snapshot

    async def put(self, connection: AsyncConnection, snapshot: Snapshot) -> None:
        """Store a snapshot within a transaction, unless it is known to be stored."""
        if snapshot.digest in self._kept:
            return
        tools = await asyncio.to_thread(snapshot.text)
        await connection.execute(
            text(
                "INSERT INTO snapshots (digest, tools) VALUES (:digest, CAST(:tools AS jsonb))"
                " ON CONFLICT DO NOTHING"
            ),
            {"digest": snapshot.digest, "tools": tools},
        )

    def stored(self, snapshot: Snapshot) -> None:
        """Keep a snapshot whose transaction has committed."""
        self._keep(snapshot)

    def _keep(self, snapshot: Snapshot) -> None:
        if snapshot.digest in self._kept:
            return
        self._kept[snapshot.digest] = snapshot
        self._tools += len(snapshot.entries)
        while len(self._kept) > MOST_KEPT or (
            self._tools > MOST_TOOLS_KEPT and len(self._kept) > 1
        ):
            _, gone = self._kept.popitem(last=False)
            self._tools -= len(gone.entries)


def _digest(entries: Sequence[Entry]) -> str:
    return hashlib.sha256(b"".join(entry.digest for entry in entries)).hexdigest()
