"""An MCP client as its handlers see it, in front of a running API: no transport in between."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

import pytest
from redis.asyncio import Redis

from api.mcp.asked import TASKS, Asked, ClientInfo, Handler, Revision, RpcError
from api.mcp.calling import call_tool
from api.operations import Operations
from registry import calls, questions
from registry.calls import CallState, Claim, Ending
from registry.database import Database
from registry.questions import NewQuestion, Question
from registry.tenants import Actor, Role
from tests.serving import WORKER, Api
from tests.waiting import until
from workers.client import PROGRESS_CHANNEL
from workers.signals import Signals

NEWEST: Final = Revision.JULY_2026
LEGACY: Final = Revision.NOVEMBER_2025
KNOWS_TASKS: Final = {"extensions": {TASKS: {}}}
ELICITS: Final = {"elicitation": {}}
FORM: Final = NewQuestion(
    "elicitation/create",
    {
        "message": "Where?",
        "requestedSchema": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
)
OSLO: Final = {"action": "accept", "content": {"city": "Oslo"}}


def said(text: str, **rest: Any) -> dict[str, Any]:
    """Return a tool's result that says a text."""
    return {"content": [{"type": "text", "text": text}], **rest}


def text_of(result: dict[str, Any]) -> str:
    """Return what a result says."""
    return "\n".join(part["text"] for part in result["content"])


@contextmanager
def refused(code: int) -> Iterator[list[RpcError]]:
    """Expect a JSON-RPC error of this code; it is in the list afterwards."""
    found: list[RpcError] = []
    with pytest.raises(Exception) as caught:
        yield found
    error = caught.value
    assert isinstance(error, RpcError), error
    assert error.code == code, error.message
    found.append(error)


@dataclass(frozen=True)
class Caller:
    """A client of tenant ``acme`` with a run, and what it was told and asked."""

    operations: Operations
    run_id: str
    actor: Actor
    revision: Revision = NEWEST
    capabilities: dict[str, Any] = field(default_factory=dict)
    server: str | None = None
    log_level: str | None = None
    told: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    questions: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)

    def but(self, **changes: Any) -> Caller:
        """Return another client, alike but for this."""
        return replace(self, **{"told": [], "questions": [], **changes})

    def asked(self, method: str, params: dict[str, Any]) -> Asked:
        """Return a request of this client."""

        async def notify(method: str, params: dict[str, Any]) -> None:
            self.told.append((method, params))

        async def ask(id_: str, method: str, params: dict[str, Any]) -> None:
            self.questions.append((id_, method, params))

        return Asked(
            operations=self.operations,
            actor=self.actor,
            client=ClientInfo(capabilities=self.capabilities),
            revision=self.revision,
            id=1,
            method=method,
            params=params,
            run=lambda: self.operations.get_run(self.actor, self.run_id),
            server=self.server,
            log_level=self.log_level,
            notify=notify,
            ask=None if self.revision.stateless else ask,
        )

    async def ask(self, handler: Handler, method: str, **params: Any) -> dict[str, Any]:
        """Return the answer to a request."""
        answer = await handler(self.asked(method, params))
        assert isinstance(answer, dict)
        return answer

    async def call(self, tool: str = "demo_echo", **params: Any) -> dict[str, Any]:
        """Return the answer to a call of a tool."""
        params = {"name": tool, "arguments": {"text": "hi"}, **params}
        return await self.ask(call_tool, "tools/call", **params)

    @asynccontextmanager
    async def calling(self, *args: Any, **params: Any) -> AsyncIterator[asyncio.Task[Any]]:
        """Yield a call that is under way; it is given up at the end."""
        task = asyncio.create_task(self.call(*args, **params))
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@dataclass(frozen=True)
class Worker:
    """Takes a worker's part in the ledger of an API."""

    database: Database
    redis: Redis
    run_id: str

    @property
    def signals(self) -> Signals:
        """Return its hints."""
        return Signals(self.redis)

    async def claim(self, number: int = 0) -> Claim:
        """Claim the run's call of this number, once it is in the record."""

        async def look() -> list[Claim]:
            rows = await self.database.statement(
                "SELECT id FROM calls WHERE run_id = %(run)s AND state = 'queued'"
                " ORDER BY created_at OFFSET %(number)s",
                run=self.run_id,
                number=number,
            )
            ids = [row["id"] for row in rows][:1]
            return [it for it in await calls.claim(self.database, WORKER, ids) if it]

        return (await until(look))[0]

    async def ask(self, claim: Claim, *asked: NewQuestion) -> list[Question]:
        """Ask the call's caller something."""
        put = await questions.ask(self.database, claim, asked or (FORM,))
        await self.signals.asked(claim.id)
        return put

    @staticmethod
    def forms(count: int) -> list[NewQuestion]:
        """Return so many questions."""
        return [FORM] * count

    async def answered(self, claim: Claim, *put: Question) -> bool:
        """Say whether these questions are the ones that have an answer."""
        rows = await self.database.statement(
            "SELECT key FROM questions WHERE call_id = %(id)s AND state = 'answered'",
            id=claim.id,
        )
        return {row["key"] for row in rows} == {it.key for it in put}

    async def report(self, claim: Claim, report: Any) -> None:
        """Tell whoever listens how far the call is."""
        await self.redis.publish(PROGRESS_CHANNEL + claim.id, json.dumps(report))

    async def stop_requested(self, claim: Claim) -> bool:
        """Say whether the call was asked to stop."""
        rows = await calls.read(self.database, [claim.id])
        return rows[claim.id]["stop_requested_at"] is not None

    async def end(
        self, claim: Claim, result: Any = None, *, error: Any = None, hint: bool = True
    ) -> None:
        """End a call with a result, or an error."""
        state = CallState.SUCCEEDED if error is None else CallState.FAILED
        body = None if error is not None else said("done") if result is None else result
        is_error = None if body is None else bool(body.get("isError"))
        ending = Ending(claim.id, claim.fence, state, body, is_error, error)
        assert await calls.finish(self.database, WORKER, [ending]) == [True]
        if hint:
            await self.signals.ended([claim.id])

    async def count(self) -> int:
        """Return how many calls the run has."""
        rows = await self.database.statement(
            "SELECT count(*) AS calls FROM calls WHERE run_id = %(run)s", run=self.run_id
        )
        return int(rows[0]["calls"])


async def caller(api: Api, tenant: str = "acme") -> tuple[Caller, Worker]:
    """Return a client of an API with a run of its own, and the worker behind it."""
    run = await api.run(tenant)
    worker = Worker(api.database, api.redis, run["id"])
    actor = Actor("1", "an agent", Role.TENANT, tenant)
    return Caller(api.app.state.operations, run["id"], actor), worker


def impatient(client: Caller, **settings: Any) -> Caller:
    """Return the same client of an API that has other settings."""
    operations = copy.copy(client.operations)
    operations.settings = operations.settings.model_copy(update=settings)
    return client.but(operations=operations)
