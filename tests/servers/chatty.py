"""A server that logs on stderr what it is asked; its tool ``take`` answers, ``die`` does not."""

import json
import os
import sys

INTRODUCTION = {
    "protocolVersion": "2025-11-25",
    "capabilities": {"tools": {}},
    "serverInfo": {"name": "chatty", "version": "1"},
}
TOOLS = [{"name": name, "inputSchema": {"type": "object"}} for name in ("take", "die")]


def result(request: dict) -> dict | None:
    """Return the result of a request; None for what is not known here."""
    if request["method"] == "tools/call":
        sys.stderr.write(f"asked for {json.dumps(request['params'])}\n")
        sys.stderr.flush()
        if request["params"]["name"] == "die":
            os._exit(1)
        return {"content": [{"type": "text", "text": "taken"}]}
    known = {"initialize": INTRODUCTION, "tools/list": {"tools": TOOLS}, "ping": {}}
    return known.get(request["method"])


for line in sys.stdin:
    asked = json.loads(line)
    if "id" in asked:
        said = result(asked)
        error = {"code": -32601, "message": "Method not found"}
        answer = {"result": said} if said is not None else {"error": error}
        print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], **answer}), flush=True)
