"""What a tenant may call: server switches, patterns, classes, and what they make together."""

from __future__ import annotations

from typing import Any

import pytest

from registry.definitions import Delivery, ServerDefinition
from registry.errors import Code, FleetError
from registry.policy import TenantPolicy
from registry.tiers import Access, parse_tenant, parse_tier
from tests.ledger import definition
from tests.requirements import requirement

READ, WRITE = Delivery.READ, Delivery.WRITE


def policy(tenant: dict[str, Any] | None = None, **tier: Any) -> TenantPolicy:
    """Return the policy of tenant `acme` in tier `gold`."""
    return TenantPolicy(
        parse_tenant({"name": "acme", "tier": "gold", **(tenant or {})}),
        parse_tier({"name": "gold", **tier}),
        1,
    )


def crm(**rest: Any) -> ServerDefinition:
    return definition("crm", **rest)


@requirement("policy:servers")
@pytest.mark.parametrize(
    ("server", "tenant", "may"),
    [
        ({}, {}, True),
        ({"tenants": ["acme"]}, {}, True),
        ({"tenants": ["other"]}, {}, False),
        ({"cohorts": ["beta"]}, {}, False),
        ({"cohorts": ["beta"]}, {"flags": ["beta"]}, True),
        ({"tenants": ["other"], "cohorts": ["beta"]}, {"flags": ["beta"]}, True),
        ({"tenants": ["other"]}, {"servers": {"crm": True}}, True),
        ({}, {"servers": {"crm": False}}, False),
        ({}, {"servers": {"wiki": False}}, True),
    ],
)
def test_a_server_is_open_to_whom_its_definition_or_the_tenants_switch_says(
    server: dict[str, Any], tenant: dict[str, Any], may: bool
) -> None:
    assert policy(tenant).may_use(crm(**server)) is may


@requirement("policy:patterns")
@pytest.mark.parametrize(
    ("tier", "tenant", "admitted"),
    [
        (None, None, True),
        ({"allow": ["crm/get_*"]}, None, True),
        ({"allow": ["crm/put_*"]}, None, False),
        ({"allow": ["*/get_user"]}, None, True),
        ({"allow": ["*"]}, None, True),
        ({"allow": []}, None, False),
        ({"deny": ["crm/*"]}, None, False),
        ({"deny": ["crm/GET_*"]}, None, True),
        ({"allow": ["crm/get_*"], "deny": ["crm/get_user"]}, None, False),
        (None, {"deny": ["*/get_user"]}, False),
        ({"allow": ["crm/get_user"]}, {"allow": ["crm/put_user"]}, False),
        ({"allow": ["crm/get_[tv]ser", "crm/get_us?r"]}, None, True),
    ],
)
def test_a_tool_has_to_pass_the_patterns_of_the_tier_and_of_the_tenant(
    tier: dict[str, Any] | None, tenant: dict[str, Any] | None, admitted: bool
) -> None:
    who = policy({"tools": tenant} if tenant else None, **({"tools": tier} if tier else {}))
    access = who.access(crm(), "get_user", READ)
    assert access is (Access.ALLOW if admitted else Access.DENY)


@requirement("policy:classes")
@pytest.mark.parametrize(
    ("classes", "rule", "delivery", "access"),
    [
        ({}, {}, WRITE, Access.ALLOW),
        ({"write": "deny"}, {}, WRITE, Access.DENY),
        ({"write": "deny"}, {}, READ, Access.ALLOW),
        ({"write": "approve"}, {}, WRITE, Access.APPROVE),
        ({}, {"approval": True}, READ, Access.APPROVE),
        ({"write": "deny"}, {"approval": True}, WRITE, Access.DENY),
    ],
)
def test_a_tools_class_and_the_operators_rule_decide_the_stricter_way(
    classes: dict[str, str], rule: dict[str, Any], delivery: Delivery, access: Access
) -> None:
    server = crm(tools={"tool": rule})
    assert policy(classes=classes).access(server, "tool", delivery) is access


@requirement("policy:classes")
def test_a_call_that_needs_an_approval_is_dispatched_with_one_and_refused_without() -> None:
    who = policy(classes={"write": "approve"})
    who.refuse_call(crm(), "put", WRITE, approved=True)
    with pytest.raises(FleetError) as refused:
        who.refuse_call(crm(), "put", WRITE, approved=False)
    assert refused.value.code is Code.POLICY_DENIED


@requirement("policy:limits")
def test_a_tenants_own_limits_come_before_its_tiers() -> None:
    tenant = {"limits": {"concurrent_calls": 3}}
    limits = policy(tenant, limits={"concurrent_calls": 9, "result_bytes": 10}).limits
    assert (limits.concurrent_calls, limits.result_bytes, limits.calls_per_minute) == (3, 10, None)


@requirement("policy:bad-input")
@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"name": "a b"}, "name"),
        ({"priority": 10}, "priority"),
        ({"limits": {"calls_per_minute": 0}}, "limits/calls_per_minute"),
        ({"limits": {"calls_per_day": 9}}, "limits/calls_per_day"),
        ({"classes": {"write": "maybe"}}, "classes/write"),
        ({"classes": {"delete": "deny"}}, "classes/delete"),
        ({"tools": {"allow": ["crm"]}}, "tools/allow/0"),
        ({"tools": {"deny": ["crm/a", "crm/a/b"]}}, "tools/deny/1"),
    ],
)
def test_a_wrong_tier_is_refused_with_the_path_of_what_is_wrong(
    body: dict[str, Any], path: str
) -> None:
    with pytest.raises(FleetError) as refused:
        parse_tier({"name": "gold", **body})
    assert refused.value.code is Code.INVALID_DEFINITION
    assert path in [it["path"] for it in refused.value.details["problems"]]
