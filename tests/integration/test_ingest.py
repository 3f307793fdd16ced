"""Servers and their tool listings in the record: immutable versions, one listing per change."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import text

from registry import catalog, holds, ingest
from registry.database import Database
from registry.definitions import parse_definition
from registry.errors import Code, FleetError
from tests.brokering import Keys
from tests.ledger import Ledger, definition, listed, register, start
from tests.loop_time import attempts
from tests.requirements import requirement
from tests.shop import DOCUMENT, document, shop_definition

pytestmark = pytest.mark.anyio


async def count(database: Database, table: str) -> int:
    async with database.transaction() as connection:
        return int((await connection.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one())


# -- listings


@requirement("ingest:changes")
async def test_a_first_listing_adds_every_tool_and_makes_the_server_fresh(
    database: Database,
) -> None:
    version = await catalog.add_server(database, definition(), actor="test")
    assert (await catalog.get_server(database, "demo")).stale
    changes = await ingest.ingest(database, version, definition(), [listed("b"), listed("a")])
    server = await catalog.get_server(database, "demo")
    assert [(it["change"], it["tool"]) for it in changes] == [("added", "a"), ("added", "b")]
    assert (server.stale, server.tools) == (False, ("a", "b"))


@requirement("ingest:changes")
async def test_a_changed_listing_says_what_changed(database: Database) -> None:
    version = await register(database, definition(), listed("gone"), listed("kept"), listed("old"))
    changes = await ingest.ingest(
        database,
        version,
        definition(),
        [listed("kept"), listed("new"), listed("old", description="other")],
    )
    said = {(change["change"], change["tool"]) for change in changes}
    assert said == {("removed", "gone"), ("added", "new"), ("description", "old")}
    assert (await ingest.list_changes(database, "demo"))[0]["changes"] == changes


@requirement("ingest:changes")
@pytest.mark.parametrize(
    "again",
    [
        [listed("a"), listed("b")],
        [listed("b"), listed("a")],
        [listed("a", icons=[{"src": "data:,"}]), listed("b", _meta={"seen": 2})],
    ],
    ids=["same", "other order", "other presentation"],
)
async def test_an_unchanged_listing_adds_nothing(
    database: Database, again: list[dict[str, Any]]
) -> None:
    version = await register(database, definition(), listed("a"), listed("b"))
    before = await count(database, "listings"), await count(database, "audit")
    assert await ingest.ingest(database, version, definition(), again) == []
    assert (await count(database, "listings"), await count(database, "audit")) == before


@requirement("ingest:changes")
async def test_a_listing_without_tools_is_recorded(database: Database) -> None:
    version = await register(database, definition(), listed("a"))
    (change,) = await ingest.ingest(database, version, definition(), [])
    assert (change["change"], change["tool"]) == ("removed", "a")
    assert (await catalog.get_server(database, "demo")).tools == ()


@requirement("ingest:immutable")
async def test_a_tool_that_returns_to_what_it_was_is_the_same_version(database: Database) -> None:
    first, second = listed("a", description="1"), listed("a", description="2")
    version = await register(database, definition(), first)
    before = (await start(database)).find("demo_a").tool_version_id
    for tool in (second, first):
        await ingest.ingest(database, version, definition(), [tool])
    assert (await start(database)).find("demo_a").tool_version_id == before
    assert await count(database, "tool_versions") == 2


@requirement("ingest:immutable")
async def test_two_servers_may_list_the_same_tool(database: Database) -> None:
    await register(database, definition("one"), listed("look"))
    await register(database, definition("two"), listed("look"))
    run = await start(database)
    assert run.find("one_look").tool_version_id != run.find("two_look").tool_version_id


@requirement("tools:collisions")
async def test_a_tool_listed_twice_is_refused_and_nothing_changes(database: Database) -> None:
    version = await register(database, definition(), listed("a"))
    with pytest.raises(FleetError) as refused:
        await ingest.ingest(database, version, definition(), [listed("b"), listed("b")])
    assert refused.value.code is Code.PROTOCOL_ERROR
    assert (await catalog.get_server(database, "demo")).tools == ("a",)


@requirement("ingest:changes")
async def test_a_failed_refresh_keeps_the_tools_and_shows_the_error(database: Database) -> None:
    await register(database, definition(), listed("a"))
    error = FleetError(Code.SERVER_UNAVAILABLE, "server demo is away")
    await ingest.mark_stale(database, "demo", error)
    server = await catalog.get_server(database, "demo")
    assert (server.stale, server.tools, server.refresh_error) == (True, ("a",), error.as_dict())


@requirement("listing:bounded", "faults:loop-runs-on")
@pytest.mark.parametrize(
    ("tools", "most"),  # measured: 0.5, 0.5 and 9; without the thread 9, 17 and 170
    [
        ([listed("worst", outputSchema={"x": [1.5] * 60_000}), *map(listed, "abcd")], 3),
        ([listed(f"t{n}", outputSchema={"x": [{"": n}] * 20_000}) for n in range(6)], 3),
        ([listed(f"t{n}", description="do it " * 70) for n in range(2_000)], 40),
    ],
    ids=["numbers", "objects", "many"],
)
async def test_a_large_listing_is_taken_in_without_holding_the_loop(
    database: Database, tools: list[Any], most: float
) -> None:
    version = await register(database, definition(), listed("a"))
    for attempt in attempts(most=most):
        await ingest.ingest(database, version, definition(), [listed("a")])
        with attempt:
            await ingest.ingest(database, version, definition(), tools)
    taken = (await catalog.get_server(database, "demo")).tools
    kept_out = await holds.list_holds(database, "demo")
    assert len(taken) + len(kept_out) == len(tools)


@requirement("ingest:scheduled")
async def test_only_servers_not_listed_for_a_while_are_marked(database: Database) -> None:
    ledger = await Ledger.open(database)
    await register(database, definition("fresh"), listed("a"))
    await ledger.sql(
        "UPDATE servers SET refreshed_at = refreshed_at - interval '10 min' WHERE name = 'demo'"
    )
    await ingest.schedule_refresh(database, ledger.settings.refresh_every)
    stale = {it.definition.name: it.stale for it in await catalog.list_servers(database)}
    assert stale == {"demo": True, "fresh": False}


# -- servers


@requirement("catalog:unique")
async def test_a_second_server_of_a_name_is_refused(database: Database) -> None:
    await register(database, definition())
    with pytest.raises(FleetError) as refused:
        await catalog.add_server(database, definition(tool_prefix="other_"), actor="test")
    assert refused.value.code is Code.NAME_COLLISION


@requirement("catalog:unique")
async def test_a_second_server_with_a_prefix_is_refused(database: Database) -> None:
    await register(database, definition("a-b"))
    with pytest.raises(FleetError) as refused:
        await catalog.add_server(database, definition("other", tool_prefix="a_b_"), actor="test")
    assert refused.value.code is Code.NAME_COLLISION
    assert refused.value.details == {"tool_prefix": "a_b_", "server": "a-b"}


@requirement("catalog:unique")
async def test_of_ten_simultaneous_registrations_of_a_name_one_succeeds(
    database: Database,
) -> None:
    answers = await asyncio.gather(
        *(catalog.add_server(database, definition(), actor="test") for _ in range(8)),
        return_exceptions=True,
    )
    refused = [it for it in answers if isinstance(it, FleetError)]
    assert {it.code for it in refused} == {Code.NAME_COLLISION}
    assert len(refused) == 7


@requirement("catalog:unique")
async def test_a_refusal_says_whether_the_registered_server_is_the_same(
    database: Database, keys: Keys
) -> None:
    first = definition(version="7", env={"TOKEN": "one"})
    await catalog.add_server(database, first, actor="test", keys=keys.file)
    for wanted, same in (
        (definition(env={"TOKEN": "one"}), True),
        (definition(env={"TOKEN": "two"}), False),
    ):
        with pytest.raises(FleetError) as refused:
            await catalog.add_server(database, wanted, actor="test", keys=keys.file)
        assert refused.value.details == {"server": "demo", "same": same}


@requirement("catalog:tried")
async def test_a_registration_that_is_only_tried_leaves_nothing(database: Database) -> None:
    await catalog.add_server(database, definition(), actor="test", dry_run=True)
    traces = [await count(database, table) for table in ("servers", "server_versions", "audit")]
    assert traces == [0, 0, 0]
    await register(database, definition())
    with pytest.raises(FleetError) as refused:
        await catalog.add_server(database, definition(), actor="test", dry_run=True)
    assert refused.value.code is Code.NAME_COLLISION


@requirement("catalog:older-rows")
async def test_a_definition_of_an_older_release_is_read_and_is_the_same_version(
    database: Database,
) -> None:
    await register(database, definition())
    async with database.transaction() as connection:
        await connection.execute(
            text(
                "UPDATE server_versions SET definition = (definition - 'networks')"
                ' || \'{"cwd": "relative"}\''
            )
        )
    (server,) = await catalog.list_servers(database)
    assert server.definition.cwd == "relative"
    older = server.definition.model_copy(update={"version": "1"})
    assert await catalog.add_version(database, older, actor="test") == server.id


@requirement("catalog:versions")
async def test_a_version_never_changes(database: Database) -> None:
    await register(database, definition())
    with pytest.raises(FleetError) as refused:
        await catalog.add_version(database, definition(timeouts={"call_s": 1}), actor="test")
    assert refused.value.code is Code.VERSION_EXISTS


@requirement("catalog:versions")
async def test_the_newest_version_is_the_current_one_and_an_old_one_may_return(
    database: Database,
) -> None:
    first = await register(database, definition())
    await catalog.add_version(database, definition(version="2"), actor="test")
    assert (await catalog.get_server(database, "demo")).definition.version == "2"
    assert await catalog.add_version(database, definition(), actor="test") == first
    assert (await catalog.get_server(database, "demo")).id == first


@requirement("catalog:versions")
async def test_a_version_of_an_unknown_server_is_refused(database: Database) -> None:
    with pytest.raises(FleetError) as refused:
        await catalog.add_version(database, definition(), actor="test")
    assert refused.value.code is Code.UNKNOWN_SERVER


@requirement("catalog:versions")
async def test_a_removed_server_is_gone_until_it_is_added_again(database: Database) -> None:
    first = await register(database, definition())
    await catalog.remove_server(database, "demo", actor="test")
    assert await catalog.worker_servers(database) == []
    with pytest.raises(FleetError) as refused:
        await catalog.get_server(database, "demo")
    assert refused.value.code is Code.UNKNOWN_SERVER
    assert await catalog.add_server(database, definition(), actor="test") == first


@requirement("catalog:hides-values")
async def test_environment_and_header_values_are_not_shown(database: Database, keys: Keys) -> None:
    server = definition(env={"TOKEN": "s3cret"}, headers={"Authorization": "s3cret"})
    await catalog.add_server(database, server, actor="test", keys=keys.file)
    shown = (await catalog.get_server(database, "demo")).as_dict()
    assert "s3cret" not in str(shown)
    assert set(shown["definition"]["env"]) == {"TOKEN"}


# -- APIs


@requirement("openapi:versions")
async def test_an_apis_document_is_read_only_to_serve_it(database: Database) -> None:
    version = await catalog.add_server(database, parse_definition(shop_definition()), actor="test")
    looked_at = (await catalog.get_server(database, "shop")).definition.openapi
    served = (await catalog.get_definition(database, version)).openapi
    assert looked_at is not None
    assert served is not None
    assert (looked_at.document, served.document) == (None, DOCUMENT)


@requirement("openapi:versions")
async def test_a_version_keeps_its_document(database: Database) -> None:
    first = parse_definition(shop_definition())
    version = await catalog.add_server(database, first, actor="test")
    assert await catalog.add_version(database, first, actor="test") == version
    newer = document(info={"title": "Shop", "version": "2"})
    changed = parse_definition(shop_definition(openapi={"document": newer}))
    with pytest.raises(FleetError) as refused:
        await catalog.add_version(database, changed, actor="test")
    assert refused.value.code is Code.VERSION_EXISTS
