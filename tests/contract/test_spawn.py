"""How a stdio child is born and dies: nothing of it survives, nothing gets in."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import pytest

from registry.definitions import parse_definition
from registry.environment import MARK_VARIABLE
from registry.errors import Code, FleetError
from tests.process_trees import (
    BEHAVIOURS,
    FAMILY,
    GONE_WITHIN_S,
    LIMIT_S,
    PROTECTIONS,
    Holder,
    ask,
    holding,
    light,
    open_session,
)
from tests.requirements import requirement
from tests.waiting import until
from workers.census import take_census
from workers.launch import INHERITED
from workers.mark import Mark
from workers.reaper import reap
from workers.session import CallError, Credential

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module", params=list(PROTECTIONS))
async def holder(anyio_backend: str, request: pytest.FixtureRequest) -> AsyncIterator[Holder]:
    async with holding(request.param) as holder:
        yield holder


# -- death


@requirement("stop:whole-tree")
@pytest.mark.parametrize("behaviour", list(BEHAVIOURS))
@pytest.mark.parametrize("ending", ["close", "cancel"])
async def test_a_session_that_ends_leaves_no_process(
    holder: Holder, behaviour: str, ending: str
) -> None:
    flags, rung = BEHAVIOURS[behaviour]
    session = await holder.order(open=flags)
    family = len(set(flags) & set(FAMILY))
    await until(lambda: len(holder.processes(session)) >= 1 + family)
    if behaviour == "has left":
        await holder.order(leave=session)
    ended_by = await holder.order(**{ending: session})
    assert ended_by == (rung if ending == "close" else None)
    await until(lambda: not holder.processes(session), within_s=GONE_WITHIN_S)


@requirement("stop:whole-tree", "worker:reaps")
@pytest.mark.parametrize("protection", list(PROTECTIONS))
async def test_a_killed_worker_leaves_no_process_once_the_next_has_started(protection: str) -> None:
    async with holding(protection) as holder, holding("a PID namespace") as neighbour:
        for flags, _ in BEHAVIOURS.values():
            await holder.order(open=flags)
        beside = await neighbour.order(open=FAMILY)
        neighbours = neighbour.processes(beside)
        await holder.kill()
        if protection == "no namespace":
            # The servers die with their worker; what they started waits for the next one.
            assert holder.processes()
            reap()
        await until(lambda: not holder.processes(), within_s=GONE_WITHIN_S)
        assert set(neighbours) <= set(neighbour.processes(beside))


@requirement("session:dead-is-known", "session:last-words")
async def test_the_exit_of_a_server_is_noticed_at_once_and_its_code_is_kept() -> None:
    session = await open_session(light(*FAMILY))
    with pytest.raises(CallError) as caught:
        await ask(session, "leave")
    assert (caught.value.code, caught.value.details["exit_code"]) == (Code.SESSION_LOST, 0)
    assert session.dead.is_set()
    await session.close()


# -- the reaper


@contextmanager
def sleeper(mark: object) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that carries a mark, or what passes for one."""
    environment = {MARK_VARIABLE: str(mark)} if mark is not None else {}
    with subprocess.Popen(["/bin/sleep", "1000"], env=environment) as process:
        yield process
        process.kill()


@requirement("worker:reaps")
async def test_the_reaper_ends_orphans_and_nobody_else() -> None:
    mine = Mark.fresh()
    dead = Mark(mine.namespace, mine.worker_pid, mine.worker_started - 1, "reused")
    elsewhere = Mark(mine.namespace + 1, 2**22 - 1, 1, "other container")
    with (
        sleeper(None) as unmarked,
        sleeper("toolfleet") as nonsense,
        sleeper(mine) as living,
        sleeper(elsewhere) as foreign,
        sleeper(dead) as orphan,
    ):
        assert orphan.pid in reap()
        assert orphan.wait(LIMIT_S) == -signal.SIGKILL
        spared = (unmarked, nonsense, living, foreign)
        assert [process.poll() for process in spared] == [None] * 4


# -- birth


@requirement("session:child-environment")
async def test_a_child_has_exactly_the_environment_that_it_was_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("WORKER_SECRET", "LD_LIBRARY_PATH", "PYTHONPATH", "TOOLFLEET_SECRET_KEY"):
        monkeypatch.setenv(name, "not for children")
    monkeypatch.setenv("LC_MESSAGES", "C")
    definition = light(env={"DECLARED": "one"})
    session = await open_session(definition, Credential("env", "INJECTED", "two"))
    environment = json.loads(await ask(session, "environment"))
    await session.close()
    assert Mark.parse(environment.pop(MARK_VARIABLE)) is not None
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name in INHERITED or name.startswith("LC_")
    }
    # A result that quotes the secret has it replaced: so it was there.
    assert environment == inherited | {"DECLARED": "one", "INJECTED": "[credential]"}


@requirement("servers:no-loader-variables")
@pytest.mark.parametrize(
    "name",
    [
        *("LD_PRELOAD", "LD_AUDIT", "DYLD_INSERT_LIBRARIES", "GCONV_PATH", "BASH_ENV", "ENV"),
        *("BASH_FUNC_ls%%", "PYTHONPATH", "PYTHONSTARTUP", "NODE_OPTIONS", "PERL5OPT", "RUBYOPT"),
        *("JAVA_TOOL_OPTIONS", "GIT_SSH_COMMAND", "GIT_CONFIG_COUNT", "TOOLFLEET_SESSION"),
        *("LD_PRELOAD=/tmp/x.so", "A=B", ""),
    ],
)
async def test_a_variable_that_loads_code_is_refused_by_name(name: str) -> None:
    for rest in ({"env": {name: "x"}}, {"credentials": {"inject": "env", "name": name}}):
        with pytest.raises(FleetError) as caught:
            parse_definition(light(**rest))
        assert caught.value.code is Code.INVALID_DEFINITION
        assert name in caught.value.message


@requirement("servers:no-loader-variables")
async def test_a_variable_that_only_configures_is_accepted() -> None:
    harmless = {"PATH": "/bin", "HTTPS_PROXY": "http://proxy", "GIT_AUTHOR_NAME": "a", "lc": "b"}
    assert parse_definition(light(env=harmless)).env == harmless


# -- figures


@requirement("worker:counts-processes")
async def test_the_census_counts_processes_zombies_and_open_files() -> None:
    before = take_census()
    with sleeper(None) as zombie, sleeper(None), socket.socket():
        zombie.send_signal(signal.SIGKILL)
        await until(lambda: take_census().zombies == before.zombies + 1)
        after = take_census()
    assert after.processes == before.processes + 2
    assert after.open_fds == before.open_fds + 1
    assert after.children_open_fds == before.children_open_fds + 3
