"""The tools with which any client goes on with a call that it did not wait for to the end.

A run's own tools keep their names: where one of them is called as one of these, this one has a
longer name.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any, Final

from api.following import Followed
from registry.errors import Code, FleetError
from registry.schemas import check_arguments

CALL: Final = "toolfleet/call"
"""The member of a result's ``_meta`` that names the call it is about."""
_LONGER: Final = "toolfleet_"
_INPUT: Final = {
    "type": "object",
    "properties": {
        "call_id": {"type": "string", "description": "The id that the tool's answer named."}
    },
    "required": ["call_id"],
    "additionalProperties": False,
}
CALL_STATUS: Final[dict[str, Any]] = {
    "name": "call_status",
    "description": (
        "Say how far a tool call is that goes on: its answer named a call id, and no result yet."
    ),
    "inputSchema": _INPUT,
    "annotations": {"readOnlyHint": True},
}
CALL_RESULT: Final[dict[str, Any]] = {
    "name": "call_result",
    "description": (
        "Return the result of a tool call that went on after its answer named a call id. Waits for "
        "it for a while."
    ),
    "inputSchema": _INPUT,
    "annotations": {"readOnlyHint": True},
}


def _name(tool: Mapping[str, Any], taken: Container[str]) -> str:
    name = str(tool["name"])
    while name in taken:
        name = _LONGER + name
    return name


def own_tools(taken: Container[str]) -> list[dict[str, Any]]:
    """Return the definitions of these tools, beside a run's tools of the names ``taken``."""
    return [{**tool, "name": _name(tool, taken)} for tool in (CALL_STATUS, CALL_RESULT)]


def meant(name: str, taken: Container[str]) -> dict[str, Any] | None:
    """Return which of these tools a name means; None where it means none."""
    for tool in (CALL_STATUS, CALL_RESULT):
        if name == _name(tool, taken):
            return tool
    return None


def call_id_of(tool: Mapping[str, Any], arguments: dict[str, Any]) -> str:
    """Return which call a call of one of these tools is about; raise `invalid_arguments`."""
    check_arguments(tool["name"], tool["inputSchema"], arguments)
    return str(arguments["call_id"])


def no_such_call(call_id: str) -> FleetError:
    """Return the error for a call that a caller does not have."""
    return FleetError(
        Code.INVALID_ARGUMENTS,
        f"there is no call {call_id!r}",
        hint="use the id that the tool's answer named",
    )


def status(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the result that says how far a call is."""
    about = {"call_id": row["id"], "tool": row["tool"], "state": row["state"]}
    for name in ("created_at", "started_at", "ended_at", "deadline_at"):
        if row.get(name) is not None:
            about[name] = row[name].isoformat()
    text = f"The call {row['id']} of {row['tool']} is in state {row['state']}."
    if row.get("error"):
        text += f" {row['error'].get('message', '')}"
    return {
        "content": [{"type": "text", "text": text}],
        "structuredContent": about,
        "isError": False,
    }


def goes_on(call: Followed, taken: Container[str], *, declares_output: bool) -> dict[str, Any]:
    """Return the answer to a call that has not ended: how to ask for it.

    Where the tool ``declares_output`` it has to be an error: clients refuse any other result that
    lacks what was declared, and the model would not see it.
    """
    asking, fetching = own_tools(taken)
    text = (
        f"The call goes on (state: {call.row['state']}): do not repeat it. Its id is {call.id}; "
        f"{fetching['name']} waits for its result, {asking['name']} says how far it is."
    )
    return {
        "content": [{"type": "text", "text": text}],
        "isError": declares_output,
        "_meta": {CALL: {"id": call.id, "state": call.row["state"]}},
    }
