"""Fifty planted secrets, driven through every way of failing, and searched for where they are not.

Servers betray what they were trusted with in every way a server has, callers put keys where they
do not belong, Postgres and Redis are away with passwords in their URLs. Then every sink is read:
logs, Redis and what was said to it, argument lists, environments, answers, tables, Flower, metrics.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Final

import httpx2
import psutil
import pytest
from celery import Celery
from redis.asyncio import Redis
from sqlalchemy import text

from registry import catalog, ingest
from registry.definitions import parse_definition
from registry.key_file import KeyFile
from tests.fleet.driver import ENVIRONMENT, LIMIT_S, SERVERS, Fleet, running
from tests.ledger import listed
from tests.requirements import requirement
from tests.security.canaries import Canaries
from tests.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.long, pytest.mark.timeout(400)]

SCRIPT: Final = str(SERVERS / "betrayer.py")
ON_STDIO: Final = (
    *("text", "json", "structured", "error", "large", "no_content", "link", "meta", "input"),
    *("refusal", "crash", "stderr", "death", "silence", "garbage", "half", "misfit", "log"),
    "progress",
)
OVER_HTTP: Final = (
    *("text", "structured", "large", "refusal", "http_401", "http_403", "http_404"),
    *("http_500", "redirect", "garbage", "kind", "bad_event", "cut", "input", "no_content"),
)
FEW: Final = ("text", "refusal", "death")
WELL_KNOWN: Final = {
    "a GitHub token": "ghp_" + "kanariGitHub0123456789abcdefghijklmn",
    "an AWS key": "AKIA" + "KANARIAWS0123456",
    "a Slack token": "xoxb-" + "kanari-1234567890-abcdefghij",
    "an OpenAI key": "sk-" + "kanari0123456789abcdefghijklm",
    "a JWT": "eyJhbGciOiJIUzI1NiJ9.eyJrYW5hcmkiOiJqd3QifQ.c2lnbmF0dXJlb2ZrYW5hcmk",
}
"""Tokens of well-known make, which no server was trusted with and which results carry anyway."""


@dataclass
class Story:
    """A fleet, the secrets in it, and everything that was to be seen of it from outside."""

    fleet: Fleet
    folder: Path
    canaries: Canaries = field(default_factory=Canaries)
    sinks: dict[str, bytes] = field(default_factory=dict)
    environments: dict[str, dict[str, str]] = field(default_factory=dict)
    """The environment of each process, by what it is."""

    def see(self, sink: str, contents: str | bytes) -> None:
        data = contents.encode() if isinstance(contents, str) else contents
        self.sinks[sink] = self.sinks.get(sink, b"") + data + b"\n"

    async def note(self, answer: httpx2.Response) -> None:
        """Keep an answer as a sink (a hook of the HTTP clients)."""
        await answer.aread()
        said = f"{answer.status_code} {dict(answer.headers)} {answer.text}"
        self.see(f"answers to {answer.request.method} {answer.request.url.path}", said)


def betrayer(name: str, inject: str, variable: str, *flags: str, **rest: Any) -> dict[str, Any]:
    return {
        "name": name,
        "transport": "stdio",
        "command": sys.executable,
        "args": ["-I", SCRIPT, *flags],
        "credentials": {"inject": inject, "name": variable, "required": True},
        "tools": {"tell": {"delivery": "read", "timeout_s": 1}},
        "pool": {"max_size": 4, "min_idle": 0, "rebuild_per_s": 100},
        "breaker": {"minimum_calls": 1_000_000, "consecutive_timeouts": 1_000},
        **rest,
    }


@asynccontextmanager
async def web() -> AsyncIterator[str]:
    """Run a betrayer over HTTP; yield its address."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", SCRIPT, "--http", "0", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(LIMIT_S):
            port = int(await process.stdout.readline())
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        await process.wait()


def remote(name: str, url: str, **rest: Any) -> dict[str, Any]:
    definition = betrayer(name, "header", "authorization", **rest)
    del definition["command"], definition["args"]
    return {**definition, "transport": "http", "url": url, "networks": ["127.0.0.0/8"]}


# -- planting

DEFINED: Final = ("the export",)
"""Where alone the secrets of a definition are: operators keep it as they keep those."""
_NUMBERS: Final = count()
RAW: Final = ("Redis", "what was said to Redis")
"""Where what a raw client submits is by its own doing."""


def credentials_of(canaries: Canaries) -> dict[str, dict[str, str]]:
    """Return a credentials file."""
    plant = canaries.plant
    tenants: dict[str, dict[str, str]] = {}
    for tenant in ("ann", "bob"):
        tenants[tenant] = {
            "by-env": plant(f"{tenant}'s credential by environment"),
            "by-header": plant(f"{tenant}'s credential by header", scheme="Bearer "),
            "by-meta": plant(f"{tenant}'s credential by _meta"),
            "stillborn": plant(f"{tenant}'s credential of a server that does not start"),
        }
    tenants["*"] = {
        "by-env": plant("the shared credential by environment"),
        "by-meta": plant("the shared credential by _meta"),
    }
    tenants["nobody"] = {"nothing": plant("a credential that nobody asks for")}
    return tenants


def variables(canaries: Canaries, server: str) -> dict[str, str]:
    """Return secrets that an operator puts into a server's environment."""
    plant = partial(canaries.plant, allowed=DEFINED)
    password = plant(f"the password within a URL of {server}")
    return {
        "API_KEY": plant(f"API_KEY of {server}"),
        "DB_PASSWORD": plant(f"DB_PASSWORD of {server}"),
        "SERVICE_TOKEN": plant(f"SERVICE_TOKEN of {server}"),
        "CLIENT_SECRET": plant(f"CLIENT_SECRET of {server}"),
        "DATABASE_URL": f"postgresql://app:{password}@127.0.0.1:5432/app",
        "MODE": "production",
    }


def headers(canaries: Canaries) -> dict[str, str]:
    """Return secrets that an operator puts into the headers of a server's requests."""
    plant = partial(canaries.plant, allowed=DEFINED)
    return {
        "x-api-key": plant("the header x-api-key"),
        "cookie": "session=" + plant("the header cookie"),
        "proxy-authorization": plant("the header proxy-authorization", scheme="Basic "),
        "x-tenant-token": plant("the header x-tenant-token"),
    }


@pytest.fixture(scope="module")
async def story(anyio_backend: str, folder: Path) -> AsyncIterator[Story]:
    """Everything that these tests look at: every attack was made, and every sink was read."""
    canaries = Canaries()
    file = folder / "credentials.json"
    file.touch(mode=0o600)
    file.write_text(json.dumps(credentials_of(canaries)))
    environment = {
        **ENVIRONMENT,
        "TOOLFLEET_MAX_RESULT_BYTES": "1000000",
        "TOOLFLEET_SECRET_KEY": canaries.plant("the key that signs run tokens"),
    }
    async with AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(
            running(folder, credentials_file=file, environment=environment)
        )
        story = Story(fleet, folder, canaries)
        canaries.plant("the operator's key", fleet.local.operator_key)
        redis_password = re.findall(r":([^:@]+)@", fleet.local.redis_url)[0]
        canaries.plant("the password of Redis", redis_password)
        address = await stack.enter_async_context(web())
        url_secret = canaries.plant("a key in a server's URL", allowed=DEFINED)
        await fleet.serve(
            betrayer("by-env", "env", "TOKEN", env=variables(canaries, "by-env")),
            betrayer("by-meta", "meta", "io.example/token"),
            remote("by-header", f"{address}/mcp?api_key={url_secret}", headers=headers(canaries)),
            within_s=60,
        )
        await serve_stillborn(story)
        fleet.http.event_hooks["response"].append(story.note)
        await store_credentials(story, address)
        async with Redis.from_url(fleet.local.redis_url) as redis, redis.monitor() as monitor:
            listening = asyncio.create_task(listen(story, monitor))
            await drive(story, broad=False)
            listening.cancel()
            await asyncio.wait([listening])
            await read_everything(story, redis)
        yield story


async def store_credentials(story: Story, address: str) -> None:
    """Have the fleet keep credentials: one as it is, one that is renewed, two that cannot be."""
    plant = story.canaries.plant
    client = {"id": "fleet", "secret": plant("the client's secret at a server that renews")}
    other = {"id": "fleet", "secret": plant("the client's secret at a server that tells")}
    refresh = plant("a refresh token")
    story.canaries.plant("an access token", refresh.replace("kanari", "kanari0"))
    story.canaries.plant("the next refresh token", refresh.replace("kanari", "kanari1"))
    renewed = {"kind": "oauth_refresh_token", "issuer": address}
    told = {"issuer": address, "token_endpoint": f"{address}/token/bad", "client": other}
    stored: dict[str, dict[str, Any]] = {
        "cy": {"kind": "static", "secret": plant("a stored secret")},
        "dan": {
            **renewed,
            "token_endpoint": f"{address}/token/good",
            "client": client,
            "refresh_token": refresh,
        },
        "eve": {**renewed, **told, "refresh_token": plant("a refresh token that is told")},
        "fay": {**told, "kind": "oauth_client_credentials"},
        "wrong": {**renewed, **told, "refresh_token": [plant("a token of the wrong type")]},
        "odd": {"kind": "static", "secret": plant("a secret with a control character") + "\x00"},
    }
    for tenant, document in stored.items():
        path = f"/v1/credentials/{tenant}/by-header"
        answer = await story.fleet.http.put(path, json=document)
        assert answer.status_code == (422 if tenant in {"wrong", "odd"} else 200), answer.text


async def serve_stillborn(story: Story) -> None:
    """Register a server that never starts, with the tool that it would have."""
    env = variables(story.canaries, "stillborn")
    document = betrayer("stillborn", "env", "TOKEN", "--stillborn", env=env)
    definition = parse_definition(document)
    keys = KeyFile(story.fleet.local.folder.encryption_keys_file())
    version = await catalog.add_server(story.fleet.database, definition, actor="test", keys=keys)
    await ingest.ingest(story.fleet.database, version, definition, [listed("tell")])
    await story.fleet.local.wait_ready(["stillborn"], 60)


async def listen(story: Story, monitor: Any) -> None:
    """Keep every command that Redis is given."""
    async for command in monitor.listen():
        story.see("what was said to Redis", str(command))


# -- what is done with them


async def drive(story: Story, *, broad: bool) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(betray(story, broad=broad))
        group.create_task(misplace(story))
        group.create_task(look_at_processes(story))
        group.create_task(lose_servers(story, EVERY_LOSS if broad else A_FEW_LOSSES))
    await submit_raw(story)


async def betray(story: Story, *, broad: bool) -> None:
    """Have every server tell its secrets in every way, to both tenants."""
    gate = asyncio.Semaphore(8)

    async def tell(run: dict[str, Any], server: str, how: str) -> None:
        async with gate:
            also = " ".join(WELL_KNOWN.values())
            arguments = {"how": how, **({"also": also} if how == "text" else {})}
            answer = await story.fleet.ask(
                run, f"{server.replace('-', '_')}_tell", wait_s=LIMIT_S, **arguments
            )
            assert answer.json()["ended_at"], answer.text

    for tenant in ("ann", "bob"):
        run = await story.fleet.run(tenant)
        all_ = broad or tenant == "ann"
        await asyncio.gather(
            *(tell(run, "by-env", how) for how in (ON_STDIO if all_ else FEW)),
            *(tell(run, "by-meta", how) for how in (ON_STDIO if broad else FEW)),
            *(tell(run, "by-header", how) for how in (OVER_HTTP if all_ else FEW)),
            tell(run, "stillborn", "text"),
        )
    for tenant in ("cy", "dan", "eve", "fay"):
        run = await story.fleet.run(tenant)
        for how in ("text", "http_401", "refusal"):
            await tell(run, "by-header", how)
    # Last, because for a while it holds up every call of that server.
    limited = {"tool": "by_header_tell", "arguments": {"how": "http_429"}, "timeout_s": 1}
    await story.fleet.http.post(
        f"/v1/runs/{run['id']}/calls", json=limited, headers={"prefer": f"wait={LIMIT_S}"}
    )
    for server in ("stillborn", "by-env", "by-header"):
        await story.fleet.http.post(f"/v1/servers/{server}/refresh", headers={"prefer": "wait=5"})


async def misplace(story: Story) -> None:
    """Put secrets where they do not belong: wrong keys, wrong fields, wrong addresses."""
    canaries, fleet = story.canaries, story.fleet
    created = await keys(story)
    async with httpx2.AsyncClient(base_url=fleet.local.api_url, timeout=20) as nobody:
        nobody.event_hooks["response"].append(story.note)
        for kind, key in created.items():
            await nobody.get("/v1/servers", headers={"authorization": f"Bearer {key}"})
            await nobody.get("/v1/servers", params={"key": key})
            await nobody.get("/v1/servers", headers={"authorization": f"Basic {key}", "x-k": kind})
        wrong = canaries.plant("a key that is not known")
        for shown in (f"Bearer {wrong}", f"bearer  {wrong}", wrong, f"Token {wrong}"):
            await nobody.get("/v1/servers", headers={"authorization": shown})
    await invalid_bodies(story)
    await invalid_definitions(story)


async def keys(story: Story) -> dict[str, str]:
    """Make a key of each kind, some of which work no more."""
    made: dict[str, str] = {}
    hooks, story.fleet.http.event_hooks["response"] = (
        story.fleet.http.event_hooks["response"],
        [],  # the answers that create a key show it, this once
    )
    for role in ("tenant", "operator", "approver", "auditor"):
        body = {"name": f"a {role}", "role": role, "tenant": "ann" if role == "tenant" else None}
        answer = (await story.fleet.http.post("/v1/keys", json=body)).json()
        made[role] = story.canaries.plant(f"the key of {role}", answer["key"])
        if role == "auditor":
            await story.fleet.http.delete(f"/v1/keys/{answer['id']}")
    story.fleet.http.event_hooks["response"] = hooks
    return made


async def invalid_bodies(story: Story) -> None:
    """Send arguments and bodies that are wrong, with secrets in them."""
    fleet, plant = story.fleet, story.canaries.plant
    strict = {
        "type": "object",
        "properties": {"n": {"type": "integer"}, "e": {"enum": ["a"]}, "p": {"pattern": "^x$"}},
        "additionalProperties": False,
    }
    name = f"strict{next(_NUMBERS)}"
    definition = parse_definition({"name": name, "transport": "stdio", "command": "true"})
    version = await catalog.add_server(fleet.database, definition, actor="test")
    tool = {"name": "take", "inputSchema": strict}
    await ingest.ingest(fleet.database, version, definition, [tool])
    run = await fleet.run("ann", servers=[name])
    for field_ in ("n", "e", "p"):
        value = plant(f"an argument that does not fit: {field_}")
        await fleet.ask(run, f"{name}_take", **{field_: value})
    secret = plant("a secret in a body that is not JSON")
    path = f"/v1/runs/{run['id']}/calls"
    sent = {"content-type": "application/json"}
    for body in (f'{{"tool": "{secret}', f'{{"a": "{secret}"}}', f'["{secret}"]', f'"{secret}"'):
        await fleet.http.post(path, content=body, headers=sent)
    for field_ in ("idempotency_key", "timeout_s", "arguments"):
        wrong = [plant(f"a secret in the wrong type of {field_}")]
        await fleet.http.post(path, json={"tool": f"{name}_take", field_: wrong})
    twice = plant("an idempotency key that differs")
    header = {"idempotency-key": "other"}
    body = {"tool": f"{name}_take", "idempotency_key": twice}
    await fleet.http.post(path, json=body, headers=header)


async def invalid_definitions(story: Story) -> None:
    """Register servers that are wrong, with secrets in them."""
    plant, post = story.canaries.plant, partial(story.fleet.http.post, "/v1/servers")
    good = betrayer("wrong", "none", "")
    good["credentials"] = {}
    remote = {"name": "wrong", "transport": "http"}
    wrong: list[dict[str, Any]] = [
        {**good, "env": {"TOKEN": plant("a variable with a NUL") + "\0"}},
        {**good, "env": {"TOKEN": [plant("a variable that is a list")]}},
        {**good, "env": {"LD_PRELOAD": plant("the value of a refused variable")}},
        {**good, "args": [plant("an argument with a control character") + "\x1b"]},
        {**good, "command": f"run --key {plant('a key in a command line')}"},
        {**good, "token": plant("a field that there is not")},
        {**good, "credentials": {"secret": plant("a secret where its name belongs")}},
        {**remote, "url": f"https://u:{plant('a password in a URL')}@example.com/mcp"},
        {**remote, "url": f"https://example.com:{plant('a password for a port')}/mcp"},
        {**remote, "url": f"http://127.0.0.1/mcp?k={plant('a key in a refused URL')}"},
        {**remote, "url": f"ftp://u:{plant('a password in an odd URL')}@example.com"},
        {
            **remote,
            "url": "https://example.com/mcp",
            "headers": {"authorization": plant("a header with a line end") + "\r\nx: y"},
        },
    ]
    for definition in wrong:
        answer = await post(json=definition, params={"dry_run": True})
        assert answer.status_code in {422, 400}, answer.text


async def submit_raw(story: Story) -> None:
    """Submit by Celery what is refused; what a raw client says to Redis is its own doing."""
    run = await story.fleet.run("ann")
    allowed = (*RAW, "answers to POST /v1/runs")
    token = story.canaries.plant("a run token", run["run_token"], allowed=allowed)
    argument = story.canaries.plant("an argument of a raw client", allowed=RAW)
    with Celery(broker=story.fleet.local.redis_url, backend=story.fleet.local.redis_url) as app:

        def send() -> None:
            for task, args in (
                ("toolfleet.submit", [token, "strict_take", {"n": argument}]),
                ("toolfleet.submit", [token, "nothing", {"n": argument}]),
                ("toolfleet.submit", [token[:-9] + "AAAAAAAAA", "x", {"n": argument}]),
                ("toolfleet.submit", [token]),
                ("toolfleet.sumbit", [token, "x", {"n": argument}]),
                ("toolfleet.call", [token, argument]),
            ):
                app.send_task(task, args=args, queue="toolfleet", task_id=f"raw-{task}-{len(args)}")

        await asyncio.to_thread(send)
    async with Redis.from_url(story.fleet.local.redis_url) as redis:
        body = json.dumps({"body": argument, "headers": {"task": 1}, "properties": {}})
        await redis.lpush("toolfleet", body)
        await until(lambda: _empty(redis, "toolfleet"))


async def _empty(redis: Redis, queue: str) -> bool:
    return not await redis.llen(queue)


RUNS_FOR_S: Final = 4
URLS: Final = (
    ("postgresql://app:{}@127.0.0.1:1/app", "redis://:{}@127.0.0.1:1/0"),
    ("postgresql://app:{}@127.0.0.1:port/app", "redis://:{}/x@127.0.0.1:1/0"),
    ("postgres:app:{}@127.0.0.1/app", "rediss:/:{}@127.0.0.1:1/0"),
)
PROGRAMS: Final = (("api",), ("worker", "by-env"), ("steward",), ("migrate",), ("flower",))
EVERY_LOSS: Final = tuple((*pair, *program) for pair in URLS for program in PROGRAMS)
A_FEW_LOSSES: Final = ((*URLS[0], "worker", "by-env"), (*URLS[1], "steward"))


async def lose_servers(story: Story, losses: Iterable[tuple[str, ...]]) -> None:
    """Start parts of a fleet whose Postgres and Redis are away, or whose URLs make no sense."""
    gate = asyncio.Semaphore(3)

    async def start(database: str, redis: str, *program: str) -> None:
        plant = story.canaries.plant
        name = f"{' '.join(program)} with {database}"
        environment = {
            **os.environ,
            "TOOLFLEET_DATABASE_URL": database.format(plant(f"Postgres' password of {name}")),
            "TOOLFLEET_REDIS_URL": redis.format(plant(f"Redis' password of {name}")),
            "TOOLFLEET_SECRET_KEY": plant(f"the secret key of {name}"),
            "TOOLFLEET_API_PORT": "0",
            "TOOLFLEET_FLOWER_PORT": "0",
        }
        async with gate:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "compose.cli", *program),
                env=environment,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            said = asyncio.create_task(process.communicate())
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(said), RUNS_FOR_S)
            with suppress(ProcessLookupError):
                process.terminate()
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(said), 8)
            with suppress(ProcessLookupError):
                process.kill()
            output, _ = await said
        story.see(f"output of {name}", output)

    await asyncio.gather(*(start(*loss) for loss in losses))


# -- the sinks


async def look_at_processes(story: Story) -> None:
    """Keep the argument list and the environment of every process, several times."""
    for _ in range(8):
        for process in psutil.process_iter(["cmdline", "environ", "name"]):
            line = " ".join(process.info["cmdline"] or ())
            if "with {" not in line:
                story.see("argument lists", line)
            environment = process.info["environ"] or {}
            if environment.get("TOOLFLEET_DATA_DIR", "").startswith(str(story.folder)):
                story.environments[f"{process.info['name']} {line}"] = environment
            if "TOOLFLEET_SESSION" in environment:
                story.environments[f"session {line}"] = environment
            if process.info["name"] in {"postgres", "redis-server"}:
                story.see("environments of Postgres and Redis", str(environment))
        await asyncio.sleep(0.3)


async def read_everything(story: Story, redis: Redis) -> None:
    fleet = story.fleet
    async for key in redis.scan_iter():
        story.see("Redis", await content(redis, key))
    for log in (story.folder / "data" / "logs").iterdir():
        story.see(f"log {log.name}", log.read_bytes())
    await read_tables(story)
    for path in ("/api/tasks", "/api/workers?refresh=1", "/tasks", "/broker", "/workers"):
        story.see("Flower", (await fleet.flower.get(path)).text)
    for path in (
        "/metrics",
        "/v1/audit?limit=1000",
        "/v1/checkup",
        "/readyz",
        "/v1/approvals",
        "/v1/credentials",
    ):
        await fleet.http.get(path)
    fleet.http.event_hooks["response"].clear()
    for path in ("/v1/servers", "/v1/servers/by-env", "/v1/servers/by-header"):
        story.see("the operators' view", (await fleet.http.get(path)).text)
    story.see("the export", (await fleet.http.get("/v1/registry")).text)
    with Celery(broker=fleet.local.redis_url) as app:
        for ask in ("stats", "conf", "report", "active"):
            inspector = app.control.inspect(timeout=0.5)
            said = await asyncio.to_thread(getattr(inspector, ask))
            story.see("Celery's inspect", json.dumps(said, default=str))


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
    return f"{key!r}: {await read[kind]()}" if kind in read else ""


async def read_tables(story: Story) -> None:
    async with story.fleet.database.transaction() as connection:
        await connection.execute(text("SET LOCAL bytea_output = 'escape'"))
        tables = await connection.execute(
            text("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
        )
        for (table,) in tables.all():
            rows = await connection.execute(text(f'SELECT t::text FROM "{table}" t'))
            story.see(f"table {table}", "\n".join(row for (row,) in rows))


# -- what was found


@requirement("secrets:nowhere")
async def test_no_sink_has_a_secret(story: Story) -> None:
    found = story.canaries.found(story.sinks)
    print(f"{len(story.canaries.all)} secrets, {len(story.sinks)} sinks, {len(found)} findings")
    print("\n".join(sorted(found)))
    assert len(story.canaries.all) >= 50
    assert found == set()


@requirement("secrets:nowhere")
@pytest.mark.timeout(600)
async def test_no_sink_has_a_secret_whatever_else_fails(story: Story) -> None:
    async with Redis.from_url(story.fleet.local.redis_url) as redis:
        story.fleet.http.event_hooks["response"].append(story.note)
        await drive(story, broad=True)
        await read_everything(story, redis)
    assert story.canaries.found(story.sinks) == set()


@requirement("secrets:nowhere")
async def test_no_sink_has_a_token_of_well_known_make(story: Story) -> None:
    by_callers = ("table calls", "Redis", "what was said to Redis")  # they are arguments here
    for kind, token in WELL_KNOWN.items():
        sinks = [
            sink
            for sink, contents in story.sinks.items()
            if token.encode() in contents and not sink.startswith(by_callers)
        ]
        assert sinks == [], kind


@requirement("secrets:nowhere")
async def test_a_process_has_the_secrets_that_are_its_own_alone(story: Story) -> None:
    by_kind = {canary.kind: canary for canary in story.canaries.all}
    tenants = [it for it in story.canaries.all if "credential" in it.kind]
    key = by_kind["the key that signs run tokens"]
    sessions = {it: env for it, env in story.environments.items() if it.startswith("session")}
    others = {it: env for it, env in story.environments.items() if it not in sessions}
    assert sessions
    assert len(others) >= 6
    for environment in sessions.values():
        said = str(environment)
        assert len([it for it in tenants if it.value in said]) <= 1
        assert key.value not in said
        assert by_kind["the password of Redis"].value not in said
    for name, environment in others.items():
        said = str(environment)
        assert [it.kind for it in tenants if it.value in said] == [], name
        assert (key.value in said) == ("flower" not in name), name


@requirement("secrets:nowhere")
async def test_a_search_for_them_would_find_them(story: Story) -> None:
    """What lies where it may is found there, so a search that finds nothing has searched."""
    allowed = story.canaries.found(story.sinks, everywhere=True)
    assert "API_KEY of by-env in the export" in allowed
    assert "the header cookie in the export" in allowed
    assert "a key in a server's URL in the export" in allowed
    assert "an argument of a raw client in what was said to Redis" in allowed
    file = {"the file": (story.folder / "credentials.json").read_bytes()}
    assert len(story.canaries.found(file)) == len(
        [it for it in story.canaries.all if "credential" in it.kind]
    )
    read = set(story.sinks)
    assert {"log api.log", "log worker-by-env.log", "log steward.log", "log postgres.log"} <= read
    assert {"Redis", "Flower", "argument lists", "table audit", "table calls"} <= read
    assert b"[credential]" in story.sinks["table calls"]
    assert b"toolfleet-sealed." in story.sinks["table server_versions"]
