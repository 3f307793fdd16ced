"""Tiers and tenants in the record: what they admit, what they limit, and how they are kept."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from registry import calls, policies
from registry.calls import CallState, Ending, NewCall, Submitted
from registry.database import Database
from registry.errors import Code, FleetError
from registry.policies import Policies
from registry.runs import Run
from registry.settings import Settings
from registry.submission import Wish, prepare
from registry.tiers import parse_tenant, parse_tier
from tests.ledger import WORKER, definition, listed, register, start
from tests.requirements import requirement

pytestmark = pytest.mark.anyio


async def tier(database: Database, name: str = "free", **rest: Any) -> None:
    """Put a tier, and tenant `acme` into it."""
    await policies.put_tier(database, parse_tier({"name": name, **rest}), actor="ops")
    await policies.put_tenant(database, parse_tenant({"name": "acme", "tier": name}), actor="ops")


async def calls_of(database: Database, run: Run, count: int, **wish: Any) -> list[NewCall]:
    policy = await policies.get_tenant(database, run.tenant)
    wanted = Wish(**{"tool": "demo_look", "arguments": {}, "actor": "agent", **wish})
    return [prepare(run, wanted, Settings(), policy) for _ in range(count)]


async def submit(database: Database, run: Run, count: int, **wish: Any) -> list[Any]:
    return await calls.submit(database, await calls_of(database, run, count, **wish))


def told(answers: list[Any]) -> list[str]:
    return ["ok" if isinstance(it, Submitted) else it.code.code for it in answers]


@requirement("policy:classes")
async def test_a_run_has_the_tools_of_the_classes_that_its_tier_allows(database: Database) -> None:
    await register(database, definition())
    await tier(database, classes={"write": "deny", "keyed": "approve"})
    tools = (await start(database)).tools
    assert {name: tool.approval for name, tool in tools.items()} == {
        "demo_look": False,
        "demo_put": False,
        "demo_pay": True,
    }


@requirement("policy:patterns")
async def test_a_run_has_the_tools_that_tier_and_tenant_both_admit(database: Database) -> None:
    await register(database, definition())
    await tier(database, tools={"allow": ["demo/*"], "deny": ["demo/write"]})
    narrowed = {"name": "acme", "tier": "free", "tools": {"deny": ["*/pay"]}}
    await policies.put_tenant(database, parse_tenant(narrowed), actor="ops")
    assert set((await start(database)).tools) == {"demo_look", "demo_put"}


@requirement("policy:servers")
async def test_a_tenants_switch_enables_and_disables_a_server(database: Database) -> None:
    await register(database, definition("open"), listed("look"))
    await register(database, definition("closed", tenants=["other"]), listed("look"))
    switches = {"name": "acme", "servers": {"open": False, "closed": True}}
    await policies.put_tenant(database, parse_tenant(switches), actor="ops")
    assert set((await start(database)).tools) == {"closed_look"}


@requirement("policy:classes")
async def test_what_a_tier_denies_is_refused_to_runs_that_began_before(
    database: Database,
) -> None:
    await register(database, definition())
    run = await start(database)
    await tier(database, classes={"read": "deny"})
    with pytest.raises(FleetError) as refused:
        await calls_of(database, run, 1)
    assert refused.value.code is Code.POLICY_DENIED


@requirement("policy:limits")
async def test_calls_at_once_are_limited_and_an_ended_one_makes_room(database: Database) -> None:
    await register(database, definition())
    await tier(database, limits={"concurrent_calls": 2})
    run = await start(database)
    answers = await submit(database, run, 3)
    assert told(answers) == ["ok", "ok", "tenant_limited"]
    assert answers[2].retry_after_s > 0
    (claim,) = await calls.claim(database, WORKER, [answers[0].id])
    assert told(await submit(database, run, 1)) == ["tenant_limited"]
    assert claim is not None
    await calls.finish(database, WORKER, [Ending(claim.id, claim.fence, CallState.SUCCEEDED)])
    assert told(await submit(database, run, 2)) == ["ok", "tenant_limited"]


@requirement("policy:limits")
async def test_one_tenants_calls_at_once_are_no_others(database: Database) -> None:
    await register(database, definition())
    await tier(database, limits={"concurrent_calls": 1})
    free, other = await start(database), await start(database, tenant="other")
    mixed = [*await calls_of(database, free, 2), *await calls_of(database, other, 2)]
    assert told(await calls.submit(database, mixed)) == ["ok", "tenant_limited", "ok", "ok"]


@requirement("policy:limits")
async def test_calls_at_once_are_limited_over_all_processes_together(database: Database) -> None:
    await register(database, definition())
    await tier(database, limits={"concurrent_calls": 10})
    run = await start(database)
    batches = [await calls_of(database, run, 4) for _ in range(6)]
    answers = await asyncio.gather(*(calls.submit(database, batch) for batch in batches))
    said = told([answer for batch in answers for answer in batch])
    assert (said.count("ok"), said.count("tenant_limited")) == (10, 14)


@requirement("limits:tools")
async def test_the_calls_at_once_of_some_tools_are_limited_beside_those_of_all(
    database: Database,
) -> None:
    await register(database, definition())
    tools = {"demo/l*": {"concurrent_calls": 1}, "demo/put": {"calls_per_minute": 9}}
    await tier(database, limits={"concurrent_calls": 3, "tools": tools})
    run = await start(database)
    assert told(await submit(database, run, 2)) == ["ok", "tenant_limited"]
    assert told(await submit(database, run, 3, tool="demo_put")) == ["ok", "ok", "tenant_limited"]


@requirement("policy:limits")
async def test_a_known_idempotency_key_gives_the_call_again_however_full_it_is(
    database: Database,
) -> None:
    await register(database, definition())
    await tier(database, limits={"concurrent_calls": 1})
    run = await start(database)
    (first,) = await submit(database, run, 1, idempotency_key="k")
    (again,) = await submit(database, run, 1, idempotency_key="k")
    assert (again.id, again.created) == (first.id, False)


@requirement("policy:kept")
async def test_a_policy_is_known_within_a_second_of_its_change(database: Database) -> None:
    now = [0.0]
    known = Policies(database, clock=lambda: now[0])
    await start(database)
    assert (await known.of("acme")).tier.name == "default"
    await tier(database)
    now[0] += 1.0
    assert (await known.of("acme")).tier.name == "free"


@requirement("policy:kept")
async def test_a_tier_that_has_tenants_is_not_removed(database: Database) -> None:
    await tier(database)
    with pytest.raises(FleetError) as refused:
        await policies.remove_tier(database, "free", actor="ops")
    assert refused.value.code is Code.IN_USE
    await policies.put_tenant(database, parse_tenant({"name": "acme"}), actor="ops")
    await policies.remove_tier(database, "free", actor="ops")
    assert [it.name for it in await policies.list_tiers(database)] == ["default"]


@requirement("policy:kept")
async def test_a_tenant_cannot_enter_a_tier_that_is_not_there(database: Database) -> None:
    tenant = parse_tenant({"name": "acme", "tier": "gold"})
    with pytest.raises(FleetError) as refused:
        await policies.put_tenant(database, tenant, actor="ops")
    assert refused.value.code is Code.UNKNOWN_TIER


@requirement("policy:kept")
async def test_tenants_keep_the_order_in_which_they_came(database: Database) -> None:
    for name in ("zoe", "adam"):
        await start(database, tenant=name)
    await policies.put_tenant(database, parse_tenant({"name": "zoe", "flags": ["x"]}), actor="ops")
    assert [it.tenant.name for it in await policies.list_tenants(database)] == ["zoe", "adam"]


@requirement("policy:priority")
async def test_a_call_has_the_priority_of_its_tenants_tier(database: Database) -> None:
    await register(database, definition())
    await tier(database, priority=8)
    (call,) = await calls_of(database, await start(database), 1)
    await calls.submit(database, [call])
    (claim,) = await calls.claim(database, WORKER, [call.id])
    assert claim is not None
    assert (call.priority, claim.priority) == (8, 8)
