"""A hundred tenants with a credential each share servers: whose it was, and where it never is."""

from __future__ import annotations

import asyncio
import json
import random
import re
import secrets
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis.asyncio import Redis
from sqlalchemy import text

from registry import catalog, ingest
from registry.definitions import parse_definition
from tests.fleet.driver import LIMIT_S, SERVERS, Fleet
from tests.ledger import listed
from tests.requirements import requirement
from tests.waiting import until
from workers.client import PROGRESS_CHANNEL
from workers.mark import marked

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(150)]

SCRIPT = str(SERVERS / "canary.py")
TENANTS = [f"tenant-{number}" for number in range(100)]
FEW = TENANTS[:10]
LEAKS = (
    "text",
    "large",
    "json",
    "structured",
    "error",
    "refusal",
    "long-refusal",
    "death",
    "flood",
)
CALLS_EACH = 3
AT_ONCE = 16
META_NAME = "io.example/token"


class Credentials:
    """The file that the operator writes, and every secret that was ever in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ever: set[str] = set()
        self._now: dict[str, dict[str, str]] = {}

    def give(self, tenant: str, server: str, scheme: str = "") -> str:
        """Make a new secret for a tenant and a server; return it."""
        secret = scheme + "kanari" + secrets.token_hex(20)
        self.ever.add(secret)
        self._now.setdefault(tenant, {})[server] = secret
        return secret

    def write(self) -> None:
        fresh = self.path.with_suffix(".new")
        fresh.touch(mode=0o600)
        fresh.write_text(json.dumps(self._now))
        fresh.replace(self.path)

    def rotate(self, tenant: str, server: str) -> str:
        """Replace one secret in the file; return the new one."""
        secret = self.give(tenant, server)
        self.write()
        return secret

    def hash(self, tenant: str, server: str) -> str:
        return sha256(self._now[tenant][server].encode()).hexdigest()

    def found_in(self, contents: str | bytes) -> set[bytes]:
        """Return the beginnings and ends of secrets that are in what was written somewhere."""
        data = contents.encode() if isinstance(contents, str) else contents
        bare = [secret.rpartition(" ")[2].encode() for secret in self.ever]
        pieces = {piece for secret in bare for piece in (secret[:14], secret[-12:])}
        return set(re.findall(b"|".join(pieces), data))


@dataclass
class Story:
    """What was called, and what came back or was to be seen from outside meanwhile."""

    fleet: Fleet
    credentials: Credentials
    tenants: list[str]
    seen: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    """The credentials' hashes that a tenant's calls of a server saw."""
    served: dict[str, set[str]] = field(default_factory=dict)
    """The tenants whose calls each session of the server `many` answered."""
    answers: list[dict[str, Any]] = field(default_factory=list)
    leaks: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    progress: list[bytes] = field(default_factory=list)
    command_lines: set[str] = field(default_factory=set)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    gate: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))

    async def call(self, tenant: str, tool: str, **arguments: Any) -> dict[str, Any]:
        async with self.gate:
            if tenant not in self.runs:
                self.runs[tenant] = await self.fleet.run(tenant)
            call = await self.fleet.call(self.runs[tenant], tool, **arguments)
        self.answers.append(call)
        return call

    async def fingerprint(self, tenant: str, server: str) -> dict[str, Any]:
        """Return the hash of the credential that a call sees, and the session it is made in."""
        call = await self.call(tenant, f"{server}_fingerprint")
        assert call["state"] == "succeeded", call["error"]
        seen: dict[str, Any] = json.loads(call["result"]["content"][0]["text"])
        self.seen.setdefault((tenant, server), []).append(seen["sha256"])
        if server == "many":
            self.served.setdefault(seen["session"], set()).add(tenant)
        return seen

    async def leak(self, tenant: str, server: str, how: str) -> None:
        call = await self.call(tenant, f"{server}_leak", how=how)
        self.leaks.setdefault(how, []).append(call)

    def look_at_processes(self) -> None:
        for process in psutil.process_iter(["cmdline"]):
            self.command_lines.add(" ".join(process.info["cmdline"] or ()))


def stdio(name: str, inject: str = "env", *flags: str, **rest: Any) -> dict[str, Any]:
    variable = META_NAME if inject == "meta" else "TOKEN"
    return {
        "name": name,
        "transport": "stdio",
        "command": sys.executable,
        "args": ["-I", "-S", SCRIPT, "--name", variable, *flags],
        "credentials": {"inject": inject, "name": variable, "required": True},
        "tools": {"fingerprint": {"delivery": "read"}},
        "pool": {"max_size": 4},
        "breaker": {"minimum_calls": 1_000_000},  # dying is what some of these calls are for
        **rest,
    }


@asynccontextmanager
async def web(name: str, inject: str, variable: str) -> AsyncIterator[dict[str, Any]]:
    """Run a server over HTTP; yield its definition."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", SCRIPT, "--name", variable, "--http", "0",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(LIMIT_S):
            port = int(await process.stdout.readline())
        definition = stdio(name, inject)
        del definition["command"], definition["args"]
        how = {"inject": inject, "name": variable, "required": True}
        where = {"url": f"http://127.0.0.1:{port}/mcp", "networks": ["127.0.0.0/8"]}
        yield {**definition, "transport": "http", **where, "credentials": how}
    finally:
        process.kill()
        await process.wait()


def give_out(credentials: Credentials, tenants: list[str]) -> None:
    for tenant in tenants:
        credentials.give(tenant, "many")
    for tenant in FEW:
        credentials.give(tenant, "header", scheme="Bearer ")
        credentials.give(tenant, "meta")
    for tenant in TENANTS[:2]:
        credentials.give(tenant, "leaky")
        credentials.give(tenant, "stillborn")
    for tenant in TENANTS[:4]:
        credentials.give(tenant, "steady")
    credentials.give("*", "steady")
    credentials.write()


@pytest.fixture(
    scope="module",
    params=[24, pytest.param(len(TENANTS), marks=pytest.mark.long)],
    ids="{}-tenants".format,
)
async def story(empty_fleet: Fleet, request: pytest.FixtureRequest) -> AsyncIterator[Story]:
    """Everything that these tests look at: every call was made, and has ended."""
    fleet, tenants = empty_fleet, TENANTS[: request.param]
    credentials = Credentials(fleet.credentials_file)
    give_out(credentials, tenants)
    async with AsyncExitStack() as stack:
        await fleet.serve(
            stdio("many"),
            stdio("leaky", pool={"max_size": 4, "rebuild_per_s": 100}),
            stdio("steady", pool={"max_size": 8}),
            await stack.enter_async_context(web("header", "header", "authorization")),
            await stack.enter_async_context(web("meta", "meta", META_NAME)),
        )
        await serve_stillborn(fleet)
        story = Story(fleet, credentials, tenants)
        async with Redis.from_url(fleet.local.redis_url) as redis, redis.pubsub() as pubsub:
            await pubsub.psubscribe(PROGRESS_CHANNEL + "*")
            await make_calls(story)
            while message := await pubsub.get_message(timeout=0.2):
                if message["type"] == "pmessage":
                    story.progress.append(message["data"])
        yield story


async def serve_stillborn(fleet: Fleet) -> None:
    """Register a server that never starts, with the tools it would have."""
    definition = parse_definition(stdio("stillborn", "env", "--stillborn"))
    version = await catalog.add_server(fleet.database, definition, actor="test")
    await ingest.ingest(fleet.database, version, definition, [listed("leak")])
    await fleet.local.wait_ready(["stillborn"])


async def make_calls(story: Story) -> None:
    wanted = [
        *((tenant, "many") for tenant in story.tenants),
        *((tenant, server) for tenant in FEW for server in ("header", "meta")),
    ] * CALLS_EACH
    random.shuffle(wanted)
    half = len(wanted) // 2
    await asyncio.gather(*(story.fingerprint(*each) for each in wanted[:half]))
    story.look_at_processes()
    await asyncio.gather(*(story.fingerprint(*each) for each in wanted[half:]))
    for tenant in TENANTS[:2]:
        await asyncio.gather(
            *(story.leak(tenant, "leaky", how) for how in LEAKS),
            story.leak(tenant, "leaky", "progress"),
            *(story.leak(tenant, "header", how) for how in ("text", "refusal", "structured")),
            *(story.leak(tenant, "meta", how) for how in ("text", "refusal")),
            story.leak(tenant, "stillborn", "birth"),
        )
        story.look_at_processes()


# -- whose credential


@requirement("credentials:own", "credentials:scope")
async def test_every_call_of_many_tenants_sees_its_own_credential_and_no_other(
    story: Story,
) -> None:
    expected = {
        (tenant, server): [story.credentials.hash(tenant, server)] * CALLS_EACH
        for tenant, server in story.seen
        if server != "steady"
    }
    assert {of: seen for of, seen in story.seen.items() if of in expected} == expected
    assert len(expected) == len(story.tenants) + 2 * len(FEW)


@requirement("credentials:scope")
async def test_no_session_ever_serves_two_tenants(story: Story) -> None:
    assert len(story.served) >= len(story.tenants)
    assert {one: tenants for one, tenants in story.served.items() if len(tenants) > 1} == {}


@requirement("credentials:shared")
async def test_tenants_without_a_credential_use_the_shared_one_in_a_warm_session(
    story: Story,
) -> None:
    first = await story.fingerprint("tenant-8", "steady")
    second = await story.fingerprint("tenant-9", "steady")
    assert first == second
    assert first["sha256"] == story.credentials.hash("*", "steady")
    assert [call["timings"]["spawned"] for call in story.answers[-2:]] == [False, False]


@requirement("credentials:missing")
async def test_a_tenant_without_a_required_credential_is_told_so(story: Story) -> None:
    call = await story.call("stranger", "many_fingerprint")
    assert (call["state"], call["error"]["code"]) == ("failed", "credential_missing")
    assert call["error"]["retryable"] is False
    assert "tenant 'stranger' for server many" in call["error"]["message"]


# -- rotation


@requirement("credentials:rotation")
async def test_a_rotation_recycles_the_sessions_of_that_tenant_alone(story: Story) -> None:
    tenants, rotated = TENANTS[:4], TENANTS[2]
    before = {tenant: await story.fingerprint(tenant, "steady") for tenant in tenants}
    secret = story.credentials.rotate(rotated, "steady")
    after = {tenant: await story.fingerprint(tenant, "steady") for tenant in tenants}
    others = [tenant for tenant in tenants if tenant != rotated]
    assert [after[tenant] for tenant in others] == [before[tenant] for tenant in others]
    assert after[rotated]["session"] != before[rotated]["session"]
    assert after[rotated]["sha256"] == sha256(secret.encode()).hexdigest()


def lives(session: str) -> bool:
    return bool(list(marked(lambda mark: str(mark) == session)))


@requirement("credentials:rotation")
async def test_an_idle_session_with_the_old_credential_goes_without_a_call(story: Story) -> None:
    idle = await story.fingerprint("tenant-0", "steady")
    beside = await story.fingerprint("tenant-1", "steady")
    story.credentials.rotate("tenant-0", "steady")
    await until(lambda: not lives(idle["session"]))
    assert lives(beside["session"])


# -- where it is not


def texts(calls: Iterable[dict[str, Any]]) -> list[str]:
    """Return what each call was answered with, as one text."""
    return [json.dumps([call["result"], call["error"]]) for call in calls]


@requirement("credentials:scrubbed")
@pytest.mark.parametrize("how", [*LEAKS, "birth"])
async def test_what_a_server_repeats_of_it_is_replaced(story: Story, how: str) -> None:
    answers = texts(story.leaks[how])
    if how == "long-refusal":  # cut off after the place where the credential was
        assert {"[credential" in answer for answer in answers} == {True}
    else:
        assert {"[credential]" in answer for answer in answers} == {True}
    assert story.credentials.found_in("".join(answers)) == set()


@requirement("credentials:scrubbed")
async def test_a_credential_in_a_progress_message_is_replaced(story: Story) -> None:
    assert b"using [credential]" in b"".join(story.progress)
    assert story.credentials.found_in(b"".join(story.progress)) == set()


@requirement("credentials:secret")
async def test_no_answer_has_it(story: Story) -> None:
    answers = json.dumps(story.answers)
    assert len(story.answers) > CALLS_EACH * len(story.tenants)
    assert story.credentials.found_in(answers) == set()


@requirement("credentials:secret")
async def test_no_row_of_any_table_has_it(story: Story) -> None:
    async with story.fleet.database.transaction() as connection:
        await connection.execute(text("SET LOCAL bytea_output = 'escape'"))
        tables = await connection.execute(
            text("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
        )
        rows = [
            row
            for (table,) in tables.all()
            for (row,) in await connection.execute(text(f'SELECT t::text FROM "{table}" t'))
        ]
    dump = "\n".join(rows)
    assert "fatal: [credential] was not accepted" in dump
    assert "the end of it is [credential]" in dump
    assert story.credentials.found_in(dump) == set()


@requirement("credentials:secret")
async def test_no_key_in_redis_has_it(story: Story) -> None:
    async with (
        Redis.from_url(story.fleet.local.redis_url) as redis,
        story.fleet.without("worker:many"),
    ):
        queued = await story.fleet.submit(story.runs["tenant-5"], "many_fingerprint")
        await until(lambda: redis.llen("mcp.many"))
        contents = [await content(redis, key) async for key in redis.scan_iter()]
    assert queued in "".join(contents)
    assert story.credentials.found_in("".join(contents)) == set()
    assert (await story.fleet.ended(queued))["state"] == "succeeded"


async def content(redis: Redis, key: bytes) -> str:
    """Return a key's name and all it holds, whatever its type."""
    kind = (await redis.type(key)).decode()
    read = {
        "string": lambda: redis.get(key),
        "list": lambda: redis.lrange(key, 0, -1),
        "hash": lambda: redis.hgetall(key),
        "set": lambda: redis.smembers(key),
        "zset": lambda: redis.zrange(key, 0, -1),
        "stream": lambda: redis.xrange(key),
    }
    return f"{key!r}: {await read[kind]()}"


@requirement("credentials:secret")
async def test_no_log_of_any_process_has_it(story: Story) -> None:
    logs = list((story.fleet.local.folder.path / "logs").iterdir())
    assert {"worker-many.log", "worker-leaky.log", "api.log"} <= {log.name for log in logs}
    await story.fleet.http.post("/v1/servers/stillborn/refresh")
    failing = next(log for log in logs if log.name == "worker-stillborn.log")
    await until(lambda: b"cannot log in with [credential]" in failing.read_bytes())
    everything = b"".join(log.read_bytes() for log in logs)
    assert story.credentials.found_in(everything) == set()


@requirement("credentials:secret")
async def test_no_command_line_of_any_process_has_it(story: Story) -> None:
    assert [line for line in story.command_lines if SCRIPT in line]
    assert story.credentials.found_in("\n".join(story.command_lines)) == set()


@requirement("credentials:secret")
async def test_neither_flower_nor_the_metrics_have_it(story: Story) -> None:
    tasks = (await story.fleet.flower.get("/api/tasks")).text
    metrics = (await story.fleet.http.get("/metrics")).text
    assert "many_fingerprint" in tasks
    assert 'server="many"' in metrics
    assert story.credentials.found_in(tasks + metrics) == set()


@requirement("credentials:secret")
async def test_a_search_for_it_would_find_it(story: Story) -> None:
    file = story.credentials.path.read_text()
    assert len(story.credentials.found_in(file)) >= 2 * (len(story.tenants) + 2 * len(FEW))
