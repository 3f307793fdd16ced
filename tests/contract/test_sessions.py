"""What a caller sees of a session, over each transport and era; the servers are real processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from registry.definitions import ServerDefinition, parse_definition
from registry.errors import Code, FleetError
from tests.requirements import requirement
from workers.pool import SessionKey, SessionPool
from workers.session import CallError, Credential, Session

pytestmark = pytest.mark.anyio

SERVERS = Path(__file__).parent.parent / "servers"
LIMIT_S = 20.0
Kind = Literal["stdio", "stdio-legacy", "http", "http-legacy", "http-json"]
KINDS: tuple[Kind, ...] = ("stdio", "stdio-legacy", "http", "http-legacy", "http-json")
# Each transport and each revision is in the short run; a child of its own takes a test longest.
IN_LONG_RUN = {"stdio-legacy"}
EACH_KIND = [
    pytest.param(kind, marks=pytest.mark.long if kind in IN_LONG_RUN else ()) for kind in KINDS
]


def stdio(script: str, *args: str, **rest: Any) -> ServerDefinition:
    return parse_definition(
        {
            "name": "under-test",
            "transport": "stdio",
            "command": sys.executable,
            "args": [str(SERVERS / script), *args],
            **rest,
        }
    )


def http(port: int, **rest: Any) -> ServerDefinition:
    where = {"url": f"http://127.0.0.1:{port}/mcp", "networks": ["127.0.0.0/8"]}
    return parse_definition({"name": "under-test", "transport": "http", **where, **rest})


@dataclass
class Upstream:
    """A server under test and the journal of what it observed."""

    kind: Kind
    definition: ServerDefinition
    journal: Path
    sessions: list[Session] = field(default_factory=list)

    async def open(self, **options: Any) -> Session:
        session = await open_session(self.definition, **options)
        self.sessions.append(session)
        return session

    def events(self) -> list[tuple[str, str]]:
        if not self.journal.exists():
            return []
        lines = [json.loads(line) for line in self.journal.read_text().splitlines()]
        return [(line["event"], line["token"]) for line in lines]

    async def observed(self, event: str, token: str) -> None:
        await until(lambda: (event, token) in self.events())


async def open_session(definition: ServerDefinition, **options: Any) -> Session:
    settings: dict[str, Any] = {
        "connect_timeout_s": LIMIT_S,
        "stop_grace_s": 2.0,
        "max_result_bytes": 1_000_000,
    }
    return await Session.open(definition, **{**settings, **options})


async def until(condition: Callable[[], bool]) -> None:
    """Wait, within the limit, for something that only another process can make true."""
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.01)


def echo(session: Session, text: str = "hello") -> Any:
    return session.call_tool("echo", {"text": text}, timeout_s=LIMIT_S, meta=None, on_progress=None)


@asynccontextmanager
async def http_server(*args: str) -> AsyncIterator[int]:
    """Run the echo server over HTTP on a free port."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(SERVERS / "echo.py"),
        "--http",
        "0",
        *args,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(LIMIT_S):
            port = int(await process.stdout.readline())
        yield port
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


FLAGS: dict[Kind, tuple[str, ...]] = {
    "stdio": (),
    "stdio-legacy": ("--legacy",),
    "http": (),
    "http-legacy": ("--legacy",),
    "http-json": ("--json",),
}


@pytest.fixture(scope="module")
async def http_upstreams(
    anyio_backend: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[dict[str, tuple[int, Path]]]:
    """One HTTP server of each kind for all tests; each test has sessions and tokens of its own."""
    journals = tmp_path_factory.mktemp("journals")
    async with AsyncExitStack() as stack:
        yield {
            kind: (
                await stack.enter_async_context(
                    http_server(*FLAGS[kind], "--journal", str(journals / kind))
                ),
                journals / kind,
            )
            for kind in KINDS
            if kind.startswith("http")
        }


@pytest.fixture(params=EACH_KIND)
async def upstream(
    request: pytest.FixtureRequest, tmp_path: Path, http_upstreams: dict[str, tuple[int, Path]]
) -> AsyncIterator[Upstream]:
    kind: Kind = request.param
    if kind.startswith("http"):
        port, journal = http_upstreams[kind]
        upstream = Upstream(kind, http(port), journal)
    else:
        journal = tmp_path / "journal"
        upstream = Upstream(
            kind, stdio("echo.py", *FLAGS[kind], "--journal", str(journal)), journal
        )
    yield upstream
    await close_all(upstream)


async def close_all(upstream: Upstream) -> None:
    for session in upstream.sessions:
        await session.close()


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[Upstream]:
    journal = tmp_path / "journal"
    upstream = Upstream("stdio", stdio("echo.py", "--journal", str(journal)), journal)
    yield upstream
    await close_all(upstream)


# -- the same over every transport


@requirement("session:speaks-both-eras")
async def test_a_session_speaks_the_newest_revision_that_the_server_knows(
    upstream: Upstream,
) -> None:
    session = await upstream.open()
    legacy = upstream.kind.endswith("legacy")
    expected = ("legacy", "2025-11-25") if legacy else ("modern", "2026-07-28")
    assert (session.era, session.protocol_version) == expected


@requirement("session:calls")
async def test_a_call_returns_what_the_tool_answered(upstream: Upstream) -> None:
    session = await upstream.open()
    result = await echo(session)
    assert result.body["content"] == [{"type": "text", "text": "hello"}]
    assert not result.is_error


@requirement("session:calls")
async def test_structured_content_comes_as_the_server_wrote_it(upstream: Upstream) -> None:
    session = await upstream.open()
    result = await session.call_tool("add", {"a": 1, "b": 2}, timeout_s=LIMIT_S)
    assert result.body["structuredContent"] == {"result": 3}


@requirement("session:calls")
async def test_a_tool_that_fails_is_a_result(upstream: Upstream) -> None:
    session = await upstream.open()
    assert (await session.call_tool("fail", {"text": "no"}, timeout_s=LIMIT_S)).is_error


@requirement("session:errors-are-typed")
async def test_a_json_rpc_error_is_a_refusal_and_keeps_the_session(upstream: Upstream) -> None:
    session = await upstream.open()
    with pytest.raises(CallError) as caught:
        await session.call_tool("refuse", {"text": "not today"}, timeout_s=LIMIT_S)
    assert caught.value.code is Code.TOOL_REFUSED
    assert caught.value.details["jsonrpc_code"] == -32603
    assert (await echo(session)).size_bytes


@requirement("session:calls")
async def test_progress_is_reported_while_the_call_runs(upstream: Upstream) -> None:
    if upstream.kind == "http-json":
        pytest.skip("a JSON answer has no room for progress")
    session = await upstream.open()
    first = asyncio.Event()

    async def on_progress(done: float, total: float | None, message: str | None) -> None:
        first.set()

    call = asyncio.create_task(
        session.call_tool(
            "sleep", {"seconds": 60, "token": "p"}, timeout_s=LIMIT_S, on_progress=on_progress
        )
    )
    async with asyncio.timeout(LIMIT_S):
        await first.wait()
    call.cancel()


@requirement("session:calls")
async def test_request_meta_reaches_the_server(upstream: Upstream) -> None:
    session = await upstream.open()
    result = await session.call_tool("meta", {}, timeout_s=LIMIT_S, meta={"io.example/key": "k"})
    assert json.loads(result.body["content"][0]["text"])["io.example/key"] == "k"


@requirement("session:lists")
async def test_tools_are_listed_as_the_server_wrote_them(upstream: Upstream) -> None:
    session = await upstream.open()
    tools = {tool["name"]: tool for tool in await session.list_tools()}
    assert tools["add"]["inputSchema"]["required"] == ["a", "b"]


@requirement("session:probes")
async def test_a_probe_of_a_living_server_succeeds(upstream: Upstream) -> None:
    session = await upstream.open()
    await session.probe(LIMIT_S)
    assert not session.poisoned


@requirement("session:times-out", "session:cancels")
async def test_a_call_that_takes_too_long_is_cancelled_at_the_server(upstream: Upstream) -> None:
    if upstream.kind == "http-json":
        pytest.skip("the SDK's server does not watch for a disconnect when it answers with JSON")
    session = await upstream.open()
    with pytest.raises(CallError) as caught:
        await session.call_tool("sleep", {"seconds": 600, "token": "slow"}, timeout_s=0.5)
    assert (caught.value.code, caught.value.dispatched) == (Code.CALL_TIMEOUT, True)
    assert session.poisoned
    await upstream.observed("cancelled", "slow")


@requirement("session:cancels")
async def test_the_server_observes_that_a_call_was_cancelled(upstream: Upstream) -> None:
    if upstream.kind == "http-json":
        pytest.skip("the SDK's server does not watch for a disconnect when it answers with JSON")
    session = await upstream.open()
    call = asyncio.create_task(
        session.call_tool("sleep", {"seconds": 600, "token": "long"}, timeout_s=LIMIT_S)
    )
    await upstream.observed("started", "long")
    call.cancel()
    await upstream.observed("cancelled", "long")
    assert session.poisoned


@requirement("session:cancels")
async def test_a_cancelled_call_leaves_the_neighbours_alone(upstream: Upstream) -> None:
    session, neighbour = await upstream.open(), await upstream.open()
    running_on = asyncio.create_task(
        neighbour.call_tool("sleep", {"seconds": 1, "token": "neighbour"}, timeout_s=LIMIT_S)
    )
    await upstream.observed("started", "neighbour")
    cancelled = asyncio.create_task(
        session.call_tool("sleep", {"seconds": 600, "token": "stopped"}, timeout_s=LIMIT_S)
    )
    await upstream.observed("started", "stopped")
    cancelled.cancel()
    await session.close()
    assert (await running_on).body["content"][0]["text"] == "neighbour"
    assert ("cancelled", "neighbour") not in upstream.events()


@requirement("session:bounds-results")
async def test_a_result_over_the_limit_is_refused(upstream: Upstream) -> None:
    session = await upstream.open()
    with pytest.raises(CallError) as caught:
        await session.call_tool("big", {"size": 3_000_000}, timeout_s=LIMIT_S)
    assert caught.value.code is Code.RESULT_TOO_LARGE


@requirement("session:bounds-results")
async def test_a_result_just_under_the_limit_passes(upstream: Upstream) -> None:
    session = await upstream.open()
    result = await session.call_tool("big", {"size": 999_000}, timeout_s=LIMIT_S)
    assert len(result.body["content"][0]["text"]) == 999_000


@requirement("session:closes")
async def test_closing_twice_reports_the_same(upstream: Upstream) -> None:
    session = await upstream.open()
    first = await session.close()
    assert await session.close() == first
    assert first.rung == ("exited" if upstream.kind.startswith("stdio") else "cancelled")


@requirement("session:errors-are-typed")
async def test_a_call_on_a_closed_session_was_never_dispatched(upstream: Upstream) -> None:
    session = await upstream.open()
    await session.close()
    with pytest.raises(CallError) as caught:
        await echo(session)
    assert (caught.value.code, caught.value.dispatched) == (Code.SESSION_LOST, False)


@requirement("session:errors-are-typed")
@pytest.mark.parametrize("kind", EACH_KIND)
async def test_a_server_that_dies_in_a_call_is_a_lost_session(kind: Kind) -> None:
    async with AsyncExitStack() as stack:
        definition = stdio("echo.py", *FLAGS[kind])
        if kind.startswith("http"):
            definition = http(await stack.enter_async_context(http_server(*FLAGS[kind])))
        session = await open_session(definition)
        with pytest.raises(CallError) as caught:
            await session.call_tool("crash", {}, timeout_s=LIMIT_S)
        assert (caught.value.code, caught.value.dispatched) == (Code.SESSION_LOST, True)
        assert session.poisoned or not session.alive
        await session.close()


# -- stdio


@requirement("session:last-words")
async def test_a_server_that_dies_at_its_start_is_quoted() -> None:
    with pytest.raises(FleetError, match="exit code 3.*credentials.json is missing") as caught:
        await open_session(stdio("dying.py"))
    assert caught.value.code is Code.SERVER_UNAVAILABLE
    assert caught.value.details["exit_code"] == 3
    assert "loading the settings" in caught.value.details["stderr"]


@requirement("session:bounded-open")
@pytest.mark.parametrize("mode", [(), ("--deaf",)])
async def test_a_server_that_never_answers_is_given_up(mode: tuple[str, ...]) -> None:
    async with asyncio.timeout(LIMIT_S):
        with pytest.raises(FleetError, match="did not complete the MCP handshake within 0.5 s"):
            await open_session(stdio("silent.py", *mode), connect_timeout_s=0.5)


@requirement("session:bounded-open")
async def test_a_command_that_does_not_exist_is_named() -> None:
    definition = parse_definition(
        {"name": "under-test", "transport": "stdio", "command": "no-such-command"}
    )
    with pytest.raises(FleetError, match="'no-such-command' was not found"):
        await open_session(definition)


@requirement("session:dead-is-known")
async def test_a_killed_child_is_noticed_while_idle(local: Upstream) -> None:
    session = await local.open()
    assert session.pid is not None
    os.kill(session.pid, signal.SIGKILL)
    async with asyncio.timeout(LIMIT_S):
        await session.dead.wait()
    assert not session.alive


@requirement("session:dead-is-known")
async def test_a_child_killed_in_a_call_is_a_lost_session(local: Upstream) -> None:
    session = await local.open()
    call = asyncio.create_task(
        session.call_tool("sleep", {"seconds": 600, "token": "doomed"}, timeout_s=LIMIT_S)
    )
    await local.observed("started", "doomed")
    assert session.pid is not None
    os.kill(session.pid, signal.SIGKILL)
    with pytest.raises(CallError) as caught:
        await call
    assert caught.value.code is Code.SESSION_LOST
    assert caught.value.details["exit_code"] == -signal.SIGKILL


@requirement("session:times-out")
async def test_a_server_that_stops_reading_cannot_hold_a_call() -> None:
    session = await open_session(stdio("light.py", "--ignore-term"), stop_grace_s=0.2)
    with pytest.raises(CallError):
        await session.call_tool("wait", {}, timeout_s=0.2)  # it reads nothing from here on
    async with asyncio.timeout(LIMIT_S):
        with pytest.raises(CallError) as caught:
            # More than any pipe holds, so that writing it has to wait.
            await session.call_tool("wait", {"text": "x" * 5_000_000}, timeout_s=0.2)
        await session.close()
    assert caught.value.code is Code.CALL_TIMEOUT


@requirement("session:credentials")
async def test_a_credential_reaches_the_child_by_its_environment(local: Upstream) -> None:
    session = await local.open(credential=Credential("env", "API_KEY", "s3cret"))
    result = await session.call_tool("environment", {"name": "API_KEY"}, timeout_s=LIMIT_S)
    assert result.body["content"][0]["text"] == "[credential]"  # it saw it, and repeated it


@requirement("session:credentials")
async def test_a_credential_reaches_the_server_in_the_meta(local: Upstream) -> None:
    session = await local.open(credential=Credential("meta", "io.example/token", "s3cret"))
    result = await session.call_tool("meta", {}, timeout_s=LIMIT_S)
    assert json.loads(result.body["content"][0]["text"])["io.example/token"] == "[credential]"


@requirement("session:survives-noise")
@pytest.mark.parametrize(
    ("tool", "answer"),
    [
        ("banner", "here"),
        ("invalid_utf8", "he\ufffdre"),
        ("line_separator", "he\u2028re"),
        ("crlf", "here"),
        ("strangers", "here"),
        ("stderr_flood", "here"),
        ("notifications", "here"),
        ("slices", "here"),
    ],
)
async def test_noise_does_not_cost_the_answer(tool: str, answer: str) -> None:
    session = await open_session(stdio("noisy.py"))
    result = await session.call_tool(tool, {}, timeout_s=LIMIT_S)
    await session.close()
    assert result.body["content"][0]["text"] == answer


@requirement("session:survives-noise")
async def test_a_changed_listing_is_noticed() -> None:
    session = await open_session(stdio("noisy.py"))
    changed = asyncio.Event()
    session.on_listing_changed = changed.set
    await session.call_tool("notifications", {}, timeout_s=LIMIT_S)
    async with asyncio.timeout(LIMIT_S):
        await changed.wait()
    await session.close()


@requirement("session:bounds-results", "session:errors-are-typed")
@pytest.mark.parametrize(
    ("tool", "code"),
    [
        ("endless_line", Code.RESULT_TOO_LARGE),
        ("not_a_result", Code.PROTOCOL_ERROR),
        ("stdout_closed", Code.SESSION_LOST),
    ],
)
async def test_an_answer_that_is_none_poisons_the_session(tool: str, code: Code) -> None:
    session = await open_session(stdio("noisy.py"), stop_grace_s=0.2)
    with pytest.raises(CallError) as caught:
        await session.call_tool(tool, {}, timeout_s=LIMIT_S)
    await session.close()
    assert (caught.value.code, session.poisoned) == (code, True)


@requirement("session:lists")
async def test_all_pages_are_listed_unknown_fields_included() -> None:
    session = await open_session(stdio("noisy.py"))
    tools = await session.list_tools()
    await session.close()
    assert [tool["name"] for tool in tools] == ["tool0", "tool1", "tool2"]
    assert all("x-kept" in tool for tool in tools)


@requirement("session:lists")
async def test_a_listing_that_never_ends_is_refused() -> None:
    session = await open_session(stdio("noisy.py", "--loop"))
    with pytest.raises(FleetError, match="repeats a cursor") as caught:
        await session.list_tools()
    await session.close()
    assert caught.value.code is Code.PROTOCOL_ERROR


@requirement("stop:whole-tree")
async def test_sessions_come_and_go_without_leaving_a_file_or_a_task() -> None:
    await (await open_session(stdio("noisy.py"))).close()

    def held() -> tuple[int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), len(asyncio.all_tasks())

    before = held()
    for _ in range(5):
        await (await open_session(stdio("noisy.py"))).close()
    await until(lambda: held() <= before)


# -- HTTP


@requirement("session:credentials")
async def test_headers_and_a_credential_reach_an_http_server() -> None:
    async with http_server() as port:
        session = await open_session(
            http(port, headers={"x-team": "blue"}),
            credential=Credential("header", "authorization", "Bearer s3cret"),
        )
        seen = [
            (await session.call_tool("header", {"name": name}, timeout_s=LIMIT_S)).body["content"]
            for name in ("x-team", "authorization")
        ]
        await session.close()
    assert [content[0]["text"] for content in seen] == ["blue", "[credential]"]


@requirement("session:bounded-open")
async def test_a_port_where_nobody_listens_is_unavailable() -> None:
    with pytest.raises(FleetError, match="could not be reached") as caught:
        await open_session(http(1))
    assert caught.value.code is Code.SERVER_UNAVAILABLE


# -- through the pool


@requirement("pool:prewarmed")
async def test_a_pool_of_real_sessions_lends_them_again(upstream: Upstream) -> None:
    pool = SessionPool(
        "under-test", upstream.definition.pool, lambda _key: open_session(upstream.definition)
    )
    key = SessionKey(1)
    try:
        await pool.start(key)
        for _ in range(5):
            async with pool.borrow(key, LIMIT_S) as lease:
                await echo(lease.session)
                assert not lease.spawned
    finally:
        await pool.close()
    assert pool.stats().size == 0
