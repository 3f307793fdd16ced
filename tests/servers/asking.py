"""An MCP server that asks its client, and logs; it writes down what it is answered.

``python asking.py [--legacy] [--http PORT]``, as `echo.py`. Speaking a revision before 2026-07-28
it asks while it runs a tool; since then it ends its request with what it needs, and is asked again.

Tools: ``ask`` (in the ways of its argument, together: form, url, sample, roots), ``twice`` (one
after the other), ``large`` (at length), ``wait`` (and takes its time afterwards), ``hidden`` (with
characters that nobody sees), ``effect`` (then has an effect, which `--journal` names a file for),
``impatient`` (and takes it back), ``endless``, ``stateful`` (by its state alone, so many times),
``log``, ``meta``, ``capable`` (what the client said that it can be asked).
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

import anyio
import mcp_types as types
from mcp.server import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError
from serving import serve_http, serve_stdio

FORM = {
    "type": "object",
    "properties": {"city": {"type": "string", "minLength": 2}},
    "required": ["city"],
}
WAYS: dict[str, dict[str, Any]] = {
    "form": {
        "method": "elicitation/create",
        "params": {"mode": "form", "message": "Which city?", "requestedSchema": FORM},
    },
    "url": {
        "method": "elicitation/create",
        "params": {"mode": "url", "message": "Sign in", "url": "https://example.com/sign-in"},
    },
    "sample": {
        "method": "sampling/createMessage",
        "params": {
            "messages": [{"role": "user", "content": {"type": "text", "text": "Say a city"}}],
            "maxTokens": 10,
        },
    },
    "roots": {"method": "roots/list", "params": {}},
}
TOOLS = (
    "ask", "twice", "stateful", "endless", "log", "meta", "capable", "effect", "wait", "hidden",
    "large", "impatient",
)  # fmt: skip
journal: list[Path] = []
Ctx = ServerRequestContext[Any, Any]


def note(event: str) -> None:
    """Append a line to the journal; it is in the file when this returns."""
    for path in journal:
        with path.open("a") as file:
            file.write(event + "\n")


def said(value: Any) -> types.CallToolResult:
    """Return a result that holds a value as JSON."""
    return types.CallToolResult(content=[types.TextContent(type="text", text=json.dumps(value))])


def is_modern(ctx: Ctx) -> bool:
    """Say whether questions are part of results."""
    return ctx.protocol_version >= "2026-07-28"


class NeedsInput(Exception):
    """Ends the request with what is needed (2026-07-28)."""

    def __init__(self, requests: dict[str, Any], state: str | None) -> None:
        self.result = {"resultType": "input_required", "inputRequests": requests}
        if state is not None:
            self.result["requestState"] = state


async def put(ctx: Ctx, params: types.CallToolRequestParams, *ways: dict[str, Any]) -> list[Any]:
    """Return what the client answers to questions that are asked together."""
    if not is_modern(ctx):
        return list(await asyncio.gather(*(ask_now(ctx, way) for way in ways)))
    given = params.input_responses
    if given is None:
        requests = {f"key/{number}": way for number, way in enumerate(ways)}
        raise NeedsInput(requests, "a state\u00a0of its own")
    assert params.request_state == "a state\u00a0of its own", params.request_state
    return [plain(given[f"key/{number}"]) for number in range(len(ways))]


async def ask_now(ctx: Ctx, way: dict[str, Any]) -> Any:
    """Ask on the stream of the request; return the answer, or the error's message and code."""
    try:
        return await ctx.session._request_outbound.send_raw_request(way["method"], way["params"])
    except MCPError as error:
        return {"error": error.error.message, "code": error.error.code}


def plain(value: Any) -> Any:
    """Return a model as JSON."""
    return value.model_dump(by_alias=True, mode="json", exclude_none=True)


async def ask(ctx: Ctx, params: types.CallToolRequestParams) -> Any:
    """Ask what the arguments name."""
    wanted = (params.arguments or {}).get("ways", ["form"])
    return await put(ctx, params, *(WAYS[way] for way in wanted))


async def twice(ctx: Ctx, params: types.CallToolRequestParams) -> Any:
    """Ask one thing after the other."""
    if not is_modern(ctx):
        return [await ask_now(ctx, WAYS["form"]), await ask_now(ctx, WAYS["roots"])]
    given, state = params.input_responses, params.request_state
    if state is None:
        raise NeedsInput({"one": WAYS["form"]}, "[]")
    known = [*json.loads(state), *(plain(it) for it in (given or {}).values())]
    if len(known) < 2:
        raise NeedsInput({"two": WAYS["roots"]}, json.dumps(known))
    return known


async def stateful(_: Ctx, params: types.CallToolRequestParams) -> Any:
    """Have the request made again and again, with nothing but a state."""
    times = int(params.request_state or 0)
    if times < (params.arguments or {}).get("times", 2):
        raise NeedsInput({}, str(times + 1))
    return times


async def endless(ctx: Ctx, _: types.CallToolRequestParams) -> Any:
    """Ask without end."""
    if is_modern(ctx):
        raise NeedsInput({"again": WAYS["roots"]}, None)
    while True:
        answer = await ask_now(ctx, WAYS["roots"])
        if "error" in answer:
            return answer


async def log(ctx: Ctx, _: types.CallToolRequestParams) -> Any:
    """Report progress and log, by turns."""
    for number, level in enumerate(("debug", "info", "error"), 1):
        await ctx.session.report_progress(float(number))
        await ctx.session._request_outbound.notify(
            "notifications/message",
            {
                "level": level,
                "logger": "asking",
                "data": {"step": number, "mail": "ada@example.com"},
            },
        )
    return [level_of(ctx)]


levels: list[str] = []


def level_of(ctx: Ctx) -> Any:
    """Return from which level on the client wants to be told."""
    asked = (ctx.meta or {}).get("io.modelcontextprotocol/logLevel")
    return asked or (levels[-1] if levels else None)


async def meta(ctx: Ctx, _: types.CallToolRequestParams) -> Any:
    """Return the request's _meta."""
    return dict(ctx.meta or {})


async def capable(ctx: Ctx, _: types.CallToolRequestParams) -> Any:
    """Return what the client said that it can do."""
    found = (ctx.meta or {}).get("io.modelcontextprotocol/clientCapabilities")
    if found is None and ctx.session.client_params is not None:
        found = plain(ctx.session.client_params.capabilities)
    return found


async def effect(ctx: Ctx, params: types.CallToolRequestParams) -> Any:
    """Ask whether to have an effect; have it if so."""
    note("called")
    (answer,) = await put(ctx, params, WAYS["form"])
    note("effect")
    return answer


async def wait(ctx: Ctx, params: types.CallToolRequestParams) -> Any:
    """Ask, and take the seconds of ``after`` after the answer."""
    answers = await put(ctx, params, WAYS["form"])
    await asyncio.sleep((params.arguments or {}).get("after", 0))
    return answers


async def hidden(ctx: Ctx, params: types.CallToolRequestParams) -> Any:
    """Ask with characters that nobody sees, and with personal data."""
    asked = "Write\u202e to ada@example.com?"
    way = {**WAYS["form"], "params": {**WAYS["form"]["params"], "message": asked}}
    return await put(ctx, params, way)


async def impatient(ctx: Ctx, _: types.CallToolRequestParams) -> Any:
    """Ask, and take the question back before it is answered (legacy)."""
    params = {**WAYS["form"]["params"]}
    try:
        await ctx.session._request_outbound.send_raw_request(
            "elicitation/create", params, {"timeout": 0.3}
        )
    except MCPError:
        return "took it back"
    return "answered"


async def large(ctx: Ctx, params: types.CallToolRequestParams) -> Any:
    """Ask with a message of so many characters; return how long the answer is."""
    asked = "so many words " * ((params.arguments or {}).get("size", 0) // 14)
    way = {**WAYS["form"], "params": {**WAYS["form"]["params"], "message": asked}}
    (answer,) = await put(ctx, params, way)
    return len(answer["content"]["city"]) if "content" in answer else answer


async def call_tool(ctx: Ctx, params: types.CallToolRequestParams) -> Any:
    """Run a tool."""
    try:
        return said(await globals()[params.name](ctx, params))
    except NeedsInput as needs:
        return needs.result


async def list_tools(_ctx: Ctx, _params: Any) -> types.ListToolsResult:
    """List the tools."""
    return types.ListToolsResult(
        tools=[types.Tool(name=name, input_schema={"type": "object"}) for name in TOOLS]
    )


async def set_level(_ctx: Ctx, params: types.SetLevelRequestParams) -> types.EmptyResult:
    """Keep the level."""
    levels.append(params.level)
    return types.EmptyResult()


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--http", type=int, metavar="PORT")
    parser.add_argument("--legacy", action="store_true")
    parser.add_argument("--journal", type=Path)
    options = parser.parse_args()
    journal.extend([options.journal] if options.journal else [])
    server: Server[Any] = Server(
        "asking", on_call_tool=call_tool, on_list_tools=list_tools, on_set_logging_level=set_level
    )
    if options.http is None:
        anyio.run(lambda: serve_stdio(server, legacy=options.legacy))
    else:
        anyio.run(lambda: serve_http(server, options.http, legacy=options.legacy))


if __name__ == "__main__":
    main()
