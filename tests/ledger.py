"""A registry with a server, a run and calls in it, for tests that take a worker's part."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import text

from registry import calls, catalog, ingest, leases, runs, submission
from registry.calls import CallState, Claim, Ending, NewCall, Submitted
from registry.database import Database
from registry.definitions import ServerDefinition, parse_definition
from registry.policy import TenantPolicy
from registry.runs import Run
from registry.settings import Settings
from registry.submission import Wish
from registry.tiers import TenantDefinition, TierDefinition

HOUR = timedelta(hours=1)
WORKER = "worker-of-the-test"
DELIVERIES = {"look": "read", "put": "idempotent", "pay": "keyed", "write": "write"}


def listed(name: str, **rest: Any) -> dict[str, Any]:
    """Return a tool as a server lists it."""
    return {"name": name, "inputSchema": {"type": "object"}, **rest}


def definition(name: str = "demo", **rest: Any) -> ServerDefinition:
    """Return a server's definition; nothing in these tests starts its command."""
    return parse_definition(
        {
            "name": name,
            "transport": "stdio",
            "command": "true",
            "tools": {tool: {"delivery": delivery} for tool, delivery in DELIVERIES.items()},
            **rest,
        }
    )


async def register(database: Database, server: ServerDefinition, *tools: dict[str, Any]) -> int:
    """Register a server with its tools listed; return its version's id."""
    version = await catalog.add_server(database, server, actor="test")
    await ingest.ingest(database, version, server, tools or [listed(tool) for tool in DELIVERIES])
    return version


@dataclass
class Ledger:
    """One open run on server `demo`, whose tools have one delivery class each."""

    database: Database
    run: Run
    settings: Settings

    @classmethod
    async def open(cls, database: Database) -> Ledger:
        """Register the server and start the run."""
        await register(database, definition())
        return cls(database, await start(database), Settings())

    def new(self, tool: str = "look", *, run: Run | None = None, **wish: Any) -> NewCall:
        """Return a call that passed the checks and is no row yet."""
        wanted = Wish(**{"tool": f"demo_{tool}", "arguments": {}, "actor": "agent", **wish})
        policy = TenantPolicy(TenantDefinition(name="acme"), TierDefinition(name="default"), 1)
        return submission.prepare(run or self.run, wanted, self.settings, policy)

    async def submit(self, tool: str = "look", **wish: Any) -> str:
        """Return the id of a queued call."""
        (answer,) = await calls.submit(self.database, [self.new(tool, **wish)])
        assert isinstance(answer, Submitted), answer
        return answer.id

    async def claim(self, call_id: str, worker: str = WORKER) -> Claim:
        """Return the claim of a call that is to be had."""
        (claim,) = await calls.claim(self.database, worker, [call_id])
        assert claim is not None
        return claim

    async def running(self, tool: str = "look", worker: str = WORKER, **wish: Any) -> Claim:
        """Return the claim of a fresh call."""
        return await self.claim(await self.submit(tool, **wish), worker)

    async def finish(self, claim: Claim, state: CallState = CallState.SUCCEEDED) -> bool:
        """End a claimed call; say whether the claim still held."""
        (kept,) = await calls.finish(self.database, WORKER, [Ending(claim.id, claim.fence, state)])
        return kept

    async def row(self, call_id: str) -> dict[str, Any]:
        """Return a call as the record has it."""
        return (await calls.read(self.database, [call_id]))[call_id]

    async def state(self, call_id: str) -> CallState:
        """Return where a call is."""
        return CallState((await self.row(call_id))["state"])

    async def trail(self, call_id: str) -> list[str]:
        """Return the audit's events about a call, in order, without their prefix."""
        found = await self.sql(
            "SELECT event FROM audit WHERE call_id = :id ORDER BY id", id=call_id
        )
        return [row[0].removeprefix("call.") for row in found]

    async def lease(self, worker: str = WORKER, server: str = "demo") -> None:
        """Give a worker a lease of an hour."""
        await leases.open_worker(self.database, worker, server, "host", 1, HOUR)

    async def lapse(self, worker: str = WORKER) -> None:
        """Let a worker's lease run out."""
        await self.sql(
            "UPDATE workers SET lease_until = clock_timestamp() - interval '1 s' WHERE id = :id",
            id=worker,
        )

    async def age(self, column: str, call_ids: Sequence[str]) -> None:
        """Move one of the calls' instants an hour back: the database's clock decides."""
        await self.sql(
            f"UPDATE calls SET {column} = {column} - interval '1 hour' WHERE id = ANY(:ids)",
            ids=list(call_ids),
        )

    async def sql(self, statement: str, **values: Any) -> Sequence[Any]:
        """Run one statement; return its rows."""
        async with self.database.transaction() as connection:
            result = await connection.execute(text(statement), values)
            return result.all() if result.returns_rows else []


async def start(database: Database, **rest: Any) -> Run:
    """Start a run of tenant `acme`."""
    return await runs.start_run(
        database, **{"tenant": "acme", "actor": "agent", "lifetime": HOUR, **rest}
    )


async def together(*work: Any) -> list[Any]:
    """Return the outcomes of coroutines that run at the same time."""
    return list(await asyncio.gather(*work))
