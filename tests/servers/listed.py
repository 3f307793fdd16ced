"""A server that lists what a file says, word for word, and notes each call that reaches it.

``python -I -S listed.py FILE`` speaks over stdio. FILE is JSON: the list of tools; it is read at
each ``tools/list``. A call is noted in ``FILE.calls``, a line of JSON each, and answered with the
text of its arguments, or with what ``FILE.answer`` holds.
"""

import json
import os
import sys

FILE = sys.argv[1]
INTRODUCTION = {
    "protocolVersion": "2025-11-25",
    "capabilities": {"tools": {}},
    "serverInfo": {"name": "listed", "version": "1"},
}


def read(path: str) -> str:
    """Return a file's text."""
    with open(path) as file:  # noqa: PTH123 pathlib takes longer to import than all else
        return file.read()


def call(params: dict) -> str:
    """Note a call; return the JSON of its result."""
    with open(FILE + ".calls", "a") as file:  # noqa: PTH123
        file.write(json.dumps({"name": params["name"], "arguments": params["arguments"]}) + "\n")
    if os.path.exists(FILE + ".answer"):  # noqa: PTH110
        return read(FILE + ".answer")
    said = json.dumps(params["arguments"])
    return json.dumps({"content": [{"type": "text", "text": said}]})


def result(request: dict) -> str | None:
    """Return the JSON of a result; None for what is not known here."""
    if request["method"] == "initialize":
        return json.dumps(INTRODUCTION)
    if request["method"] == "tools/list":
        return f'{{"tools": {read(FILE)}}}'
    if request["method"] == "tools/call":
        return call(request["params"])
    return "{}" if request["method"] == "ping" else None


def main() -> None:
    """Serve until stdin ends."""
    for line in sys.stdin:
        request = json.loads(line)
        if "id" not in request:
            continue
        id_, said = json.dumps(request["id"]), result(request)
        error = '{"code": -32601, "message": "Method not found"}'
        body = f'"result": {said}' if said is not None else f'"error": {error}'
        print(f'{{"jsonrpc": "2.0", "id": {id_}, {body}}}', flush=True)


if __name__ == "__main__":
    main()
