"""Rollouts in the record: who is offered which version, how they end, and what judges them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from registry import calls, catalog, holds, ingest, judgement, policies, rollouts, submission
from registry.calls import CallState, Ending
from registry.database import Database
from registry.errors import Code, FleetError
from registry.rollouts import TRANSITIONS, RolloutPlan, RolloutState
from registry.runs import Run
from registry.settings import Settings
from registry.submission import Wish
from registry.tiers import TenantDefinition
from registry.verdict import Decision, VerdictRule
from tests.ledger import WORKER, definition, listed, register, start
from tests.requirements import requirement

pytestmark = pytest.mark.anyio

OLD = listed("look", description="as in 2.0")
NEW = listed("look", description="as in 2.1")


async def two_versions(database: Database, *tools: dict[str, Any], **plan: Any) -> None:
    """Serve `demo` 2.0, and try 2.1 on tenant `brave`, or as the plan says."""
    await register(database, definition(version="2.0"), OLD, *tools)
    newer = definition(version="2.1")
    version = await catalog.add_version(database, newer, actor="test", serve=False)
    await roll_out(database, **({"tenants": ["brave"]} | plan))
    await ingest.ingest(database, version, newer, [NEW, *tools])


async def roll_out(database: Database, **plan: Any) -> rollouts.Rollout:
    wanted = RolloutPlan.model_validate({"version": "2.1", **plan})
    return await rollouts.put_rollout(database, "demo", wanted, actor="test")


async def seen_by(database: Database, tenant: str) -> str:
    """Return the description of the tool that a tenant's new run has."""
    return (await start(database, tenant=tenant)).find("demo_look").description


@requirement("rollout:pinned", "rollout:names")
async def test_a_pinned_tenant_sees_the_canary_under_the_name_that_others_know(
    database: Database,
) -> None:
    await two_versions(database)
    assert await seen_by(database, "brave") == "as in 2.1"
    assert await seen_by(database, "acme") == "as in 2.0"


@requirement("rollout:pinned")
async def test_a_flag_brings_a_tenant_into_the_cohort_of_the_canary(database: Database) -> None:
    await two_versions(database, tenants=[], cohorts=["beta"])
    assert await seen_by(database, "acme") == "as in 2.0"
    flagged = TenantDefinition(name="acme", flags=("beta",))
    await policies.put_tenant(database, flagged, actor="test")
    assert await seen_by(database, "acme") == "as in 2.1"


@requirement("rollout:share")
async def test_a_canary_is_offered_to_nobody_before_it_was_listed(database: Database) -> None:
    await register(database, definition(version="2.0"), OLD)
    newer = definition(version="2.1")
    version = await catalog.add_version(database, newer, actor="test", serve=False)
    await roll_out(database, percent=100)
    assert await seen_by(database, "acme") == "as in 2.0"
    await ingest.ingest(database, version, newer, [NEW])
    assert await seen_by(database, "acme") == "as in 2.1"


@requirement("rollout:names")
async def test_a_version_with_another_prefix_is_refused(database: Database) -> None:
    await register(database, definition(version="2.0"), OLD)
    renamed = definition(version="2.1", tool_prefix="other_")
    with pytest.raises(FleetError) as refused:
        await catalog.add_version(database, renamed, actor="test", serve=False)
    assert refused.value.code is Code.INVALID_DEFINITION
    assert refused.value.details["problems"][0]["path"] == "tool_prefix"


@requirement("rollout:states")
async def test_promoting_makes_the_canary_the_version_of_all(database: Database) -> None:
    await two_versions(database)
    ended = await rollouts.promote(database, "demo", actor="test")
    assert ended.state is RolloutState.PROMOTED
    assert (await catalog.get_server(database, "demo")).definition.version == "2.1"
    assert await seen_by(database, "acme") == "as in 2.1"


@requirement("rollout:states")
async def test_rolling_back_leaves_the_stable_version_to_all_new_runs(database: Database) -> None:
    await two_versions(database)
    before = await start(database, tenant="brave")
    await rollouts.roll_back(database, "demo", actor="test")
    assert await seen_by(database, "brave") == "as in 2.0"
    assert before.find("demo_look").description == "as in 2.1"


@requirement("rollout:states")
async def test_the_version_before_can_be_served_again(database: Database) -> None:
    await two_versions(database)
    await rollouts.promote(database, "demo", actor="test")
    assert await catalog.serve_previous(database, "demo", actor="test") == "2.0"
    assert await seen_by(database, "acme") == "as in 2.0"


@requirement("rollout:states")
async def test_a_changed_plan_is_the_same_rollout_and_another_version_replaces_it(
    database: Database,
) -> None:
    await two_versions(database)
    first = await rollouts.get_rollout(database, "demo")
    assert (await roll_out(database, percent=20)).id == first.id
    await catalog.add_version(database, definition(version="2.2"), actor="test", serve=False)
    other = await rollouts.put_rollout(database, "demo", RolloutPlan(version="2.2"), actor="test")
    states = {it.id: it.state for it in await rollouts.list_rollouts(database, "demo")}
    assert states == {first.id: RolloutState.REPLACED, other.id: RolloutState.ACTIVE}


@requirement("rollout:states")
@pytest.mark.parametrize("end", [rollouts.promote, rollouts.roll_back])
async def test_of_those_who_end_a_rollout_at_the_same_time_one_does(
    database: Database, end: Any
) -> None:
    await two_versions(database)
    answers = await asyncio.gather(
        *(end(database, "demo", actor="test") for _ in range(4)), return_exceptions=True
    )
    refused = [it.code for it in answers if isinstance(it, FleetError)]
    assert refused == [Code.NOT_FOUND] * 3


@requirement("rollout:states")
def test_every_state_has_its_transitions_and_all_but_one_are_final() -> None:
    assert set(TRANSITIONS) == set(RolloutState)
    assert [state for state, to in TRANSITIONS.items() if to] == [RolloutState.ACTIVE]


@requirement("rollout:states")
async def test_adding_a_version_for_all_or_removing_the_server_ends_its_rollout(
    database: Database,
) -> None:
    await two_versions(database)
    await catalog.add_version(database, definition(version="3"), actor="test")
    assert (await rollouts.get_rollout(database, "demo")).state is RolloutState.REPLACED
    await roll_out(database)
    await catalog.remove_server(database, "demo", actor="test")
    assert await rollouts.active_rollouts(database) == []


@requirement("rollout:bad-input")
@pytest.mark.parametrize(
    ("server", "version", "code"),
    [
        ("nowhere", "2.1", Code.UNKNOWN_SERVER),
        ("demo", "9", Code.UNKNOWN_VERSION),
        ("demo", "2.0", Code.ROLLOUT_CONFLICT),
    ],
)
async def test_a_rollout_of_what_is_not_there_or_is_served_already_is_refused(
    database: Database, server: str, version: str, code: Code
) -> None:
    await register(database, definition(version="2.0"), OLD)
    plan = RolloutPlan(version=version)
    with pytest.raises(FleetError) as refused:
        await rollouts.put_rollout(database, server, plan, actor="test")
    assert refused.value.code is code


@requirement("drift:new-version")
async def test_what_a_canary_breaks_is_held_and_served_by_the_version_before(
    database: Database,
) -> None:
    await register(database, definition(version="2.0"), OLD, listed("put"))
    stable = (await catalog.get_server(database, "demo")).id
    newer = definition(version="2.1")
    canary = await catalog.add_version(database, newer, actor="test", serve=False)
    await roll_out(database, percent=100)
    needs = {"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]}
    changes = await ingest.ingest(
        database, canary, newer, [NEW, listed("put") | {"inputSchema": needs}]
    )
    said = {it["tool"]: (it["change"], it["reaction"]) for it in changes}
    assert said == {"look": ("description", "alert"), "put": ("breaking", "hold")}
    tools = (await start(database)).tools
    versions = {name: tool.server_version_id for name, tool in tools.items()}
    assert versions == {"demo_look": canary, "demo_put": stable}


@requirement("drift:new-version", "rollout:states")
async def test_a_canary_with_held_changes_is_promoted_only_once_they_are_accepted(
    database: Database,
) -> None:
    await register(database, definition(version="2.0"), OLD, listed("put"))
    newer = definition(version="2.1")
    canary = await catalog.add_version(database, newer, actor="test", serve=False)
    await roll_out(database, percent=100)
    breaking = {"type": "object", "required": ["id"]}
    await ingest.ingest(database, canary, newer, [NEW, listed("put") | {"inputSchema": breaking}])
    with pytest.raises(FleetError) as refused:
        await rollouts.promote(database, "demo", actor="test")
    assert refused.value.code is Code.CHANGES_HELD
    (hold,) = await holds.list_holds(database, "demo")
    await ingest.accept(database, "demo", hold.id, actor="test")
    await rollouts.promote(database, "demo", actor="test")
    assert (await start(database)).find("demo_put").input_schema == breaking


# -- the verdict


async def call(database: Database, run: Run, count: int, **ending: Any) -> None:
    """Make calls of a run's tool that end in one way."""
    policy = await policies.get_tenant(database, run.tenant)
    wish = Wish(tool="demo_look", arguments={}, actor="agent")
    new = [submission.prepare(run, wish, Settings(), policy) for _ in range(count)]
    await calls.submit(database, new)
    claims = await calls.claim(database, WORKER, [one.id for one in new])
    endings = [
        Ending(
            claim.id,
            claim.fence,
            **{
                "state": CallState.SUCCEEDED,
                "is_error": False,
                "result": {"content": []},
                "shape": "text",
                "timings": {"call_s": 0.1},
                **ending,
            },
        )
        for claim in claims
        if claim is not None
    ]
    assert all(await calls.finish(database, WORKER, endings))


FAILED = {
    "state": CallState.FAILED,
    "is_error": None,
    "result": None,
    "shape": None,
    "error": {"code": "session_lost", "message": "gone"},
}


async def judged(database: Database) -> Decision:
    (rollout,) = await rollouts.active_rollouts(database)
    return await judgement.judge_rollout(database, rollout)


@requirement("rollout:automatic", "rollout:verdict")
async def test_a_failing_canary_is_rolled_back_by_the_verdict_which_says_why(
    database: Database,
) -> None:
    await two_versions(database, verdict={"automatic": True, "minimum_calls": 20})
    await call(database, await start(database), 50)
    await call(database, await start(database, tenant="brave"), 6, **FAILED)
    assert await judged(database) is Decision.ROLL_BACK
    ended = await rollouts.get_rollout(database, "demo")
    assert (ended.state, ended.ended_by) == (RolloutState.ROLLED_BACK, "verdict")
    assert ended.report is not None
    assert ended.report["reasons"][0].startswith("transport errors: 100.0%")
    assert ended.report["changes"][0]["tool"] == "look"


@requirement("rollout:automatic", "rollout:verdict")
async def test_a_canary_that_answers_otherwise_is_rolled_back(database: Database) -> None:
    await two_versions(database, verdict={"automatic": True, "minimum_calls": 20})
    await call(database, await start(database), 50, shape="text {id: string}")
    await call(database, await start(database, tenant="brave"), 15, shape="text {id: null}")
    assert await judged(database) is Decision.ROLL_BACK


@requirement("rollout:automatic")
async def test_a_canary_that_is_fit_is_promoted_by_the_verdict(database: Database) -> None:
    await two_versions(database, verdict={"automatic": True, "minimum_calls": 20})
    await call(database, await start(database), 50)
    await call(database, await start(database, tenant="brave"), 19)
    assert await judged(database) is Decision.WAIT
    await call(database, await start(database, tenant="brave"), 1)
    assert await judged(database) is Decision.PROMOTE
    assert await seen_by(database, "acme") == "as in 2.1"


@requirement("rollout:automatic")
async def test_the_verdict_only_reports_where_it_was_not_asked_to_act(database: Database) -> None:
    await two_versions(database)
    await call(database, await start(database, tenant="brave"), 6, **FAILED)
    assert await judged(database) is Decision.WAIT
    running = await rollouts.get_rollout(database, "demo")
    assert running.state is RolloutState.ACTIVE
    assert running.report is not None
    assert running.report["decision"] == "roll_back"


@requirement("rollout:automatic")
async def test_a_fit_canary_with_held_changes_waits_for_the_operator(database: Database) -> None:
    await two_versions(database, verdict={"automatic": True, "minimum_calls": 1})
    newer = definition(version="2.1")
    (rollout,) = await rollouts.active_rollouts(database)
    broken = NEW | {"inputSchema": {"type": "object", "required": ["id"]}}
    await call(database, await start(database, tenant="brave"), 2)
    await ingest.ingest(database, rollout.canary_version_id, newer, [broken])
    assert await judged(database) is Decision.WAIT
    assert (await rollouts.get_rollout(database, "demo")).state is RolloutState.ACTIVE


@requirement("rollout:verdict")
async def test_calls_of_before_the_rollout_do_not_count(database: Database) -> None:
    await two_versions(database, verdict={"automatic": True, "minimum_calls": 3})
    await call(database, await start(database, tenant="brave"), 6, **FAILED)
    await rollouts.roll_back(database, "demo", actor="test")
    await roll_out(database, tenants=["brave"], verdict=VerdictRule(automatic=True).model_dump())
    assert await judged(database) is Decision.WAIT
