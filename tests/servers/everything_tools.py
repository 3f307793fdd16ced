"""The tools of the everything-server that ask nothing: plain ones and slow ones.

A tool returns a text, a list of content, or a whole result. None of them knows of tasks: what is
slow here is a request that takes its time.
"""

from __future__ import annotations

import base64
import io
import struct
import wave
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import mcp_types as types
from everything_requests import Received
from mcp.shared.exceptions import MCPError

Said = str | list[Any] | types.CallToolResult
Handler = Callable[[Received], Awaitable[Said]]
TEXT = {"type": "string"}
SHORT_S = 0.05  # between two notifications, so that they arrive apart
WORK_S = 0.5  # what is slow takes so long
LONG_S = 2.5  # longer than most callers like to wait for an answer
AWAY_S = 0.5  # a client whose stream was closed comes back within this

TOOLS: dict[str, tuple[types.Tool, Handler]] = {}


def tool(description: str, schema: dict[str, Any] | None = None) -> Callable[[Handler], Handler]:
    """Offer a function as the tool of its name; calling it twice does no harm."""

    def offer(handler: Handler) -> Handler:
        name = handler.__name__
        hints = types.ToolAnnotations(read_only_hint=True, idempotent_hint=True)
        offered = types.Tool(
            name=name,
            description=description,
            input_schema=schema or {"type": "object"},
            annotations=hints,
        )
        TOOLS[name] = (offered, handler)
        return handler

    return offer


def takes(**properties: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an object with such properties, all of them required."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def red_pixel() -> str:
    """Return a PNG of one red pixel, in base64."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checked)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    pixel = chunk(b"IDAT", zlib.compress(b"\x00\xff\x00\x00"))
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + header + pixel + chunk(b"IEND", b"")).decode()


def silence() -> str:
    """Return a WAV of one silent sample, in base64."""
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(b"\x00\x00")
    return base64.b64encode(file.getvalue()).decode()


def text(said: str) -> types.TextContent:
    """Return a text as content."""
    return types.TextContent(type="text", text=said)


def image() -> types.ImageContent:
    """Return the red pixel as content."""
    return types.ImageContent(type="image", data=red_pixel(), mime_type="image/png")


def embedded(uri: str, kind: str, said: str) -> types.EmbeddedResource:
    """Return a text as the content of a resource."""
    held = types.TextResourceContents(uri=uri, mime_type=kind, text=said)
    return types.EmbeddedResource(type="resource", resource=held)


# What can be returned


@tool("Says a sentence.")
async def test_simple_text(call: Received) -> Said:
    return "This is a simple text response for testing."


@tool("Shows a picture.")
async def test_image_content(call: Received) -> Said:
    return [image()]


@tool("Plays a sound.")
async def test_audio_content(call: Received) -> Said:
    return [types.AudioContent(type="audio", data=silence(), mime_type="audio/wav")]


@tool("Hands out a resource.")
async def test_embedded_resource(call: Received) -> Said:
    said = "This is an embedded resource content."
    return [embedded("test://embedded-resource", "text/plain", said)]


@tool("Says, shows and hands out.")
async def test_multiple_content_types(call: Received) -> Said:
    held = embedded(
        "test://mixed-content-resource", "application/json", '{"test":"data","value":123}'
    )
    return [text("Multiple content types test:"), image(), held]


@tool("Fails.")
async def test_error_handling(call: Received) -> Said:
    said = "This tool intentionally returns an error for testing"
    return types.CallToolResult(content=[text(said)], is_error=True)


# What can be sent meanwhile


@tool("Logs what it does.")
async def test_tool_with_logging(call: Received) -> Said:
    for said in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        await call.log(said)
        await anyio.sleep(SHORT_S)
    return "Logged three messages"


@tool("Logs one line.")
async def test_logging_tool(call: Received) -> Said:
    await call.log("One line")
    return "Logged what was wanted"


@tool("Reports how far it is.")
async def test_tool_with_progress(call: Received) -> Said:
    for done in (0, 50, 100):
        await call.progress(done, 100)
        await anyio.sleep(SHORT_S)
    return "Reported three times"


@tool("Closes the stream of its call and ends while nobody listens.")
async def test_reconnection(call: Received) -> Said:
    if call.ctx.close_sse_stream is not None:
        await call.ctx.close_sse_stream()
    await anyio.sleep(AWAY_S)
    return "Ended after the stream was closed"


# What can be asked for


@tool("Needs a client that answers for a model.")
async def test_missing_capability(call: Received) -> Said:
    if not call.able("sampling/createMessage"):
        raise MCPError(
            code=types.MISSING_REQUIRED_CLIENT_CAPABILITY,
            message="This needs a client that answers sampling/createMessage",
            data={"requiredCapabilities": {"sampling": {}}},
        )
    return "The client answers for a model"


HEADED = {"type": "string", "description": "Also a header", "x-mcp-header": "Region"}


@tool("Takes a parameter that travels as a header too.", takes(region=HEADED))
async def test_x_mcp_header(call: Received) -> Said:
    return f"region={call.arguments['region']}"


EVERY_KEYWORD = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": TEXT, "city": TEXT},
        }
    },
    "properties": {
        "name": TEXT,
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": TEXT,
        "email": TEXT,
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}


@tool("Has a schema with keywords that are easily lost.", EVERY_KEYWORD)
async def json_schema_2020_12_tool(call: Received) -> Said:
    return f"Reached by {call.arguments.get('contactMethod', 'any way')}"


# What is slow


@tool("Greets.", takes(name=TEXT))
async def greet(call: Received) -> Said:
    return f"Hello, {call.arguments['name']}!"


@tool(
    "Computes for so many seconds.",
    {
        "type": "object",
        "properties": {"seconds": {"type": "number", "minimum": 0}, "label": TEXT},
        "required": ["seconds"],
    },
)
async def slow_compute(call: Received) -> Said:
    await anyio.sleep(call.arguments["seconds"])
    return f"Computed {call.arguments.get('label', 'something')}"


@tool("Works and then fails.")
async def failing_job(call: Received) -> Said:
    await anyio.sleep(WORK_S)
    return types.CallToolResult(content=[text("The job failed")], is_error=True)


@tool("Works and then breaks the protocol's way.")
async def protocol_error_job(call: Received) -> Said:
    await anyio.sleep(WORK_S)
    raise MCPError(code=types.INTERNAL_ERROR, message="The job broke")
