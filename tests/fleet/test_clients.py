"""MCP clients that others wrote, as agents use them, in front of a whole fleet."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

import pytest
from mcp.shared.exceptions import MCPError

from tests.clients.environments import inspector_command, langchain_command
from tests.everything import everything_definition, running_everything
from tests.fleet.agents import CONNECTS, Connect, Door
from tests.fleet.driver import LIMIT_S, SERVERS, Fleet
from tests.requirements import requirement
from tests.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.long, pytest.mark.timeout(240)]

ASKING = {
    "name": "asking",
    "transport": "stdio",
    "command": sys.executable,
    "args": [str(SERVERS / "asking.py")],
}
OWN = {"call_status", "call_result"}
UNKNOWN_TOOL = -32602
TEXT_URI = "toolfleet://everything/test://static-text"
TEXT = "This is the content of the static text resource."
PROMPT = "everything_test_prompt_with_arguments"


@pytest.fixture(scope="module")
async def fleet(empty_fleet: Fleet) -> AsyncIterator[Fleet]:
    async with running_everything() as url:
        everything = everything_definition(url)
        await empty_fleet.serve(empty_fleet.echo("local"), ASKING, everything, within_s=120)
        yield empty_fleet


@pytest.fixture(scope="module")
async def door(fleet: Fleet) -> Door:
    wish = {"name": "agent", "role": "tenant", "tenant": "acme"}
    made = await fleet.http.post("/v1/keys", json=wish)
    assert made.status_code == 201, made.text
    return Door(fleet.local.api_url, made.json()["key"])


@pytest.fixture(params=CONNECTS.values(), ids=CONNECTS)
def connect(request: pytest.FixtureRequest) -> Connect:
    return request.param


@requirement("mcp:real-clients")
async def test_an_agent_lists_and_calls_tools(door: Door, connect: Connect) -> None:
    async with connect(door) as agent:
        names = set(await agent.tools())
        assert {"local_echo", "asking_ask", *OWN} <= names
        quick = await agent.call("local_echo", text="hi")
        assert (quick.text, quick.is_error) == ("hi", False)
        assert (await agent.call("local_add", a=1, b=2)).structured == {"result": 3}
        assert (await agent.call("local_fail", text="not today")).is_error
        with pytest.raises(MCPError) as refused:
            await agent.call("local_nothing")
        assert refused.value.error.code == UNKNOWN_TOOL
        assert refused.value.error.data["code"] == "unknown_tool"
        many = await asyncio.gather(*(agent.call("local_echo", text=f"{n}") for n in range(20)))
        assert [it.text for it in many] == [f"{n}" for n in range(20)]


@requirement("mcp:real-clients")
async def test_an_agent_is_told_how_far_its_call_is(door: Door, connect: Connect) -> None:
    async with connect(door) as agent:
        slept = await agent.call("local_sleep", seconds=1, token="told")
        assert slept.text == "told"
        assert len(agent.heard.progress) > 2
        assert agent.heard.progress == sorted(agent.heard.progress)


@requirement("mcp:real-clients")
async def test_an_agent_that_gives_up_stops_its_call(
    fleet: Fleet, door: Door, connect: Connect, request: pytest.FixtureRequest
) -> None:
    token, journal = request.node.callspec.id, fleet.journal("local")
    async with connect(door) as agent:
        sleeping = asyncio.create_task(agent.call("local_sleep", seconds=60, token=token))
        await journal.saw("started", token)
        sleeping.cancel()
        await asyncio.wait([sleeping])
        await journal.saw("cancelled", token)
        assert (await agent.call("local_echo", text="still here")).text == "still here"


@requirement("mcp:real-clients")
async def test_an_agent_that_leaves_stops_what_it_asked_for(
    fleet: Fleet, door: Door, connect: Connect, request: pytest.FixtureRequest
) -> None:
    token, journal = f"left-{request.node.callspec.id}", fleet.journal("local")
    async with connect(door) as agent:
        sleeping = asyncio.create_task(agent.call("local_sleep", seconds=60, token=token))
        await journal.saw("started", token)
    await asyncio.gather(sleeping, return_exceptions=True)
    await journal.saw("cancelled", token)


@requirement("mcp:real-clients")
async def test_an_agent_is_asked_what_a_server_wants_to_know(door: Door, connect: Connect) -> None:
    async with connect(door) as agent:
        answered = await agent.call("asking_ask", ways=["form"])
    assert agent.heard.asked == ["Which city?"]
    assert "Oslo" in answered.text


@requirement("mcp:real-clients", "mcp:subscriptions")
async def test_agents_with_sessions_are_told_that_the_tools_changed(
    fleet: Fleet, door: Door
) -> None:
    async with AsyncExitStack() as stack:
        connects = [connect for name, connect in CONNECTS.items() if name.endswith("legacy")]
        agents = [await stack.enter_async_context(connect(door)) for connect in connects]
        await fleet.serve(fleet.echo("late"))
        await until(lambda: all(agent.heard.changes for agent in agents))


@requirement("mcp:real-clients")
async def test_an_agent_reads_resources_and_gets_prompts(door: Door, connect: Connect) -> None:
    async with connect(door) as agent:
        assert TEXT_URI in await agent.resources()
        assert await agent.read(TEXT_URI) == TEXT
        assert PROMPT in await agent.prompts()
        assert "Oslo" in await agent.prompt(PROMPT, arg1="Oslo", arg2="Bergen")


@requirement("mcp:real-clients")
async def test_an_agent_sees_one_server_alone_without_its_prefix(
    door: Door, connect: Connect
) -> None:
    alone = Door(door.url, door.key, "/mcp/servers/local")
    async with connect(alone) as agent:
        assert "echo" in await agent.tools()
        assert (await agent.call("echo", text="hi")).text == "hi"


@requirement("mcp:real-clients")
async def test_an_agent_without_a_key_that_is_known_is_told_so(
    door: Door, connect: Connect
) -> None:
    with pytest.raises(BaseException) as refused:
        async with connect(Door(door.url, "nobody's")) as agent:
            await agent.tools()
    assert refused.value is not None


# -- clients that have an environment of their own (tests/clients)


@requirement("mcp:real-clients")
@pytest.mark.parametrize("transport", ["http", "stdio"])
async def test_a_langchain_agent_works_and_leaves(fleet: Fleet, door: Door, transport: str) -> None:
    token = f"langchain-{transport}"
    connection = {
        "http": {"transport": "streamable_http", "url": door.endpoint, "headers": door.headers},
        "stdio": {
            "transport": "stdio",
            "command": door.command[0],
            "args": door.command[1:],
            "env": {**os.environ, **door.environment},
        },
    }[transport]
    seen = json.loads(await said(*langchain_command(), json.dumps(connection), token))
    assert {"local_echo", "asking_ask", *OWN} <= set(seen["tools"])
    assert [it["text"] for it in seen["echo"]] == ["hi"]
    assert [it["text"] for it in seen["alone"]] == ["alone"]
    assert seen["added"] == {"result": 3}
    assert (seen["failed"][0], seen["unknown"]) == ("error", UNKNOWN_TOOL)
    assert len(seen["told"]) > 2
    assert seen["told"] == sorted(seen["told"])
    assert (seen["asked"], "Oslo" in str(seen["answered"])) == (["Which city?"], True)
    await fleet.journal("local").saw("cancelled", token)


@dataclass(frozen=True)
class Inspector:
    """The MCP Inspector's command line, in front of a fleet; each command is a session."""

    door: Door
    transport: str
    era: str

    async def asks(self, method: str, *options: str, status: int = 0) -> dict[str, Any]:
        """Run a command; return what it printed as JSON: its result, or its error."""
        process = await self.started(method, *options)
        async with asyncio.timeout(LIMIT_S):
            output, errors = await process.communicate()
        assert process.returncode == status, (output, errors)
        printed: dict[str, Any] = json.loads(output or errors.splitlines()[-1])
        return printed

    async def started(self, method: str, *options: str) -> asyncio.subprocess.Process:
        """Start a command."""
        headers = [f"{name}: {value}" for name, value in self.door.headers.items()]
        environment = [f"{name}={value}" for name, value in self.door.environment.items()]
        reach = (
            ["--server-url", self.door.endpoint, "--transport", "http", "--header", *headers]
            if self.transport == "http"
            else ["--transport", "stdio", *self.door.command]
            + [it for pair in environment for it in ("-e", pair)]
        )
        shown = ["--protocol-era", self.era, "--format", "json", "--quiet"]
        return await asyncio.create_subprocess_exec(
            *inspector_command(), *reach, "--method", method, *options, *shown,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip


@pytest.fixture(
    params=[(t, e) for t in ("http", "stdio") for e in ("legacy", "modern")], ids="-".join
)
def inspector(door: Door, request: pytest.FixtureRequest) -> Inspector:
    return Inspector(door, *request.param)


def calling(tool: str, **arguments: Any) -> list[str]:
    return ["--tool-name", tool, "--tool-args-json", json.dumps(arguments)]


@requirement("mcp:real-clients")
async def test_the_inspector_lists_and_calls_tools(inspector: Inspector) -> None:
    listed = (await inspector.asks("tools/list", "--strict"))["result"]["tools"]
    assert {"local_echo", "asking_ask"} <= {tool["name"] for tool in listed}
    quick = await inspector.asks("tools/call", *calling("local_echo", text="hi"))
    assert quick["result"]["content"] == [{"type": "text", "text": "hi"}]
    added = await inspector.asks("tools/call", *calling("local_add", a=1, b=2))
    assert added["result"]["structuredContent"] == {"result": 3}
    failed = await inspector.asks("tools/call", *calling("local_fail", text="x"), status=5)
    assert failed["result"]["isError"] is True


@requirement("mcp:real-clients")
async def test_the_inspector_reads_resources_and_gets_prompts(inspector: Inspector) -> None:
    listed = await inspector.asks("resources/list")
    assert TEXT_URI in {it["uri"] for it in listed["result"]["resources"]}
    read = await inspector.asks("resources/read", "--uri", TEXT_URI)
    assert read["result"]["contents"][0]["text"] == TEXT
    listed = await inspector.asks("prompts/list")
    assert PROMPT in {it["name"] for it in listed["result"]["prompts"]}
    arguments = ["--prompt-name", PROMPT, "--prompt-args", "arg1=Oslo", "arg2=Bergen"]
    got = await inspector.asks("prompts/get", *arguments)
    assert "Oslo" in got["result"]["messages"][0]["content"]["text"]


@requirement("mcp:real-clients")
async def test_the_inspector_calls_a_tool_many_times_at_once(inspector: Inspector) -> None:
    load = ["--load", "--load-requests", "100", "--load-concurrency", "10"]
    done = await inspector.asks("tools/call", *calling("local_echo", text="hi"), *load)
    assert (done["result"]["requests"], done["result"]["errors"]) == (100, 0)


@requirement("mcp:real-clients", "mcp:tasks")
async def test_the_inspector_sees_a_slow_call_through(inspector: Inspector) -> None:
    slow = calling("local_sleep", seconds=4, token="slow")  # longer than it takes to become a task
    done = await inspector.asks("tools/call", *slow)
    assert done["result"]["content"] == [{"type": "text", "text": "slow"}]


@requirement("mcp:real-clients")
async def test_the_inspector_is_told_that_its_key_is_not_known(inspector: Inspector) -> None:
    wrong = replace(inspector, door=replace(inspector.door, key="nobody"))
    refused = await wrong.asks("tools/list", status=3 if inspector.transport == "http" else 1)
    assert refused["error"]


@requirement("mcp:real-clients", "mcp:cancel")
async def test_a_call_ends_with_an_inspector_of_the_newest_revision(
    fleet: Fleet, inspector: Inspector
) -> None:
    if inspector.era == "legacy" and inspector.transport == "http":
        return  # it goes on: before 2026-07-28 a client that is gone has not cancelled anything
    token = f"inspector-{inspector.transport}-{inspector.era}"
    sleeping = calling("local_sleep", seconds=60, token=token)
    process = await inspector.started("tools/call", *sleeping)
    await fleet.journal("local").saw("started", token)
    process.kill()
    await process.communicate()
    await fleet.journal("local").saw("cancelled", token)


async def said(*command: str) -> str:
    """Run a program; return what it printed."""
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(2 * LIMIT_S):
        output, _ = await process.communicate()
    assert process.returncode == 0
    return output.decode()
