"""Who burned how much CPU: seconds of user and system time by part of the fleet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

import psutil

FLEET = ("api", "worker", "steward", "flower", "postgres", "redis")
"""The fleet's own parts; the MCP servers and whoever calls are not among them."""
OTHERS = ("echo", "caller", "celery")
PARTS = FLEET + OTHERS

Spent = dict[str, float]


class Meter:
    """Reads the CPU time of processes, grouped by part; the roots are asked for at each reading."""

    def __init__(self, roots: Callable[[], Mapping[str, Iterable[int]]]) -> None:
        self._roots = roots

    def read(self) -> Spent:
        """Return the seconds so far by part.

        Children of workers and of the caller are echo servers; those of Postgres are Postgres.
        """
        spent = dict.fromkeys(PARTS, 0.0)
        for part, pids in self._roots().items():
            kin = "echo" if part in ("worker", "caller") else part
            for pid in pids:
                with suppress(psutil.NoSuchProcess):
                    root = psutil.Process(pid)
                    times = root.cpu_times()
                    spent[part] += times.user + times.system
                    spent[kin] += times.children_user + times.children_system
                    for child in root.children(recursive=True):
                        with suppress(psutil.NoSuchProcess):
                            spent[kin] += _with_ended_children(child)
        return spent


class Neighbours:
    """How many cores were busy with what is not ours, from its making to the question."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._started = (time.monotonic(), _busy_s(), meter.read())

    def cores(self) -> float:
        """Return the mean number of cores that others kept busy."""
        since, busy, ours = self._started
        spent = sum(between(ours, self._meter.read()).values())
        return max(0.0, _busy_s() - busy - spent) / (time.monotonic() - since)


def _busy_s() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.system)


def _with_ended_children(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


def between(before: Spent, after: Spent) -> Spent:
    """Return what was spent between two readings."""
    return {part: max(0.0, after[part] - before[part]) for part in PARTS}
