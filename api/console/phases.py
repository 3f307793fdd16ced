"""A call's life in phases, from its row alone: what a timeline draws; pure.

A phase that a trace would tell more exactly is the sum that the row has of it: between claim and
end the row knows the waits and the server's time, and what is left is checks, gate and record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from registry.calls import CallState

SHORTEST_GAP_S: Final = 0.001
"""Between submission and queue: what is longer is the time of earlier attempts."""
RUNGS: Final = {
    "notified": "its server was told to stop, in a session that other calls shared",
    "cancelled": "its server was told to stop, and the exchange with it was ended",
    "exited": "its server's process ended when it was told to stop",
    "sigterm": "its server's process was ended by SIGTERM",
    "sigkill": "its server's process had to be killed (SIGKILL)",
}
"""What each rung means of the ladder that ends a stopped call's work (`workers.spawn`)."""


@dataclass(frozen=True)
class Phase:
    """A stretch of a call's life."""

    name: str
    kind: str
    """``wait``, ``work`` (the fleet's own) or ``call`` (the server's)."""
    start_s: float
    """Since it was submitted."""
    took_s: float
    note: str = ""
    going_on: bool = False


@dataclass(frozen=True)
class Life:
    """The phases of a call, in order, and how long it is or was in all."""

    phases: list[Phase]
    total_s: float
    stop: str = ""
    """How its work was stopped, and how long after the request; empty where it was not."""

    def share(self, phase: Phase) -> tuple[float, float]:
        """Return where a phase begins and how wide it is, in percent of the whole."""
        whole = self.total_s or 1.0
        return 100 * phase.start_s / whole, 100 * phase.took_s / whole


def life_of(row: Mapping[str, Any], now: datetime) -> Life:
    """Return the life of a call up to its end, or to ``now``, by the clock that wrote its row."""
    phases: list[Phase] = []
    begun, end = row["created_at"], row["ended_at"] or now
    state = CallState(row["state"])

    def add(name: str, kind: str, since: datetime, until: datetime | None) -> None:
        took_s = _seconds(since, until or end)
        going_on = until is None and not state.final
        phases.append(Phase(name, kind, _seconds(begun, since), took_s, going_on=going_on))

    decided = row["decided_at"]
    if row["gated"] or decided is not None:
        add("Waiting for approval", "wait", begun, decided)
    if row["gated"] and (decided is None or state is CallState.DENIED):
        return Life(phases, _seconds(begun, end), _stop(row))
    started, queued = row["started_at"], row["queued_at"]
    if started is None and state is CallState.SUCCEEDED:
        add("Answered without a server", "work", begun, end)
        return Life(phases, _seconds(begun, end))
    if _seconds(decided or begun, queued) > SHORTEST_GAP_S:
        add("Earlier attempts", "work", decided or begun, queued)
    if started is None or started < queued:  # a call that was given back keeps its earlier start
        add("Queue", "wait", queued, None)
    else:
        add("Queue", "wait", queued, started)
        phases += _attempt(row, _seconds(begun, started), _seconds(started, end))
    return Life(phases, _seconds(begun, end), _stop(row))


def _attempt(row: Mapping[str, Any], start_s: float, took_s: float) -> list[Phase]:
    """Return the phases of the latest attempt: of one under way, only that it is."""
    timings = row["timings"] or {}
    if row["ended_at"] is None:
        return [Phase("Running", "call", start_s, took_s, "since its worker claimed it", True)]
    phases, at = [], start_s
    if (borrow_s := timings.get("borrow_wait_s")) is not None:
        note = "a session was started for it" if timings.get("spawned") else "a session was ready"
        phases.append(Phase("Borrow", "wait", at, borrow_s, note))
        at += borrow_s
    if (call_s := timings.get("call_s")) is not None:
        phases.append(Phase("Call", "call", at, call_s, "until its server answered, or was left"))
        at += call_s
    known = bool(phases)
    name = "Checks, gate, record" if known else "At its worker"
    note = "the fleet's own part, before and after the call" if known else "which told no more"
    rest_s = max(0.0, start_s + took_s - at)
    return [*phases, Phase(name, "work", at, rest_s, note)]


def _seconds(since: datetime, until: datetime) -> float:
    return max(0.0, (until - since).total_seconds())


def _stop(row: Mapping[str, Any]) -> str:
    """Say how a call was stopped: by which rung, and how long after it was asked for."""
    asked, stop = row["stop_requested_at"], (row["timings"] or {}).get("stop")
    if asked is None:
        return ""
    if row["ended_at"] is None:
        return "asked to stop; its worker has not said yet that it has"
    if row["state"] != CallState.STOPPED:
        return "asked to stop, and ended in another way before it could be"
    if stop is None:
        return "stopped before its server was asked anything"
    what = RUNGS.get(stop["rung"], stop["rung"])
    after_s = _seconds(asked, row["ended_at"])
    return f"{what}; that took {stop['elapsed_s']:.3f} s, {after_s:.3f} s after the request"
