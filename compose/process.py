"""How a child process is born, dies with us, and is ended: nothing of it survives.

Invariants:
 1. A child leads its own process group and gets a signal when we die (where `setpriv` exists).
 2. The stop signal goes to the child alone, which ends its own children; what is left of its group
    after the child's end, or after the grace, is killed.
 3. A process from an earlier life is ended only if it provably is the one that was recorded.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

LEFTOVER_GRACE_S = 10.0


@dataclass(frozen=True)
class Account:
    """Another user to run a child as; ``any_path`` lets it pass folders closed to that user."""

    user_id: int
    group_id: int
    any_path: bool = False

    def setpriv_options(self) -> list[str]:
        """Return the `setpriv` options that become this account."""
        options = [f"--reuid={self.user_id}", f"--regid={self.group_id}", "--clear-groups"]
        if self.any_path:
            options += ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
        return options


def account_for(*paths: Path) -> Account | None:
    """Return whom a program that refuses to run as root runs as; None when we are not root.

    The account is `nobody`, which every system has: nothing is added to the machine, and no
    permission of a folder that is not ours is loosened.
    """
    if os.geteuid() != 0:
        return None
    nobody = pwd.getpwnam("nobody")
    folders = {folder for path in paths for folder in path.resolve().parents}
    closed = any(not folder.stat().st_mode & 0o001 for folder in folders)
    return Account(nobody.pw_uid, nobody.pw_gid, any_path=closed)


@dataclass
class Process:
    """One program: `start` it, `wait` for its end, `stop` it within ``grace_s`` seconds.

    Output goes to the end of ``log``. `start` may be called again once the program has ended.
    """

    command: Sequence[str]
    log: Path
    env: Mapping[str, str] | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    grace_s: float = 10.0
    account: Account | None = None
    _running: asyncio.subprocess.Process | None = field(default=None, init=False)
    _swept: bool = field(default=True, init=False)

    @property
    def pid(self) -> int | None:
        """Return the process id, or None when the program does not run."""
        running = self._running
        return running.pid if running and running.returncode is None else None

    async def start(self) -> None:
        """Start the program; raise `OSError` when there is no such program."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._running = await asyncio.create_subprocess_exec(
                *_wrapped(self.command, self.stop_signal, self.account),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.env,
                process_group=0,
            )
        self._swept = False

    async def wait(self) -> int:
        """Return the exit status at the program's end, after sweeping its process group."""
        if self._running is None:
            raise RuntimeError(f"{self.command[0]} was never started")
        status = await self._running.wait()
        self.kill()
        self._swept = True  # from here on the number may name somebody else's group
        return status

    async def stop(self) -> None:
        """Signal the program, give it its grace, then kill what is left; harmless if ended."""
        if self._running is None:
            return
        try:
            if self.pid is not None:
                self._running.send_signal(self.stop_signal)
            await asyncio.wait_for(self.wait(), self.grace_s)
        except TimeoutError:
            self.kill()
            await self.wait()

    def kill(self) -> None:
        """Kill the program and its whole process group at once."""
        if self._running is not None and not self._swept:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._running.pid, signal.SIGKILL)


def _wrapped(
    command: Sequence[str], death_signal: signal.Signals, account: Account | None
) -> list[str]:
    if shutil.which(command[0]) is None:
        raise FileNotFoundError(f"there is no program {command[0]}")
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        if account is not None:
            raise OSError(
                f"{command[0]} refuses to run as root and there is no setpriv to change the user: "
                "run toolfleet as an ordinary user, or set TOOLFLEET_DATABASE_URL"
            )
        return list(command)
    name = death_signal.name.removeprefix("SIG")
    options = account.setpriv_options() if account else []
    return [setpriv, *options, f"--pdeathsig={name}", "--", *command]


async def end_leftover(
    pid: int,
    is_it: Callable[[psutil.Process], bool],
    stop_signal: signal.Signals = signal.SIGTERM,
) -> bool:
    """End a process of an earlier life if ``is_it`` recognises it; say whether there was one."""
    try:
        process = psutil.Process(pid)
        if not is_it(process):
            return False
        process.send_signal(stop_signal)
        try:
            await asyncio.to_thread(process.wait, LEFTOVER_GRACE_S)
        except psutil.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait)
    except psutil.NoSuchProcess:
        return False
    return True
