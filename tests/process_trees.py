"""Process trees for tests: servers that end badly, and worker processes that can be killed."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from registry.definitions import parse_definition
from workers.mark import Mark, marked
from workers.reaper import reap
from workers.session import Credential, Session

SERVERS = Path(__file__).parent / "servers"
LIMIT_S = 20.0
GONE_WITHIN_S = 3.0
FAMILY = ("--fork", "--setsid", "--daemon")
# What a server is like -> its flags, and the rung that ends it.
BEHAVIOURS: dict[str, tuple[tuple[str, ...], str]] = {
    "well behaved": ((), "exited"),
    "ignores EOF": (("--ignore-eof",), "sigterm"),
    "ignores EOF and TERM": (("--ignore-eof", "--ignore-term"), "sigkill"),
    "forks": (("--fork",), "exited"),
    "has a child in another session": (("--setsid", "--ignore-eof"), "sigterm"),
    "has a daemon": (("--daemon", "--ignore-term"), "exited"),
    "has left": (FAMILY, "exited"),
}
# A user namespace in which the kernel refuses further namespaces, as it does on many machines.
_REFUSE = (
    "for kind in pid net; do echo 0 > /proc/sys/user/max_${kind}_namespaces || exit; done; "
    'exec "$@"'
)
REFUSING = ("unshare", "--user", "--map-root-user", "--", "sh", "-c", _REFUSE, "sh")


def works(*command: str) -> bool:
    with suppress(OSError):
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    return False


PROTECTIONS = {
    "a PID namespace": ((), works("unshare", "--user", "--map-current-user", "--pid", "true")),
    "no namespace": (REFUSING, works(*REFUSING, "true")),
}


def light(*flags: str, **rest: Any) -> dict[str, Any]:
    arguments = ["-I", "-S", str(SERVERS / "light.py"), *flags]
    document = {"name": "light", "transport": "stdio", "command": sys.executable}
    return {**document, "args": arguments, **rest}


async def open_session(definition: dict[str, Any], credential: Credential | None = None) -> Session:
    return await Session.open(
        parse_definition(definition),
        credential=credential,
        connect_timeout_s=LIMIT_S,
        stop_grace_s=0.2,
        max_result_bytes=1_000_000,
    )


async def ask(session: Session, tool: str, **arguments: Any) -> str:
    result = await session.call_tool(tool, arguments, timeout_s=LIMIT_S)
    said: str = result.body["content"][0]["text"]
    return said


@dataclass
class Holder:
    """A worker process, as far as sessions are concerned."""

    process: asyncio.subprocess.Process

    async def order(self, **what: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(what).encode() + b"\n")
        async with asyncio.timeout(LIMIT_S):
            return json.loads(await self.process.stdout.readline())

    def processes(self, *sessions: str) -> list[int]:
        """Return what lives of some of its sessions, or of all."""
        pid = self.process.pid

        def wanted(mark: Mark) -> bool:
            return mark.worker_pid == pid and (not sessions or str(mark) in sessions)

        return [found for found, _ in marked(wanted)]

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def holding(protection: str) -> AsyncIterator[Holder]:
    prefix, possible = PROTECTIONS[protection]
    if not possible:
        pytest.skip(f"this machine cannot be made to have {protection}")
    process = await asyncio.create_subprocess_exec(
        *prefix,
        sys.executable,
        str(SERVERS / "holder.py"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    holder = Holder(process)
    try:
        yield holder
    finally:
        if process.returncode is None:
            await holder.kill()
        reap()
