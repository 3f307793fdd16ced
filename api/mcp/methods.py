"""Which methods there are in which era, who answers them, and what a key has to have for each."""

from __future__ import annotations

from typing import Final

from api.mcp.asked import Answered, Asked, Handler
from api.mcp.calling import call_tool
from api.mcp.listing import list_tools
from api.mcp.lists import list_prompts, list_resources, list_templates
from api.mcp.passage import complete, get_prompt, read_resource
from api.mcp.resource_changes import subscribe, unsubscribe
from api.mcp.tasks import cancel_task, get_task, update_task

CALLS: Final = frozenset({"tools/call", "resources/read", "prompts/get", "completion/complete"})
"""What is submitted as a call, and has a call's id."""


async def ping(_asked: Asked) -> Answered:
    """Answer ``ping``."""
    return {}


_TASKS: Final[dict[str, Handler]] = {
    "tasks/get": get_task,
    "tasks/update": update_task,
    "tasks/cancel": cancel_task,
}
_PASSAGE: Final[dict[str, Handler]] = {
    "prompts/list": list_prompts,
    "prompts/get": get_prompt,
    "resources/list": list_resources,
    "resources/templates/list": list_templates,
    "resources/read": read_resource,
    "completion/complete": complete,
}
_TOOLS: Final[dict[str, Handler]] = {"tools/list": list_tools, "tools/call": call_tool}
_BOTH: Final[dict[str, Handler]] = {**_TOOLS, **_TASKS, **_PASSAGE}
WITH_SESSION: Final[dict[str, Handler]] = {
    **_BOTH,
    "resources/subscribe": subscribe,
    "resources/unsubscribe": unsubscribe,
    "ping": ping,
}
"""Beside ``initialize`` and ``logging/setLevel``, which are about the session itself."""
STATELESS: Final[dict[str, Handler]] = {**_BOTH}
"""Beside ``server/discover`` and ``subscriptions/listen``."""

VERBS: Final = {
    "initialize": "runs:write",
    "tools/list": "runs:read",
    "prompts/list": "runs:read",
    "resources/list": "runs:read",
    "resources/templates/list": "runs:read",
    "resources/subscribe": "runs:read",
    "resources/unsubscribe": "runs:read",
    "subscriptions/listen": "runs:read",
    "tools/call": "calls:write",
    "resources/read": "calls:write",
    "prompts/get": "calls:write",
    "completion/complete": "calls:write",
    "tasks/get": "calls:read",
    "tasks/update": "calls:write",
    "tasks/cancel": "calls:cancel",
    "notifications/cancelled": "calls:cancel",
}
"""The verbs (`registry.scopes`) of methods; the others tell nothing, and change nothing."""
