"""A server that costs little to start and ends badly; run it with ``python -I -S``.

Flags, before it answers for the first time: ``--ignore-eof``, ``--ignore-term``; ``--fork`` starts
a child in its own group, ``--setsid`` one in a session of its own, ``--daemon`` one that no longer
has a parent. ``--journal PATH`` names a file that gets a line of JSON for each call, before it is
done. Tools: ``environment`` (what the kernel gave it), ``pid``, ``wait`` (for ever),
``leave`` (exit 0 without an answer), ``grow`` (by so many MB, in so many processes), ``fork`` (how
many processes it can have), ``spin`` (for so many seconds, in so many processes one after the
other), ``abandon`` (so many children, as zombies), ``interfaces``, ``say`` (back what it was
told, and that it took so long), ``open`` (so many files more).
"""

import json
import os
import signal
import sys
import time


def start(*ways: str) -> None:
    """Start a process that stays, in the ways named."""
    pid = os.fork()
    if pid:
        if "daemon" in ways:
            os.waitpid(pid, 0)
        return
    if ways:
        os.setsid()
    if "daemon" in ways and os.fork():
        os._exit(0)
    os.execvp("sleep", ["sleep", "1000"])


def grow(megabytes: int, processes: int) -> str:
    """Take so much memory, and again in each further process, which stays."""
    kept = bytearray(b"x" * (megabytes << 20))
    for _ in range(processes - 1):
        ready, told = os.pipe()
        if not os.fork():
            kept += bytes(range(256)) * (megabytes << 12)
            os.write(told, b".")
            signal.pause()
        os.close(told)
        if not os.read(ready, 1):  # it was killed
            os._exit(1)
    return str(len(kept))


def fork(limit: int) -> str:
    """Return how many processes could be started, at most ``limit``."""
    for count in range(limit):
        try:
            if not os.fork():
                signal.pause()
        except BlockingIOError:
            return str(count)
    return str(limit)


def spin(seconds: float, processes: int) -> str:
    """Use so much CPU time in each of so many processes, one after the other."""
    for _ in range(processes):
        pid = os.fork() if processes > 1 else 0
        if not pid:
            while time.process_time() < seconds:
                pass
            if processes > 1:
                os._exit(0)
        else:
            os.waitpid(pid, 0)
    return "spun"


def abandon(children: int) -> str:
    """Start so many children that end at once, and never look at how: each becomes a zombie."""
    for _ in range(children):
        if not os.fork():
            os._exit(0)
    return "abandoned"


def interfaces() -> str:
    """Return the names of the network interfaces."""
    with open("/proc/net/dev") as file:  # noqa: PTH123 pathlib takes longer to import than all else
        return " ".join(line.split(":")[0].strip() for line in list(file)[2:])


def environment() -> str:
    """Return the environment as the kernel gave it, as JSON."""
    with open("/proc/self/environ", "rb") as file:  # noqa: PTH123
        pairs = file.read().decode().split("\0")
    return json.dumps(dict(pair.split("=", 1) for pair in pairs if pair))


TOOLS = {
    "environment": environment,
    "open": lambda files: str([os.dup(0) for _ in range(files)][-1]),
    "pid": lambda: str(os.getpid()),
    "say": lambda text, took_s=0: text,
    "wait": signal.pause,
    "leave": lambda: os._exit(0),
    "grow": grow,
    "fork": fork,
    "spin": spin,
    "abandon": abandon,
    "interfaces": interfaces,
}


def note(params: dict) -> None:
    """Append a call to the journal, if there is one."""
    if "--journal" in sys.argv:
        path = sys.argv[sys.argv.index("--journal") + 1]
        with open(path, "a") as file:  # noqa: PTH123
            file.write(json.dumps([params["name"], params.get("arguments")]) + "\n")


def answer(request: dict) -> dict:
    """Return the response to a request."""
    params = request.get("params") or {}
    if request["method"] == "initialize":
        server = {"name": "light", "version": "1"}
        return {
            "result": {
                "protocolVersion": "2025-11-25",
                "capabilities": {"tools": {}},
                "serverInfo": server,
            }
        }
    if request["method"] == "tools/call":
        note(params)
        arguments = params.get("arguments") or {}
        said = TOOLS[params["name"]](**arguments)
        result = {"content": [{"type": "text", "text": said}]}
        if "took_s" in arguments:
            result["_meta"] = {"toolfleet/server-seconds": arguments["took_s"]}
        return {"result": result}
    if request["method"] == "tools/list":
        tools = [{"name": name, "inputSchema": {"type": "object"}} for name in TOOLS]
        return {"result": {"tools": tools}}
    if request["method"] == "ping":
        return {"result": {}}
    return {"error": {"code": -32601, "message": "Method not found"}}


def main() -> None:
    """Serve until stdin ends, or beyond."""
    if "--ignore-term" in sys.argv:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "--fork" in sys.argv:
        start()
    if "--setsid" in sys.argv:
        start("setsid")
    if "--daemon" in sys.argv:
        start("daemon")
    for line in sys.stdin:
        request = json.loads(line)
        if "id" in request:
            said = {"jsonrpc": "2.0", "id": request["id"], **answer(request)}
            print(json.dumps(said), flush=True)
    while "--ignore-eof" in sys.argv:
        signal.pause()


if __name__ == "__main__":
    main()
