"""Agents with an MCP client that others wrote, in this process: the MCP SDK's, and FastMCP's.

Each reaches a fleet over HTTP, or over stdio through `toolfleet mcp`, in either era.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import fastmcp
import mcp_types as types
from fastmcp.client.transports import StdioTransport, StreamableHttpTransport
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client

from compose.local import toolfleet_command

CITY = {"city": "Oslo"}
"""What an agent answers to a form."""


@dataclass(frozen=True)
class Door:
    """Where a fleet is asked, and the key that opens it."""

    url: str
    key: str
    path: str = "/mcp"

    @property
    def endpoint(self) -> str:
        return self.url + self.path

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}

    @property
    def environment(self) -> dict[str, str]:
        return {"TOOLFLEET_URL": self.url, "TOOLFLEET_KEY": self.key}

    @property
    def command(self) -> list[str]:
        name = self.path.removeprefix("/mcp").removeprefix("/servers/")
        return [*toolfleet_command("mcp"), *(["--server", name] if name else [])]


@dataclass
class Outcome:
    """What a call came to, as its caller sees it."""

    text: str
    structured: Any
    is_error: bool


@dataclass
class Heard:
    """What came to an agent that it did not ask for."""

    progress: list[float] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)

    async def note_progress(self, progress: float, _total: Any, _message: Any) -> None:
        self.progress.append(progress)

    async def note_message(self, message: Any) -> None:
        if isinstance(message, types.ToolListChangedNotification):
            self.changes.append(message.method)


class Agent(Protocol):
    """One connected client."""

    heard: Heard

    async def tools(self) -> list[str]: ...
    async def call(self, tool: str, **arguments: Any) -> Outcome: ...
    async def resources(self) -> list[str]: ...
    async def read(self, uri: str) -> str: ...
    async def prompts(self) -> list[str]: ...
    async def prompt(self, name: str, **arguments: str) -> str: ...


Connect = Callable[[Door], AbstractAsyncContextManager[Agent]]


@dataclass
class SdkAgent:
    client: Client
    heard: Heard

    async def tools(self) -> list[str]:
        return [tool.name for tool in (await self.client.list_tools()).tools]

    async def call(self, tool: str, **arguments: Any) -> Outcome:
        report = self.heard.note_progress
        return outcome(await self.client.call_tool(tool, arguments, progress_callback=report))

    async def resources(self) -> list[str]:
        return [str(it.uri) for it in (await self.client.list_resources()).resources]

    async def read(self, uri: str) -> str:
        (content,) = (await self.client.read_resource(uri)).contents
        return content.text

    async def prompts(self) -> list[str]:
        return [it.name for it in (await self.client.list_prompts()).prompts]

    async def prompt(self, name: str, **arguments: str) -> str:
        got = await self.client.get_prompt(name, arguments)
        return "".join(it.content.text for it in got.messages)


@dataclass
class FastMcpAgent:
    client: fastmcp.Client[Any]
    heard: Heard

    async def tools(self) -> list[str]:
        return [tool.name for tool in await self.client.list_tools()]

    async def call(self, tool: str, **arguments: Any) -> Outcome:
        report = self.heard.note_progress
        return outcome(
            await self.client.call_tool(
                tool, arguments, progress_handler=report, raise_on_error=False
            )
        )

    async def resources(self) -> list[str]:
        return [str(it.uri) for it in await self.client.list_resources()]

    async def read(self, uri: str) -> str:
        (content,) = await self.client.read_resource(uri)
        return content.text

    async def prompts(self) -> list[str]:
        return [it.name for it in await self.client.list_prompts()]

    async def prompt(self, name: str, **arguments: str) -> str:
        got = await self.client.get_prompt(name, arguments)
        return "".join(it.content.text for it in got.messages)


def outcome(result: Any) -> Outcome:
    text = "".join(it.text for it in result.content if it.type == "text")
    return Outcome(text, result.structured_content, bool(result.is_error))


def sdk(*, stdio: bool, mode: Any) -> Connect:
    """Return how the MCP SDK's client connects."""

    @asynccontextmanager
    async def connect(door: Door) -> AsyncIterator[Agent]:
        heard = Heard()

        async def answer(_context: Any, params: Any) -> types.ElicitResult:
            heard.asked.append(params.message)
            return types.ElicitResult(action="accept", content=dict(CITY))

        async with create_mcp_http_client(door.headers) as http:
            client = Client(
                StdioServerParameters(
                    command=door.command[0], args=door.command[1:], env=door.environment
                )
                if stdio
                else streamable_http_client(door.endpoint, http_client=http),
                mode=mode,
                elicitation_callback=answer,
                message_handler=heard.note_message,
            )
            async with client:
                yield SdkAgent(client, heard)

    return connect


def fast_mcp(*, stdio: bool, mode: Any) -> Connect:
    """Return how FastMCP's client connects."""

    @asynccontextmanager
    async def connect(door: Door) -> AsyncIterator[Agent]:
        heard = Heard()

        async def answer(message: str, _type: Any, _params: Any, _context: Any) -> Any:
            heard.asked.append(message)
            return dict(CITY)

        transport: Any = (
            StdioTransport(
                door.command[0], door.command[1:], env=door.environment, keep_alive=False
            )
            if stdio
            else StreamableHttpTransport(door.endpoint, auth=door.key)
        )
        client: fastmcp.Client[Any] = fastmcp.Client(
            transport,
            mode=mode,
            elicitation_handler=answer,
            message_handler=heard.note_message,
        )
        async with client:
            yield FastMcpAgent(client, heard)

    return connect


CONNECTS: dict[str, Connect] = {
    f"{name}-{'stdio' if stdio else 'http'}-{mode}": make(stdio=stdio, mode=mode)
    for name, make in (("sdk", sdk), ("fastmcp", fast_mcp))
    for stdio in (False, True)
    for mode in ("legacy", "2026-07-28")
}
"""By client, transport and era."""
