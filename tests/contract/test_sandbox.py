"""What a server's sandbox promises: limits for its whole tree, no network, or an error."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from registry.errors import Code, FleetError
from tests.process_trees import ask, holding, light, open_session
from tests.requirements import requirement
from tests.waiting import until
from workers import cgroup
from workers.cgroup import Group
from workers.mark import Mark
from workers.reaper import reap
from workers.session import CallError, Session

pytestmark = pytest.mark.anyio

CGROUPS = pytest.mark.skipif(
    not {"memory_mb", "pids", "cpu_s"} <= set(cgroup._homes()), reason="no writable cgroups here"
)


@asynccontextmanager
async def limited(**sandbox: Any) -> AsyncIterator[Session]:
    session = await open_session(light(sandbox=sandbox))
    try:
        yield session
    finally:
        await session.close()


def groups(worker_pid: int) -> list[Path]:
    """Return the cgroups of a process's sessions."""
    homes = {home.folder for home in cgroup._homes().values()}
    return [path for home in homes for path in home.glob(f"{cgroup._PREFIX}*.{worker_pid}.*")]


@CGROUPS
@requirement("session:limits")
@pytest.mark.parametrize(
    ("sandbox", "tool", "arguments", "exceeded"),
    [
        ({"memory_mb": 64}, "grow", {"megabytes": 200, "processes": 1}, "memory_mb"),
        ({"memory_mb": 64}, "grow", {"megabytes": 24, "processes": 4}, "memory_mb"),
        ({"cpu_s": 1}, "spin", {"seconds": 30, "processes": 1}, "cpu_s"),
        ({"cpu_s": 1}, "spin", {"seconds": 0.5, "processes": 40}, "cpu_s"),
    ],
)
async def test_a_tree_that_outgrows_its_sandbox_is_killed_and_the_error_says_why(
    sandbox: dict[str, int], tool: str, arguments: dict[str, Any], exceeded: str
) -> None:
    async with limited(**sandbox) as session:
        with pytest.raises(CallError, match=f"sandbox.{exceeded}") as caught:
            await ask(session, tool, **arguments)
        assert caught.value.code is Code.LIMIT_EXCEEDED
        assert caught.value.details["exceeded"] == exceeded


@CGROUPS
@requirement("session:limits")
async def test_a_tree_within_its_limits_is_left_alone_and_its_cgroups_go_with_it() -> None:
    async with limited(memory_mb=64, cpu_s=5, pids=6) as session:
        assert await ask(session, "grow", megabytes=16, processes=2) == str(16 << 20)
        assert groups(os.getpid())
    assert not groups(os.getpid())


@CGROUPS
@requirement("session:limits")
async def test_a_tree_has_as_many_processes_as_it_may_also_as_root() -> None:
    async with limited(pids=5) as session:
        assert await ask(session, "fork", limit=50) == "4"  # and the server itself


@requirement("session:limits")
async def test_without_cgroups_each_process_is_held_to_the_limits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cgroup, "_homes", dict)
    async with limited(memory_mb=64, cpu_s=1) as session:
        with pytest.raises(CallError) as caught:
            await ask(session, "grow", megabytes=200, processes=1)
        assert "MemoryError" in caught.value.details["stderr"]
    async with limited(cpu_s=1) as session:
        with pytest.raises(CallError) as caught:
            await ask(session, "spin", seconds=30, processes=1)
        assert caught.value.code is Code.LIMIT_EXCEEDED


@requirement("session:limits")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root escapes RLIMIT_NPROC")
async def test_a_limit_that_cannot_be_kept_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "_homes", dict)
    with pytest.raises(FleetError, match="limits pids, and root can be held") as caught:
        await open_session(light(sandbox={"pids": 5}))
    assert caught.value.code is Code.SERVER_UNAVAILABLE


@requirement("session:limits")
async def test_a_server_without_network_sees_no_interface_but_its_own() -> None:
    async with limited(network=False) as session:
        assert await ask(session, "interfaces") == "lo"


@requirement("session:limits")
async def test_a_server_that_must_not_have_the_network_does_not_start_where_it_would_have_it() -> (
    None
):
    async with holding("no namespace") as holder:
        answer = await holder.order(open=[], sandbox={"network": False})
        assert "its sandbox forbids the network" in answer
        assert not holder.processes()


@CGROUPS
@requirement("session:limits", "worker:reaps")
async def test_the_cgroups_of_a_killed_worker_are_removed_by_the_next() -> None:
    async with holding("no namespace") as holder:
        await holder.order(open=["--daemon"], sandbox={"memory_mb": 64, "pids": 9})
        pid = holder.process.pid
        await holder.kill()
        assert groups(pid)
        reap()
        assert not groups(pid)


ROOTS = {"version 1": Path("/sys/fs/cgroup/pids"), "version 2": Path("/sys/fs/cgroup/unified")}


@requirement("session:limits")
@pytest.mark.parametrize("version", list(ROOTS))
async def test_removing_a_group_kills_its_members_even_without_a_mark(version: str) -> None:
    if not os.access(ROOTS[version], os.W_OK):
        pytest.skip(f"no writable cgroup of {version} where this test looks for one")
    folder = ROOTS[version] / f"{cgroup._PREFIX}{Mark.fresh()}"
    folder.mkdir()
    group = Group({"": folder}, {})
    member = await asyncio.create_subprocess_exec(
        "sh", "-c", f"echo 0 > {group.doors[0]} && exec sleep 1000", env={}
    )
    await until(lambda: (folder / "cgroup.procs").read_text().split() == [str(member.pid)])
    group.remove()
    assert await member.wait() == -signal.SIGKILL
    assert not folder.exists()


@requirement("session:limits")
async def test_the_limits_of_version_2_are_written_where_the_kernel_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = cgroup._Home(tmp_path, 2)
    monkeypatch.setattr(cgroup, "_homes", lambda: dict.fromkeys(("memory_mb", "pids"), home))
    group = Group.make(Mark.fresh(), {"memory_mb": 64, "pids": 5})
    assert group is not None
    (folder,) = tmp_path.iterdir()
    written = {file.name: file.read_text() for file in folder.iterdir()}
    assert written == {"memory.max": "64M", "pids.max": "5"}
    assert group.doors == [str(folder / "cgroup.procs")]
    (folder / "memory.events").write_text("max 4\noom 1\noom_kill 1\n")
    assert group.excess() == "memory_mb"
