"""What is measured, started: a fleet with its echo servers, a stock Celery worker, a caller."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from compose.bench.cpu import Meter
from compose.bench.noop import BROKER_VARIABLE, THREADS
from compose.demo.servers import accepts
from compose.embedded import free_port
from compose.local import LocalFleet
from compose.process import Process
from registry.settings import Settings

STDIO, HTTP = "echo", "echo-http"
SESSIONS = 4
NEVER_RECYCLE = 10_000_000
UP_WITHIN_S = 20.0
READY_WITHIN_S = 90.0
ECHO = (sys.executable, "-P", "-m", "compose.demo.echo_server")


@dataclass
class Rig:
    """Everything that runs, and how to ask it."""

    fleet: LocalFleet
    api: httpx2.AsyncClient
    caller: Caller
    celery: Process
    meter: Meter
    definitions: dict[str, dict[str, Any]]

    async def start_run(self) -> str:
        """Start a run; return its id."""
        answer = await self.api.post("/v1/runs", json={"tenant": "bench"})
        return str(answer.raise_for_status().json()["id"])

    def pause_celery(self, *, paused: bool) -> None:
        """Stop the stock worker where it stands, or let it go on."""
        assert self.celery.pid is not None
        os.kill(self.celery.pid, signal.SIGSTOP if paused else signal.SIGCONT)


class Caller:
    """The load generator's process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """Return its process id."""
        return self._process.pid

    async def do(self, what: str, way: str = "", **job: Any) -> dict[str, Any]:
        """Have one job done; return its answer."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps({"do": what, "way": way, **job}).encode() + b"\n")
        line = await stdout.readline()
        if not line:
            raise RuntimeError("the load generator has ended: its last words are above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def close(self) -> None:
        """Let it end by itself; kill it if it does not."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), UP_WITHIN_S)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


@asynccontextmanager
async def running(folder: Path, sessions: int, **options: Any) -> AsyncIterator[Rig]:
    """Start everything in a folder; take it down at the end. ``options`` are `LocalFleet`'s."""
    async with AsyncExitStack() as stack:
        port = free_port()
        echo_http = Process([*ECHO, "--http", str(port)], log=folder / "echo-http.log", grace_s=3)
        stack.push_async_callback(echo_http.stop)
        await echo_http.start()
        settings = Settings(data_dir=folder / "data", database_url="", redis_url="")
        fleet = await stack.enter_async_context(LocalFleet(settings, free_ports=True, **options))
        broker = fleet.redis_url.removesuffix("/0") + "/1"
        celery = Process(_celery_command(), log=folder / "celery.log", env=_with(broker), grace_s=5)
        stack.push_async_callback(celery.stop)
        await celery.start()
        caller = Caller(await _start_caller(broker))
        stack.push_async_callback(caller.close)
        api = await stack.enter_async_context(
            httpx2.AsyncClient(
                base_url=fleet.api_url,
                headers={"Authorization": f"Bearer {fleet.operator_key}"},
                timeout=60,
                trust_env=False,
            )
        )
        definitions = _definitions(port, sessions)
        rig = Rig(fleet, api, caller, celery, _meter(fleet, caller, celery, echo_http), definitions)
        await _register(rig, port)
        yield rig


def _definitions(port: int, sessions: int) -> dict[str, dict[str, Any]]:
    common = {
        "annotations": "trusted",
        "pool": {"min_idle": sessions, "max_size": sessions, "max_calls": NEVER_RECYCLE},
    }
    command = {"command": ECHO[0], "args": list(ECHO[1:])}
    return {
        STDIO: {"name": STDIO, "transport": "stdio", **command, **common},
        HTTP: {
            "name": HTTP,
            "transport": "http",
            "url": f"http://127.0.0.1:{port}/mcp",
            "networks": ["127.0.0.0/8"],
            **common,
        },
    }


async def _register(rig: Rig, port: int) -> None:
    async with asyncio.timeout(UP_WITHIN_S):
        while not accepts(port):
            await asyncio.sleep(0.05)
    for definition in rig.definitions.values():
        (await rig.api.post("/v1/servers", json=definition)).raise_for_status()
    await rig.fleet.wait_ready(rig.definitions, READY_WITHIN_S)


def _meter(fleet: LocalFleet, caller: Caller, celery: Process, echo_http: Process) -> Meter:
    def roots() -> Mapping[str, Sequence[int]]:
        pids = {name: child.program.pid for name, child in fleet.children.items()}
        parts = {name: [pid] for name, pid in pids.items() if pid and ":" not in name}
        return {
            **parts,
            "worker": [pid for workers in fleet.workers().values() for pid in workers],
            "caller": [caller.pid],
            "celery": [celery.pid] if celery.pid else [],
            "echo": [echo_http.pid] if echo_http.pid else [],
        }

    return Meter(roots)


def _celery_command() -> list[str]:
    options = ["--pool", "threads", "--concurrency", str(THREADS), "--loglevel", "WARNING"]
    return [sys.executable, "-P", "-m", "celery", "-A", "compose.bench.noop", "worker", *options]


async def _start_caller(broker: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "compose.bench.load"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=_with(broker),
        limit=1 << 26,  # an answer is one line with every latency
    )


def _with(broker: str) -> dict[str, str]:
    return {**os.environ, BROKER_VARIABLE: broker}
