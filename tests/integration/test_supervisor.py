"""Children kept running, with real processes that do as little as a test needs."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from compose.process import Process
from compose.supervisor import Child, State, Supervisor
from tests.requirements import requirement
from tests.waiting import until

pytestmark = pytest.mark.anyio

SLEEP = "import time; print('up', flush=True); time.sleep(600)"
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"
PARENT = (
    "import subprocess, sys;"
    f"child = subprocess.Popen([sys.executable, '-c', {SLEEP!r}]);"
    "print('child', child.pid, flush=True); child.wait()"
)


def python(code: str, folder: Path, *, grace_s: float = 10.0) -> Process:
    return Process([sys.executable, "-c", code], log=folder / "child.log", grace_s=grace_s)


def said(folder: Path) -> str:
    log = folder / "child.log"
    return log.read_text() if log.exists() else ""


@requirement("local:restarts")
async def test_a_killed_child_is_started_again(tmp_path: Path) -> None:
    child = Child("worker", python(SLEEP, tmp_path))
    await child.start()
    first = child.program.pid
    try:
        os.kill(first or 0, signal.SIGKILL)
        await until(lambda: child.restarts == 1 and child.state is State.RUNNING)
        assert child.program.pid != first
    finally:
        await child.stop()


@requirement("local:restarts")
async def test_a_child_that_ends_at_once_backs_off(tmp_path: Path) -> None:
    states: list[State] = []
    child = Child(
        "worker", python("exit(3)", tmp_path), on_change=lambda it: states.append(it.state)
    )
    await child.start()
    await until(lambda: State.BACKING_OFF in states)
    await child.stop()
    assert states[:3] == [State.STARTING, State.RUNNING, State.BACKING_OFF]


@requirement("local:leaves-nothing")
async def test_a_stopped_child_stays_stopped(tmp_path: Path) -> None:
    child = Child("worker", python(SLEEP, tmp_path))
    await child.start()
    process = psutil.Process(child.program.pid)
    await child.stop()
    assert (process.is_running(), child.state) == (False, State.STOPPED)


@requirement("local:leaves-nothing")
async def test_a_child_that_ignores_the_signal_is_killed_after_its_grace(tmp_path: Path) -> None:
    program = python(DEAF, tmp_path, grace_s=0.2)
    await program.start()
    await until(lambda: "up" in said(tmp_path))
    await program.stop()
    assert await program.wait() == -signal.SIGKILL


@requirement("local:leaves-nothing")
async def test_a_second_request_kills_a_child_that_is_being_stopped(tmp_path: Path) -> None:
    supervisor = Supervisor(on_change=lambda child: supervisor.hasten())
    program = python(DEAF, tmp_path, grace_s=600)
    await supervisor.start("deaf", program)
    await until(lambda: "up" in said(tmp_path))
    await supervisor.stop(["deaf"])
    assert await program.wait() == -signal.SIGKILL


@requirement("local:leaves-nothing")
async def test_what_a_dead_child_started_is_swept_away(tmp_path: Path) -> None:
    program = python(PARENT, tmp_path)
    await program.start()
    await until(lambda: "child" in said(tmp_path))
    grandchild = psutil.Process(int(said(tmp_path).split()[1]))
    os.kill(program.pid or 0, signal.SIGKILL)
    await program.wait()
    await until(lambda: not grandchild.is_running() or grandchild.status() == "zombie")


@requirement("local:leaves-nothing")
async def test_a_child_dies_with_the_supervisor(tmp_path: Path) -> None:
    supervisor = (
        "import asyncio, pathlib, sys; from compose.process import Process\n"
        "async def main():\n"
        f"    child = Process([sys.executable, '-c', {SLEEP!r}],"
        f" log=pathlib.Path({str(tmp_path)!r}) / 'grandchild.log')\n"
        "    await child.start(); print('child', child.pid, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())"
    )
    program = python(supervisor, tmp_path)
    await program.start()
    await until(lambda: "child" in said(tmp_path))
    child = psutil.Process(int(said(tmp_path).split()[1]))
    grandchild_log = tmp_path / "grandchild.log"
    await until(lambda: "up" in grandchild_log.read_text())  # it has asked for the signal by then
    program.kill()
    await program.wait()
    await until(lambda: not child.is_running() or child.status() == "zombie")


@requirement("local:restarts")
async def test_a_retired_child_frees_its_name_once_it_has_ended(tmp_path: Path) -> None:
    supervisor = Supervisor()
    await supervisor.start("worker:crm", python(SLEEP, tmp_path))
    supervisor.retire("worker:crm")
    await until(lambda: "worker:crm" not in supervisor.children)
    await supervisor.start("worker:crm", python(SLEEP, tmp_path))
    await supervisor.stop(["worker:crm"])


async def test_a_command_that_does_not_exist_says_so(tmp_path: Path) -> None:
    program = Process([str(tmp_path / "no-such-program")], log=tmp_path / "child.log")
    with pytest.raises(OSError, match="no-such-program"):
        await program.start()
