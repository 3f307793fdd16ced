"""What the everything-server offers beside tools: resources, templates, prompts, completion."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

import mcp_types as types
from everything_requests import Received, form
from everything_tools import TEXT, embedded, image, red_pixel, text
from mcp.shared.exceptions import MCPError

TEMPLATE = "test://template/{id}/data"
IN_TEMPLATE = re.compile(r"test://template/([^/]+)/data")
TEXTS = {
    "test://static-text": "This is the content of the static text resource.",
    "test://watched-resource": "This is the content of the watched resource.",
}

Messages = list[types.PromptMessage]
PromptHandler = Callable[[Received], Awaitable[Messages]]
PROMPTS: dict[str, tuple[types.Prompt, PromptHandler]] = {}


def resources() -> list[types.Resource]:
    """Return the resources that have an address of their own."""
    said = [
        types.Resource(
            uri=uri, name=uri.split("//")[1], description="A text", mime_type="text/plain"
        )
        for uri in TEXTS
    ]
    picture = types.Resource(
        uri="test://static-binary",
        name="static-binary",
        description="A picture",
        mime_type="image/png",
    )
    return [*said, picture]


def templates() -> list[types.ResourceTemplate]:
    """Return the templates of resources."""
    template = types.ResourceTemplate(
        uri_template=TEMPLATE,
        name="template",
        description="The data of an id",
        mime_type="application/json",
    )
    return [template]


def read(uri: str) -> types.TextResourceContents | types.BlobResourceContents:
    """Return what is in a resource. Raises MCPError for one that is not here."""
    if uri in TEXTS:
        return types.TextResourceContents(uri=uri, mime_type="text/plain", text=TEXTS[uri])
    if uri == "test://static-binary":
        return types.BlobResourceContents(uri=uri, mime_type="image/png", blob=red_pixel())
    if found := IN_TEMPLATE.fullmatch(uri):
        said = {"id": found[1], "templateTest": True, "data": f"Data for ID: {found[1]}"}
        kind = "application/json"
        return types.TextResourceContents(uri=uri, mime_type=kind, text=json.dumps(said))
    raise MCPError(code=types.INVALID_PARAMS, message="Resource not found", data={"uri": uri})


def prompt(description: str, **arguments: str) -> Callable[[PromptHandler], PromptHandler]:
    """Offer a function as the prompt of its name, with such arguments, all of them required."""

    def offer(handler: PromptHandler) -> PromptHandler:
        name = handler.__name__
        takes = [
            types.PromptArgument(name=argument, description=about, required=True)
            for argument, about in arguments.items()
        ]
        offered = types.Prompt(name=name, description=description, arguments=takes or None)
        PROMPTS[name] = (offered, handler)
        return handler

    return offer


def says(*content: Any) -> Messages:
    """Return what a user says."""
    return [types.PromptMessage(role="user", content=part) for part in content]


@prompt("Says a sentence.")
async def test_simple_prompt(call: Received) -> Messages:
    return says(text("This is a simple prompt for testing."))


@prompt("Says its arguments.", arg1="The first argument", arg2="The second argument")
async def test_prompt_with_arguments(call: Received) -> Messages:
    first, second = call.arguments["arg1"], call.arguments["arg2"]
    return says(text(f"Prompt with arguments: arg1='{first}', arg2='{second}'"))


@prompt("Holds a resource.", resourceUri="The address of the resource")
async def test_prompt_with_embedded_resource(call: Received) -> Messages:
    said = "Embedded resource content for testing."
    held = embedded(call.arguments["resourceUri"], "text/plain", said)
    return says(held, text("Please process the embedded resource above."))


@prompt("Shows a picture.")
async def test_prompt_with_image(call: Received) -> Messages:
    return says(image(), text("Please analyze the image above."))


@prompt("Asks for its context.")
async def test_input_required_result_prompt(call: Received) -> Messages:
    asked = form("What context should the prompt use?", context=TEXT)
    answer = (await call.ask({"user_context": asked}))["user_context"]
    return says(text(f"Use this context: {(answer.get('content') or {}).get('context')}"))


def completed(argument: str, value: str) -> types.Completion:
    """Return what an argument may be going to be."""
    known = {"arg1": ["paris", "park", "party"], "id": ["123", "124"]}.get(argument, [])
    values = [word for word in known if word.startswith(value)]
    return types.Completion(values=values, total=len(values), has_more=False)
