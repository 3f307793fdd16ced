"""What runs are offered: cheap while nothing changes, exact at once when something does."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from registry import catalog, ingest, runs
from registry.database import Database
from registry.errors import Code, FleetError
from registry.offer import Offers
from registry.policies import get_tenant
from registry.runs import Exposure, Run
from registry.settings import Settings
from registry.snapshots import Shelf, differences
from registry.submission import Wish, make_call
from tests.ledger import definition, listed, register, start
from tests.requirements import requirement

pytestmark = pytest.mark.anyio


class Process:
    """What an API process keeps between the runs it starts."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.offers = Offers(database)
        self.shelf = Shelf(database)

    async def start(self, tenant: str = "acme", **rest: Any) -> Run:
        return await start(
            self.database, tenant=tenant, offers=self.offers, shelf=self.shelf, **rest
        )


@requirement("offer:unchanged-is-cheap")
async def test_while_nothing_changes_runs_share_one_snapshot_object(database: Database) -> None:
    await register(database, definition())
    process = Process(database)
    first, second = await process.start(), await process.start("other")
    assert first.manifest is second.manifest


@requirement("offer:unchanged-is-cheap")
async def test_a_refresh_that_finds_nothing_new_leaves_the_offer_alone(
    database: Database,
) -> None:
    version = await register(database, definition(), listed("look"))
    process = Process(database)
    before = (await process.start()).manifest
    await ingest.mark_stale(database, "demo")
    await ingest.ingest(database, version, definition(), [listed("look")])
    assert (await process.start()).manifest is before


@requirement("offer:unchanged-is-cheap")
async def test_what_did_not_change_is_not_read_again(database: Database) -> None:
    await register(database, definition("one"), listed("look"))
    version = await register(database, definition("two"), listed("look"))
    process = Process(database)
    before = (await process.start()).manifest.entries
    await ingest.ingest(database, version, definition("two"), [listed("look"), listed("put")])
    after = (await process.start()).manifest.entries
    assert [entry.tool.name for entry in after] == ["one_look", "two_look", "two_put"]
    assert after[0] is before[0]


@requirement("offer:changes-at-once")
async def test_every_process_offers_what_was_committed_before_a_run_starts(
    database: Database,
) -> None:
    version = await register(database, definition(), listed("look"))
    processes = [Process(database) for _ in range(3)]
    for process in processes:
        await process.start()
    await ingest.ingest(database, version, definition(), [listed("look"), listed("put")])
    seen = [set((await process.start()).tools) for process in processes]
    assert seen == [{"demo_look", "demo_put"}] * 3


@requirement("offer:changes-at-once")
async def test_equal_offers_have_one_digest_in_every_process(database: Database) -> None:
    await register(database, definition("one"), listed("b"), listed("a"))
    await register(database, definition("two"), listed("look"))
    digests = {(await Process(database).start()).snapshot for _ in range(3)}
    assert len(digests) == 1


@requirement("offer:one-version")
async def test_a_run_reads_from_the_record_what_it_was_started_with(database: Database) -> None:
    await register(database, definition())
    started = await Process(database).start()
    read = await runs.get_run(database, started.id)
    assert (read.tools, read.snapshot, read.shown) == (
        started.tools,
        started.snapshot,
        started.shown,
    )


@requirement("offer:one-version")
async def test_runs_that_start_while_the_registry_changes_see_one_state_each(
    database: Database,
) -> None:
    both = [listed("a", description="0"), listed("b", description="0")]
    version = await register(database, definition(), *both)
    process = Process(database)

    async def change() -> None:
        for number in range(1, 40):
            again = [listed(name, description=str(number)) for name in ("a", "b")]
            await ingest.ingest(database, version, definition(), again)

    async def look() -> None:
        for _ in range(20):
            tools = (await process.start()).tools
            assert len({tool.description for tool in tools.values()}) == 1

    await asyncio.gather(change(), look(), look())


@requirement("offer:differences")
async def test_two_snapshots_differ_in_what_was_added_removed_and_changed(
    database: Database,
) -> None:
    version = await register(database, definition(), listed("kept"), listed("gone"), listed("old"))
    before = await start(database)
    tools = [listed("kept"), listed("new"), listed("old", description="other")]
    await ingest.ingest(database, version, definition(), tools)
    after = await start(database)
    assert differences(before.manifest, after.manifest) == [
        {"tool": "demo_gone", "change": "removed"},
        {"tool": "demo_new", "change": "added"},
        {"tool": "demo_old", "change": "changed", "fields": ["description", "tool_version_id"]},
    ]


@requirement("tools:collisions")
async def test_a_removed_server_frees_its_names_at_once(database: Database) -> None:
    process = Process(database)
    await register(database, definition("one", tool_prefix="a_"), listed("b_look"))
    await register(database, definition("two", tool_prefix="a_b_"), listed("look"))
    with pytest.raises(FleetError) as refused:
        await process.start()
    assert refused.value.code is Code.NAME_COLLISION
    await catalog.remove_server(database, "one", actor="test")
    assert set((await process.start()).tools) == {"a_b_look"}


# -- finding tools

WEATHER = listed("forecast", description="Tell the weather of the coming days in a city")
MAIL = listed("send_mail", description="Send an e-mail message to somebody")
PAY = listed("transfer", description="Transfer money between two bank accounts")


@requirement("offer:search")
async def test_an_intent_leaves_a_run_the_tools_that_fit_it(database: Database) -> None:
    await register(database, definition(), WEATHER, MAIL, PAY)
    run = await start(database, intent="will it rain? what is the weather like", limit=1)
    assert set(run.tools) == {"demo_forecast"}


@requirement("offer:search")
@pytest.mark.parametrize(
    ("intent", "limit"), [("x" * 4001, 5), ("a\0b", 5), ("weather", 0), ("weather", 201)]
)
async def test_an_intent_or_limit_out_of_bounds_is_refused(
    database: Database, intent: str, limit: int
) -> None:
    await register(database, definition(), WEATHER)
    with pytest.raises(FleetError) as refused:
        await runs.start_run(
            database, tenant="acme", actor="agent", lifetime=timedelta(hours=1),
            intent=intent, limit=limit or -1,
        )  # fmt: skip
    assert refused.value.code is Code.INVALID_REQUEST


async def searching(database: Database, tool: str, arguments: dict[str, Any]) -> Any:
    """Return the call that a wish becomes in a run that shows two tools."""
    await register(database, definition(), WEATHER, MAIL, PAY)
    run = await start(database, exposure=Exposure.SEARCH)
    wish = Wish(tool=tool, arguments=arguments, actor="agent")
    policy = await get_tenant(database, "acme")
    return await make_call(database, run, wish, Settings(), policy)


@requirement("offer:search")
async def test_a_searching_run_shows_its_model_two_tools(database: Database) -> None:
    await register(database, definition(), WEATHER, MAIL, PAY)
    run = await start(database, exposure=Exposure.SEARCH)
    assert run.shown.count(b'"inputSchema"') == 2
    assert b'"find_tools"' in run.shown
    assert len(run.tools) == 3


@requirement("offer:search")
async def test_find_tools_is_answered_from_the_runs_snapshot(database: Database) -> None:
    call = await searching(database, "find_tools", {"query": "send a message", "limit": 1})
    (found,) = call.result["structuredContent"]["tools"]
    assert (call.state.value, found["name"]) == ("succeeded", "demo_send_mail")


@requirement("offer:search")
async def test_call_tool_becomes_the_call_it_names(database: Database) -> None:
    call = await searching(database, "call_tool", {"name": "demo_transfer", "arguments": {}})
    assert (call.tool, call.state.value) == ("demo_transfer", "queued")


@requirement("offer:search")
@pytest.mark.parametrize(
    ("tool", "arguments", "code"),
    [
        ("find_tools", {}, Code.INVALID_ARGUMENTS),
        ("find_tools", {"query": "x", "limit": 0}, Code.INVALID_ARGUMENTS),
        ("call_tool", {"arguments": {}}, Code.INVALID_ARGUMENTS),
        ("call_tool", {"name": "demo_nothing"}, Code.UNKNOWN_TOOL),
        ("call_tool", {"name": "call_tool"}, Code.UNKNOWN_TOOL),
    ],
)
async def test_a_wrong_question_of_the_two_tools_is_refused(
    database: Database, tool: str, arguments: dict[str, Any], code: Code
) -> None:
    with pytest.raises(FleetError) as refused:
        await searching(database, tool, arguments)
    assert refused.value.code is code
