"""What is executed for a stdio server: its command line, its environment, its limits.

A limit that this machine cannot keep is an error, never silently dropped.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

from registry.definitions import Sandbox, ServerDefinition
from registry.errors import Code, FleetError

_UNSHARE_CHECK_LIMIT_S: Final = 5.0
_INHERITED: Final = (
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR",
)  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """A command ready to be executed: argument vector, whole environment, working directory."""

    server: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    cwd: str | None = None


def child_environment(declared: Mapping[str, str], injected: Mapping[str, str]) -> dict[str, str]:
    """Return a child's whole environment: allow-listed, declared and injected variables."""
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return {**inherited, **declared, **injected}


async def plan_launch(definition: ServerDefinition, injected_env: Mapping[str, str]) -> Launch:
    """Turn a definition into a command line that cannot outlive or outgrow its worker.

    Raises `server_unavailable` when the command does not exist or this machine cannot keep a limit
    that the definition asks for.
    """
    env = child_environment(definition.env, injected_env)
    command = definition.command or ""
    if not _executable(command, env.get("PATH", os.defpath), definition.cwd):
        raise cannot_start(
            definition.name,
            f"its command {command!r} was not found",
            "install it, or give its absolute path in the definition",
        )
    wrappers = await _sandbox_wrappers(definition.name, definition.sandbox)
    if sys.platform == "linux" and (setpriv := _tool("setpriv")):
        wrappers += [setpriv, "--pdeathsig", "KILL", "--"]
    argv = (*wrappers, *_limit_wrappers(definition.name, definition.sandbox), command)
    return Launch(definition.name, (*argv, *definition.args), env, definition.cwd)


def _executable(command: str, path: str, cwd: str | None) -> bool:
    if os.sep in command:
        return os.access(Path(cwd or "", command), os.X_OK)
    return shutil.which(command, path=path) is not None


def _limit_wrappers(server: str, sandbox: Sandbox) -> list[str]:
    limits = []
    if sandbox.memory_mb is not None:
        # RLIMIT_DATA, not RLIMIT_AS: runtimes reserve far more address space than they ever use.
        limits.append(f"--data={sandbox.memory_mb * 1024 * 1024}")
    if sandbox.cpu_s is not None:
        limits.append(f"--cpu={sandbox.cpu_s}")
    if sandbox.pids is not None:
        limits.append(f"--nproc={sandbox.pids}")  # counted per user; root is exempt
    if not limits:
        return []
    if (prlimit := _tool("prlimit")) is None:
        raise cannot_start(
            server,
            "its sandbox has limits and this machine has no `prlimit`",
            "install util-linux on the worker, or remove the limits from the definition",
        )
    return [prlimit, *limits, "--"]


async def _sandbox_wrappers(server: str, sandbox: Sandbox) -> list[str]:
    if sandbox.network:
        return []
    unshare = _tool("unshare")
    if unshare is None or not await _works(unshare, "--net", "--", "true"):
        raise cannot_start(
            server,
            "its sandbox forbids the network and `unshare --net` does not work here",
            "run the worker where it may create network namespaces, or set sandbox.network: true",
        )
    return [unshare, "--net", "--"]


@cache
def _tool(name: str) -> str | None:
    return shutil.which(name)


async def _works(*argv: str) -> bool:
    process = await asyncio.create_subprocess_exec(
        *argv, stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(_UNSHARE_CHECK_LIMIT_S):
            return await process.wait() == 0
    except TimeoutError:
        process.kill()
        return False


def cannot_start(server: str, problem: str, hint: str) -> FleetError:
    """Return the error for a server that was not even started."""
    return FleetError(
        Code.SERVER_UNAVAILABLE, f"server {server} cannot be started: {problem}", hint=hint
    )
