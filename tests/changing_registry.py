"""The registry changes over and over while runs call tools of a real fleet."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from registry import catalog, ingest
from registry.definitions import parse_definition
from registry.snapshots import Shelf
from tests.fleet.driver import SERVERS, Fleet

CALLS_EACH = 6
AT_ONCE = 6
SERVER = {
    "name": "crm",
    "version": "1",
    "transport": "stdio",
    "command": sys.executable,
    "args": ["-I", "-S", str(SERVERS / "versions.py"), "2.0"],
    "tools": {"find_contact": {"delivery": "read"}, "add_contact": {"delivery": "read"}},
    "pool": {"min_idle": 1, "max_size": 4},
}


def listing(number: int) -> list[dict[str, Any]]:
    """Return what the server is said to list after so many changes: only texts differ."""
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    return [
        {"name": name, "description": f"As of change {number}", "inputSchema": schema}
        for name in ("find_contact", "add_contact")
    ]


async def each_run_sees_one_version_of_each_tool(fleet: Fleet, *, changes: int, runs: int) -> None:
    """Change the registry so often while so many runs call tools, and see what each run saw."""
    await fleet.serve(SERVER)
    done = 0
    mine: list[str] = []

    async def change() -> None:
        nonlocal done
        for number in range(changes):
            # Another version of the server for all, ten times.
            if number % (changes // 10) == changes // 20:
                newer = parse_definition({**SERVER, "version": str(number)})
                # Listed before it is served: until it is, runs that start are offered nothing.
                id_ = await catalog.add_version(fleet.database, newer, actor="test", serve=False)
                await ingest.ingest(fleet.database, id_, newer, listing(number))
                await catalog.add_version(fleet.database, newer, actor="test")
            else:
                current = await catalog.get_server(fleet.database, "crm")
                changed = listing(number)
                await ingest.ingest(fleet.database, current.id, current.definition, changed)
            done = number + 1

    async def call(number: int) -> None:
        run = await fleet.run(f"tenant-{number}")
        mine.append(run["id"])
        for turn in range(CALLS_EACH):
            tool = "find_contact" if turn % 2 else "add_contact"
            ended = await fleet.call(run, f"crm_{tool}", name="Ana")
            assert ended["state"] == "succeeded", ended["error"]
            now = await fleet.http.get(f"/v1/runs/{run['id']}")
            assert now.json()["tools"] == run["tools"]

    async def keep_calling(first: int) -> None:
        for number in range(first, runs, AT_ONCE):
            while done < number * changes // runs:  # its turn among the changes
                await asyncio.sleep(0.01)
            await call(number)

    await asyncio.gather(change(), *(keep_calling(first) for first in range(AT_ONCE)))
    assert done == changes

    seen = await fleet.database.statement(
        "SELECT r.id, r.snapshot_digest AS digest, c.tool,"
        " array_agg(DISTINCT c.tool_version_id) AS tools,"
        " array_agg(DISTINCT c.server_version_id) AS servers"
        " FROM calls c JOIN runs r ON r.id = c.run_id WHERE r.id = ANY(%(mine)s)"
        " GROUP BY r.id, r.snapshot_digest, c.tool",
        mine=mine,
    )
    assert len(seen) == runs * 2
    shelf = Shelf(fleet.database)
    for row in seen:
        pinned = (await shelf.get(row["digest"])).tools[row["tool"]]
        assert (row["tools"], row["servers"]) == (
            [pinned.tool_version_id],
            [pinned.server_version_id],
        )
    assert len({row["digest"] for row in seen}) > runs // 4  # the changes did reach the runs
