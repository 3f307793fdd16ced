"""A CRM server in several versions, cheap to start; run it with ``python -I -S versions.py 2.0``.

``2.0`` finds, adds and deletes contacts. ``2.1`` describes `find_contact` anew and gives it an
optional argument, adds `merge_contacts`, and wants a reason for `delete_contact`. ``2.2`` lists
what 2.1 lists and dies in mid call. Every answer says the version that gave it. With a file after
the version, its text becomes the description of `find_contact` at each listing.
"""

import json
import os
import sys
from pathlib import Path

VERSION = sys.argv[1]
NOTE = Path(sys.argv[2]) if len(sys.argv) > 2 else None
NEW = VERSION != "2.0"


def tool(name: str, description: str, *required: str, **optional: dict) -> dict:
    """Return a tool whose arguments are texts, but for the optional ones."""
    properties = {name: {"type": "string"} for name in required} | optional
    schema = {"type": "object", "properties": properties, "required": list(required)}
    return {"name": name, "description": description, "inputSchema": schema}


def tools() -> list[dict]:
    """Return what this version lists."""
    find = "Find a contact by name, in version 2.1" if NEW else "Find a contact by name"
    if NOTE is not None and NOTE.exists():
        find = NOTE.read_text()
    found = [
        tool("find_contact", find, "name", **({"limit": {"type": "integer"}} if NEW else {})),
        tool("add_contact", "Add a contact", "name"),
        tool("delete_contact", "Delete a contact", "id", *(["reason"] if NEW else [])),
    ]
    return found + ([tool("merge_contacts", "Merge two contacts", "one", "other")] if NEW else [])


def answer(request: dict) -> dict:
    """Return the response to a request."""
    params = request.get("params") or {}
    if request["method"] == "initialize":
        return {
            "result": {
                "protocolVersion": "2025-11-25",
                "capabilities": {"tools": {"listChanged": True}},
                "serverInfo": {"name": "crm", "version": VERSION},
            }
        }
    if request["method"] == "tools/list":
        return {"result": {"tools": tools()}}
    if request["method"] == "tools/call":
        if VERSION == "2.2":
            os._exit(1)
        said = json.dumps({"version": VERSION, "tool": params["name"]})
        return {"result": {"content": [{"type": "text", "text": said}]}}
    if request["method"] == "ping":
        return {"result": {}}
    return {"error": {"code": -32601, "message": "Method not found"}}


for line in sys.stdin:
    message = json.loads(line)
    if "id" in message:
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], **answer(message)}), flush=True)
