"""The health of a canary as the console draws it: figures in words, bars within a hundred."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from api.console.rollout_pages import measures
from registry.rollouts import Rollout, RolloutPlan, RolloutState
from registry.verdict import ToolSample, judge
from tests.requirements import requirement

SOUND = {"echo": ToolSample(200, 1, 4, 0.1, {"{}": 195})}


def shown(canary: dict[str, ToolSample]) -> dict[str, Any]:
    """Return the measures of a canary beside a sound version, by name."""
    plan = RolloutPlan(version="2", percent=5)
    rollout = Rollout(
        1, "demo", "1", "2", 1, 2, plan, RolloutState.ACTIVE, None, False, None,
        datetime(2026, 1, 1, tzinfo=UTC), None, None,
    )  # fmt: skip
    report = judge(plan.verdict, SOUND, canary).as_dict()
    return {it.name: it for it in measures(rollout, report)}


@requirement("console:rollouts")
def test_a_canary_without_calls_is_shown_without_what_is_not_known() -> None:
    found = shown({})
    assert list(found) == ["Calls", "Transport errors", "Tool errors"]
    assert (found["Calls"].stable, found["Calls"].canary) == ("200", "0")
    assert not any(it.worse for it in found.values())


@requirement("console:rollouts")
def test_what_is_worse_than_the_plan_tolerates_is_marked_and_no_bar_leaves_its_place() -> None:
    found = shown({"echo": ToolSample(100, 30, 2, 0.4, {"{}": 50, "[]": 18})})
    worse = {name for name, it in found.items() if it.worse}
    assert worse == {"Transport errors", "Latency (p95), relative", "Unseen result shapes"}
    assert found["Latency (p95), relative"].canary == "4.00"
    bars = [bar for it in found.values() for bar in (it.stable_bar, it.canary_bar)]
    assert all(0 <= bar <= 100 for bar in bars)
