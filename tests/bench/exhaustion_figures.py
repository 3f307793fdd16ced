"""What `tests.bench.pool_exhaustion` finds in the ledger, and whether the ledger is whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from compose.demo.tables import quantile
from registry.calls import FINAL_STATES
from registry.database import Database
from tests.bench.fairness import fair_shares, jain
from tests.fleet.driver import Journal
from workers.fair_queue import cost

Row = Mapping[str, Any]

ENOUGH = 0.85
"""Where so much of what was wanted was served there was enough for all."""


@dataclass(frozen=True)
class Tier:
    """What the tenants of a tier get."""

    name: str
    priority: int
    limits: Mapping[str, int]

    @property
    def weight(self) -> float:
        """Return its weight in a queue, as a multiple of the lowest priority's."""
        return cost(0) / cost(self.priority)


@dataclass(frozen=True)
class Step:
    """So many runs of each tenant for a while, and which runs they were."""

    number: int
    runs: int
    begins: datetime
    """What is measured, by the database's clock."""
    ends: datetime
    tiers: Mapping[str, str]
    """The tier of each run, by its id."""

    @property
    def lasts_s(self) -> float:
        """Return for how long it is measured."""
        return (self.ends - self.begins).total_seconds()


@dataclass(frozen=True)
class Measured:
    """How the calls of one tier went in one step."""

    runs: int
    """Of each tenant."""
    tier: str
    submitted: int
    served_per_s: float
    """Calls that succeeded within the step."""
    fair_per_s: float
    """What it would have got by weight, no more than it asked for."""
    queue_wait_s: tuple[float, float] | None
    """50th and 95th percentile."""
    borrow_wait_s: tuple[float, float] | None
    endings: Mapping[str, int]
    """Of calls that were taken, by state, with the code of those that failed."""
    refused: Mapping[str, int]
    """Of submissions, by reason."""


@dataclass
class Play:
    """A step's calls as the ledger has them, and what came of them by tier."""

    step: Step
    measured: list[Measured]
    jain: float
    """How near to its fair share each tier came: 1 is all alike."""


@dataclass
class Audited:
    """The ledger against what callers were told and what the server noted."""

    calls: int
    states: Mapping[str, int]
    problems: list[str] = field(default_factory=list)
    """Calls that are lost, not ended, unknown to their callers, or were run twice."""


async def measure(
    database: Database,
    steps: Sequence[Step],
    refused: Mapping[tuple[int, str, str], int],
    tiers: Sequence[Tier],
    tenants: int,
) -> list[Play]:
    """Return how the calls of each step and tier went; ``tenants`` is how many each tier has."""
    plays = []
    for step in steps:
        rows = await database.statement(
            """
            SELECT run_id, CASE state WHEN 'failed' THEN error ->> 'code' ELSE state END AS ending,
                created_at, ended_at, queue_wait_s, borrow_wait_s,
                EXTRACT(EPOCH FROM ended_at - created_at)::double precision AS took_s
            FROM calls, jsonb_to_record(timings)
                AS waits(queue_wait_s double precision, borrow_wait_s double precision)
            WHERE run_id = ANY(%(runs)s)
            """,
            runs=list(step.tiers),
        )
        fair = _fair(step, rows, tiers, tenants)
        measured = [
            _measured(
                step,
                tier.name,
                [row for row in rows if step.tiers[row["run_id"]] == tier.name],
                fair[tier.name],
                {
                    why: n
                    for (at, who, why), n in refused.items()
                    if (at, who) == (step.number, tier.name)
                },
            )
            for tier in tiers
        ]
        parts = [it.served_per_s / it.fair_per_s for it in measured if it.fair_per_s]
        plays.append(Play(step, measured, jain(parts)))
    return plays


def _fair(step: Step, rows: Sequence[Row], tiers: Sequence[Tier], tenants: int) -> dict[str, float]:
    """Return what each tier would have got by weight: what it wanted, where there was enough."""
    own = {
        tier.name: [row for row in rows if step.tiers[row["run_id"]] == tier.name] for tier in tiers
    }
    wants = {tier.name: _wanted(step, own[tier.name], tier, tenants) for tier in tiers}
    served_per_s = len(_served(step, rows)) / step.lasts_s
    enough = served_per_s / max(sum(wants.values()), 1e-9)
    if enough >= ENOUGH:
        return {name: wanted * enough for name, wanted in wants.items()}
    weights = {it.name: it.weight * tenants for it in tiers}
    return fair_shares(served_per_s, {name: (weights[name], wants[name]) for name in wants})


def _wanted(step: Step, rows: Sequence[Row], tier: Tier, tenants: int) -> float:
    """Return how many calls a second a tier would have had served if none had had to wait.

    By Little's law: with N at once and X served a second a call takes N / X, its wait with it.
    """
    at_once = min(step.runs, tier.limits.get("concurrent_calls", step.runs)) * tenants
    within = [row for row in rows if step.begins <= row["created_at"] < step.ends]
    waits = [
        row["took_s"] if row["queue_wait_s"] is None
        else row["queue_wait_s"] + (row["borrow_wait_s"] or 0.0)
        for row in within
    ]  # fmt: skip
    ended = [row for row in rows if step.begins <= row["ended_at"] < step.ends]
    per_s = len(ended) / step.lasts_s
    waiting = per_s * sum(waits) / max(len(waits), 1) / at_once
    wanted = per_s / max(1 - waiting, 0.02)
    return min(wanted, tenants * tier.limits.get("calls_per_second", wanted))


def _measured(
    step: Step, tier: str, rows: Sequence[Row], fair_per_s: float, refused: Mapping[str, int]
) -> Measured:
    within = [row for row in rows if step.begins <= row["created_at"] < step.ends]
    return Measured(
        step.runs,
        tier,
        len(rows),
        len(_served(step, rows)) / step.lasts_s,
        fair_per_s,
        _percentiles([row["queue_wait_s"] for row in within]),
        _percentiles([row["borrow_wait_s"] for row in within]),
        dict(Counter(row["ending"] for row in rows)),
        refused,
    )


def _served(step: Step, rows: Sequence[Row]) -> list[Row]:
    """Return the calls that succeeded within a step."""
    return [
        row
        for row in rows
        if row["ending"] == "succeeded" and step.begins <= row["ended_at"] < step.ends
    ]


def _percentiles(values: Sequence[float | None]) -> tuple[float, float] | None:
    known = [value for value in values if value is not None]
    return (quantile(known, 0.5), quantile(known, 0.95)) if known else None


async def audit(
    database: Database,
    steps: Sequence[Step],
    taken: AbstractSet[str],
    uncertain: AbstractSet[str],
    journal: Journal,
) -> Audited:
    """Hold the ledger against the ids that callers were given, and against the server's journal.

    ``uncertain`` are those of calls that may be in the ledger, as their callers were told.
    """
    rows = await database.statement(
        "SELECT id, state, error ->> 'code' AS code, arguments ->> 'token' AS token FROM calls"
        " WHERE run_id = ANY(%(runs)s)",
        runs=[run for step in steps for run in step.tiers],
    )
    effects = Counter(it["token"] for it in journal.entries() if it["event"] == "effect")
    found = Audited(len(rows), dict(Counter(row["state"] for row in rows)))
    known = taken | uncertain
    lost = taken - {row["id"] for row in rows}
    found.problems += [f"call {id_} was taken, and is not in the ledger" for id_ in lost]
    for row in rows:
        ran = effects.pop(row["token"], 0)
        if row["id"] not in known:
            found.problems.append(f"call {row['id']} is in the ledger, and its caller has no id")
        if row["state"] not in FINAL_STATES:
            found.problems.append(f"call {row['id']} is {row['state']}, and nobody works on it")
        if ran > 1:
            found.problems.append(f"call {row['id']} was run {ran} times")
        if row["state"] == "succeeded" and ran != 1:
            found.problems.append(f"call {row['id']} succeeded, and its server ran it {ran} times")
    found.problems += [f"the server ran {token}, which is in no call" for token in effects]
    return found
