"""Runs: pinned to the tools of their start, refused with reasons, ended once."""

from __future__ import annotations

from datetime import timedelta

import pytest

from registry import calls, catalog, ingest, runs, submission
from registry.calls import NewCall, Submitted
from registry.database import Database
from registry.errors import Code, FleetError
from registry.policies import Policies
from registry.settings import Settings
from registry.snapshots import Shelf
from tests.ledger import Ledger, definition, listed, register, start
from tests.requirements import requirement

pytestmark = pytest.mark.anyio

KEY = "a signing key of at least thirty-two bytes"


@requirement("runs:pinned")
async def test_a_run_keeps_its_tools_when_the_listing_changes(database: Database) -> None:
    version = await register(database, definition(), listed("old", description="as it was"))
    run = await start(database)
    changed = [listed("old", description="as it is now"), listed("new")]
    await ingest.ingest(database, version, definition(), changed)
    kept = await runs.get_run(database, run.id)
    assert kept.tools == run.tools
    assert kept.find("demo_old").description == "as it was"
    assert set((await start(database)).tools) == {"demo_old", "demo_new"}


@requirement("runs:pinned")
async def test_a_run_keeps_the_server_version_it_started_with(database: Database) -> None:
    old = await register(database, definition(), listed("look"))
    run = await start(database)
    newer = definition(version="2", timeouts={"call_s": 7})
    new = await catalog.add_version(database, newer, actor="test")
    await ingest.ingest(database, new, newer, [listed("look")])
    assert (await runs.get_run(database, run.id)).find("demo_look").server_version_id == old
    assert (await start(database)).find("demo_look").server_version_id == new


@requirement("runs:pinned")
async def test_a_removed_server_stays_in_the_runs_that_have_it(database: Database) -> None:
    await register(database, definition())
    run = await start(database)
    await catalog.remove_server(database, "demo", actor="test")
    assert (await runs.get_run(database, run.id)).tools == run.tools
    assert (await start(database)).tools == {}


@requirement("runs:content-addressed")
async def test_equal_tools_are_one_snapshot(database: Database) -> None:
    version = await register(database, definition(), listed("a"), listed("b"))
    first = await start(database)
    await ingest.ingest(database, version, definition(), [listed("a")])
    other = await start(database)
    await ingest.ingest(database, version, definition(), [listed("b"), listed("a")])
    again = await start(database)
    assert first.snapshot == again.snapshot
    assert first.snapshot != other.snapshot


@requirement("runs:who-may-use")
async def test_a_tenant_sees_only_the_servers_it_may_use(database: Database) -> None:
    await register(database, definition("open"), listed("look"))
    await register(database, definition("closed", tenants=["other"]), listed("look"))
    assert set((await start(database)).tools) == {"open_look"}
    assert set((await start(database, tenant="other")).tools) == {"open_look", "closed_look"}


@requirement("runs:who-may-use")
async def test_naming_a_server_one_may_not_use_is_refused(database: Database) -> None:
    await register(database, definition(tenants=["other"]))
    with pytest.raises(FleetError) as refused:
        await start(database, servers=["demo"])
    assert refused.value.code is Code.POLICY_DENIED


@requirement("runs:who-may-use")
async def test_naming_a_server_that_does_not_exist_is_refused(database: Database) -> None:
    with pytest.raises(FleetError) as refused:
        await start(database, servers=["nowhere"])
    assert refused.value.code is Code.UNKNOWN_SERVER


@requirement("runs:who-may-use")
async def test_a_run_may_be_limited_to_some_servers(database: Database) -> None:
    await register(database, definition("one"), listed("look"))
    await register(database, definition("two"), listed("look"))
    assert set((await start(database, servers=["two"])).tools) == {"two_look"}


@requirement("tools:collisions")
async def test_two_servers_whose_tools_fall_together_are_told_apart_by_an_error(
    database: Database,
) -> None:
    await register(database, definition("one", tool_prefix="a_"), listed("b_look"))
    await register(database, definition("two", tool_prefix="a_b_"), listed("look"))
    with pytest.raises(FleetError) as refused:
        await start(database)
    assert refused.value.code is Code.NAME_COLLISION
    assert refused.value.details == {"name": "a_b_look", "servers": ["one", "two"]}
    assert set((await start(database, servers=["two"])).tools) == {"a_b_look"}


@requirement("runs:unknown-tool")
async def test_a_tool_that_the_run_does_not_have_is_refused_with_the_nearest(
    database: Database,
) -> None:
    ledger = await Ledger.open(database)
    with pytest.raises(FleetError) as refused:
        ledger.new("lok")
    assert refused.value.code is Code.UNKNOWN_TOOL
    assert "demo_look" in refused.value.hint


@requirement("runs:ended-once")
async def test_ending_a_run_names_its_unfinished_calls(database: Database) -> None:
    ledger = await Ledger.open(database)
    queued, running, done = (
        await ledger.submit(),
        await ledger.running(),
        await ledger.running(),
    )
    await ledger.finish(done)
    changed, unfinished = await runs.end_run(database, ledger.run.id, cancel=True, actor="test")
    assert changed
    assert sorted(unfinished) == sorted([queued, running.id])
    assert await calls.stops_of(database, "worker-of-the-test") == [running.id]


@requirement("runs:ended-once")
@pytest.mark.parametrize(
    ("first", "second", "changes", "state"),
    [
        ("cancel", "cancel", False, "cancelled"),
        ("cancel", "close", False, "cancelled"),
        ("close", "close", False, "closed"),
        ("close", "cancel", True, "cancelled"),
    ],
)
async def test_a_run_ends_once_but_a_closed_one_can_be_cancelled(
    database: Database, first: str, second: str, changes: bool, state: str
) -> None:
    ledger = await Ledger.open(database)
    run_id = ledger.run.id
    await runs.end_run(database, run_id, cancel=first == "cancel", actor="test")
    changed, _ = await runs.end_run(database, run_id, cancel=second == "cancel", actor="test")
    events = [
        row[0]
        for row in await ledger.sql(
            "SELECT event FROM audit WHERE run_id = :id AND event LIKE 'run.%' ORDER BY id",
            id=run_id,
        )
    ]
    assert changed is changes
    assert (await runs.get_run(database, run_id)).state == state
    assert len(events) == 2 + changes


@requirement("runs:ended-once")
async def test_another_tenants_run_is_unknown(database: Database) -> None:
    run = await start(database)
    with pytest.raises(FleetError) as refused:
        await runs.end_run(database, run.id, cancel=True, actor="test", tenant="other")
    assert refused.value.code is Code.UNKNOWN_RUN
    with pytest.raises(FleetError) as unseen:
        await runs.get_run(database, run.id, tenant="other")
    assert unseen.value.code is Code.UNKNOWN_RUN


@requirement("runs:token")
async def test_a_run_token_stands_for_its_run_and_tenant(database: Database) -> None:
    run = await start(database)
    assert runs.read_run_token(runs.sign_run_token(run, KEY), KEY) == (run.id, "acme")


@requirement("runs:token")
async def test_a_token_signed_with_another_key_is_refused(database: Database) -> None:
    token = runs.sign_run_token(await start(database), "another key of at least thirty-two bytes")
    with pytest.raises(FleetError) as refused:
        runs.read_run_token(token, KEY)
    assert refused.value.code is Code.UNAUTHENTICATED


@requirement("runs:token")
async def test_the_token_of_an_expired_run_is_refused(database: Database) -> None:
    run = await start(database, lifetime=timedelta(seconds=-60))
    with pytest.raises(FleetError) as refused:
        runs.read_run_token(runs.sign_run_token(run, KEY), KEY)
    assert refused.value.code is Code.RUN_EXPIRED


@requirement("calls:bounded-arguments")
async def test_arguments_over_the_limit_are_refused(database: Database) -> None:
    ledger = await Ledger.open(database)
    ledger.settings = Settings(max_arguments_bytes=100)
    with pytest.raises(FleetError) as refused:
        ledger.new(arguments={"text": "x" * 100})
    assert refused.value.code is Code.REQUEST_TOO_LARGE


@requirement("calls:bounded-arguments")
@pytest.mark.parametrize("value", [2**60, "\ud800"], ids=["integer beyond 2^53", "lone surrogate"])
async def test_arguments_without_a_canonical_form_are_refused(
    database: Database, value: object
) -> None:
    ledger = await Ledger.open(database)
    with pytest.raises(FleetError) as refused:
        ledger.new(arguments={"value": value})
    assert refused.value.code is Code.INVALID_ARGUMENTS


@requirement("calls:bounded-arguments")
@pytest.mark.parametrize("timeout_s", [0, -1, 1e9, float("nan")])
async def test_a_deadline_outside_the_limits_is_refused(
    database: Database, timeout_s: float
) -> None:
    ledger = await Ledger.open(database)
    with pytest.raises(FleetError) as refused:
        ledger.new(timeout_s=timeout_s)
    assert refused.value.code is Code.INVALID_REQUEST


class NoRates:
    """What is never asked about a tenant without rates."""

    async def take(self, call: NewCall) -> None:
        raise AssertionError(f"{call.tool} was weighed")

    def give_back(self, call: NewCall) -> None:
        raise AssertionError(f"{call.tool} was given back")


@requirement("submit:replied-once")
async def test_a_raw_clients_call_is_replied_to_once_it_has_ended(database: Database) -> None:
    ledger = await Ledger.open(database)
    submitted, message = await submission.submit_one(
        database, ledger.settings, run_id=ledger.run.id, tenant="acme", tool="demo_look",
        arguments={}, actor="celery:acme", reply_to="task-id",
        policies=Policies(database), shelf=Shelf(database), admission=NoRates(),
    )  # fmt: skip
    assert isinstance(submitted, Submitted)
    assert "arguments" not in message
    assert await submission.unreplied(database) == []
    await ledger.finish(await ledger.claim(submitted.id))
    (row,) = await submission.unreplied(database)
    assert (row["reply_to"], row["state"]) == ("task-id", "succeeded")
    await submission.mark_replied(database, submitted.id)
    assert await submission.unreplied(database) == []
