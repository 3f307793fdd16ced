"""Limits that hold for a whole tree of processes, root's included: cgroups, of either version.

A group is made inside this process's own cgroup, so that whatever limits the worker goes on
limiting its children. With version 2 that needs a cgroup that was delegated to us (systemd's
``Delegate=yes``) or a cgroup namespace of our own (a container): what lives there is then moved one
level down, because a group that has members cannot hand its controllers on.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from workers.mark import Mark, kill_if

logger = logging.getLogger("toolfleet.worker")

_PREFIX: Final = "toolfleet-"
_MEMBERS: Final = "toolfleet-workers"
_REMOVE_LIMIT_S: Final = 1.0
_PAUSE_S: Final = 0.005


@dataclass(frozen=True)
class _Home:
    """The folder in which this process may make groups with one controller."""

    folder: Path
    version: int


@dataclass
class Group:
    """The cgroups of one session: a folder for each controller (version 1), or one for all."""

    folders: Mapping[str, Path]
    limits: Mapping[str, int]
    """What is held for the whole tree: ``memory_mb``, ``pids`` (threads count), ``cpu_s``."""
    _excess: str | None = None

    @classmethod
    def make(cls, mark: Mark, limits: Mapping[str, int]) -> Group | None:
        """Make a session's group for those limits that cgroups can hold here; None if for none."""
        homes = {name: home for name in limits if (home := _homes().get(name)) is not None}
        group = cls({name: home.folder / f"{_PREFIX}{mark}" for name, home in homes.items()}, {})
        try:
            for name, home in homes.items():
                group.folders[name].mkdir(exist_ok=True)
                _set_limit(group.folders[name], home.version, name, limits[name])
        except OSError as error:
            logger.warning("cgroups cannot be used: %s", error)
            group.remove()
            return None
        group.limits = {name: limits[name] for name in homes}
        return group if homes else None

    @property
    def doors(self) -> list[str]:
        """Return the files that a process joins by writing 0 to them."""
        return [str(folder / "cgroup.procs") for folder in set(self.folders.values())]

    def excess(self) -> str | None:
        """Return ``memory_mb`` or ``cpu_s`` when the tree went beyond that limit, else None."""
        if self._excess is None:
            with suppress(OSError):
                self._excess = self._exceeded()
        return self._excess

    def _exceeded(self) -> str | None:
        if "memory_mb" in self.limits:
            for events in ("memory.oom_control", "memory.events"):
                if _count(self.folders["memory_mb"] / events, "oom_kill"):
                    return "memory_mb"
        if "cpu_s" in self.limits and self._cpu_used_s() > self.limits["cpu_s"]:
            return "cpu_s"
        return None

    def _cpu_used_s(self) -> float:
        folder = self.folders["cpu_s"]
        if (usage := folder / "cpuacct.usage").exists():
            return int(usage.read_text()) / 1e9
        return _count(folder / "cpu.stat", "usage_usec") / 1e6

    def remove(self) -> None:
        """Kill the members that are left and remove the group; blocks, 1 s at most."""
        self.excess()
        deadline = time.monotonic() + _REMOVE_LIMIT_S
        for folder in set(self.folders.values()):
            while not _remove(folder):
                if time.monotonic() > deadline:
                    logger.error("cgroup %s cannot be removed", folder)
                    break
                time.sleep(_PAUSE_S)


def remove_leftovers() -> None:
    """Remove the groups of workers that live no more."""
    for home in {home.folder for home in _homes().values()}:
        for folder in home.glob(f"{_PREFIX}*"):
            mark = Mark.parse(folder.name.removeprefix(_PREFIX))
            if mark is not None and mark.orphaned:
                Group({"": folder}, {}).remove()


def _remove(folder: Path) -> bool:
    """Kill the members of a group and remove it; say whether it is gone."""

    def members() -> list[int]:
        return [int(pid) for pid in (folder / "cgroup.procs").read_text().split()]

    try:
        for pid in members():
            kill_if(pid, lambda pid: pid in members())
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:  # the last member is still on its way out
        return False
    return True


def _set_limit(folder: Path, version: int, name: str, limit: int) -> None:
    if name == "pids":
        (folder / "pids.max").write_text(str(limit))
    elif name == "memory_mb" and version == 1:
        (folder / "memory.limit_in_bytes").write_text(f"{limit}M")
        _write_if_there(folder / "memory.memsw.limit_in_bytes", f"{limit}M")
    elif name == "memory_mb":
        (folder / "memory.max").write_text(f"{limit}M")
        _write_if_there(folder / "memory.swap.max", "0")
        _write_if_there(folder / "memory.oom.group", "1")


def _write_if_there(file: Path, text: str) -> None:
    if file.exists():  # kernels without swap accounting, or before 4.19
        file.write_text(text)


def _count(file: Path, key: str) -> int:
    """Return a number from a file of ``key number`` lines, 0 when there is none."""
    if file.exists():
        for line in file.read_text().splitlines():
            if line.startswith(f"{key} "):
                return int(line.split()[1])
    return 0


@cache
def _homes() -> Mapping[str, _Home]:
    """Return where groups with each kind of limit can be made by this process."""
    homes: dict[str, _Home] = {}
    try:
        own = _own_folders()
    except OSError:  # no /proc: no Linux
        return homes
    controllers = {"memory_mb": "memory", "pids": "pids", "cpu_s": "cpuacct"}
    for name, controller in controllers.items():
        folder = own.get(controller)
        if folder is not None and os.access(folder, os.W_OK):
            homes[name] = _Home(folder, 1)
    if "unified" in own and (folder := _delegated(own["unified"])) is not None:
        handed_on = (folder / "cgroup.subtree_control").read_text().split()
        for name, controller in controllers.items():
            # The CPU time of a group is counted without any controller.
            if name not in homes and controller in {*handed_on, "cpuacct"}:
                homes[name] = _Home(folder, 2)
    return homes


def _own_folders() -> dict[str, Path]:
    """Return this process's cgroup folder for each version 1 controller, and for version 2."""
    paths: dict[str, str] = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(",") if controllers else ["unified"]:
            paths[controller] = path
    folders: dict[str, Path] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        place, _, kind = line.partition(" - ")
        root, mounted_at = place.split()[3:5]
        if kind.startswith("cgroup2 "):
            names = ["unified"]
        elif kind.startswith("cgroup "):
            names = kind.split()[2].split(",")
        else:
            continue
        for name in names:
            if name in paths:
                folders[name] = Path(mounted_at, os.path.relpath(paths[name], root))
    return folders


def _delegated(own: Path) -> Path | None:
    """Return the version 2 folder whose controllers we may hand on, after doing so; else None."""
    folder = own.parent if own.name == _MEMBERS else own
    control = folder / "cgroup.subtree_control"
    try:
        wanted = {"memory", "pids"} & set((folder / "cgroup.controllers").read_text().split())
        missing = wanted - set(control.read_text().split())
        if not missing:
            return folder if wanted and os.access(folder, os.W_OK) else None
        if not _is_ours(folder):
            return None
        hand_on = " ".join(f"+{name}" for name in missing)
        try:
            control.write_text(hand_on)
        except OSError as error:
            if error.errno != errno.EBUSY:  # it has members
                raise
            members = folder / _MEMBERS
            members.mkdir(exist_ok=True)
            for pid in (folder / "cgroup.procs").read_text().split():
                (members / "cgroup.procs").write_text(pid)
            control.write_text(hand_on)
    except OSError as error:
        logger.info("cgroups of version 2 cannot be used: %s", error)
        return None
    return folder


def _is_ours(folder: Path) -> bool:
    """Say whether a cgroup was given to us: the root of our namespace, or delegated by systemd."""
    own = Path("/proc/self/cgroup").read_text().splitlines()
    if "0::/" in own:
        return True
    try:
        return os.getxattr(folder, "user.delegate") == b"1"
    except OSError:
        return False
