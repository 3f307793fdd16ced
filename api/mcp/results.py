"""How a call that has ended is told to an MCP client: its result, or the error in its place.

Pure. A tool's own error is a result, as its server wrote it. An error of ours is a JSON-RPC error,
except for what a model can put right: that is shown to it as a result with ``isError``, from the
revision on in which the specification wants it so (server/tools, error handling).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from api.mcp.asked import MISSING_CAPABILITY, Revision, RpcError, rpc_error
from registry.calls import CallState
from registry.errors import Code, FleetError

ERROR: Final = "toolfleet/error"
"""The member of a result's ``_meta`` that holds an error of ours (`FleetError.as_dict`)."""

_FOR_MODELS: Final = {
    Code.INVALID_ARGUMENTS: Revision.NOVEMBER_2025,
    Code.REQUEST_TOO_LARGE: Revision.NOVEMBER_2025,
    Code.UPSTREAM_NOT_FOUND: Revision.MARCH_2025,
    Code.UPSTREAM_CONFLICT: Revision.MARCH_2025,
    Code.UPSTREAM_FORBIDDEN: Revision.MARCH_2025,
}
"""What a model can put right, and since when it is shown to it: before 2025-11-25 arguments that do
not fit were an error of the protocol; what an API refuses never was."""


def result_of(row: Mapping[str, Any], revision: Revision) -> dict[str, Any]:
    """Return the result of a call that has ended; raise `RpcError` where it has none."""
    if row["state"] == CallState.SUCCEEDED:
        return complete(row["result"] or {}, revision)
    return result_of_error(FleetError.from_dict(row.get("error") or {}), revision)


def result_of_error(error: FleetError, revision: Revision) -> dict[str, Any]:
    """Return an error of ours as a result for a model; raise `RpcError` if it is none for it."""
    since = _FOR_MODELS.get(error.code)
    if since is None or revision < since:
        raise _told(error) from error
    lines = [rpc_error(error).message]
    problems = error.details.get("problems")
    if isinstance(problems, list):
        lines += [f"{it.get('path')}: {it.get('problem')}" for it in problems[1:]]
    body = {
        "content": [{"type": "text", "text": "\n".join(lines)}],
        "isError": True,
        "_meta": {ERROR: error.as_dict()},
    }
    return complete(body, revision)


def _told(error: FleetError) -> RpcError:
    """Return an error of ours; a server that needs another client is heard in its own words."""
    needed = error.details.get("required_capabilities")
    if error.code is not Code.TOOL_REFUSED or not isinstance(needed, list):
        return rpc_error(error)
    capabilities: dict[str, Any] = {str(name): {} for name in needed}
    data = {**error.as_dict(), "requiredCapabilities": capabilities}
    return RpcError(MISSING_CAPABILITY, error.message, data)


def complete(body: dict[str, Any], revision: Revision) -> dict[str, Any]:
    """Return a result as its revision writes it: only the newest says which kind it is of."""
    if revision.stateless:
        return {**body, "resultType": "complete"}
    if "resultType" in body:
        return {name: it for name, it in body.items() if name != "resultType"}
    return body
