"""A server of 2026-07-28 that does not say of its results that they are complete.

``python -I -S untyped.py`` speaks over stdio. Tool: ``say``.
"""

import json
import sys

CACHED = {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"}
ANSWERS = {
    "server/discover": {
        **CACHED,
        "supportedVersions": ["2026-07-28"],
        "capabilities": {"tools": {}},
        "_meta": {"io.modelcontextprotocol/serverInfo": {"name": "untyped", "version": "1"}},
    },
    "tools/list": {**CACHED, "tools": [{"name": "say", "inputSchema": {"type": "object"}}]},
    "tools/call": {"content": [{"type": "text", "text": "said"}]},
}


def main() -> None:
    """Serve until stdin ends."""
    for line in sys.stdin:
        request = json.loads(line)
        if "id" in request:
            answer = {"jsonrpc": "2.0", "id": request["id"], "result": ANSWERS[request["method"]]}
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
