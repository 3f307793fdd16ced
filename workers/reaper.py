"""What a worker does first: end what workers before it left behind when they were killed."""

from __future__ import annotations

import logging

from workers import cgroup
from workers.mark import end

logger = logging.getLogger("toolfleet.worker")


def reap() -> list[int]:
    """Kill what dead workers of this user left running, remove their cgroups; return the pids.

    Blocks for some milliseconds, 2 s at most. Whatever belongs to a worker that lives, or carries
    no mark, is left alone.
    """
    orphans = end(lambda mark: mark.orphaned)
    for pid, mark in orphans:
        logger.warning("ended process %d, left behind by worker %d", pid, mark.worker_pid)
    cgroup.remove_leftovers()
    return [pid for pid, _ in orphans]
