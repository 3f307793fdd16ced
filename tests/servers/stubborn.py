"""A server that will not go: deaf to the end of stdin and to SIGTERM, with a child of its own.

It speaks just enough MCP to be a session. ``--pids PATH`` gets its own and its child's process id.
``--leave-child``: it goes politely, but its child stays.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Return the response to a request; every tool call sleeps for ever."""
    if request["method"] == "initialize":
        result = {
            "protocolVersion": "2025-11-25",
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "stubborn", "version": "1"},
        }
        return {"jsonrpc": "2.0", "id": request["id"], "result": result}
    if request["method"] == "tools/call":
        signal.pause()
    error = {"code": -32601, "message": "Method not found"}
    return {"jsonrpc": "2.0", "id": request["id"], "error": error}


def main() -> None:
    """Serve, and stay."""
    polite = "--leave-child" in sys.argv
    if not polite:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL)
    if "--pids" in sys.argv:
        path = Path(sys.argv[sys.argv.index("--pids") + 1])
        path.write_text(f"{os.getpid()} {child.pid}")
    for line in sys.stdin:
        request = json.loads(line)
        if "id" in request:
            print(json.dumps(answer(request)), flush=True)
    while not polite:
        signal.pause()


if __name__ == "__main__":
    main()
