"""``tools/list``: what a run shows, in pages, as it was written once for its snapshot."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import Sequence
from typing import Any, Final
from weakref import WeakKeyDictionary

from api.encoding import encode
from api.mcp.asked import INVALID_PARAMS, Answered, Asked, RpcError
from api.mcp.naming import known_names
from api.mcp.own_tools import own_tools
from api.mcp.tasks import declared
from registry.runs import Exposure, Run
from registry.snapshots import Snapshot, shown

PAGE: Final = 1000
TTL_MS: Final = 5_000
"""For how long a client may take a list for current; `subscriptions/listen` tells of changes."""
CACHED: Final = f'"resultType":"complete","ttlMs":{TTL_MS},"cacheScope":"private"'.encode()

_bare: WeakKeyDictionary[Snapshot, dict[str, tuple[bytes, ...]]] = WeakKeyDictionary()


async def list_tools(asked: Asked) -> Answered:
    """Answer ``tools/list``."""
    run = await asked.run()
    cursor = asked.params.get("cursor")
    whole = asked.server is None and len(run.manifest.entries) <= PAGE
    if run.exposure is Exposure.SEARCH or (whole and cursor is None):
        # Thousands of tools are written once for their snapshot, not for each of its runs.
        shown_ = await asyncio.to_thread(getattr, run, "shown")
        listed, following = [shown_[1:-1]] if shown_ != b"[]" else [], None
    else:
        every = await asyncio.to_thread(_listed, run, asked.server)
        start = 0 if cursor is None else _offset(cursor, run, len(every))
        listed = list(every[start : start + PAGE])
        following = start + PAGE if start + PAGE < len(every) else None
    if following is None and not declared(asked):
        listed += [encode(tool) for tool in own_tools(known_names(asked, run))]
    return _written(asked, run, b",".join(listed), following)


def _written(asked: Asked, run: Run, tools: bytes, following: int | None) -> bytes:
    parts = [b'{"tools":[' + tools + b"]"]
    if following is not None:
        parts.append(b'"nextCursor":' + encode(_cursor(run, following)))
    if asked.revision.stateless:
        parts.append(CACHED)
    return b",".join(parts) + b"}"


def _listed(run: Run, server: str | None) -> Sequence[bytes]:
    """Return the tools that a request is about, each as it is shown."""
    if server is None:
        return [entry.shown.encode() for entry in run.manifest.entries]
    known = _bare.setdefault(run.manifest, {})
    if server not in known:
        known[server] = tuple(
            encode({**shown(entry.tool), "name": entry.tool.upstream_name})
            for entry in run.manifest.entries
            if entry.tool.server == server
        )
    return known[server]


def _cursor(run: Run, offset: int) -> str:
    return base64.urlsafe_b64encode(encode([run.snapshot[:16], offset])).decode().rstrip("=")


def _offset(cursor: Any, run: Run, size: int) -> int:
    """Return where a page begins; raise `RpcError` for a cursor that is not of this list."""
    if isinstance(cursor, str):
        try:
            value = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        except (binascii.Error, ValueError, RecursionError):
            value = None
        match value:
            case [str() as snapshot, int() as offset] if snapshot == run.snapshot[:16]:
                if 0 < offset < size and offset % PAGE == 0:
                    return offset
    raise RpcError(INVALID_PARAMS, "the cursor is not one of this list as it is now: begin anew")
