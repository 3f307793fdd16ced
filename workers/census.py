"""How many processes, zombies and open files belong to this worker, and to each of its sessions."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field

import psutil

from registry.definitions import PoolDefinition


@dataclass(slots=True)
class Tree:
    """What one child of the worker and everything below it hold."""

    rss_mb: float = 0.0
    """Memory that pages share is counted for each of them."""
    open_fds: int = 0


@dataclass(frozen=True)
class Census:
    """Figures of one moment: ``processes`` and ``zombies`` among the worker's descendants."""

    processes: int
    zombies: int
    open_fds: int
    """Of the worker itself."""
    children_open_fds: int
    """Of all its descendants that it may look at."""
    trees: dict[int, Tree] = field(default_factory=dict)
    """By the process id of the worker's own child."""


def take_census() -> Census:
    """Count (blocks for some milliseconds: a look at every process of the machine)."""
    worker = psutil.Process()
    descendants = worker.children(recursive=True)
    roots: dict[int, int] = {}
    trees: dict[int, Tree] = {}
    zombies = 0
    for process in descendants:  # parents come before their children
        # A process may end while it is looked at, or belong to somebody else by now.
        with suppress(psutil.Error):
            root = roots[process.pid] = roots.get(process.ppid(), process.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                zombies += 1
                continue
            tree = trees.setdefault(root, Tree())
            tree.open_fds += process.num_fds()
            tree.rss_mb += process.memory_info().rss / 2**20
    children_open_fds = sum(tree.open_fds for tree in trees.values())
    return Census(len(descendants), zombies, worker.num_fds(), children_open_fds, trees)


def outgrown(tree: Tree | None, limits: PoolDefinition) -> str:
    """Say which limit of its pool a session's tree has outgrown; an empty string if none."""
    if tree is not None and tree.rss_mb > (limits.max_rss_mb or float("inf")):
        return "max_rss"
    if tree is not None and tree.open_fds > (limits.max_open_fds or float("inf")):
        return "max_open_fds"
    return ""
