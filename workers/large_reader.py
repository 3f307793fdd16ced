"""The process that reads large messages for a worker: it parses, checks, scrubs and redacts them.

Started by `workers.large`, one per worker, because these things hold the interpreter for as long
as they take, and with it every call of the process they happen in.

1. It keeps nothing between jobs and knows no secret but that of the job at hand.
2. It may use so much memory (its first argument, in bytes); beyond it a job ends in an error.
3. It ends when its worker does, in the middle of a job too.

A job comes on stdin and its answer goes to stdout, each as two lengths, JSON, and bytes.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import hashlib
import json
import math
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable
from typing import Any, BinaryIO, Final

from registry.database import to_json
from registry.errors import Code, FleetError
from registry.results import let_out
from workers.listing import BY_METHOD, read_page
from workers.output_gate import Gate
from workers.scrub import Scrubber

FRAME: Final = struct.Struct(">II")
PREVIEW_CHARACTERS: Final = 1_000
UNREADABLE: Final = "Failed to parse JSON response: "
"""How the MCP SDK begins what it says of an HTTP answer that is none."""
PARSE_ERROR: Final = -32700
TOO_LARGE_TO_ASK: Final = "toolfleet/too_large_to_ask"
"""The method of a server's question that is too large to be put to anybody."""
LARGEST_QUESTION_BYTES: Final = 1_000_000
_LONGEST_KEPT: Final = 1_000  # of what a small message keeps of a large one, each
_MOST_MEMBERS: Final = 64
_PR_SET_PDEATHSIG: Final = 1

Answer = tuple[dict[str, Any], bytes]


def message_of(raw: bytes, *, event: bool) -> dict[str, Any] | None:
    """Return the JSON object in a line or a body, or in a server-sent event's data, if any."""
    text = (_data(raw) if event else raw).decode("utf-8-sig", "replace")
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None


def instead_of(message: dict[str, Any]) -> dict[str, Any] | None:
    """Return an error in the place of an answer that is none; None for anything else.

    Without it whoever asked would wait for the answer until its time is over.
    """
    id_ = message.get("id")
    if isinstance(id_, bool) or not isinstance(id_, str | int) or "method" in message:
        return None
    wrong = [it for it in ("result", "error") if it in message]
    if not wrong or any(isinstance(message[it], dict) for it in wrong):
        return None
    said = f"{UNREADABLE}{wrong[0]}: Input should be an object"
    error = {"code": PARSE_ERROR, "message": said}
    return {"jsonrpc": "2.0", "id": str(id_)[:_LONGEST_KEPT], "error": error}


def shrink(job: dict[str, Any], raw: bytes) -> Answer:
    """Answer with a small message in the place of a large one; with none for what needs no answer.

    A question of the server's stays as it is, up to `LARGEST_QUESTION_BYTES`. A small result has
    the members of the large one, emptied, and those of ``job["placeholder"]``.
    """
    message = _hollow(whole := message_of(raw, event=job["event"]) or {})
    result, error = whole.get("result"), whole.get("error")
    facts = {"result": False, "size": 0}
    small = b""
    if "method" in whole and "id" in whole:
        if len(raw) <= LARGEST_QUESTION_BYTES:
            return facts, raw
        small = to_json({**message, "method": TOO_LARGE_TO_ASK, "params": {}}).encode()
    elif (instead := instead_of(whole)) is not None:
        small = to_json(instead).encode()
    elif isinstance(error, dict):
        said = str(error.get("message"))[:_LONGEST_KEPT]
        small = to_json({**message, "error": {**_hollow(error), "message": said}}).encode()
    elif isinstance(result, dict):
        small = to_json({**message, "result": {**_hollow(result), **job["placeholder"]}}).encode()
        compact = json.dumps(result, separators=(",", ":"), ensure_ascii=False)
        facts = {"result": True, "size": len(compact.encode("utf-8", "surrogatepass"))}
    return facts, _event(raw, small) if job["event"] else small


def finish(job: dict[str, Any], raw: bytes) -> Answer:
    """Answer with the result of a tool as it may leave, as JSON; raise what its gate does."""
    result = (message_of(raw, event=job["event"]) or {})["result"]
    result = Scrubber(*job["secrets"]).json(result)
    if job["gate"] is None:
        clean, findings = let_out(job["tool"], job["schema"], result)
    else:
        gate = Gate.from_dict(job["gate"])
        clean, findings = asyncio.run(gate.result(job["tool"], job["schema"], result))
    try:
        encoded = to_json(clean).encode()
    except ValueError as error:
        raise FleetError(
            Code.RESULT_INVALID,
            f"the result of {job['tool']} is not JSON that can be stored ({type(error).__name__})",
            hint="the server has to be mended (NaN is no JSON); the call itself did run",
        ) from error
    facts = {
        "is_error": bool(clean.get("isError")),
        "sha256": hashlib.sha256(encoded).hexdigest(),
        "preview": _preview(clean, encoded),
        "structured": "structuredContent" in clean,
        "findings": findings,
    }
    return facts, encoded


def page(job: dict[str, Any], raw: bytes) -> Answer:
    """Answer with a page of a list, item after item; raise as `read_page` does."""
    result = (message_of(raw, event=job["event"]) or {})["result"]
    scrubber = Scrubber(*job["secrets"])
    read = read_page(result, job["server"], scrubber, BY_METHOD[job["tool"]])
    facts = {"cursor": read.cursor, "sizes": [len(data) for data in read.encoded]}
    return facts, b"".join(read.encoded)


JOBS: Final[dict[str, Callable[[dict[str, Any], bytes], Answer]]] = {
    "shrink": shrink,
    "finish": finish,
    "page": page,
}


def _hollow(whole: dict[str, Any]) -> dict[str, Any]:
    """Return an object with its small members, and its others empty: the SDK looks for some."""
    return {
        name: type(value)() if isinstance(value, dict | list) else value
        for name, value in list(whole.items())[:_MOST_MEMBERS]
        if len(name) <= _LONGEST_KEPT
        and (not isinstance(value, str | int) or len(str(value)) <= _LONGEST_KEPT)
        and (not isinstance(value, float) or math.isfinite(value))
    }


def _data(event: bytes) -> bytes:
    lines = [line[5:] for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(line.removeprefix(b" ") for line in lines)


def _event(event: bytes, data: bytes) -> bytes:
    """Return an event with other data: its type, id and retry stay."""
    kept = [
        line
        for line in event.split(b"\n")
        if line.startswith((b"event:", b"id:", b"retry:")) and len(line) <= _LONGEST_KEPT
    ]
    return b"\n".join([*kept[-_MOST_MEMBERS:], b"data: " + data]) + b"\n\n"


def _preview(result: dict[str, Any], encoded: bytes) -> str:
    blocks = result.get("content")
    texts = [
        str(block["text"])
        for block in (blocks if isinstance(blocks, list) else ())
        if isinstance(block, dict) and block.get("text")
    ]
    return (texts[0] if texts else encoded[:PREVIEW_CHARACTERS].decode())[:PREVIEW_CHARACTERS]


def serve(jobs: BinaryIO, answers: BinaryIO) -> None:
    """Do jobs until there are no more."""
    gc.disable()  # JSON has no cycles, and looking for them takes most of the time of parsing it
    while head := jobs.read(FRAME.size):
        header_size, size = FRAME.unpack(head)
        job = json.loads(jobs.read(header_size))
        facts, body = _do(job, jobs.read(size))
        header = to_json(facts).encode()
        answers.write(FRAME.pack(len(header), len(body)) + header)
        answers.write(body)
        answers.flush()
        del job, facts, body, header
        gc.collect()


def _do(job: dict[str, Any], raw: bytes) -> Answer:
    try:
        return JOBS[job["job"]](job, raw)
    except FleetError as error:
        return {"error": error.as_dict()}, b""
    except MemoryError:  # what it was about is freed by now
        problem = "needs more memory to be read than there is for it"
        code = Code.RESULT_TOO_LARGE
    except Exception as error:  # noqa: BLE001 whatever it was, the result must not leave unread
        problem = f"could not be read to its end ({type(error).__name__})"
        code = Code.REDACTION_FAILED
    refusal = FleetError(
        code,
        f"the result{_of_tool(job)} {problem} and is withheld",
        hint="the call itself did run; ask for less",
    )
    return {"error": refusal.as_dict()}, b""


def _of_tool(job: dict[str, Any]) -> str:
    return f" of {job['tool']}" if "tool" in job else ""


def main() -> None:
    """Serve the worker that started this process (its pid is the second argument)."""
    memory_bytes, worker_pid = int(sys.argv[1]), int(sys.argv[2])
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != worker_pid:
            return
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # it would hold what tools answered
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a guardrail prints is no answer
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
