"""How the processes of a session are known, and how they are ended wherever they went.

Every stdio child carries a mark in its environment, which what it starts inherits. The mark names
the worker process (its PID namespace, its process id and when it started, so that neither a reused
number nor another container's can be mistaken for it) and the session.

1. A process is ended only while it provably carries the mark that was asked for: the pidfd is
   opened first, the mark read afterwards.
2. Processes without a mark, of other users, and of workers that live are never touched.

A process that wipes its environment escapes this; it cannot escape the PID namespace that
`workers.launch` gives children where the kernel allows.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from registry.environment import MARK_VARIABLE

logger = logging.getLogger("toolfleet.worker")

_END_LIMIT_S: Final = 2.0
_PAUSE_S: Final = 0.01
_STARTED: Final = 19  # fields of /proc/PID/stat, counted from the one after the name
_STATE: Final = 0


@dataclass(frozen=True)
class Mark:
    """Whose child a process is: a worker process, and one of its sessions."""

    namespace: int
    worker_pid: int
    worker_started: int
    session: str

    @classmethod
    def fresh(cls) -> Mark:
        """Return the mark of a new session of this process."""
        pid = os.getpid()
        return cls(_namespace(), pid, _started(pid) or 0, secrets.token_hex(8))

    @classmethod
    def parse(cls, text: str) -> Mark | None:
        """Read a mark; None when the text is none."""
        try:
            namespace, pid, started, session = text.split(".")
            return cls(int(namespace), int(pid), int(started), session)
        except ValueError:
            return None

    def __str__(self) -> str:
        return f"{self.namespace}.{self.worker_pid}.{self.worker_started}.{self.session}"

    @property
    def orphaned(self) -> bool:
        """Say whether the worker provably lives no more; False for one that we could not see."""
        return self.namespace == _namespace() and _started(self.worker_pid) != self.worker_started


def marked(wanted: Callable[[Mark], bool]) -> Iterator[tuple[int, Mark]]:
    """Yield the process ids of this user's processes whose mark is wanted, zombies excepted."""
    if sys.platform != "linux":
        return
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            mark = _mark_of(int(entry.name))
            if mark is not None and wanted(mark):
                yield int(entry.name), mark


def end(wanted: Callable[[Mark], bool]) -> list[tuple[int, Mark]]:
    """Kill the processes whose mark is wanted, and what they start meanwhile; return them.

    Blocks until they are gone, 2 s at most.
    """

    def still(pid: int) -> bool:
        mark = _mark_of(pid)
        return mark is not None and wanted(mark)

    ended: dict[int, Mark] = {}
    deadline = time.monotonic() + _END_LIMIT_S
    while found := dict(marked(wanted)):
        for pid in found:
            kill_if(pid, still)
        ended |= found
        if time.monotonic() > deadline:
            logger.error("processes %s do not die", sorted(found))
            break
        time.sleep(_PAUSE_S)
    return list(ended.items())


def end_session(mark: Mark) -> None:
    """Kill whatever still runs of one session of this worker."""
    for pid, _ in end(lambda other: other == mark):
        logger.warning("process %d had left the group of its session; it was ended", pid)


def kill_if(pid: int, still: Callable[[int], bool]) -> None:
    """Kill a process if ``still`` holds for it once its number can name no other process."""
    if sys.platform != "linux":
        return
    with suppress(ProcessLookupError, PermissionError):
        handle = os.pidfd_open(pid)
        try:
            if still(pid):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        finally:
            os.close(handle)


def _mark_of(pid: int) -> Mark | None:
    """Return a process's mark; None for those of other users, our own process and zombies."""
    folder = Path(f"/proc/{pid}")
    try:
        if pid == os.getpid() or folder.stat().st_uid != os.geteuid():
            return None
        environment = (folder / "environ").read_bytes()
    except OSError:  # it is gone, or not ours to look at
        return None
    prefix = f"{MARK_VARIABLE}=".encode()
    for variable in environment.split(b"\0"):
        if variable.startswith(prefix):
            return Mark.parse(variable[len(prefix) :].decode("ascii", "replace"))
    return None


def _started(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None when it lives no more."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[_STATE] in "ZX" else int(fields[_STARTED])


def _namespace() -> int:
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return 0
