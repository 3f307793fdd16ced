"""Ways to run a call that nobody approved as it is, each in several variants.

Calls go the real way: over HTTP, into Postgres, through the gate in a worker's own code, to a
server over stdio that writes down every call it gets. That journal is what counts.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
from pydantic import SecretStr

from registry import approvals, catalog, ingest
from registry.approvals import Verdict
from registry.definitions import parse_definition
from registry.errors import FleetError
from registry.settings import Settings
from tests.approving import SEALER, SECRET
from tests.jobs import make_job
from tests.ledger import HOUR, listed
from tests.process_trees import light
from tests.serving import Api
from workers.invoke import invoke
from workers.runtime import WorkerRuntime
from workers.steward import StewardRuntime

NOBODY = "00000000-0000-4000-8000-000000000000"
JSON = {"content-type": "application/json"}


@dataclass
class Range:
    """A fleet to attack: an API, a worker for each of two servers, a steward, their journal."""

    api: Api
    workers: dict[str, WorkerRuntime]
    steward: StewardRuntime
    journal: Path
    agents: dict[str, httpx2.AsyncClient]
    approver: httpx2.AsyncClient
    runs: dict[str, dict[str, Any]]
    allowed: int = 0
    """How many calls the servers may have got by now."""
    tried: Counter[str] = field(default_factory=Counter)
    bypasses: list[str] = field(default_factory=list)

    def effects(self) -> list[str]:
        """Return the calls that the servers got."""
        return self.journal.read_text().splitlines() if self.journal.exists() else []

    async def submit(self, tenant: str = "acme", tool: str = "gate_say", **rest: Any) -> str:
        """Submit a call that waits; return its id."""
        body = {"tool": tool, "arguments": {"text": uuid.uuid4().hex}, **rest}
        path = f"/v1/runs/{self.runs[tenant]['id']}/calls"
        answer = await self.agents[tenant].post(path, json=body)
        assert answer.status_code == 202, answer.text
        call = answer.json()
        assert call["state"] == "awaiting_approval", call
        return str(call["id"])

    async def binding(self, call_id: str) -> str:
        """Return what an approver is shown the call as."""
        answer = await self.approver.get(f"/v1/approvals/{call_id}")
        return str(answer.json()["binding"])

    async def approve(self, call_id: str, binding: str | None = None) -> httpx2.Response:
        """Approve a call as it is shown now, or as it was."""
        body = {"binding": binding or await self.binding(call_id)}
        return await self.approver.post(f"/v1/approvals/{call_id}/approve", json=body)

    async def approved(self, tenant: str = "acme", **rest: Any) -> str:
        """Return the id of a call that was approved and not yet run."""
        call_id = await self.submit(tenant, **rest)
        answer = await self.approve(call_id)
        assert answer.json()["state"] == "queued", answer.text
        return call_id

    async def deliver(self, call_id: str, server: str = "gate") -> Any:
        """Let a server's worker have a message about a call; return what that came to."""
        job = make_job()
        job.task = asyncio.create_task(invoke(self.workers[server], call_id, job))
        async with asyncio.timeout(20):
            return (await asyncio.gather(job.task, return_exceptions=True))[0]

    async def sql(self, statement: str, **values: Any) -> list[dict[str, Any]]:
        """Do what somebody can who writes to the database."""
        return await self.api.database.statement(statement + " RETURNING 1", **values)

    async def events(self, call_id: str) -> list[str]:
        """Return what the audit says of a call."""
        found = await self.api.database.statement(
            "SELECT event FROM audit WHERE call_id = %(id)s ORDER BY id", id=call_id
        )
        return [row["event"].removeprefix("call.") for row in found]

    async def attack(self, family: str, variant: str, doing: Awaitable[int | None]) -> None:
        """Do one attack, which says how often its call may run; note whether more ran."""
        self.allowed += await doing or 0
        self.tried[family] += 1
        done = self.effects()
        if len(done) != self.allowed:
            self.bypasses.append(f"{family}, {variant}: {done[self.allowed - 1 :]}")
            self.allowed = len(done)


@asynccontextmanager
async def attacked(api: Api, folder: Path) -> AsyncIterator[Range]:
    """Have a fleet to attack."""
    journal = folder / "journal"
    settings = Settings(
        database_url=api.database.engine.url.render_as_string(hide_password=False),
        redis_url=api.app.state.operations.settings.redis_url,
        secret_key=SecretStr(SECRET),
    )
    for name in ("gate", "plain"):
        await _serve(api, _definition(name, journal))
    async with AsyncExitStack() as stack:
        agents, runs = {}, {}
        for tenant in ("acme", "globex"):
            agents[tenant] = await stack.enter_async_context(
                api.client(await api.key("tenant", tenant))
            )
            runs[tenant] = (await agents[tenant].post("/v1/runs", json={})).json()
        approver = await stack.enter_async_context(api.client(await api.key("approver", None)))
        workers = {name: WorkerRuntime(name, settings) for name in ("gate", "plain")}
        for worker in workers.values():
            await worker.open()
            stack.push_async_callback(worker.close)
        steward = StewardRuntime(settings)
        stack.push_async_callback(steward.close)
        yield Range(api, workers, steward, journal, agents, approver, runs)


def _definition(name: str, journal: Path, **rest: Any) -> dict[str, Any]:
    rules = {"say": {"approval": name == "gate"}, "pid": {"delivery": "read"}}
    pool = {"min_idle": 1, "max_size": 1, "max_calls": 10**6, "max_lifetime_s": 10**5}
    return light("--journal", str(journal), name=name, tools=rules, pool=pool, **rest)


async def _serve(api: Api, document: dict[str, Any], *, again: bool = False) -> int:
    definition = parse_definition(document)
    register = catalog.add_version if again else catalog.add_server
    version = await register(api.database, definition, actor="test")
    tools = [listed("say"), listed("pid")]
    await ingest.ingest(api.database, version, definition, tools)
    return version


# -- the call's row is changed after its approval

CHANGES = {
    "other text": 'arguments = \'{"text": "forged"}\'',
    "nothing": "arguments = '{}'",
    "null": "arguments = 'null'",
    "a list": "arguments = '[\"x\"]'",
    "one more": "arguments = (arguments::jsonb || '{\"more\": 1}')::json",
    "upper case": "arguments = upper(arguments::text)::json",
    "key in upper case": "arguments = replace(arguments::text, 'text', 'TEXT')::json",
    "a key twice": "arguments = replace(arguments::text, '}', ', \"text\": \"forged\"}')::json",
    "a look-alike": "arguments = replace(arguments::text, 'text', 't\u0435xt')::json",
    "a space": "arguments = replace(arguments::text, '\":\"', '\":\" ')::json",
    "invisible": "arguments = replace(arguments::text, '\":\"', '\":\"\u200b')::json",
    "a number": "arguments = '{\"text\": 1}'",
    "nested": "arguments = json_build_object('text', arguments)",
    "another tool's name": "tool = 'gate_pid'",
    "a tool in upper case": "tool = 'GATE_SAY'",
    "another tool": "tool_version_id = (SELECT id FROM tool_versions WHERE server_name = 'gate'"
    " AND name = 'pid')",
    "another server's tool": "tool_version_id = (SELECT id FROM tool_versions"
    " WHERE server_name = 'plain' AND name = 'say')",
    "another server's version": "server_version_id = (SELECT id FROM server_versions"
    " WHERE server_name = 'plain')",
    "no such version": "server_version_id = 999999",
    "no such tool": "tool_version_id = 999999",
    "another server": "server_name = 'plain'",
    "another tenant": "tenant_id = 'globex'",
    "another requester": "actor = 'key:other'",
    "another class": "delivery = 'read'",
    "the digest alone": "arguments_digest = repeat('0', 64), arguments = '{\"text\": \"forged\"}'",
}


async def change(range_: Range, what: str) -> int:
    """Change an approved call."""
    call_id = await range_.approved()
    assert await range_.sql(f"UPDATE calls SET {CHANGES[what]} WHERE id = %(id)s", id=call_id)
    for server in ("gate", "plain"):
        await range_.deliver(call_id, server)
    return 0


async def change_before(range_: Range, what: str) -> int:
    """Change a call between the look at it and its approval; then have it delivered anyway."""
    call_id = await range_.submit()
    seen = await range_.binding(call_id)
    assert await range_.sql(f"UPDATE calls SET {CHANGES[what]} WHERE id = %(id)s", id=call_id)
    answer = await range_.approve(call_id, seen)
    assert answer.status_code in (404, 409), answer.text
    for server in ("gate", "plain"):
        await range_.deliver(call_id, server)
    return 0


AROUND = {
    "snapshot": "UPDATE runs SET snapshot_digest = (SELECT digest FROM snapshots"
    " WHERE digest <> snapshot_digest LIMIT 1) WHERE id = %(run)s",
    "who started the run": "UPDATE runs SET actor = 'key:other' WHERE id = %(run)s",
    "tool's digest": "UPDATE tool_versions SET digest = 'forged' WHERE id = %(tool)s",
    "server's digest": "UPDATE server_versions SET digest = 'forged' WHERE id = %(version)s",
}


async def change_around(range_: Range, what: str) -> int:
    """Change what an approved call refers to, and change it back."""
    run = (await range_.agents["acme"].post("/v1/runs", json={"servers": ["plain"]})).json()
    assert run["snapshot"] != range_.runs["acme"]["snapshot"]
    call_id = await range_.approved()
    (row,) = await range_.api.database.statement(
        "SELECT c.run_id AS run, c.tool_version_id AS tool, c.server_version_id AS version,"
        " r.snapshot_digest, r.actor, t.digest AS tool_digest, v.digest AS version_digest"
        " FROM calls c JOIN runs r ON r.id = c.run_id JOIN tool_versions t"
        " ON t.id = c.tool_version_id JOIN server_versions v ON v.id = c.server_version_id"
        " WHERE c.id = %(id)s",
        id=call_id,
    )
    assert await range_.sql(AROUND[what], **row)
    await range_.deliver(call_id)
    for table, column, of in (
        ("runs", "snapshot_digest = %(snapshot_digest)s, actor = %(actor)s", "run"),
        ("tool_versions", "digest = %(tool_digest)s", "tool"),
        ("server_versions", "digest = %(version_digest)s", "version"),
    ):
        await range_.sql(f"UPDATE {table} SET {column} WHERE id = %({of})s", **row)
    return 0


# -- a call is made to look approved

FORGERIES = {
    "queued": "state = 'queued'",
    "queued and decided": "state = 'queued', decided_by = 'key:boss', decided_at = now()",
    "with attempts": "state = 'queued', decided_by = 'key:boss', attempts = 1, fence = 7",
    "as a read": "state = 'queued', delivery = 'read'",
    "as the other tool": "state = 'queued', tool = 'plain_say'",
    "as the other server": "state = 'queued', server_name = 'plain', tool = 'plain_say'",
    "running": "state = 'running', worker_id = 'nobody', fence = 1",
}


async def forge_state(range_: Range, what: str) -> int:
    """Make the row of a call that waits say that it may run."""
    call_id = await range_.submit()
    assert await range_.sql(f"UPDATE calls SET {FORGERIES[what]} WHERE id = %(id)s", id=call_id)
    for server in ("gate", "plain"):
        await range_.deliver(call_id, server)
    return 0


async def forge_denied(range_: Range, what: str) -> int:
    """Make the row of a denied call say that it may run."""
    call_id = await range_.submit()
    body = {"binding": await range_.binding(call_id)}
    answer = await range_.approver.post(f"/v1/approvals/{call_id}/deny", json=body)
    assert answer.json()["state"] == "denied"
    again = await range_.approve(call_id, body["binding"])
    assert again.status_code == 409
    assert await range_.sql(f"UPDATE calls SET {FORGERIES[what]} WHERE id = %(id)s", id=call_id)
    for server in ("gate", "plain"):
        await range_.deliver(call_id, server)
    return 0


DECISIONS = {
    "another call's": "SELECT %(id)s, tenant_id, binding, approve, decided_by, decided_at,"
    " holds_until, closes, reason, seal FROM approvals WHERE call_id = %(other)s",
    "with its binding": "SELECT %(id)s, tenant_id, %(binding)s, approve, decided_by, decided_at,"
    " holds_until, closes, reason, seal FROM approvals WHERE call_id = %(other)s",
    "of one's own": "SELECT %(id)s, 'acme', %(binding)s, true, 'key:boss', now(),"
    " now() + interval '1 h', true, NULL, repeat('0', 64) WHERE %(other)s <> ''",
    "without a seal": "SELECT %(id)s, 'acme', %(binding)s, true, 'key:boss', now(),"
    " now() + interval '1 h', true, NULL, '' WHERE %(other)s <> ''",
}


async def forge_decision(range_: Range, what: str) -> int:
    """Write a decision into the database, made up or somebody else's."""
    other = await range_.approved()
    call_id = await range_.submit()
    assert await range_.sql(
        "INSERT INTO approvals (call_id, tenant_id, binding, approve, decided_by, decided_at,"
        f" holds_until, closes, reason, seal) {DECISIONS[what]}",
        id=call_id,
        other=other,
        binding=await range_.binding(call_id),
    )
    await range_.sql(
        "UPDATE calls SET state = 'queued', decided_by = 'key:boss' WHERE id = %(id)s", id=call_id
    )
    await range_.deliver(call_id)
    await range_.deliver(other)
    return 1  # the other one, which was approved


async def forge_row(range_: Range, what: str) -> int:
    """Copy an approved call into a new row, which says that it is approved."""
    other = await range_.approved()
    call_id = str(uuid.uuid4())
    state = "'queued'" if what == "as it was" else "'running'"
    decided = "NULL" if what == "undecided" else "decided_by"
    columns = (
        "run_id, tenant_id, actor, tool, server_name, server_version_id, tool_version_id,"
        " delivery, call_timeout_s, arguments, arguments_digest, deadline_at, deadline_s"
    )
    assert await range_.sql(
        f"INSERT INTO calls (id, {columns}, state, decided_by) SELECT %(id)s, {columns}, {state},"
        f" {decided} FROM calls WHERE id = %(other)s",
        id=call_id,
        other=other,
    )
    await range_.deliver(call_id)
    return 0


# -- an approval is used again, or too late

RESETS = {
    "queued": "state = 'queued', ended_at = NULL",
    "with nothing left": "state = 'queued', ended_at = NULL, fence = 0, attempts = 0,"
    " worker_id = NULL, started_at = NULL, result = NULL",
    "decided anew": "state = 'queued', ended_at = NULL, decided_at = now(),"
    " deadline_at = now() + interval '1 h'",
    "as a read": "state = 'queued', ended_at = NULL, delivery = 'read'",
    "waiting": "state = 'awaiting_approval', ended_at = NULL, decided_by = NULL",
    "no reset": "state = state",
}


async def replay(range_: Range, what: str) -> int:
    """Run an approved call, and have it run once more."""
    call_id = await range_.submit()
    seen = await range_.binding(call_id)
    await range_.approve(call_id, seen)
    await range_.deliver(call_id)
    assert await range_.sql(f"UPDATE calls SET {RESETS[what]} WHERE id = %(id)s", id=call_id)
    await range_.approve(call_id, seen)
    for _ in range(2):
        await range_.deliver(call_id)
    return 1


async def expire(range_: Range, holds: str) -> int:
    """Use an approval that holds no more."""
    call_id = await range_.submit()
    verdict = Verdict(call_id, await range_.binding(call_id), approve=True)
    await approvals.decide(
        range_.api.database,
        SEALER,
        verdict,
        actor="key:boss",
        holds=timedelta(seconds=float(holds)),
    )
    await range_.deliver(call_id)
    assert "expired" in await range_.events(call_id)
    await range_.sql(
        "UPDATE calls SET state = 'queued', ended_at = NULL WHERE id = %(id)s", id=call_id
    )
    await range_.deliver(call_id)
    return 0


# -- somebody approves who may not

PEOPLE = {
    "another tenant's approver": ("approver", "globex", 404),
    "the tenant": ("tenant", "acme", 403),
    "another tenant": ("tenant", "globex", 403),
    "an auditor": ("auditor", None, 403),
    "the tenant's auditor": ("auditor", "acme", 403),
    "nobody": (None, None, 401),
    "an unknown key": ("unknown", None, 401),
    "an expired key": ("expired", None, 401),
}


async def wrong_approver(range_: Range, who: str) -> int:
    """Have somebody approve who may not, one by one and in bulk."""
    role, tenant, status = PEOPLE[who]
    call_id = await range_.submit()
    binding = await range_.binding(call_id)
    key = {"unknown": "tf_unknown"}.get(role or "")
    if role == "expired":
        key = await range_.api.key("approver", None, lifetime=-HOUR)
    elif role is not None and key is None:
        key = await range_.api.key(role, tenant)
    async with range_.api.client(key) as somebody:
        one = await somebody.post(f"/v1/approvals/{call_id}/approve", json={"binding": binding})
        decision = {"id": call_id, "binding": binding, "approve": True}
        many = await somebody.post("/v1/approvals/decide", json={"decisions": [decision]})
    assert one.status_code == status, one.text
    assert many.status_code == status or "error" in many.json()["results"][0]
    await range_.deliver(call_id)
    return 0


async def own_call(range_: Range, role: str) -> int:
    """Approve one's own call: of one's own run, and in somebody else's."""
    async with range_.api.client(await range_.api.key(role, None)) as somebody:
        run = (await somebody.post("/v1/runs", json={"tenant": "acme"})).json()
        for run_id in (run["id"], range_.runs["acme"]["id"]):
            body = {"tool": "gate_say", "arguments": {"text": "mine"}}
            call = (await somebody.post(f"/v1/runs/{run_id}/calls", json=body)).json()
            binding = {"binding": await range_.binding(call["id"])}
            answer = await somebody.post(f"/v1/approvals/{call['id']}/approve", json=binding)
            assert answer.status_code == 403, answer.text
            await range_.deliver(call["id"])
    return 0


# -- the tool goes by another name

NAMES = (
    "say", "SAY", "Gate_say", "GATE_SAY", "gate_SAY", "gate_say ", " gate_say", "gate_say\n",
    "gate-say", "gate.say", "gate/say", "gate:say", "gate__say", "gate_gate_say", "plain_gate_say",
    "gate_s\u0430y", "gate_\uff53ay", "\u0262ate_say", "gate_say\u200b", "gate_sa\u00ads",
    "\uff47ate\uff3fsay", "gate_say%00", "gate_say\\u0000", "../gate_say", "gate%5Fsay",
    "tools/gate_say", "mcp.gate.say", "gate_say@1", "", "*", "gate_*", "null", "find_tools",
    "call_tool",
)  # fmt: skip


async def rename(range_: Range, name: str) -> int:
    """Submit under a name that is not quite the tool's."""
    for run_id in (range_.runs["acme"]["id"], (await _search_run(range_))["id"]):
        for body in (
            {"tool": name, "arguments": {"text": "renamed"}},
            {"tool": "call_tool", "arguments": {"name": name, "arguments": {"text": "renamed"}}},
        ):
            await _submit_at_will(range_, run_id, body)
    return 0


async def through_call_tool(range_: Range, more: str) -> int:
    """Call the gated tool through `call_tool`."""
    run = await _search_run(range_)
    arguments = {"name": "gate_say", "arguments": {"text": more}}
    await _submit_at_will(range_, run["id"], {"tool": "call_tool", "arguments": arguments})
    return 0


async def _search_run(range_: Range) -> dict[str, Any]:
    if "search" not in range_.runs:
        answer = await range_.agents["acme"].post("/v1/runs", json={"exposure": "search"})
        range_.runs["search"] = answer.json()
    return range_.runs["search"]


async def _submit_at_will(
    range_: Range, run_id: str, body: Any, headers: dict[str, str] | None = None
) -> None:
    """Submit anything; whatever becomes a call of a server is delivered at once."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = await range_.agents["acme"].post(
        f"/v1/runs/{run_id}/calls", content=content, headers={**JSON, **(headers or {})}
    )
    assert answer.status_code < 500, answer.text
    if answer.status_code == 202:
        assert answer.json()["state"] == "awaiting_approval", answer.text
        for server in ("gate", "plain"):
            await range_.deliver(answer.json()["id"], server)


# -- headers and bodies that say two things

HEADERS = {
    "name": {"Mcp-Name": "plain_say"},
    "names": {"Mcp-Name": "gate_pid", "Mcp-Method": "tools/call"},
    "method": {"Mcp-Method": "tools/list"},
    "tool": {"X-Tool": "gate_pid", "Tool": "gate_pid"},
    "tenant": {"X-Tenant": "globex", "X-Toolfleet-Tenant": "globex"},
    "approved": {"X-Approved": "true", "X-Approval": "true", "Approved-By": "boss"},
    "override": {"X-HTTP-Method-Override": "PUT", "X-Original-URL": "/v1/runs", "Via": "x"},
    "session": {"Mcp-Session-Id": "1", "MCP-Protocol-Version": "2024-11-05"},
    "delivery": {"X-Delivery": "read", "Prefer": "wait=0, handling=lenient"},
    "key": {"Idempotency-Key": "header"},
}


async def mislead_by_headers(range_: Range, what: str) -> int:
    """Name another tool in the headers than in the body."""
    body = {"tool": "gate_say", "arguments": {"text": what}}
    await _submit_at_will(range_, range_.runs["acme"]["id"], body, HEADERS[what])
    call_id = await range_.submit()
    wrong = {"binding": "0" * 64}
    answer = await range_.approver.post(
        f"/v1/approvals/{call_id}/approve", json=wrong, headers=HEADERS[what]
    )
    assert answer.status_code == 409, answer.text
    await range_.deliver(call_id)
    return 0


BODIES = {
    "tool": b'{"tool":"gate_pid","tool":"gate_say","arguments":{"text":"twice"}}',
    "tool, the other way": b'{"tool":"gate_say","arguments":{"text":"twice"},"tool":"plain_pid"}',
    "tool, escaped": b'{"tool":"gate_pid","t\\u006fol":"gate_say","arguments":{"text":"twice"}}',
    "arguments": b'{"tool":"gate_say","arguments":{"text":"a"},"arguments":{"text":"b"}}',
    "an argument": b'{"tool":"gate_say","arguments":{"text":"a","text":"b"}}',
    "an argument, escaped": b'{"tool":"gate_say","arguments":{"text":"a","\\u0074ext":"b"}}',
    "an argument, deep": b'{"tool":"gate_say","arguments":{"text":{"a":1,"a":2}}}',
    "in another case": b'{"tool":"gate_pid","Tool":"gate_say","arguments":{"text":"x"}}',
    "approved": b'{"tool":"gate_say","arguments":{"text":"x"},"approved":true}',
    "state": b'{"tool":"gate_say","arguments":{"text":"x"},"state":"queued"}',
    "a list": b'[{"tool":"gate_say","arguments":{"text":"x"}}]',
    "UTF-16": '{"tool":"gate_say","arguments":{"text":"x"}}'.encode("utf-16"),
    "a mark": b'\xef\xbb\xbf{"tool":"gate_say","arguments":{"text":"x"}}',
    "two values": b'{"tool":"gate_pid"}{"tool":"gate_say","arguments":{"text":"x"}}',
    "NaN": b'{"tool":"gate_say","arguments":{"text":NaN}}',
}


async def say_twice(range_: Range, what: str) -> int:
    """Submit a body that can be read in two ways."""
    await _submit_at_will(range_, range_.runs["acme"]["id"], BODIES[what])
    return 0


VERDICTS = {
    "approve": '{"decisions":[{"id":"%s","binding":"%s","approve":false,"approve":true}]}',
    "binding": '{"decisions":[{"id":"%s","binding":"'
    + "0" * 64
    + '","binding":"%s","approve":true}]}',
    "id": '{"decisions":[{"id":"' + NOBODY + '","id":"%s","binding":"%s","approve":true}]}',
    "decisions": '{"decisions":[],"decisions":[{"id":"%s","binding":"%s","approve":true}]}',
    "text": '{"decisions":[{"id":"%s","binding":"%s","approve":"true"}]}',
    "a number": '{"decisions":[{"id":"%s","binding":"%s","approve":1}]}',
    "more": '{"decisions":[{"id":"%s","binding":"%s","approve":true,"actor":"key:boss"}]}',
    "upper case": '{"decisions":[{"ID":"%s","binding":"%s","approve":true}]}',
}


async def decide_twice(range_: Range, what: str) -> int:
    """Decide by a body that can be read in two ways."""
    call_id = await range_.submit()
    content = VERDICTS[what] % (call_id, await range_.binding(call_id))
    answer = await range_.approver.post("/v1/approvals/decide", content=content, headers=JSON)
    assert answer.status_code == 422, answer.text
    await range_.deliver(call_id)
    return 0


async def reuse_key(range_: Range, what: str) -> int:
    """Submit again under the idempotency key of an approved call, with something else in it."""
    key = uuid.uuid4().hex
    text = uuid.uuid4().hex
    call_id = await range_.approved(idempotency_key=key, arguments={"text": text})
    other: dict[str, Any] = {
        "other arguments": {"tool": "gate_say", "arguments": {"text": "other"}},
        "more arguments": {"tool": "gate_say", "arguments": {"text": text, "more": 1}},
        "another tool": {"tool": "plain_say", "arguments": {"text": text}},
        "the same": {"tool": "gate_say", "arguments": {"text": text}},
    }[what]
    path = f"/v1/runs/{range_.runs['acme']['id']}/calls"
    answer = await range_.agents["acme"].post(path, json={**other, "idempotency_key": key})
    if what == "the same":
        assert answer.json()["id"] == call_id
    else:
        assert answer.status_code == 422, answer.text
    for _ in range(2):
        await range_.deliver(call_id)
    assert text in range_.effects()[-1]
    return 1


# -- other ways in


async def tighten(range_: Range, how: str) -> int:
    """Submit a call that needs no approval; then its class, or its tenant's tier, comes to."""
    tenant = f"t{uuid.uuid4().hex[:8]}"
    async with range_.api.client(await range_.api.key("tenant", tenant)) as agent:
        run = (await agent.post("/v1/runs", json={})).json()
        body = {"tool": "plain_say", "arguments": {"text": tenant}}
        call = (await agent.post(f"/v1/runs/{run['id']}/calls", json=body)).json()
        assert call["state"] == "queued"
    access = "deny" if how == "denied" else "approve"
    await range_.api.http.put(f"/v1/tiers/{tenant}", json={"classes": {"write": access}})
    await range_.api.http.put(f"/v1/tenants/{tenant}", json={"tier": tenant})
    if how == "decided":
        await range_.sql("UPDATE calls SET decided_by = 'key:x' WHERE id = %(id)s", id=call["id"])
    if how == "as a read":
        await range_.sql("UPDATE calls SET delivery = 'read' WHERE id = %(id)s", id=call["id"])
    await range_.deliver(call["id"], "plain")
    return 0


async def submit_raw(range_: Range, how: str) -> int:
    """Submit as a raw Celery client does, and forge the message that the fleet does not send."""
    task_id = str(uuid.uuid4())
    token = range_.runs["acme"]["run_token"]
    tool = {"upper": "GATE_SAY", "plain": "say"}.get(how, "gate_say")
    try:
        await range_.steward.submit(task_id, token, tool, {"text": how}, None, None)
    except FleetError:
        assert tool != "gate_say"
    if how == "again":
        await range_.steward.submit(task_id, token, tool, {"text": how}, None, None)
    await range_.deliver(task_id)
    if tool == "gate_say":
        assert "message_refused" in await range_.events(task_id)
    return 0


async def forge_message(range_: Range, what: str) -> int:
    """Put a message about a call that may not run before a worker; it is noted in the audit."""
    call_id = await range_.submit()
    server = "gate"
    if what == "denied":
        body = {"binding": await range_.binding(call_id)}
        await range_.approver.post(f"/v1/approvals/{call_id}/deny", json=body)
    elif what == "stopped":
        await range_.agents["acme"].post(f"/v1/calls/{call_id}/cancel")
    elif what == "expired":
        await range_.sql(
            "UPDATE calls SET deadline_at = now() - interval '1 s' WHERE id = %(id)s", id=call_id
        )
        await range_.steward.expire()
    elif what == "another tenant's":
        call_id = await range_.submit("globex")
    elif what == "another server's":
        call_id, server = await range_.approved(), "plain"
    before = await range_.events(call_id)
    for _ in range(2):
        assert await range_.deliver(call_id, server) in (None, "stopped", "expired")
    assert await range_.events(call_id) == [*before, "message_refused", "message_refused"]
    return 0


UNKNOWN = (NOBODY, NOBODY.upper(), "", "0", "x" * 10_000, "'; DROP TABLE calls; --", "%", "null")


async def forge_unknown(range_: Range, call_id: str) -> int:
    """Put a message about no call before a worker."""
    assert await range_.deliver(call_id) is None
    return 0


Family = tuple[Callable[[Range, str], Awaitable[int]], tuple[str, ...]]
FAMILIES: dict[str, Family] = {
    "changed after approval": (change, tuple(CHANGES)),
    "changed before approval": (change_before, tuple(CHANGES)),
    "changed around it": (change_around, tuple(AROUND)),
    "forged state": (forge_state, tuple(FORGERIES)),
    "forged after denial": (forge_denied, tuple(FORGERIES)),
    "forged decision": (forge_decision, tuple(DECISIONS)),
    "forged row": (forge_row, ("as it was", "undecided", "running")),
    "replayed": (replay, tuple(RESETS)),
    "expired": (expire, ("0", "-1", "-3600", "0.000001")),
    "wrong approver": (wrong_approver, tuple(PEOPLE)),
    "own call": (own_call, ("operator",)),
    "renamed": (rename, NAMES),
    "through call_tool": (through_call_tool, ("once", "again")),
    "headers": (mislead_by_headers, tuple(HEADERS)),
    "duplicate keys": (say_twice, tuple(BODIES)),
    "duplicate decisions": (decide_twice, tuple(VERDICTS)),
    "idempotency key": (
        reuse_key,
        ("other arguments", "more arguments", "another tool", "the same"),
    ),
    "tightened": (tighten, ("approve", "denied", "decided", "as a read")),
    "raw Celery": (submit_raw, ("once", "again", "upper", "plain")),
    "forged message": (
        forge_message,
        ("waiting", "denied", "stopped", "expired", "another tenant's", "another server's"),
    ),
    "unknown call": (forge_unknown, UNKNOWN),
}


async def attack(range_: Range, rounds: int, *, each: int | None = None) -> None:
    """Do the variants of every family, or some, so many times; approved calls run between."""
    for _ in range(rounds):
        for name, (doing, variants) in FAMILIES.items():
            for variant in variants[:each]:
                await range_.attack(name, variant, doing(range_, variant))
            await range_.attack("approved", name, _approved(range_))


async def _approved(range_: Range) -> int:
    """Run an approved call: the journal shows it, so the journal can be believed."""
    assert await range_.deliver(await range_.approved()) == "succeeded"
    return 1
