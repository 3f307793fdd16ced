"""An MCP server with resources, templates, prompts and completion, as a file says, while it runs.

``python library.py FILE`` speaks over stdio, ``--http PORT`` over streamable HTTP at /mcp (port 0
takes a free one; it is printed on stdout). It speaks 2026-07-28 and the revisions before; with
``--legacy`` only those before.

FILE is JSON: ``{"resources": {URI: TEXT}, "prompts": [NAME], "broken": [METHOD]}``; it tells its
clients when these change, and of a resource whose text does, if they subscribed. A broken method is
refused. ``--journal PATH`` gets a line for each subscription: ``subscribed URI``, ``left URI``.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import mcp_types as types
from mcp.server.lowlevel import Server
from mcp.server.subscriptions import (
    InMemorySubscriptionBus,
    ListenHandler,
    PromptsListChanged,
    ResourcesListChanged,
    ResourceUpdated,
)
from mcp.shared.exceptions import MCPError
from serving import announce, serve_http, serve_stdio

LOOK_EVERY_S = 0.02
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n\xff\xfe").decode()
WHICH_COLOUR = types.ElicitRequest(
    params=types.ElicitRequestFormParams(
        message="Which colour?",
        requested_schema={"type": "object", "properties": {"colour": {"type": "string"}}},
    )
)
COLOURS = ("red", "green", "grey")


class Library:
    """What the file says, and those who are told when that changes."""

    def __init__(self, path: Path, journal: Path | None) -> None:
        self.path = path
        self.journal = journal
        self.bus = InMemorySubscriptionBus()
        self.sessions: list[Any] = []
        self.subscribed: set[str] = set()
        self._listen = ListenHandler(self.bus)

    def said(self) -> dict[str, Any]:
        """Return what the file says."""
        return dict(json.loads(self.path.read_text()))

    def note(self, event: str) -> None:
        """Write an event to the journal."""
        if self.journal:
            with self.journal.open("a") as file:
                file.write(event + "\n")

    def refuse_broken(self, method: str) -> None:
        """Refuse what the file says is broken."""
        if method in self.said().get("broken", ()):
            raise MCPError(code=-32050, message=f"{method} is broken")

    async def list_tools(self, _ctx: Any, _params: Any) -> types.ListToolsResult:
        """Answer ``tools/list``."""
        tool = types.Tool(name="link", input_schema={"type": "object"})
        return types.ListToolsResult(tools=[tool])

    async def call_tool(self, _ctx: Any, _params: Any) -> types.CallToolResult:
        """Answer ``tools/call``."""
        link = types.ResourceLink(type="resource_link", uri="test://static-text", name="text")
        return types.CallToolResult(content=[link])

    async def list_resources(self, _ctx: Any, _params: Any) -> types.ListResourcesResult:
        """Answer ``resources/list``."""
        self.refuse_broken("resources/list")
        return types.ListResourcesResult(
            resources=[types.Resource(uri=uri, name=uri) for uri in self.said()["resources"]]
        )

    async def list_templates(self, _ctx: Any, _params: Any) -> types.ListResourceTemplatesResult:
        """Answer ``resources/templates/list``."""
        template = types.ResourceTemplate(uri_template="test://template/{id}/data", name="data")
        return types.ListResourceTemplatesResult(resource_templates=[template])

    async def read(self, _ctx: Any, params: Any) -> types.ReadResourceResult:
        """Answer ``resources/read``."""
        uri, texts = params.uri, self.said()["resources"]
        if uri == "test://picture":
            picture = types.BlobResourceContents(uri=uri, mime_type="image/png", blob=PNG)
            return types.ReadResourceResult(contents=[picture])
        if uri == "test://long":
            texts = {uri: "word " * 80_000 + "from ada@example.com"}
        if uri.startswith("test://template/"):
            texts = {uri: f"data for {uri.split('/')[3]}"}
        if uri not in texts:
            raise MCPError(code=-32002, message="Resource not found", data={"uri": uri})
        contents = types.TextResourceContents(uri=uri, mime_type="text/plain", text=texts[uri])
        return types.ReadResourceResult(contents=[contents])

    async def list_prompts(self, _ctx: Any, _params: Any) -> types.ListPromptsResult:
        """Answer ``prompts/list``."""
        arguments = [types.PromptArgument(name="colour", required=True)]
        return types.ListPromptsResult(
            prompts=[
                types.Prompt(name=name, description=f"Say {name}", arguments=arguments)
                for name in self.said()["prompts"]
            ]
        )

    async def get_prompt(
        self, _ctx: Any, params: Any
    ) -> types.GetPromptResult | types.InputRequiredResult:
        """Answer ``prompts/get``; ``part`` asks for the colour that it was not given."""
        colour = (params.arguments or {}).get("colour")
        if colour is None and params.name == "part":
            given = params.input_responses
            if given is None:
                return types.InputRequiredResult(input_requests={"colour": WHICH_COLOUR})
            colour = given["colour"].content["colour"]
        if colour is None:
            raise MCPError(code=-32602, message="colour is missing")
        resource = types.TextResourceContents(uri="test://static-text", text="embedded")
        return types.GetPromptResult(
            messages=[
                types.PromptMessage(
                    role="user",
                    content=types.TextContent(type="text", text=f"{params.name} in {colour}"),
                ),
                types.PromptMessage(
                    role="user",
                    content=types.EmbeddedResource(type="resource", resource=resource),
                ),
            ]
        )

    async def complete(self, _ctx: Any, params: Any) -> types.CompleteResult:
        """Answer ``completion/complete``."""
        ref = getattr(params.ref, "name", None) or params.ref.uri
        found = [it for it in COLOURS if it.startswith(params.argument.value)]
        return types.CompleteResult(completion=types.Completion(values=[*found, ref]))

    async def subscribe(self, _ctx: Any, params: Any) -> types.EmptyResult:
        """Answer ``resources/subscribe``."""
        self.note(f"subscribed {params.uri}")
        self.subscribed.add(params.uri)
        return types.EmptyResult()

    async def unsubscribe(self, _ctx: Any, params: Any) -> types.EmptyResult:
        """Answer ``resources/unsubscribe``."""
        self.note(f"left {params.uri}")
        self.subscribed.discard(params.uri)
        return types.EmptyResult()

    async def listen(self, ctx: Any, params: Any) -> types.SubscriptionsListenResult:
        """Serve ``subscriptions/listen``."""
        uris = params.notifications.resource_subscriptions or []
        for uri in uris:
            self.note(f"subscribed {uri}")
        try:
            return await self._listen(ctx, params)
        finally:
            for uri in uris:
                self.note(f"left {uri}")

    async def initialized(self, ctx: Any, _params: Any) -> None:
        """Remember a client that has to be told without having asked."""
        self.sessions.append(ctx.session)

    async def tell(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        """Tell what changed."""
        for session in self.sessions:
            with suppress(Exception):  # it may be gone
                await self._tell_session(session, before, after)
        if before["prompts"] != after["prompts"]:
            await self.bus.publish(PromptsListChanged())
        if before["resources"].keys() != after["resources"].keys():
            await self.bus.publish(ResourcesListChanged())
        for uri in _changed(before, after):
            await self.bus.publish(ResourceUpdated(uri))

    async def _tell_session(
        self, session: Any, before: dict[str, Any], after: dict[str, Any]
    ) -> None:
        if before["prompts"] != after["prompts"]:
            await session.send_prompt_list_changed()
        if before["resources"].keys() != after["resources"].keys():
            await session.send_resource_list_changed()
        for uri in _changed(before, after):
            if uri in self.subscribed:
                await session.send_resource_updated(uri)

    async def watch(self) -> None:
        """Tell whenever the file changes."""
        before = self.said()
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            if (now := self.said()) != before:
                await self.tell(before, now)
                before = now


def _changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [
        uri
        for uri, text in after["resources"].items()
        if before["resources"].get(uri, text) != text
    ]


def made(library: Library) -> Server[Any]:
    """Return the server."""
    server: Server[Any] = Server(
        "library",
        version="1",
        instructions="Read quietly.",
        on_list_tools=library.list_tools,
        on_call_tool=library.call_tool,
        on_list_resources=library.list_resources,
        on_list_resource_templates=library.list_templates,
        on_read_resource=library.read,
        on_list_prompts=library.list_prompts,
        on_get_prompt=library.get_prompt,
        on_completion=library.complete,
        on_subscribe_resource=library.subscribe,
        on_unsubscribe_resource=library.unsubscribe,
        on_subscriptions_listen=library.listen,
    )
    server.add_notification_handler(
        "notifications/initialized", types.NotificationParams, library.initialized
    )
    announce(server, prompts_changed=True, resources_changed=True)
    return server


async def serve(options: argparse.Namespace) -> None:
    """Serve until the client leaves, or for ever."""
    library = Library(options.file, options.journal)
    server = made(library)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(library.watch)
        if options.http is None:
            await serve_stdio(server, legacy=options.legacy)
        else:
            await serve_http(server, options.http, legacy=options.legacy)
        tasks.cancel_scope.cancel()


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--http", type=int, metavar="PORT")
    parser.add_argument("--legacy", action="store_true")
    parser.add_argument("--journal", type=Path)
    anyio.run(serve, parser.parse_args())


if __name__ == "__main__":
    main()
