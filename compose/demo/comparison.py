"""The same calls twice: through the fleet, and with one server process spawned for each."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

from compose.demo.acts import Play
from compose.demo.servers import Stage, everyday_calls
from compose.demo.tenant import Wanted, at_most
from registry.definitions import ServerDefinition, parse_definition
from workers.session import Session

CALLERS = 2
MAX_RESULT_BYTES = 10_000_000


@dataclass(frozen=True)
class Compared:
    """Seconds that each caller waited, by way; the servers are those of stdio."""

    calls: int
    callers: int
    fleet_s: list[float]
    spawned_s: list[float]


async def compare(play: Play) -> Compared:
    """Make the everyday calls of the stdio servers in both ways, equally many at a time."""
    stdio = {it["name"] for it in play.stage.definitions if it["transport"] == "stdio"}
    wanted = [it for it in everyday_calls(play.stage) if _server(it) in stdio]
    fleet = await at_most(CALLERS, [partial(play.acme.call, one) for one in wanted])
    spawned = await at_most(CALLERS, [partial(_spawn_and_call, play.stage, one) for one in wanted])
    answered = all(it.state == "succeeded" for it in fleet) and not any(e for _, e in spawned)
    play.checks.check(
        "the same calls are answered with one process spawned per call, only later",
        answered and sum(it.total_s for it in fleet) < sum(seconds for seconds, _ in spawned),
        f"{len(wanted)} calls each way",
    )
    return Compared(
        len(wanted), CALLERS, [it.total_s for it in fleet], [seconds for seconds, _ in spawned]
    )


async def _spawn_and_call(stage: Stage, wanted: Wanted) -> tuple[float, bool]:
    """Launch a server, shake hands, call, close; return the seconds and whether it was an error."""
    definition = _definition(stage, wanted)
    name = wanted.tool.removeprefix(definition.prefix)
    started = time.perf_counter()
    session = await Session.open(
        definition,
        connect_timeout_s=definition.timeouts.connect_s,
        stop_grace_s=2,
        max_result_bytes=MAX_RESULT_BYTES,
    )
    try:
        result = await session.call_tool(
            name, wanted.arguments, timeout_s=definition.timeouts.call_s
        )
    finally:
        await session.close()
    return time.perf_counter() - started, result.is_error


def _definition(stage: Stage, wanted: Wanted) -> ServerDefinition:
    document: dict[str, Any] = stage.definition(_server(wanted))
    return parse_definition(document)


def _server(wanted: Wanted) -> str:
    """Return the server whose prefix a tool's name has."""
    return "world-clock" if wanted.tool.startswith("world_clock") else wanted.tool.split("_")[0]
