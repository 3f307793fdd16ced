"""Who sees a canary: pinned tenants, cohorts, and an exact share of all others, for good."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import Code, FleetError
from registry.policy import TenantPolicy
from registry.rollouts import RolloutPlan, parse_plan, position
from registry.tiers import TenantDefinition, TierDefinition
from tests.requirements import requirement


def tenant(ordinal: int, **rest: object) -> TenantPolicy:
    definition = TenantDefinition.model_validate({"name": f"tenant-{ordinal}", **rest})
    return TenantPolicy(definition, TierDefinition(name="default"), ordinal)


@requirement("rollout:share")
@given(st.text(min_size=1, max_size=20), st.integers(0, 100), st.integers(0, 10**9))
def test_of_every_hundred_tenants_exactly_the_percentage_see_the_canary(
    version: str, percent: int, block: int
) -> None:
    plan = RolloutPlan(version=version, percent=percent)
    first = block * 100
    assert sum(plan.takes("crm", tenant(first + n)) for n in range(100)) == percent


@requirement("rollout:share")
@given(st.integers(0, 10**9), st.floats(0, 100), st.floats(0, 100))
def test_whoever_sees_the_canary_still_sees_it_when_the_share_grows(
    ordinal: int, one: float, other: float
) -> None:
    small, large = sorted((one, other))
    who = tenant(ordinal)
    before = RolloutPlan(version="2.1", percent=small).takes("crm", who)
    after = RolloutPlan(version="2.1", percent=large).takes("crm", who)
    assert after or not before


@requirement("rollout:share")
def test_half_a_percent_is_half_of_the_blocks() -> None:
    plan = RolloutPlan(version="2.1", percent=0.5)
    seen = sum(plan.takes("crm", tenant(ordinal)) for ordinal in range(20_000))
    assert 60 <= seen <= 140  # 100 expected; binomial with 200 blocks: six deviations each way


@requirement("rollout:share")
def test_another_version_is_tried_on_other_tenants() -> None:
    chosen = {
        version: {n for n in range(1000) if position(f"crm@{version}", n) < 5}
        for version in ("2.1", "2.2")
    }
    assert len(chosen["2.1"]) == len(chosen["2.2"]) == 50
    assert len(chosen["2.1"] & chosen["2.2"]) < 10


@requirement("rollout:pinned")
def test_pinned_tenants_and_cohorts_see_the_canary_at_no_percent() -> None:
    plan = RolloutPlan(version="2.1", percent=0, tenants=("tenant-7",), cohorts=("beta",))
    assert plan.takes("crm", tenant(7))
    assert plan.takes("crm", tenant(8, flags=["alpha", "beta"]))
    assert not plan.takes("crm", tenant(9, flags=["alpha"]))


@requirement("rollout:bad-input")
@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({}, "version"),
        ({"version": ""}, "version"),
        ({"version": "2", "percent": 101}, "percent"),
        ({"version": "2", "percent": -1}, "percent"),
        ({"version": "2", "percent": "many"}, "percent"),
        ({"version": "2", "tenants": ["a b"]}, "tenants/0"),
        ({"version": "2", "percentage": 5}, "percentage"),
        ({"version": "2", "verdict": {"minimum_calls": 0}}, "verdict/minimum_calls"),
        ({"version": "2", "verdict": {"auto": True}}, "verdict/auto"),
        ([], ""),
    ],
)
def test_a_wrong_plan_is_refused_with_the_path_of_what_is_wrong(body: object, path: str) -> None:
    with pytest.raises(FleetError) as refused:
        parse_plan(body)
    assert refused.value.code is Code.INVALID_REQUEST
    assert path in [it["path"] for it in refused.value.details["problems"]]
