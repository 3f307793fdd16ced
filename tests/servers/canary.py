"""A server that tells what it was given: the credential's hash, or the credential itself.

``python -I -S canary.py --name NAME`` speaks over stdio (credential in the environment variable
NAME, or in ``_meta`` under it); with ``--http PORT`` over HTTP (header or ``_meta``; port 0 takes a
free one, printed on stdout). Just enough MCP, and few imports: it starts in some 20 ms. With
``--stillborn`` it does not start, and tells stderr what it was given.
"""

from __future__ import annotations

import json
import os
import sys
from hashlib import sha256
from typing import Any

NAME = sys.argv[sys.argv.index("--name") + 1]
Message = dict[str, Any]

TOOLS = [
    {"name": "fingerprint", "inputSchema": {"type": "object"}},
    {
        "name": "leak",
        "inputSchema": {"type": "object", "properties": {"how": {"type": "string"}}},
    },
]


class Refused(Exception):
    """A JSON-RPC error to answer with."""


def notify(message: Message) -> None:
    """Write one message to stdout."""
    print(json.dumps(message), flush=True)


def leak(how: str, secret: str, request: Message) -> Message:
    """Repeat the credential in one of the ways in which servers do."""
    if how == "refusal":
        raise Refused(f"no access with {secret}")
    if how == "long-refusal":
        raise Refused("x" * (490 - len(secret) // 2) + secret)
    if how == "death":
        sys.stderr.write(f"fatal: {secret} was not accepted\n")
        sys.stderr.flush()
        os._exit(1)
    if how == "flood":
        sys.stderr.write(f"bad {secret}\n" * 2000)
        sys.stderr.flush()
        os._exit(1)
    if how == "progress":
        token = request["params"]["_meta"]["progressToken"]
        for done in range(3):
            params = {"progressToken": token, "progress": done, "message": f"using {secret}"}
            notify({"jsonrpc": "2.0", "method": "notifications/progress", "params": params})
    texts = {
        "text": f"hello {secret}!",
        "json": json.dumps({"nested": json.dumps({"token": secret})}),
        "large": f"{secret} and {'more ' * 80_000}: the end of it is {secret}",
    }
    return {
        "content": [{"type": "text", "text": texts.get(how, "see elsewhere")}],
        "isError": how == "error",
        **({"structuredContent": {"token": [secret], secret: 1}} if how == "structured" else {}),
        **({"content": [{"type": "text", "text": secret}]} if how == "error" else {}),
    }


def call(request: Message, secret: str) -> Message:
    """Return the result of a tool call."""
    arguments = request["params"].get("arguments") or {}
    if request["params"]["name"] == "leak":
        return leak(arguments["how"], secret, request)
    seen = {
        "sha256": sha256(secret.encode()).hexdigest(),
        "session": os.environ.get("TOOLFLEET_SESSION"),
    }
    return {"content": [{"type": "text", "text": json.dumps(seen)}]}


def answer(request: Message, given: str) -> Message:
    """Return the response to a request; ``given`` is the credential unless ``_meta`` has it."""
    reply: Message = {"jsonrpc": "2.0", "id": request["id"]}
    method = request["method"]
    secret = request.get("params", {}).get("_meta", {}).get(NAME) or given
    if method == "initialize":
        return reply | {
            "result": {
                "protocolVersion": "2025-11-25",
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "canary", "version": "1"},
            }
        }
    if method == "ping":
        return reply | {"result": {}}
    if method == "tools/list":
        return reply | {"result": {"tools": TOOLS}}
    if method == "tools/call":
        try:
            return reply | {"result": call(request, secret)}
        except Refused as error:
            return reply | {"error": {"code": -32000, "message": str(error)}}
    return reply | {"error": {"code": -32601, "message": "Method not found"}}


def serve_stdio() -> None:
    """Serve one client on stdin and stdout."""
    for line in sys.stdin:
        request = json.loads(line)
        if "id" in request:
            notify(answer(request, os.environ.get(NAME, "")))


def serve_http(port: int) -> None:
    """Serve every client at any path, with JSON bodies."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if "id" not in request:
                return self.reply(202, b"")
            body = answer(request, self.headers.get(NAME, ""))
            return self.reply(200, json.dumps(body).encode())

        def do_GET(self) -> None:
            self.reply(405, b"")

        def do_DELETE(self) -> None:
            self.reply(405, b"")

        def reply(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_request(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    if "--http" in sys.argv:
        serve_http(int(sys.argv[sys.argv.index("--http") + 1]))
    elif "--stillborn" in sys.argv:
        sys.exit(f"cannot log in with {os.environ[NAME]}")
    else:
        serve_stdio()
