"""Rates and quotas as operators write them, and the buckets that they make."""

from __future__ import annotations

from typing import Any

import pytest

from registry.definitions import content_digest, digest, parse_definition
from registry.errors import Code, FleetError
from registry.policy import TenantPolicy
from registry.rates import RateLimit, buckets
from registry.tiers import parse_tenant, parse_tier
from tests.requirements import requirement

SERVER = {"name": "crm", "transport": "stdio", "command": "true"}


def sizes(burst_s: float = 60, **rates: int) -> list[tuple[int, int, int]]:
    made = buckets(RateLimit(**rates), "tenant:acme", burst_s=burst_s)
    return [(it.calls, it.period_s, it.burst) for it in made]


@requirement("limits:rate")
def test_a_burst_is_a_minutes_worth_unless_it_is_given() -> None:
    assert sizes(calls_per_minute=60) == [(60, 60, 60)]
    assert sizes(calls_per_hour=60) == [(60, 3600, 1)]
    assert sizes(calls_per_second=5) == [(5, 1, 5)]
    assert sizes(calls_per_minute=60, burst=5) == [(60, 60, 5)]


@requirement("limits:rate")
def test_several_rates_hold_together_and_the_burst_is_the_shortest_periods() -> None:
    several = sizes(calls_per_second=10, calls_per_hour=600, burst=3)
    assert several == [(10, 1, 3), (600, 3600, 10)]


@requirement("quota:kept")
def test_a_quotas_burst_is_a_seconds_worth_and_never_nothing() -> None:
    assert sizes(burst_s=1, calls_per_minute=600) == [(600, 60, 10)]
    assert sizes(burst_s=1, calls_per_minute=6) == [(6, 60, 1)]


@requirement("limits:tools")
def test_a_submission_takes_from_its_tenant_its_tier_and_each_pattern_that_names_it() -> None:
    tier = parse_tier(
        {
            "name": "free",
            "limits": {"calls_per_minute": 60, "tools": {"crm/*": {"calls_per_second": 2}}},
            "together": {"calls_per_second": 100},
        }
    )
    own = {"tools": {"*/read*": {"calls_per_hour": 9}, "crm/*": {"calls_per_second": 3}}}
    policy = TenantPolicy(parse_tenant({"name": "acme", "limits": own}), tier, 1)
    taken = {it.name: it.calls for it in policy.buckets("crm", "read_all")}
    assert taken == {
        "tenant:acme:60": 60,
        "tier:free:1": 100,
        "tool:acme:crm/*:1": 3,
        "tool:acme:*/read*:3600": 9,
    }
    assert [it.name for it in policy.buckets("wiki", "look")] == ["tenant:acme:60", "tier:free:1"]


@requirement("policy:limits")
def test_a_tenant_without_limits_takes_from_no_bucket() -> None:
    policy = TenantPolicy(parse_tenant({"name": "acme"}), parse_tier({"name": "free"}), 1)
    assert policy.buckets("crm", "read") == ()
    assert policy.caps("crm", "read") == ()


@requirement("quota:bad-input")
@pytest.mark.parametrize(
    ("quota", "path"),
    [
        ({"calls_per_minute": 0}, "quota/calls_per_minute"),
        ({"burst": 5}, "quota/burst"),
        ({"per": "tenant"}, "quota/per"),
        ({"calls_per_day": 5}, "quota/calls_per_day"),
        ({"concurrent_calls": 0}, "quota/concurrent_calls"),
    ],
)
def test_a_wrong_quota_is_refused_with_the_path_of_what_is_wrong(
    quota: dict[str, Any], path: str
) -> None:
    with pytest.raises(FleetError) as refused:
        parse_definition({**SERVER, "quota": quota})
    assert refused.value.code is Code.INVALID_DEFINITION
    assert path in [it["path"] for it in refused.value.details["problems"]]


@requirement("policy:bad-input")
@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"limits": {"tools": {"crm": {"calls_per_minute": 5}}}}, "limits/tools/crm"),
        ({"limits": {"tools": {"crm/*": {"burst": 5}}}}, "limits/tools/crm/*/burst"),
        ({"together": {"burst": 5}}, "together/burst"),
    ],
)
def test_wrong_limits_are_refused_with_the_path_of_what_is_wrong(
    body: dict[str, Any], path: str
) -> None:
    with pytest.raises(FleetError) as refused:
        parse_tier({"name": "gold", **body})
    assert path in [it["path"] for it in refused.value.details["problems"]]


@requirement("quota:kept")
def test_a_server_without_a_quota_has_the_digest_that_it_had() -> None:
    definition = parse_definition(SERVER)
    later = {"quota", "openapi", "questions", "cost_tag"}
    before = definition.model_dump(mode="json", exclude=later)
    plain = content_digest(definition)
    assert plain == digest(before)
    assert content_digest(parse_definition({**SERVER, "quota": {"calls_per_minute": 9}})) != plain
