"""The program that serves an HTTP API as MCP tools over stdio: the child of an `openapi` server.

It is started like any other stdio server (see `workers.launch`), so it dies with its worker and is
held to its sandbox; what to serve comes first on its stdin.

1. Each operation that the definition chooses is one tool, with all its parameters, or the program
   does not start.
2. What the API answers is the tool's result; an answer that is no success (2xx) is an error result
   with its status and the beginning of its body.
3. The API's failures that are no answers are told as `workers.openapi_wire` says.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Sequence
from io import FileIO
from typing import Any, Final

import httpx2
from fastmcp import FastMCP
from fastmcp.exceptions import ToolError
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from fastmcp.server.providers.openapi import OpenAPIProvider
from fastmcp.tools import ToolResult
from fastmcp.utilities.openapi import HTTPRoute
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolRequestParams, ToolAnnotations
from pydantic import ValidationError
from pydantic_core import to_json

from registry.openapi import Operation, choose
from registry.openapi_references import escaped
from workers.openapi_document import to_convert
from workers.openapi_http import open_api, too_large, too_many
from workers.openapi_wire import Brief
from workers.retry_after import TOO_MANY

_PAGE_BYTES: Final = 500_000
"""Of a page of tools; a single larger tool is a page."""
_EXCERPT_CHARS: Final = 2_000
_TOLD_HEADERS: Final = ("location", "retry-after")
# What HTTP methods promise: RFC 9110, 9.2.
_SAFE: Final = ("GET", "HEAD", "OPTIONS", "TRACE")
_IDEMPOTENT: Final = (*_SAFE, "PUT", "DELETE")


def build(brief: Brief, client: httpx2.AsyncClient) -> FastMCP:
    """Return the server of an API; raise ValueError when an operation cannot be a tool."""
    said = brief.openapi
    document = said.document or {}
    operations = choose(document, said.include, said.exclude)
    narrow = to_convert(
        document,
        operations,
        own_headers=brief.own_headers,
        with_results=said.check_results,
    )
    parameters: dict[str, int] = {}
    sizes: list[int] = []

    def finish(route: HTTPRoute, tool: Any) -> None:
        tool.name = route.operation_id
        tool.title = route.summary
        tool.annotations = _annotations(route.method)
        if not said.check_results:
            tool.output_schema = None
        parameters[tool.name] = len(route.parameters)
        sizes.append(len(to_json([tool.description, tool.parameters, tool.output_schema])))

    provider = OpenAPIProvider(narrow, client, mcp_component_fn=finish)
    _refuse_left_out(narrow, operations, parameters)
    return FastMCP(
        brief.server,
        providers=[provider],
        middleware=[Answers(brief.max_result_bytes)],
        dereference_schemas=False,  # it would copy a schema to each place that refers to it
        list_page_size=page_size(sizes),
    )


class Answers(Middleware):
    """Turns FastMCP's results and errors into what a worker and a model can tell apart."""

    def __init__(self, max_result_bytes: int) -> None:
        self._max_result_bytes = max_result_bytes

    async def on_call_tool(
        self,
        context: MiddlewareContext[CallToolRequestParams],
        call_next: CallNext[CallToolRequestParams, ToolResult],
    ) -> ToolResult:
        """Make a call; raise what `workers.openapi_http` raised: FastMCP makes a result of it."""
        try:
            result = await call_next(context)
        except ToolError as error:
            if isinstance(error.__cause__, MCPError):
                raise error.__cause__ from None
            if isinstance(error.__cause__, httpx2.HTTPStatusError):
                response = error.__cause__.response
                if response.status_code == TOO_MANY:
                    raise too_many(response.headers) from None
                return _no_success(response)
            raise
        if len(to_json([result.content, result.structured_content])) > self._max_result_bytes:
            raise too_large(self._max_result_bytes)
        return result


def page_size(sizes: Sequence[int]) -> int:
    """Return how many tools to list at once, of these sizes in bytes."""
    count = max(1, len(sizes))
    while count > 1 and any(
        sum(sizes[first : first + count]) > _PAGE_BYTES for first in range(0, len(sizes), count)
    ):
        count = (count + 1) // 2
    return count


def _annotations(method: str) -> ToolAnnotations:
    safe = method in _SAFE
    return ToolAnnotations(
        read_only_hint=safe,
        destructive_hint=None if safe else method != "POST",
        idempotent_hint=method in _IDEMPOTENT,
        open_world_hint=True,
    )


def _no_success(response: httpx2.Response) -> ToolResult:
    told = {name: response.headers[name] for name in _TOLD_HEADERS if name in response.headers}
    is_page = "html" in response.headers.get("content-type", "")
    excerpt = "" if is_page else response.text[:_EXCERPT_CHARS].strip()
    text = f"the API answered HTTP {response.status_code} {response.reason_phrase}".rstrip()
    if response.is_redirect:
        text += ", a redirect, which is not followed"
    return ToolResult(
        content=f"{text}: {excerpt}" if excerpt else text,
        structured_content={"status": response.status_code, **told},
        is_error=True,
    )


def _refuse_left_out(
    narrow: dict[str, Any], operations: Sequence[Operation], parameters: dict[str, int]
) -> None:
    """Raise ValueError for an operation or a parameter that FastMCP could make no use of."""
    for it in operations:
        wanted = len(narrow["paths"][it.path][it.method.lower()]["parameters"])
        if parameters.get(it.name) != wanted:
            raise ValueError(f"the parameters or schemas of {it.label} cannot be understood")


def _why(error: ValueError) -> str:
    """Say in one line what is wrong with a document."""
    if isinstance(error.__cause__, ValidationError):
        first = error.__cause__.errors(include_input=False, include_url=False)[0]
        return f"{'/'.join(str(escaped(step)) for step in first['loc'])}: {first['msg']}"
    return str(error).partition("\n")[0]


async def _serve(brief: Brief) -> None:
    async with open_api(brief) as client:
        try:
            server = build(brief, client)
        except ValueError as error:
            sys.exit(f"the OpenAPI document cannot be served: {_why(error)}")
        await server.run_async("stdio", show_banner=False)


def main() -> None:
    """Serve the API that stdin tells of first, until stdin ends."""
    logging.basicConfig(level=logging.CRITICAL)  # what went wrong in a call is told in its answer
    # Unbuffered: what comes after is MCP, and another reader's.
    asyncio.run(_serve(Brief.read(FileIO(sys.stdin.fileno(), closefd=False))))


if __name__ == "__main__":
    main()
