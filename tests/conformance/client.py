"""Act as the client that the suite's client scenarios test: the side of us that servers see.

The suite runs ``python -m tests.conformance.client URL`` once for each scenario and names the
scenario in the environment. A server is listed and called here as a worker does it, through a
`Session`, with what the registry makes of a listing.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final

from registry.answers import Answer, NewQuestion
from registry.definitions import parse_definition
from registry.question_kinds import ELICITATION
from registry.tools import mirrored_parameters, tool_version
from tests.conformance import client_auth
from workers.caller import Caller
from workers.listing import PROMPTS, RESOURCES
from workers.session import Session, ToolResult

LIMIT_S: Final = 20.0


class Upstream:
    """A server, listed and called as a worker does it."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.tools: dict[str, dict[str, Any]] = {}

    async def list(self) -> None:
        """Take in what the server lists."""
        listed = [tool_version(tool) for tool in await self.session.list_tools()]
        self.tools = {tool.name: tool.definition for tool in listed}

    async def call(self, name: str, arguments: dict[str, Any] | None = None) -> ToolResult:
        """Call a tool of the listing, for somebody who accepts every form as it is proposed."""
        return await self.session.call_tool(
            name,
            arguments or {},
            timeout_s=LIMIT_S,
            caller=Caller((ELICITATION,), accept),
            mirrored=mirrored_parameters(self.tools[name]["inputSchema"]),
        )

    async def ask(self, method: str, **params: Any) -> ToolResult:
        """Make another request than a call of a tool."""
        return await self.session.ask(method, params, timeout_s=LIMIT_S)


async def accept(asked: Sequence[NewQuestion], *, between: bool = False) -> list[Answer]:
    """Accept forms: with what they propose, and yes where they propose nothing."""
    forms = [question.params["requestedSchema"]["properties"] for question in asked]
    filled = [{name: it.get("default", True) for name, it in form.items()} for form in forms]
    return [{"result": {"action": "accept", "content": content}} for content in filled]


Act = Callable[[str], Awaitable[int | None]]
"""What to do in a scenario, given the server's URL; the status to end with, if not 0."""
Scenario = Callable[[Upstream], Awaitable[None]]
ACTS: Final[dict[str, Act]] = {}
"""By scenario, or by all that a name may begin with (``auth/``)."""


def act_for(name: str) -> Act | None:
    """Return what to do in a scenario; None when nobody here acts in it."""
    return ACTS.get(name) or ACTS.get(name.partition("/")[0] + "/")


def scenario(name: str) -> Callable[[Scenario], Scenario]:
    """Have a function act in a scenario, once the server is open and listed."""

    def register(act: Scenario) -> Scenario:
        ACTS[name] = partial(opened, act)
        return act

    return register


async def opened(act: Scenario, url: str) -> None:
    """Open a server, list it, and do what a scenario asks for."""
    where = {"url": url, "networks": ["127.0.0.0/8", "::1/128"]}
    definition = parse_definition({"name": "suite", "transport": "http", **where})
    session = await Session.open(
        definition, connect_timeout_s=LIMIT_S, stop_grace_s=1.0, max_result_bytes=1_000_000
    )
    try:
        upstream = Upstream(session)
        await upstream.list()
        await act(upstream)
    finally:
        await session.close()


@scenario("initialize")
@scenario("request-metadata")
@scenario("json-schema-ref-no-deref")
async def listing_is_all(_upstream: Upstream) -> None:
    """Do nothing more."""


@scenario("tools_call")
async def add(upstream: Upstream) -> None:
    """Call a tool with numbers."""
    await upstream.call("add_numbers", {"a": 5, "b": 3})


@scenario("sse-retry")
@scenario("elicitation-sep1034-client-defaults")
@scenario("sep-2322-client-request-state")
async def call_each(upstream: Upstream) -> None:
    """Call every tool without arguments."""
    for name in upstream.tools:
        await upstream.call(name)


@scenario("http-standard-headers")
async def ask_for_everything(upstream: Upstream) -> None:
    """Call every tool, read every resource, get every prompt."""
    await call_each(upstream)
    for resource in await upstream.session.list_all(RESOURCES):
        await upstream.ask("resources/read", uri=resource["uri"])
    for prompt in await upstream.session.list_all(PROMPTS):
        await upstream.ask("prompts/get", name=prompt["name"])


@scenario("http-custom-headers")
async def call_as_told(upstream: Upstream) -> None:
    """Make the calls that the suite wants."""
    for wanted in json.loads(os.environ["MCP_CONFORMANCE_CONTEXT"])["toolCalls"]:
        await upstream.call(wanted["name"], wanted["arguments"])


@scenario("http-invalid-tool-headers")
async def call_what_is_left(upstream: Upstream) -> None:
    """Call every tool that was not left out, with a text for each parameter."""
    for name, tool in upstream.tools.items():
        await upstream.call(name, dict.fromkeys(tool["inputSchema"]["properties"], "here"))


@scenario("json-schema-2020-12-preservation")
async def give_the_schema_back(upstream: Upstream) -> None:
    """Show what was kept of a schema."""
    schema = upstream.tools["json_schema_2020_12_tool"]["inputSchema"]
    await upstream.call("json_schema_echo", {"schema": schema})


async def authorize(url: str) -> int:
    """Act in a scenario of authorization."""
    context = json.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT") or "{}")
    return await client_auth.run(os.environ["MCP_CONFORMANCE_SCENARIO"], url, context)


ACTS["auth/"] = authorize


async def run(act: Act, url: str) -> int | None:
    """Act in a scenario."""
    return await act(url)


def main() -> None:
    """Act in the scenario that the suite names."""
    name = os.environ["MCP_CONFORMANCE_SCENARIO"]
    if (act := act_for(name)) is None:
        sys.exit(f"nobody acts in the scenario {name}")
    sys.exit(asyncio.run(run(act, sys.argv[1])))


if __name__ == "__main__":
    main()
