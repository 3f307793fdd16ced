"""A whole fleet in front of the everything-server: API, steward, two workers, Postgres and Redis.

Everything is as in production, but for the key that `tests.conformance.app` adds.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from compose.local import LocalFleet, toolfleet_command
from tests.everything import everything_definition
from tests.fleet.driver import ENVIRONMENT, running

APP = Path(__file__).parent / "app.py"
WORKERS = 2
SERVER = "everything"
# Short enough for a client to see that a stream ends before its call does.
SETTINGS = {**ENVIRONMENT, "TOOLFLEET_MCP_STREAM": "0.4"}
POOL = {"max_size": 32}  # the suite leaves many calls behind that take a minute
# The server knows nothing of tasks: which of its calls become tasks is the operator's to say. What
# is not named here becomes one when it takes longer than most callers like to wait.
AS_TASKS = {
    "slow_compute": "always",
    "protocol_error_job": "always",
    "confirm_delete": "always",
    "multi_input": "always",
    "failing_job": "required",
}


@dataclass
class Front:
    """Where the server is reached through the fleet, and how many workers were killed meanwhile."""

    url: str
    kills: int = 0


@asynccontextmanager
async def in_front_of(url: str, folder: Path, kill_every_s: float | None) -> AsyncIterator[Front]:
    """Run the fleet; kill one of its workers every so often, each in turn."""
    key_file = folder / "key"

    def command(*arguments: str) -> list[str]:
        if arguments == ("api",):
            return [sys.executable, str(APP), str(key_file)]
        return toolfleet_command(*arguments)

    workers = {SERVER: WORKERS}
    async with running(
        folder, workers_per_server=workers, command=command, environment=SETTINGS
    ) as fleet:
        tools = {name: {"task": use} for name, use in AS_TASKS.items()}
        definition = everything_definition(url, name=SERVER, tools=tools, pool=POOL)
        await fleet.serve(definition)
        wish = {"name": "suite", "role": "tenant", "tenant": "acme"}
        made = await fleet.http.post("/v1/keys", json=wish)
        assert made.status_code == 201, made.text
        key_file.touch(mode=0o600)
        key_file.write_text(made.json()["key"])
        front = Front(f"{fleet.local.api_url}/mcp/servers/{SERVER}")
        killer = asyncio.create_task(_kill(fleet.local, front, kill_every_s))
        try:
            yield front
        finally:
            killer.cancel()
            with suppress(asyncio.CancelledError):
                await killer


async def _kill(fleet: LocalFleet, front: Front, every_s: float | None) -> None:
    """Kill one worker after the other; the supervisor starts each of them again."""
    if every_s is None:
        return
    for turn in count():
        await asyncio.sleep(every_s)
        if pids := fleet.workers().get(SERVER):
            with suppress(ProcessLookupError):
                os.kill(pids[turn % len(pids)], signal.SIGKILL)
                front.kills += 1
