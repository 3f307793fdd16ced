"""What resources are called where several servers' are shown together: ``toolfleet://SERVER/URI``.

A server's own URI follows its name just as it is. So what is shown is a URI wherever that was one;
whatever a client expands a shown template to (RFC 6570) leads back to what the server's own
template expands to, since expanding leaves the text around expressions alone; and nothing has to be
escaped, so nothing can be escaped twice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from api.mcp.asked import Asked
from registry.fields import SERVER_NAME

SCHEME: Final = "toolfleet://"
_SHOWN: Final = re.compile(rf"{SCHEME}({SERVER_NAME})/(.+)", re.DOTALL)
_ARTIFACT: Final = re.compile(rf"{SCHEME}artifacts/([0-9a-f]{{32}})")
ARTIFACT: Final = "toolfleet/artifact"
"""The member of a result's ``_meta`` that says of what large result it is in the place."""
_OF_THE_WEB: Final = ("https:", "http:")


def shown(server: str, uri: str) -> str:
    """Return how a server's URI, or URI template, is shown."""
    return f"{SCHEME}{server}/{uri}"


def meant(uri: str) -> tuple[str, str] | None:
    """Return the server and its own URI that a shown one means; None for one that is not ours."""
    found = _SHOWN.fullmatch(uri)
    return (found[1], found[2]) if found else None


def artifact_of(uri: str) -> str | None:
    """Return the id of the artifact that the link in the place of a large result leads to."""
    found = _ARTIFACT.fullmatch(uri)
    return found[1] if found else None


def is_link(body: Mapping[str, Any]) -> bool:
    """Say whether a result is the fleet's own, in the place of a large one."""
    meta = body.get("_meta")
    return isinstance(meta, dict) and isinstance(meta.get(ARTIFACT), dict)


def shown_result(asked: Asked, server: str, body: dict[str, Any]) -> dict[str, Any]:
    """Return a result of a server with the URIs that callers know; the same if nothing changes."""
    if asked.server is not None or is_link(body):
        return body
    changed: dict[str, Any] = {}
    for member, named in _NAMED.items():
        parts = body.get(member)
        if isinstance(parts, list):
            shown_parts = [named(server, part) for part in parts]
            if any(after is not before for after, before in zip(shown_parts, parts, strict=True)):
                changed[member] = shown_parts
    return {**body, **changed} if changed else body


def shown_block(server: str, block: Any) -> Any:
    """Return a block of content with the URIs that callers know; the same where nothing changes.

    What a link of the web leads to is fetched there, as the specification has it.
    """
    if not isinstance(block, dict):
        return block
    if block.get("type") == "resource_link":
        return block if str(block.get("uri")).startswith(_OF_THE_WEB) else _with_uri(server, block)
    if block.get("type") == "resource":
        resource = block.get("resource")
        named = _with_uri(server, resource)
        return block if named is resource else {**block, "resource": named}
    return block


def _shown_message(server: str, message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    content = message.get("content")
    named = shown_block(server, content)
    return message if named is content else {**message, "content": named}


def _with_uri(server: str, part: Any) -> Any:
    if isinstance(part, dict) and isinstance(part.get("uri"), str):
        return {**part, "uri": shown(server, part["uri"])}
    return part


_NAMED: Final[dict[str, Callable[[str, Any], Any]]] = {
    "content": shown_block,
    "contents": _with_uri,
    "messages": _shown_message,
}
"""The members of results that name resources: of tools, of what was read, and of prompts."""
