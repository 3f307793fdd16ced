"""The verdict about a canary: its calls beside those of the stable version, and what follows.

Pure but for `read_samples`. A canary is judged on four things, each against the stable version
over the same time: transport errors, tool errors, latency, and the shape of its results. It is
condemned as soon as the evidence is beyond chance (the lower bound of a 95 % interval of its error
rate lies above the stable rate by more than is tolerated), and cleared only after enough calls.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import text

from registry.database import Database
from registry.errors import Code

_Z: Final = 1.96
_LEAST_FAILURES: Final = 3
_LEAST_CALLS_A_TOOL: Final = 20
_MOST_REASONS: Final = 10

TRANSPORT_CODES: Final = tuple(
    code.code
    for code in (
        Code.CALL_TIMEOUT,
        Code.SESSION_LOST,
        Code.PROTOCOL_ERROR,
        Code.UPSTREAM_FAILED,
        Code.SERVER_UNAVAILABLE,
        Code.ADDRESS_REFUSED,
        Code.LIMIT_EXCEEDED,
        Code.BREAKER_OPEN,
        Code.WORKER_LOST,
        Code.OUTCOME_UNKNOWN,
        Code.RESULT_INVALID,
    )
)
"""Endings that speak against a version: its health, the way to it, its results' schema."""


class Decision(StrEnum):
    """What the evidence says so far."""

    WAIT = "wait"
    PROMOTE = "promote"
    ROLL_BACK = "roll_back"


class VerdictRule(BaseModel):
    """When a canary is cleared or condemned, and whether that is acted upon."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    automatic: bool = False
    """Promote or roll back without an operator."""
    minimum_calls: int = Field(default=100, ge=1)
    """Canary calls before it can be cleared."""
    error_increase: float = Field(default=0.02, ge=0, le=1)
    """How much higher its rate of transport errors, and of tool errors, may be."""
    latency_ratio: float = Field(default=1.5, gt=0)
    """How much slower its 95th percentile may be."""
    shape_change: float = Field(default=0.05, ge=0, le=1)
    """The share of its results that may have a shape the stable version never gave."""
    window_s: float = Field(default=1800, gt=0, le=7 * 86_400)
    """How far back calls count."""


@dataclass(frozen=True)
class ToolSample:
    """The ended calls of one tool of one version."""

    calls: int = 0
    transport_errors: int = 0
    tool_errors: int = 0
    p95_s: float | None = None
    shapes: Mapping[str, int] = field(default_factory=dict)
    """How often results had each shape."""


Sample = Mapping[str, ToolSample]
"""What was seen of a version, by tool."""


@dataclass(frozen=True)
class Verdict:
    """A decision with the figures that it rests on."""

    decision: Decision
    reasons: tuple[str, ...]
    figures: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return the verdict as kept in a rollout's report (JSON-ready)."""
        return {
            "decision": self.decision.value,
            "reasons": list(self.reasons),
            **self.figures,
        }


def judge(rule: VerdictRule, stable: Sample, canary: Sample) -> Verdict:
    """Return what the calls of both versions say about the canary."""
    against: list[str] = []
    figures: dict[str, Any] = {
        "calls": {"stable": _sum(stable, "calls"), "canary": _sum(canary, "calls")}
    }
    for what in ("transport_errors", "tool_errors"):
        mine, theirs = _rate(canary, what), _rate(stable, what)
        figures[what] = {"stable": round(theirs, 4), "canary": round(mine, 4)}
        failures, calls = _sum(canary, what), _sum(canary, "calls")
        if (
            failures >= _LEAST_FAILURES
            and _lower_bound(failures, calls) > theirs + rule.error_increase
        ):
            against.append(
                f"{what.replace('_', ' ')}: {mine:.1%} of the canary's calls, {theirs:.1%} of the "
                "stable version's"
            )
    ratio = _latency_ratio(stable, canary)
    figures["latency_ratio"] = None if ratio is None else round(ratio, 3)
    if ratio is not None and ratio > rule.latency_ratio:
        against.append(f"latency: the canary's p95 is {ratio:.2f} times the stable version's")
    unseen, judged, examples = _unseen_shapes(stable, canary)
    figures["result_shapes"] = {"unseen": unseen, "judged": judged, "examples": examples}
    if unseen >= _LEAST_FAILURES and _lower_bound(unseen, judged) > rule.shape_change:
        against.append(
            f"result shape: {unseen} of {judged} results have a shape that the stable version "
            f"never gave, such as {examples[0]}"
        )
    if against:
        return Verdict(Decision.ROLL_BACK, tuple(against[:_MOST_REASONS]), figures)
    missing = rule.minimum_calls - _sum(canary, "calls")
    if missing > 0:
        return Verdict(Decision.WAIT, (f"{missing} more calls of the canary are needed",), figures)
    return Verdict(Decision.PROMOTE, ("nothing speaks against the canary",), figures)


def _sum(sample: Sample, what: str) -> int:
    return sum(getattr(tool, what) for tool in sample.values())


def _rate(sample: Sample, what: str) -> float:
    calls = _sum(sample, "calls")
    return _sum(sample, what) / calls if calls else 0.0


def _lower_bound(hits: int, of: int) -> float:
    """Return the lower end of Wilson's 95 % interval of a rate."""
    if not of:
        return 0.0
    rate = hits / of
    middle = rate + _Z**2 / (2 * of)
    spread = _Z * math.sqrt(rate * (1 - rate) / of + _Z**2 / (4 * of**2))
    return (middle - spread) / (1 + _Z**2 / of)


def _latency_ratio(stable: Sample, canary: Sample) -> float | None:
    """Return how much slower the canary is, over the tools that both were asked for enough."""
    weights: list[tuple[int, float]] = []
    for name, mine in canary.items():
        theirs = stable.get(name)
        if (
            theirs is not None
            and mine.p95_s
            and theirs.p95_s
            and min(mine.calls, theirs.calls) >= _LEAST_CALLS_A_TOOL
        ):
            weights.append((mine.calls, math.log(mine.p95_s / theirs.p95_s)))
    total = sum(weight for weight, _ in weights)
    return math.exp(sum(weight * log for weight, log in weights) / total) if total else None


def _unseen_shapes(stable: Sample, canary: Sample) -> tuple[int, int, list[str]]:
    """Return how many canary results have a shape never seen, of how many, and which shapes."""
    unseen, judged, examples = 0, 0, []
    for name, mine in canary.items():
        theirs = stable.get(name)
        if theirs is None or sum(theirs.shapes.values()) < _LEAST_CALLS_A_TOOL:
            continue
        for shape, count in mine.shapes.items():
            judged += count
            if shape not in theirs.shapes:
                unseen += count
                examples.append(f"{name}: {shape}")
    return unseen, judged, sorted(examples)[:3]


_SAMPLES: Final = text(
    """
    WITH ended AS (
        SELECT c.server_version_id AS version, t.name AS tool, c.error ->> 'code' AS code,
            c.is_error, c.result_shape AS shape,
            CAST(c.timings ->> 'call_s' AS double precision) AS call_s
        FROM calls c JOIN tool_versions t ON t.id = c.tool_version_id
        WHERE c.server_version_id IN (:stable, :canary) AND c.ended_at IS NOT NULL
            AND c.created_at >= GREATEST(CAST(:since AS timestamptz),
                clock_timestamp() - make_interval(secs => :window))
            AND (c.state = 'succeeded' OR c.error ->> 'code' = ANY(:codes))
    ), shapes AS (
        SELECT version, tool, jsonb_object_agg(shape, seen) AS shapes FROM (
            SELECT version, tool, shape, count(*) AS seen FROM ended
            WHERE shape IS NOT NULL AND NOT is_error GROUP BY version, tool, shape) AS each
        GROUP BY version, tool
    )
    SELECT e.version, e.tool, count(*) AS calls,
        count(*) FILTER (WHERE e.code IS NOT NULL) AS transport_errors,
        count(*) FILTER (WHERE e.is_error) AS tool_errors,
        percentile_cont(0.95) WITHIN GROUP (ORDER BY e.call_s) AS p95_s,
        (SELECT s.shapes FROM shapes s WHERE s.version = e.version AND s.tool = e.tool) AS shapes
    FROM ended e GROUP BY e.version, e.tool
    """
)


async def read_samples(
    database: Database, *, stable_id: int, canary_id: int, since: datetime, rule: VerdictRule
) -> tuple[Sample, Sample]:
    """Return what was seen of both versions since a rollout began, within the rule's window."""
    async with database.transaction() as connection:
        result = await connection.execute(
            _SAMPLES,
            {
                "stable": stable_id,
                "canary": canary_id,
                "since": since,
                "window": rule.window_s,
                "codes": list(TRANSPORT_CODES),
            },
        )
        samples: dict[int, dict[str, ToolSample]] = {stable_id: {}, canary_id: {}}
        for row in result:
            samples[row.version][row.tool] = ToolSample(
                row.calls, row.transport_errors, row.tool_errors, row.p95_s, row.shapes or {}
            )
    return samples[stable_id], samples[canary_id]
