"""What servers have beside their tools, passed through: resources, prompts and completion.

Lists are what the record has (`api.mcp.lists`); whatever needs its server is a call
(`registry.requests`), by way of the same queue, limits, checks and audit as a tool's. Where several
servers are shown together, prompts are named as tools are, and resources by `api.mcp.uris`; at the
address of one server all is called as its server calls it.

What a server refuses is told as it said it, where its code is no other word of ours or of HTTP's.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, Final

from api.mcp.asked import INTERNAL_ERROR, INVALID_PARAMS, Answered, Asked, RpcError
from api.mcp.calling import converse
from api.mcp.listing import TTL_MS
from api.mcp.lists import visible_to
from api.mcp.results import complete as completed
from api.mcp.uris import (
    ARTIFACT,
    artifact_of,
    is_link,
    meant,
    shown_result,
)
from api.waiting import Row, ended
from registry import artifacts
from registry.calls import CallState
from registry.errors import Code, FleetError
from registry.offerings import LONGEST_URI, Visible
from registry.submission import Wish
from registry.trace import trace_of

RESOURCE_NOT_FOUND: Final = -32002
"""What unknown resources are answered with before 2026-07-28 (spec, server/resources)."""
_TOLD: Final = frozenset({INVALID_PARAMS, INTERNAL_ERROR, RESOURCE_NOT_FOUND})
_RESERVED: Final = range(-32768, -31999)  # by JSON-RPC: some of it is ours, some of it HTTP's
_NOTHING: Final = {"completion": {"values": [], "total": 0, "hasMore": False}}


# -- requests


async def read_resource(asked: Asked) -> Answered:
    """Answer ``resources/read``."""
    uri = text_of(asked.params, "uri")
    if (large := await _large_result(asked, uri)) is not None:
        return large
    found, own = await resource(asked, uri)
    try:
        body = await _result(asked, found, "resources/read", {"uri": own})
    except FleetError as error:
        raise _as_said(asked, error, uri) from error
    if _asks(body):
        return body
    if not isinstance(body.get("contents"), list):
        raise RpcError(INTERNAL_ERROR, f"server {found.server!r} answered without contents")
    body = shown_result(asked, found.server, body)
    if asked.revision.stateless:
        # What one caller may read, another may not: nobody keeps it for both.
        body = {**body, "ttlMs": _ttl_ms(body), "cacheScope": "private"}
    return completed(body, asked.revision)


async def get_prompt(asked: Asked) -> Answered:
    """Answer ``prompts/get``."""
    name = text_of(asked.params, "name")
    found, own = await _prompt(asked, name)
    params: dict[str, Any] = {"name": own}
    if "arguments" in asked.params:
        params["arguments"] = _texts(asked.params, "arguments")
    try:
        body = await _result(asked, found, f"prompts/get {name}", params)
    except FleetError as error:
        raise _as_said(asked, error) from error
    if _asks(body):
        return body
    return completed(shown_result(asked, found.server, body), asked.revision)


async def complete(asked: Asked) -> Answered:
    """Answer ``completion/complete``; a server that completes nothing has nothing to suggest."""
    ref, argument = asked.params.get("ref"), asked.params.get("argument")
    if not isinstance(ref, dict) or not isinstance(argument, dict):
        raise RpcError(INVALID_PARAMS, "params.ref and params.argument are objects")
    if ref.get("type") == "ref/prompt":
        found, own = await _prompt(asked, text_of(ref, "name"))
        whose = {**ref, "name": own}
    elif ref.get("type") == "ref/resource":
        found, own = await resource(asked, text_of(ref, "uri"))
        whose = {**ref, "uri": own}
    else:
        raise RpcError(INVALID_PARAMS, "params.ref.type is ref/prompt or ref/resource")
    params: dict[str, Any] = {
        "ref": whose,
        "argument": {"name": text_of(argument, "name"), "value": text_of(argument, "value")},
    }
    if (context := asked.params.get("context")) is not None:
        known = isinstance(context, dict) and "arguments" in context
        params["context"] = {"arguments": _texts(context, "arguments")} if known else {}
    if "completions" not in found.offered.capabilities:
        return completed({**_NOTHING}, asked.revision)
    try:
        body = await _result(asked, found, "completion/complete", params)
    except FleetError as error:
        raise _as_said(asked, error) from error
    return completed(body, asked.revision)


# -- whose


async def resource(asked: Asked, uri: str) -> tuple[Visible, str]:
    """Return the server of a resource that a request names, and the server's own URI of it.

    Raises `RpcError` for one that is no server's that the caller may read.
    """
    server, own = named(asked, uri)
    for it in await visible_to(asked, server=server):
        if it.reads:
            return it, own
    raise _unknown_resource(asked, uri)


def named(asked: Asked, uri: str) -> tuple[str, str]:
    """Return the server that a URI names, and its own URI; raise `RpcError` if it names none."""
    found = meant(uri) if asked.server is None else (asked.server, uri)
    if found is None or not found[1] or len(found[1]) > LONGEST_URI:
        raise _unknown_resource(asked, uri)
    return found


async def _prompt(asked: Asked, name: str) -> tuple[Visible, str]:
    for it in await visible_to(asked):
        if name in it.prompts:
            return it, str(it.prompts[name]["name"])
    raise RpcError(INVALID_PARAMS, f"there is no prompt named {name!r}")


def _unknown_resource(asked: Asked, uri: str, message: str = "Resource not found") -> RpcError:
    code = INVALID_PARAMS if asked.revision.stateless else RESOURCE_NOT_FOUND
    return RpcError(code, message, {"uri": uri})


# -- asking


async def _result(
    asked: Asked, found: Visible, name: str, params: dict[str, Any]
) -> dict[str, Any]:
    """Return what a server answers, or an answer that asks the client for input (`_asks`).

    Raises `FleetError` where there is no answer.
    """
    wish = Wish(
        tool=name,
        arguments=params,
        actor=asked.actor.label,
        method=asked.method,
        version=found.version,
        call_id=asked.call_id,
        scopes=asked.actor.scopes,
        traceparent=asked.traceparent,
        trace=trace_of(asked.meta),
    )
    row, answer = await converse(asked, wish)
    if answer is not None:
        assert isinstance(answer, dict)
        return answer
    body = await _of_row(asked, row)
    return {name: it for name, it in body.items() if name != "resultType"}


def _asks(body: Mapping[str, Any]) -> bool:
    """Say whether a body is an answer that asks the client for input: it is whole."""
    return body.get("resultType") == "input_required"


async def _of_row(asked: Asked, row: Row) -> dict[str, Any]:
    if row["state"] != CallState.SUCCEEDED:
        if ended(row):
            raise FleetError.from_dict(row["error"] or {})
        raise FleetError(
            Code.DEADLINE_EXCEEDED,
            f"{row['tool']} of server {row['server_name']} has no answer yet",
            hint=f"GET /v1/calls/{row['id']} tells what became of it",
            details={"call_id": row["id"]},
        )
    body: dict[str, Any] = row["result"]
    if not is_link(body):
        return body
    database = asked.operations.database
    linked = str(body["_meta"][ARTIFACT].get("id"))
    artifact = await artifacts.find(database, linked, tenant=row["tenant_id"])
    if artifact.call_id != row["id"]:
        raise RpcError(INTERNAL_ERROR, "the result is not what its call links to")
    data = b"".join([part async for part in artifacts.read(database, artifact)])
    whole: dict[str, Any] = await asyncio.to_thread(json.loads, data)
    return whole


async def _large_result(asked: Asked, uri: str) -> Answered | None:
    """Return the large result that a link of the fleet's own leads to; None for another URI."""
    artifact_id = artifact_of(uri)
    if artifact_id is None:
        return None
    if asked.actor.scopes is not None:
        asked.actor.scopes.refuse_verb("calls:read")
    run, database = await asked.run(), asked.operations.database
    try:
        artifact = await artifacts.find(database, artifact_id, tenant=run.tenant)
        data = b"".join([part async for part in artifacts.read(database, artifact)])
    except FleetError as error:
        if error.code is not Code.NOT_FOUND:
            raise
        return None  # a server that is a fleet itself may know it
    body = {"contents": [{"uri": uri, "mimeType": artifact.media_type, "text": data.decode()}]}
    hints = {"ttlMs": TTL_MS, "cacheScope": "private"} if asked.revision.stateless else {}
    return completed({**body, **hints}, asked.revision)


def _as_said(asked: Asked, error: FleetError, uri: str | None = None) -> FleetError | RpcError:
    """Return what a server said when it refused, if that is why; else the error itself."""
    code, message = (error.details.get(f"jsonrpc_{it}") for it in ("code", "message"))
    if not isinstance(code, int) or not isinstance(message, str):
        return error
    if uri is not None and code == RESOURCE_NOT_FOUND:
        return _unknown_resource(asked, uri, message)
    if code in _TOLD or code not in _RESERVED:
        return RpcError(code, message, None if uri is None else {"uri": uri})
    return error


# -- forms


def _ttl_ms(body: Mapping[str, Any]) -> int:
    ttl_ms = body.get("ttlMs")
    return ttl_ms if isinstance(ttl_ms, int) and ttl_ms > 0 else 0


def text_of(params: Mapping[str, Any], name: str) -> str:
    """Return a parameter that is a string; raise `RpcError` for any other."""
    value = params.get(name)
    if not isinstance(value, str):
        raise RpcError(INVALID_PARAMS, f"{name}: has to be a string")
    return value


def _texts(params: Mapping[str, Any], name: str) -> dict[str, str]:
    value = params.get(name)
    if not isinstance(value, dict) or not all(isinstance(it, str) for it in value.values()):
        raise RpcError(INVALID_PARAMS, f"{name}: has to be an object of strings")
    return value
