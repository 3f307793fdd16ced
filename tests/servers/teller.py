"""A server that says what it is told to, in each way in which servers say something.

Tools: ``say`` (a text), ``refuse`` (an error of the protocol), ``tell`` (a progress report, then
an answer), ``repeat`` (a text, after so many words that it is large).
"""

import json
import sys


def send(message: dict) -> None:
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)


def call(tool: str, text: str, meta: dict) -> dict:
    """Return the result, or the error, of a call."""
    if tool == "refuse":
        return {"error": {"code": -32000, "message": text, "data": {"about": text}}}
    if tool == "tell":
        params = {"progressToken": meta["progressToken"], "progress": 1, "message": text}
        send({"method": "notifications/progress", "params": params})
        text = "told"
    if tool == "repeat":
        text = "so many words " * 40_000 + text
    return {"result": {"content": [{"type": "text", "text": text}]}}


def answer(request: dict) -> dict:
    """Return the response to a request."""
    params = request.get("params") or {}
    if request["method"] == "initialize":
        server = {"name": "teller", "version": "1"}
        told = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}}
        return {"result": {**told, "serverInfo": server}}
    if request["method"] == "tools/call":
        return call(params["name"], params["arguments"]["text"], params.get("_meta") or {})
    if request["method"] == "tools/list":
        names = ("say", "refuse", "tell", "repeat")
        tools = [{"name": name, "inputSchema": {"type": "object"}} for name in names]
        return {"result": {"tools": tools}}
    return {"result": {}}


for line in sys.stdin:
    received = json.loads(line)
    if "id" in received:
        send({"id": received["id"], **answer(received)})
