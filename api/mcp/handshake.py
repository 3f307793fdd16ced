"""What the fleet says of itself: ``initialize`` and ``server/discover``. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib.metadata import version
from typing import Any, Final

from api.mcp.asked import INVALID_PARAMS, META, TASKS, ClientInfo, Revision, RpcError
from registry.answers import LOG_LEVELS
from registry.errors import storable

SERVER: Final = {"name": "toolfleet", "title": "Toolfleet", "version": version("toolfleet")}
SUPPORTED: Final = [revision.value for revision in sorted(Revision, reverse=True)]
"""The revisions that are spoken, the newest first."""
TTL_MS: Final = 60_000
_LARGEST_CLIENT: Final = 32_768
_LATEST_WITH_SESSIONS: Final = Revision.NOVEMBER_2025


def capabilities(methods: Collection[str]) -> dict[str, Any]:
    """Return what the fleet can do for a client that may ask these methods."""
    found: dict[str, Any] = {"tools": {"listChanged": True}, "logging": {}}
    if "prompts/list" in methods:
        found["prompts"] = {"listChanged": True}
    if "resources/list" in methods:
        found["resources"] = {"listChanged": True, "subscribe": True}
    if "completion/complete" in methods:
        found["completions"] = {}
    if "tasks/get" in methods:
        found["extensions"] = {TASKS: {}}
    return found


def initialized(revision: Revision, methods: Collection[str]) -> dict[str, Any]:
    """Return the result of ``initialize``."""
    return {
        "protocolVersion": revision.value,
        "capabilities": capabilities(methods),
        "serverInfo": SERVER,
    }


def discovered(methods: Collection[str]) -> dict[str, Any]:
    """Return the result of ``server/discover``."""
    return {
        "supportedVersions": SUPPORTED,
        "capabilities": capabilities(methods),
        "ttlMs": TTL_MS,
        "cacheScope": "private",
        "_meta": {META + "serverInfo": SERVER},
    }


def negotiated(params: Mapping[str, Any]) -> Revision:
    """Return the revision of a session: the one a client asks for, or the latest that there is."""
    asked = params.get("protocolVersion")
    if not isinstance(asked, str):
        raise RpcError(INVALID_PARAMS, "params.protocolVersion is missing, or no text")
    known = {revision.value: revision for revision in Revision if not revision.stateless}
    return known.get(asked, _LATEST_WITH_SESSIONS)


def client_of(info: Any, capabilities_: Any) -> ClientInfo:
    """Return what a client says of itself; raise `RpcError` for what says nothing."""
    info = {} if info is None else info
    if not isinstance(info, dict) or not isinstance(capabilities_, dict):
        raise RpcError(INVALID_PARAMS, "a client's info and capabilities are objects")
    name, version_ = info.get("name", ""), info.get("version", "")
    if not isinstance(name, str) or not isinstance(version_, str):
        raise RpcError(INVALID_PARAMS, "a client's name and version are texts")
    return ClientInfo(name[:255], version_[:255], capabilities_)


def stored(client: ClientInfo) -> dict[str, Any]:
    """Return a client as its session keeps it; raise `RpcError` for one that is too large."""
    body = storable(vars(client))
    assert isinstance(body, dict)
    if len(str(body)) > _LARGEST_CLIENT:
        raise RpcError(INVALID_PARAMS, "params.capabilities is too large")
    return body


def level_of(value: Any) -> str:
    """Return a log level; raise `RpcError` for what is none."""
    if value not in LOG_LEVELS:
        raise RpcError(INVALID_PARAMS, f"a log level is one of {', '.join(LOG_LEVELS)}")
    return str(value)
