"""What is executed for a stdio server: its command line, its environment, its limits.

The server that stands in front of an HTTP API is one, and a program of ours.

1. The environment is built from nothing: `INHERITED`, what the definition declares, what is
   injected, and the session's mark. Nothing else of the worker's own environment gets in.
2. A limit that this machine cannot keep is an error, never silently dropped. Cgroups hold a limit
   for the whole tree; where there are none, rlimits hold it for each process.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from registry.definitions import Sandbox, ServerDefinition
from registry.environment import MARK_VARIABLE
from registry.errors import Code, FleetError
from workers.cage import KEEPERS, SHELL, find_cage, known_cage
from workers.cgroup import Group
from workers.mark import Mark, end_session
from workers.permission import refuse_start

INHERITED: Final = frozenset(
    ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR")
)
"""Variables of the worker that every child gets, and with them all that begin with ``LC_``."""

# -P: the working directory is no place to import from.
_API_SERVER: Final = (sys.executable, "-P", "-m", "workers.openapi_server")
# FastMCP would take settings from a file in the working directory, and log what it is told.
_API_SERVER_ENV: Final = {"FASTMCP_ENV_FILE": os.devnull, "FASTMCP_LOG_ENABLED": "false"}

_JOIN: Final = 'while [ "$1" != -- ]; do echo 0 > "$1" || exit 125; shift; done; shift; exec "$@"'
_SHELLS_OWN: Final = ("PWD", "OLDPWD", "SHLVL", "_")  # set by shells on the way to the command


@dataclass(frozen=True)
class Launch:
    """A command ready to be executed, and what is known of the processes that it becomes.

    ``contained``: none of them can outlive the first.
    """

    server: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    cwd: str | None
    mark: Mark
    contained: bool
    group: Group | None = None

    @property
    def leaves_traces(self) -> bool:
        """Say whether `bury` has anything to do once the first process has ended."""
        return self.group is not None or not self.contained

    def bury(self) -> None:
        """End what is left of the session's processes, wherever it went (blocks, 3 s at most)."""
        if not self.contained:
            end_session(self.mark)
        if self.group is not None:
            self.group.remove()

    def excess(self, exit_code: int | None) -> str | None:
        """Name the limit of the sandbox that the server went beyond, as far as that is known."""
        if self.group is not None and (exceeded := self.group.excess()) is not None:
            return exceeded
        by_signal = exit_code in (-signal.SIGXCPU, 128 + signal.SIGXCPU)
        return "cpu_s" if by_signal else None


async def plan_launch(definition: ServerDefinition, injected_env: Mapping[str, str]) -> Launch:
    """Turn a definition into a command line that can neither outlive its worker nor outgrow.

    Raises `server_unavailable` when the command does not exist or this machine cannot keep a limit
    that the definition asks for, `policy_denied` when the policy of commands refuses it.
    """
    mark = Mark.fresh()
    command, *args = definition.command or "", *definition.args
    env = {**child_environment(definition.env, injected_env), MARK_VARIABLE: str(mark)}
    if definition.transport == "openapi":
        command, *args = _API_SERVER
        env |= _API_SERVER_ENV
    program = _executable(command, env.get("PATH", os.defpath), definition.cwd)
    if program is None:
        raise cannot_start(
            definition.name,
            f"its command {command!r} was not found",
            "install it, or give its absolute path in the definition",
        )
    if definition.transport == "stdio":
        await asyncio.to_thread(refuse_start, definition, program)
    sandbox = definition.sandbox
    cage = known_cage(sandbox.network) or await asyncio.to_thread(find_cage, sandbox.network)
    if cage is None:
        raise cannot_start(
            definition.name,
            "its sandbox forbids the network and `unshare --net` does not work here",
            "run the worker where it may create network namespaces, or set sandbox.network: true",
        )
    group = Group.make(mark, _tree_limits(sandbox, KEEPERS if cage.contained else 0))
    try:
        limits = _process_limits(definition.name, sandbox, group.limits if group else {})
    except FleetError:
        if group is not None:
            group.remove()
        raise
    join = (SHELL, "-c", _JOIN, "toolfleet", *group.doors, "--") if group is not None else ()
    argv = (*join, *cage.argv, *_scrub(env), *limits, command, *args)
    return Launch(definition.name, argv, env, definition.cwd, mark, cage.contained, group)


def child_environment(declared: Mapping[str, str], injected: Mapping[str, str]) -> dict[str, str]:
    """Return a child's environment: allow-listed, declared and injected variables."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name in INHERITED or name.startswith("LC_")
    }
    return {**inherited, **declared, **injected}


def _scrub(env: Mapping[str, str]) -> list[str]:
    if (tool := shutil.which("env")) is None:
        return []
    return [tool, *(f"-u{name}" for name in _SHELLS_OWN if name not in env)]


def _executable(command: str, path: str, cwd: str | None) -> str | None:
    """Return the whole path of a program; None if there is none that can be executed."""
    if os.sep in command:
        program = Path(cwd or "", command)
        return str(program) if os.access(program, os.X_OK) else None
    return shutil.which(command, path=path)


def _tree_limits(sandbox: Sandbox, keepers: int) -> dict[str, int]:
    limits: dict[str, int] = {}
    if sandbox.memory_mb is not None:
        limits["memory_mb"] = sandbox.memory_mb
    if sandbox.pids is not None:
        limits["pids"] = sandbox.pids + keepers
    if sandbox.cpu_s is not None:
        limits["cpu_s"] = sandbox.cpu_s
    return limits


def _process_limits(server: str, sandbox: Sandbox, held: Mapping[str, int]) -> list[str]:
    """Return what holds each process to the limits that no cgroup holds the tree to."""
    options = []
    if sandbox.memory_mb is not None and "memory_mb" not in held:
        # RLIMIT_DATA, not RLIMIT_AS: runtimes reserve far more address space than they ever use.
        options.append(f"--data={sandbox.memory_mb * 1024 * 1024}")
    if sandbox.cpu_s is not None:
        # Also where the tree's time is held: this clock is exact, that one is read now and then.
        # First SIGXCPU, which says why; SIGKILL a second later.
        options.append(f"--cpu={sandbox.cpu_s}:{sandbox.cpu_s + 1}")
    if sandbox.pids is not None and "pids" not in held:
        if os.geteuid() == 0:
            raise cannot_start(
                server,
                "its sandbox limits pids, and root can be held to that by a cgroup only",
                "give the worker a writable cgroup, or run it as an ordinary user",
            )
        options.append(f"--nproc={sandbox.pids}")  # all processes of this user count
    if not options:
        return []
    if (prlimit := shutil.which("prlimit")) is None:
        raise cannot_start(
            server,
            "its sandbox has limits and this machine has no `prlimit`",
            "install util-linux on the worker, or remove the limits from the definition",
        )
    return [prlimit, *options, "--"]


def cannot_start(server: str, problem: str, hint: str) -> FleetError:
    """Return the error for a server that was not even started."""
    return FleetError(
        Code.SERVER_UNAVAILABLE, f"server {server} cannot be started: {problem}", hint=hint
    )
