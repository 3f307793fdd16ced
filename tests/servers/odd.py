"""A server whose results stretch JSON: ``nan`` is not JSON, ``nul`` is and few stores take it.

``refuse`` refuses the call with a message that holds a NUL character; ``lost`` dies with one on
stderr.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

TOOLS = ("nan", "nul", "refuse", "lost")


def result_of(tool: str) -> dict[str, Any]:
    """Return the answer's ``result`` or ``error``."""
    if tool == "refuse":
        return {"error": {"code": -32000, "message": "no \0 today"}}
    if tool == "lost":
        print("bye \0", file=sys.stderr, flush=True)
        os._exit(1)
    value = float("nan") if tool == "nan" else "a\0b"
    body = {"content": [{"type": "text", "text": tool}], "structuredContent": {"value": value}}
    return {"result": body}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Return the response to a request."""
    match request["method"]:
        case "initialize":
            body: dict[str, Any] = {
                "result": {
                    "protocolVersion": "2025-11-25",
                    "capabilities": {"tools": {}},
                    "serverInfo": {"name": "odd", "version": "1"},
                }
            }
        case "tools/list":
            tools = [{"name": name, "inputSchema": {"type": "object"}} for name in TOOLS]
            body = {"result": {"tools": tools}}
        case "tools/call":
            body = result_of(request["params"]["name"])
        case _:
            body = {"error": {"code": -32601, "message": "Method not found"}}
    return {"jsonrpc": "2.0", "id": request["id"], **body}


if __name__ == "__main__":
    for line in sys.stdin:
        message = json.loads(line)
        if "id" in message:
            print(json.dumps(answer(message)), flush=True)
