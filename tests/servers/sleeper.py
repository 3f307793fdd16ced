"""Some tools of the echo server, in one that costs little to start.

``python -I -S sleeper.py --journal PATH`` speaks the revisions up to 2025-11-25 over stdio, with
as many calls at once as there are, progress every 100 ms and cancellation. It writes the journal
that `echo.py` writes: for tests that start many sessions, or kill them, and ask nothing of the SDK.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any

JOURNAL = sys.argv[sys.argv.index("--journal") + 1]
SESSION = os.environ.get("TOOLFLEET_SESSION")
Message = dict[str, Any]

TEXT, NUMBER = {"type": "string"}, {"type": "number"}
ARGUMENTS: dict[str, Message] = {
    "echo": {"text": TEXT},
    "sleep": {"seconds": NUMBER, "token": TEXT},
    "write": {"token": TEXT, "seconds": NUMBER},
    "big": {"size": {"type": "integer"}},
    "block": {"seconds": NUMBER},
}
TOOLS = [
    {
        "name": name,
        "inputSchema": {
            "type": "object",
            "properties": properties,
            "required": [it for it in properties if (name, it) != ("write", "seconds")],
        },
    }
    for name, properties in ARGUMENTS.items()
]

cancelled: dict[Any, threading.Event] = {}
working: dict[int, threading.Thread] = {}
"""The calls under way, by the ids of their requests."""
writing = threading.Lock()


def send(message: Message) -> None:
    """Write one message to stdout."""
    with writing:
        sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        sys.stdout.flush()


def note(event: str, tool: str, token: str) -> None:
    """Append one event to the journal; it is in the file when this returns."""
    line = json.dumps({"event": event, "tool": tool, "token": token, "session": SESSION})
    with open(JOURNAL, "a") as file:  # noqa: PTH123 pathlib takes longer to import than all else
        file.write(line + "\n")


def work(tool: str, request: Message) -> str | None:
    """Sleep, reporting progress, and note how it ended; return the token if in its own time."""
    params = request["params"]
    token, seconds = params["arguments"]["token"], params["arguments"].get("seconds", 0.0)
    progress_token = params.get("_meta", {}).get("progressToken")
    if tool == "write":
        note("effect", tool, token)
    note("started", tool, token)
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if cancelled[request["id"]].wait(min(0.1, left)):
            note("cancelled", tool, token)
            return None
        done = {"progress": seconds - max(0.0, end - time.monotonic()), "total": seconds}
        if progress_token is not None:
            params = {"progressToken": progress_token, **done}
            send({"method": "notifications/progress", "params": params})
    note("finished", tool, token)
    return str(token)


def call(request: Message) -> None:
    """Answer a call, unless it is cancelled before."""
    tool, arguments = request["params"]["name"], request["params"].get("arguments") or {}
    if tool in ("sleep", "write"):
        text = work(tool, request)
    elif tool == "big":
        text = "x" * arguments["size"]
    else:
        text = arguments.get("text", "done")
    del cancelled[request["id"]]
    if text is not None:
        send({"id": request["id"], "result": {"content": [{"type": "text", "text": text}]}})


def answer(request: Message) -> Message:
    """Return the outcome of a request that is no call."""
    method = request["method"]
    if method == "initialize":
        return {
            "result": {
                "protocolVersion": "2025-11-25",
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "sleeper", "version": "1"},
            }
        }
    if method == "tools/list":
        return {"result": {"tools": TOOLS}}
    if method == "ping":
        return {"result": {}}
    return {"error": {"code": -32601, "message": "Method not found"}}


def main() -> None:
    """Serve one client on stdin and stdout until stdin ends."""
    for line in sys.stdin:
        request = json.loads(line)
        if request["method"] == "notifications/cancelled":
            if event := cancelled.get(request["params"]["requestId"]):
                event.set()
                # It notes that before stdin may end, and this process with it.
                working[request["params"]["requestId"]].join()
        elif request["method"] == "tools/call":
            if request["params"]["name"] == "block":
                time.sleep(request["params"]["arguments"]["seconds"])  # deaf to everything
            cancelled[request["id"]] = threading.Event()
            working[request["id"]] = threading.Thread(target=call, args=[request], daemon=True)
            working[request["id"]].start()
        elif "id" in request:
            send({"id": request["id"], **answer(request)})


if __name__ == "__main__":
    main()
