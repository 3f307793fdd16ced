"""What the calls of two versions say about the newer one."""

from __future__ import annotations

import pytest

from registry.verdict import Decision, Sample, ToolSample, VerdictRule, judge
from tests.requirements import requirement

RULE = VerdictRule(minimum_calls=100)
USUAL = {"{id: string}": 950, "{error: string, id: string}": 20}


def sample(**rest: object) -> Sample:
    return {"find": ToolSample(**{"calls": 1000, "p95_s": 0.1, "shapes": USUAL, **rest})}  # type: ignore[arg-type]


@requirement("rollout:verdict")
def test_a_canary_as_good_as_the_stable_version_is_cleared_after_enough_calls() -> None:
    verdict = judge(RULE, sample(), sample(calls=100, shapes={"{id: string}": 100}))
    assert verdict.decision is Decision.PROMOTE


@requirement("rollout:verdict")
def test_too_few_calls_leave_it_open_however_good_they_are() -> None:
    verdict = judge(RULE, sample(), sample(calls=99))
    assert verdict.decision is Decision.WAIT
    assert "1 more call" in verdict.reasons[0]


@requirement("rollout:verdict")
@pytest.mark.parametrize(
    ("what", "canary"),
    [
        ("transport errors", {"calls": 40, "transport_errors": 8}),
        ("transport errors", {"calls": 4, "transport_errors": 4}),
        ("tool errors", {"calls": 100, "tool_errors": 20}),
        ("latency", {"calls": 30, "p95_s": 0.2}),
        ("result shape", {"calls": 40, "shapes": {"{id: number}": 10, "{id: string}": 30}}),
    ],
)
def test_a_canary_that_is_worse_is_condemned_before_the_minimum_and_told_why(
    what: str, canary: dict[str, object]
) -> None:
    verdict = judge(RULE, sample(), sample(**canary))
    assert verdict.decision is Decision.ROLL_BACK
    assert verdict.reasons[0].startswith(what)


@requirement("rollout:verdict")
@pytest.mark.parametrize(
    "canary",
    [
        {"calls": 2, "transport_errors": 2},
        {"calls": 100, "transport_errors": 3},
        {"calls": 19, "p95_s": 5.0},
        {"calls": 100, "shapes": {"{id: number}": 2, "{id: string}": 98}},
    ],
    ids=["two failures", "three in a hundred", "few slow calls", "two odd results"],
)
def test_what_chance_explains_condemns_nothing(canary: dict[str, object]) -> None:
    assert judge(RULE, sample(), sample(**canary)).decision is not Decision.ROLL_BACK


@requirement("rollout:verdict")
def test_a_canary_is_not_blamed_for_what_the_stable_version_suffers_too() -> None:
    stable = sample(transport_errors=300, tool_errors=200)
    verdict = judge(RULE, stable, sample(calls=100, transport_errors=30, tool_errors=20))
    assert verdict.decision is Decision.PROMOTE


@requirement("rollout:verdict")
def test_latency_is_compared_tool_by_tool() -> None:
    stable = {"fast": ToolSample(1000, p95_s=0.01), "slow": ToolSample(1000, p95_s=1.0)}
    canary = {"fast": ToolSample(20, p95_s=0.01), "slow": ToolSample(200, p95_s=1.1)}
    assert judge(RULE, stable, canary).decision is Decision.PROMOTE


@requirement("rollout:verdict")
def test_the_figures_are_in_the_report() -> None:
    body = judge(RULE, sample(), sample(calls=200, transport_errors=50)).as_dict()
    assert body["decision"] == "roll_back"
    assert body["calls"] == {"stable": 1000, "canary": 200}
    assert body["transport_errors"] == {"stable": 0.0, "canary": 0.25}
