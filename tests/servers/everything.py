"""An MCP server that has everything: the fixtures of the official conformance suite, and no tasks.

``python everything.py --http PORT`` serves streamable HTTP at /mcp (port 0 takes a free one; it is
printed on stdout), ``--stdio`` one client on stdin and stdout. It speaks every revision at the
same address, and knows nothing of tasks: what is slow is slow.
"""

from __future__ import annotations

import argparse
import socket
import warnings
from collections import defaultdict
from typing import Any

import anyio
import everything_asking  # noqa: F401 offers its tools when it is imported
import mcp_types as types
import uvicorn
from everything_offerings import PROMPTS, completed, read, resources, templates
from everything_requests import InputNeededError, Received
from everything_tools import TOOLS, text
from mcp.server.caching import CacheHint
from mcp.server.lowlevel import Server
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.server.streamable_http import EventCallback, EventMessage, EventStore
from mcp.server.subscriptions import (
    InMemorySubscriptionBus,
    ListenHandler,
    PromptsListChanged,
    ToolsListChanged,
)
from mcp.shared.exceptions import MCPDeprecationWarning, MCPError
from serving import serve_stdio

RETRY_MS = 100  # after this a client whose stream was closed shall come back
COME_AND_GO = {"test_trigger_tool_change": "tool", "test_trigger_prompt_change": "prompt"}
CACHED = (
    "tools/list",
    "prompts/list",
    "resources/list",
    "resources/templates/list",
    "resources/read",
    "server/discover",
)


class Remembered(EventStore):
    """What was sent on each stream, for clients that come back."""

    def __init__(self) -> None:
        self._sent: list[tuple[str, Any]] = []

    async def store_event(self, stream_id: str, message: Any) -> str:
        """Remember a message; return its id."""
        self._sent.append((stream_id, message))
        return str(len(self._sent))

    async def replay_events_after(self, last_event_id: str, send_callback: EventCallback) -> Any:
        """Send what came after a message on its stream; return that stream."""
        if not last_event_id.isdecimal() or not 0 < int(last_event_id) <= len(self._sent):
            return None
        after = int(last_event_id)
        stream = self._sent[after - 1][0]
        for number, (sent_on, message) in enumerate(self._sent[after:], after + 1):
            if sent_on == stream and message is not None:
                await send_callback(EventMessage(message, str(number)))
        return stream


class Everything:
    """The handlers, and what changes while the server runs."""

    def __init__(self) -> None:
        self.bus = InMemorySubscriptionBus()
        self.levels: defaultdict[str | None, str] = defaultdict(lambda: "debug")
        self.present: dict[str, bool] = {"tool": False, "prompt": False}

    def received(self, ctx: Any, params: Any) -> Received:
        """Return a request to a tool or a prompt."""
        return Received(ctx, params, self.levels[session_of(ctx)])

    async def list_tools(self, _ctx: Any, _params: Any) -> types.ListToolsResult:
        """Answer ``tools/list``."""
        schema = {"type": "object"}
        names = [*COME_AND_GO, *(["test_dynamic_tool"] if self.present["tool"] else [])]
        more = [
            types.Tool(name=name, description=about(name), input_schema=schema) for name in names
        ]
        return types.ListToolsResult(tools=[*(offered for offered, _ in TOOLS.values()), *more])

    async def call_tool(self, ctx: Any, params: Any) -> Any:
        """Answer ``tools/call``."""
        if kind := COME_AND_GO.get(params.name):
            return result(await self.change(kind))
        if params.name not in TOOLS:
            raise MCPError(code=types.INVALID_PARAMS, message=f"Unknown tool: {params.name}")
        _, handler = TOOLS[params.name]
        try:
            return result(await handler(self.received(ctx, params)))
        except InputNeededError as needed:
            return needed.result

    async def change(self, kind: str) -> str:
        """Have a tool or a prompt come or go, and tell who listens."""
        self.present[kind] = not self.present[kind]
        await self.bus.publish(ToolsListChanged() if kind == "tool" else PromptsListChanged())
        return f"One {kind} {'came' if self.present[kind] else 'went'}"

    async def list_prompts(self, _ctx: Any, _params: Any) -> types.ListPromptsResult:
        """Answer ``prompts/list``."""
        name = "test_dynamic_prompt"
        more = [types.Prompt(name=name, description=about(name))] if self.present["prompt"] else []
        return types.ListPromptsResult(
            prompts=[*(offered for offered, _ in PROMPTS.values()), *more]
        )

    async def get_prompt(self, ctx: Any, params: Any) -> Any:
        """Answer ``prompts/get``."""
        if params.name not in PROMPTS:
            raise MCPError(code=types.INVALID_PARAMS, message=f"Unknown prompt: {params.name}")
        offered, handler = PROMPTS[params.name]
        for argument in offered.arguments or []:
            if argument.name not in (params.arguments or {}):
                said = f"The prompt {params.name} needs the argument {argument.name}"
                raise MCPError(code=types.INVALID_PARAMS, message=said)
        try:
            return types.GetPromptResult(messages=await handler(self.received(ctx, params)))
        except InputNeededError as needed:
            return needed.result

    async def set_level(self, ctx: Any, params: Any) -> types.EmptyResult:
        """Answer ``logging/setLevel``."""
        self.levels[session_of(ctx)] = params.level
        return types.EmptyResult()


def session_of(ctx: Any) -> str | None:
    """Return which session a request belongs to; None where there is but one, or none."""
    return ctx.request.headers.get("mcp-session-id") if ctx.request else None


def about(name: str) -> str:
    """Describe what comes, goes, or has something do so."""
    return f"{'Has something come or go' if name in COME_AND_GO else 'Comes and goes'}."


def result(said: Any) -> types.CallToolResult:
    """Return what a tool said as a result."""
    if isinstance(said, types.CallToolResult):
        return said
    return types.CallToolResult(content=[text(said)] if isinstance(said, str) else said)


async def list_resources(_ctx: Any, _params: Any) -> types.ListResourcesResult:
    """Answer ``resources/list``."""
    return types.ListResourcesResult(resources=resources())


async def list_templates(_ctx: Any, _params: Any) -> types.ListResourceTemplatesResult:
    """Answer ``resources/templates/list``."""
    return types.ListResourceTemplatesResult(resource_templates=templates())


async def read_resource(_ctx: Any, params: Any) -> types.ReadResourceResult:
    """Answer ``resources/read``."""
    return types.ReadResourceResult(contents=[read(str(params.uri))])


async def subscribe(_ctx: Any, _params: Any) -> types.EmptyResult:
    """Answer ``resources/subscribe`` and ``resources/unsubscribe``: nothing here ever changes."""
    return types.EmptyResult()


async def complete(_ctx: Any, params: Any) -> types.CompleteResult:
    """Answer ``completion/complete``."""
    return types.CompleteResult(completion=completed(params.argument.name, params.argument.value))


def made() -> Server[Any]:
    """Return the server."""
    everything = Everything()
    server: Server[Any] = Server(
        "everything",
        version="1",
        instructions="Everything that there is, for testing.",
        cache_hints={method: CacheHint(ttl_ms=1000, scope="public") for method in CACHED},
        get_tool_input_schema=lambda name: TOOLS[name][0].input_schema if name in TOOLS else None,
        on_list_tools=everything.list_tools,
        on_call_tool=everything.call_tool,
        on_list_prompts=everything.list_prompts,
        on_get_prompt=everything.get_prompt,
        on_list_resources=list_resources,
        on_list_resource_templates=list_templates,
        on_read_resource=read_resource,
        on_subscribe_resource=subscribe,
        on_unsubscribe_resource=subscribe,
        on_subscriptions_listen=ListenHandler(everything.bus),
        on_completion=complete,
        on_set_logging_level=everything.set_level,
    )
    boundary = RequestStateBoundary(RequestStateSecurity.ephemeral(), default_audience=server.name)
    server.middleware.append(boundary)
    return server


async def serve_http(server: Server[Any], port: int) -> None:
    """Serve on loopback; print the port once it is bound."""
    app = server.streamable_http_app(event_store=Remembered(), retry_interval=RETRY_MS)
    listener = socket.create_server(("127.0.0.1", port))
    print(listener.getsockname()[1], flush=True)
    # Unlike httptools, h11 takes the blanks around a header's value away, as HTTP has it.
    config = uvicorn.Config(app, http="h11", log_level="error", timeout_graceful_shutdown=1)
    await uvicorn.Server(config).serve(sockets=[listener])


def main() -> None:
    """Parse the command line and serve."""
    warnings.simplefilter("ignore", MCPDeprecationWarning)  # older clients are served as well
    parser = argparse.ArgumentParser()
    ways = parser.add_mutually_exclusive_group(required=True)
    ways.add_argument("--http", type=int, metavar="PORT")
    ways.add_argument("--stdio", action="store_true")
    options = parser.parse_args()
    if options.stdio:
        anyio.run(lambda: serve_stdio(made(), legacy=False))
    else:
        anyio.run(serve_http, made(), options.http)


if __name__ == "__main__":
    main()
