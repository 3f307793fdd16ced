"""How many sessions a server needs, so that its calls wait no longer than is wished: pure.

All calls of a server stand in one queue before all its sessions, which is the queue G/G/c; c is how
many calls can be under way at once. Whether a call has to wait is Erlang's C formula, for arrivals
in bursts by Hayward's approximation: a load that is z times as variable as chance is to c sessions
what a z-th of it is to c/z. How long it waits, if it does, is exponential with the mean of Allen
and Cunneen: S / (c - a) * (z + v) / 2, with the load a, the mean service time S, and its squared
coefficient of variation v.

Sources: A. O. Allen, Probability, Statistics, and Queueing Theory, 2nd edition, 1990; W. Whitt,
Approximations for the GI/G/m queue, Production and Operations Management 2 (1993); A. A.
Fredericks, Congestion in blocking systems, Bell System Technical Journal 59 (1980), for Hayward's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Final

from registry.definitions import ServerDefinition

FEWEST_CALLS: Final = 100
"""Of fewer the 95th percentile is hardly more than the slowest one."""
LATE: Final = 0.05
"""The share of calls that may wait longer than the target."""
MOST_SLOTS: Final = 20_000
LARGEST_POOL: Final = 32
"""Up to this many sessions a worker it is better to enlarge pools than to add processes."""
BUSIEST_WORKER: Final = 150.0
"""Calls a second beyond which a worker process adds waits of its own."""
_PERIODS_S: Final = {"calls_per_second": 1, "calls_per_minute": 60, "calls_per_hour": 3_600}


@dataclass(frozen=True)
class Demand:
    """What was asked of a server within a window of time, and how long it took."""

    calls: int
    """All that were submitted."""
    mean_per_minute: float
    peak_per_minute: float
    """In the busiest minute."""
    burstiness: float
    """Variance of the calls in a second of the same minute, over their mean: 1 is chance."""
    served: int
    """Those that reached the server."""
    service_s: float | None
    """Mean of the round trips of `tools/call`; None if nothing was served."""
    p95_service_s: float | None
    service_variability: float | None
    """Squared coefficient of variation of the round trips: 0 is all alike, 1 is chance."""
    p95_wait_s: float | None
    """What calls did wait, for a worker and for a session."""
    tenants: int
    """How many had calls."""


NOTHING_ASKED: Final = Demand(0, 0.0, 0.0, 1.0, 0, None, None, None, None, 0)


@dataclass(frozen=True)
class Target:
    """What is wished for."""

    p95_wait_s: float = 0.2
    headroom: float = 1.0
    """How many times the calls of the busiest minute there are to be sessions for."""


class Advice(StrEnum):
    """What to do about a server."""

    NOTHING = "nothing"
    ADD_WORKERS = "add_workers"
    RAISE_MAX_SIZE = "raise_max_size"
    SHRINK = "shrink"
    RAISE_QUOTA = "raise_quota"
    """Sessions cannot help: the server is allowed no more calls."""
    LOOK_AGAIN = "look_again"
    """Too few calls to say."""


@dataclass(frozen=True)
class Load:
    """Calls as a queue sees them; the variabilities are 1 where they are as chance has it."""

    per_s: float
    service_s: float
    service_variability: float = 1.0
    burstiness: float = 1.0

    @property
    def erlangs(self) -> float:
        """Return how many calls are under way at once, on the average."""
        return self.per_s * self.service_s

    def wait_s(self, slots: int) -> float:
        """Return how long 95 % of the calls wait at most where ``slots`` can be under way at once.

        Infinite where there is more to do than they can.
        """
        if self.erlangs >= slots:
            return math.inf
        waiting = _waits(slots / self.burstiness, self.erlangs / self.burstiness)
        if waiting <= LATE:
            return 0.0
        variability = (self.burstiness + self.service_variability) / 2
        mean_s = self.service_s / (slots - self.erlangs) * variability
        return mean_s * math.log(waiting / LATE)

    def slots_for(self, target_s: float) -> int:
        """Return the fewest slots with which they wait ``target_s`` at most, or `MOST_SLOTS`."""
        low, high = 0, math.floor(self.erlangs) + 1
        while high < MOST_SLOTS and self.wait_s(high) > target_s:
            low, high = high, high * 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.wait_s(middle) > target_s else (low, middle)
        return min(high, MOST_SLOTS)


def _waits(slots: float, erlangs: float) -> float:
    """Return the share of calls that have to wait: Erlang's C, between whole numbers as well."""
    if erlangs >= slots:
        return 1.0
    rest = slots % 1
    lost: float = (erlangs / (1 + erlangs)) ** rest  # Erlang's B, from which C follows
    for number in range(1, math.floor(slots) + 1):
        lost = erlangs * lost / (number + rest + erlangs * lost)
    return lost / (1 - erlangs / slots * (1 - lost))


@dataclass(frozen=True)
class Need:
    """What a server has, and what it needs; None where that cannot be said or has no end."""

    server: str
    workers: int
    max_size: int
    """Sessions of each worker at most."""
    calls_per_session: int
    utilisation: float | None = None
    """The share of its sessions that is busy in the busiest minute; over 1 its queue grows."""
    expected_p95_wait_s: float | None = None
    needed_sessions: int | None = None
    needed_workers: int | None = None
    """With ``max_size`` sessions each at most."""
    utilisation_then: float | None = None
    expected_p95_wait_then_s: float | None = None
    advice: Advice = Advice.LOOK_AGAIN
    why: str = ""
    """The advice, as a sentence."""


def plan(definition: ServerDefinition, workers: int, demand: Demand, target: Target) -> Need:
    """Return what a server needs for a target, given what was asked of it lately."""
    pool = definition.pool
    need = partial(Need, definition.name, workers, pool.max_size, pool.calls_per_session)
    if demand.served < FEWEST_CALLS or demand.service_s is None:
        reached = f"{demand.served} calls reached it" if demand.served else "no call reached it"
        return need(why=f"{reached}: too few to say; ask again after {FEWEST_CALLS}")
    load = Load(
        demand.peak_per_minute / 60 * target.headroom,
        demand.service_s,
        demand.service_variability or 0.0,
        max(1.0, demand.burstiness),
    )
    busy_workers = math.ceil(load.per_s / BUSIEST_WORKER)
    sessions = math.ceil(load.slots_for(target.p95_wait_s) / pool.calls_per_session)
    sessions = max(sessions, busy_workers)
    needed_workers = max(math.ceil(sessions / pool.max_size), busy_workers)
    slots = workers * pool.max_size * pool.calls_per_session
    advice, why = _limited(definition, demand, load) or _advice(
        definition, workers, sessions, needed_workers
    )
    return need(
        utilisation=round(load.erlangs / slots, 4) if slots else None,
        expected_p95_wait_s=_seconds(load.wait_s(slots)),
        needed_sessions=sessions,
        needed_workers=needed_workers,
        utilisation_then=round(load.erlangs / (sessions * pool.calls_per_session), 4),
        expected_p95_wait_then_s=_seconds(load.wait_s(sessions * pool.calls_per_session)),
        advice=advice,
        why=why,
    )


def _limited(definition: ServerDefinition, demand: Demand, load: Load) -> tuple[Advice, str] | None:
    """Return the advice where the server's quota is what its calls wait for."""
    quota = definition.quota
    if quota is None:
        return None
    apart = quota.per == "credential" and definition.credentials.inject != "none"
    shares = max(1, demand.tenants) if apart else 1
    for name, period_s in _PERIODS_S.items():
        calls: int | None = getattr(quota, name)
        if calls is not None and load.per_s > calls * shares / period_s:
            return Advice.RAISE_QUOTA, (
                f"its quota allows {calls * shares / period_s:.3g} calls/s and {load.per_s:.3g} "
                f"are to be expected: sessions cannot help; raise quota.{name}, or call less"
            )
    most = quota.concurrent_calls
    if most is not None and load.erlangs >= most * shares:
        return Advice.RAISE_QUOTA, (
            f"its quota allows {most * shares} calls at once and {load.erlangs:.3g} are to be "
            "expected: sessions cannot help; raise quota.concurrent_calls, or call less"
        )
    return None


def _advice(
    definition: ServerDefinition, workers: int, sessions: int, needed_workers: int
) -> tuple[Advice, str]:
    most = definition.pool.max_size
    if workers == 0:
        return Advice.ADD_WORKERS, f"no worker serves it: run {_workers(needed_workers)}"
    each = math.ceil(sessions / workers)
    if sessions > workers * most and each <= LARGEST_POOL:
        return Advice.RAISE_MAX_SIZE, (
            f"raise pool.max_size from {most} to {each}, or run {_workers(needed_workers)} "
            f"in the place of {workers}"
        )
    if needed_workers > workers:
        why = f"run {_workers(needed_workers)} in the place of {workers}"
        if sessions <= workers * most:
            why += f": each does {BUSIEST_WORKER:g} calls/s at most"
        return Advice.ADD_WORKERS, why
    if needed_workers < workers:
        return Advice.SHRINK, f"{_workers(needed_workers)} would do in the place of {workers}"
    spare = workers * most - sessions
    return Advice.NOTHING, f"it has what it needs, and {spare} sessions to spare"


def _workers(count: int) -> str:
    return f"{count} worker{'s' * (count != 1)}"


def _seconds(value: float) -> float | None:
    return None if math.isinf(value) else round(value, 6)
