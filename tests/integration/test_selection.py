"""Which tools a search finds, on real descriptions and on hostile ones."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import text

from compose.migrate import migrations_folder, upgrade_database
from registry.database import Database, to_json
from registry.selection import MAX_INTENT, rank
from tests.ledger import definition, listed, register, start
from tests.requirements import requirement
from tests.tool_search import answers, intents, load, names, recall

pytestmark = pytest.mark.anyio

HOSTILE_INTENTS = {
    "quotes": """it's "a" 'b' `c` '' "" \\' \\\\""",
    "operators": "send & (mail | !letter) <-> file:*A ::tsquery ; DROP TABLE tool_terms --",
    "emoji": "📧 ➡️ 👩‍👩‍👧‍👦 ￿",
    "long": "send a mail " * 10_000,
    "one long word": "x" * 100_000,
    "many words": " ".join(f"word{number}" for number in range(MAX_INTENT)),
    "control characters": "send\0a\x01mail\x7f\r\n\t",
    "half a character": "send \ud83d mail",
    "other scripts": "ابعث رسالة 发送邮件 שלח דואר",
    "blank": " \n\t",
}

HOSTILE_TOOLS: dict[str, dict[str, Any]] = {
    "a megabyte": {"description": "mail " * 200_000},
    "a megabyte of words": {"description": " ".join(map(str, range(150_000)))},
    "words of 3 KB": {"description": f"{'x' * 3_000} {'é' * 1_500}"},
    "one word often": {"description": "mail " * 400},
    "quotes": {"description": r"""it's \ '\'' "\\" it''s\\' E'\x27' $$ %s :name"""},
    "addresses": {"description": r"http://a.b/c\d'e?f=g'h \\host\share\'x file:///a'b"},
    "a deep schema": {"inputSchema": {"type": "object", "properties": {"a": {}}}},
    "odd properties": {"inputSchema": {"type": "object", "properties": ["a", 1]}},
    "odd descriptions": {
        "inputSchema": {"type": "object", "properties": {"a": {"description": {"b": [1]}}}}
    },
    "a description that is none": {"description": ["a", {"b": "c"}]},
    "a title that is none": {"title": {"a": 1}},
    "emoji": {"description": "📧" * 5_000},
    "a property of 100 KB": {
        "inputSchema": {"type": "object", "properties": {"aB" * 50_000: {"type": "string"}}}
    },
}
deep: dict[str, Any] = HOSTILE_TOOLS["a deep schema"]["inputSchema"]["properties"]["a"]
for _ in range(50):
    deep["properties"] = {"a": {"description": "mail"}}
    deep = deep["properties"]["a"]


async def find(
    database: Database, intent: str, ids: Sequence[int] | None = None, limit: int = 10
) -> list[str]:
    """Return what is found, as ``server/tool``."""
    named = await names(database)
    async with database.transaction() as connection:
        found = await rank(connection, list(named) if ids is None else ids, intent, limit)
    return [named[id_] for id_ in found]


async def record(database: Database, *tools: dict[str, Any]) -> None:
    """Write tool versions of server `demo` as they are, whatever an ingest would say of them."""
    async with database.transaction() as connection:
        await connection.execute(text("INSERT INTO servers (name) VALUES ('demo')"))
        for tool in tools:
            await connection.execute(
                text(
                    "INSERT INTO tool_versions (server_name, name, digest, definition)"
                    " VALUES ('demo', :name, :name, CAST(:definition AS jsonb))"
                ),
                {"name": tool["name"], "definition": to_json(tool)},
            )


async def office(database: Database) -> None:
    await register(
        database,
        definition("post"),
        listed("send_mail", description="Send a letter to somebody."),
        listed("listMailFolders", description="List the folders of a box."),
        listed("purge", description="Delete letters for good."),
    )
    await register(
        database,
        definition("tracker"),
        listed("create_issue", description="Create something in a project."),
        listed("close_issue", description="Close something in a project."),
        listed("project.list", description="List projects."),
    )


# -- what is found


@requirement("search:recall")
async def test_real_intents_find_real_tools(database: Database) -> None:
    named = await load(database)

    async def search(intent: str) -> list[int]:
        async with database.transaction() as connection:
            return await rank(connection, list(named), intent, 10)

    measured = {
        split: recall(await answers(search, named, intents(split)), 10)
        for split in ("tune", "held_out", "fresh")
    }
    # Measured: 0.831, 0.773, 0.868 (make search-eval); without synonyms 0.527, 0.582, 0.811.
    assert measured["tune"] >= 0.80
    assert measured["held_out"] >= 0.75
    assert measured["fresh"] >= 0.84


@requirement("search:words")
@pytest.mark.parametrize(
    ("intent", "first"),
    [
        ("send", "post/send_mail"),
        ("mail folders", "post/listMailFolders"),
        ("the issue is closed", "tracker/close_issue"),
        ("list all projects", "tracker/project.list"),
    ],
    ids=["snake_case", "camelCase", "stems", "dots"],
)
async def test_a_tool_is_found_by_the_words_of_its_name(
    database: Database, intent: str, first: str
) -> None:
    await office(database)
    assert (await find(database, intent))[0] == first


@requirement("search:words")
async def test_a_tool_is_found_by_what_its_parameters_are(database: Database) -> None:
    schema = {"type": "object", "properties": {"dueDate": {"description": "until when, in days"}}}
    await register(database, definition(), listed("a"), listed("b", inputSchema=schema))
    assert await find(database, "due") == ["demo/b"]
    assert await find(database, "days") == ["demo/b"]


@requirement("search:synonyms")
@pytest.mark.parametrize(
    ("intent", "first"),
    [
        ("open a bug", "tracker/create_issue"),
        ("get rid of old messages", "post/purge"),
        ("write an email", "post/send_mail"),
    ],
)
async def test_a_tool_is_found_by_words_that_mean_the_same(
    database: Database, intent: str, first: str
) -> None:
    await office(database)
    assert (await find(database, intent))[0] == first


@requirement("search:rare-words")
async def test_a_rare_word_counts_more_than_a_frequent_one(database: Database) -> None:
    frequent = [listed(f"tool_{number}", description="a report") for number in range(5)]
    rare = listed("zebra", description="a zebra")
    await register(database, definition(), *frequent, rare)
    assert (await find(database, "report zebra"))[0] == "demo/zebra"


@requirement("search:any-intent")
@pytest.mark.parametrize("intent", ["", "the of and", "xyzzy plugh"], ids=["none", "stop", "odd"])
async def test_an_intent_without_a_known_word_gives_the_first_tools_by_name(
    database: Database, intent: str
) -> None:
    await office(database)
    found = await find(database, intent, limit=3)
    assert found == ["tracker/close_issue", "tracker/create_issue", "post/listMailFolders"]


# -- what never happens


@requirement("search:only-given-tools")
async def test_a_tool_that_was_not_given_is_never_found(database: Database) -> None:
    hidden = {"tools": {"send_mail": {"hidden": True}}}
    await register(
        database, definition(**hidden), listed("send_mail"), listed("send_letter"), listed("other")
    )
    await register(database, definition("foreign"), listed("send_mail"))
    run = await start(database, servers=["demo"])
    ids = [tool.tool_version_id for tool in run.tools.values()]
    assert await find(database, "send mail", ids) == ["demo/send_letter"]
    assert await find(database, "nothing known", ids) == ["demo/other", "demo/send_letter"]
    assert await find(database, "send mail", []) == []


@requirement("search:deterministic")
async def test_the_order_of_the_given_tools_does_not_matter(database: Database) -> None:
    alike = [listed(f"tool_{number}", description="send a mail") for number in range(30)]
    await register(database, definition(), *alike)
    ids = list(await names(database))
    first = await find(database, "send a mail", ids)
    assert first == [f"demo/tool_{number}" for number in range(10)]
    for other in (ids[::-1], ids[15:] + ids[:15], ids * 2):
        assert await find(database, "send a mail", other) == first


@requirement("search:any-intent")
@pytest.mark.parametrize("intent", HOSTILE_INTENTS.values(), ids=HOSTILE_INTENTS)
async def test_any_text_is_an_intent(database: Database, intent: str) -> None:
    await office(database)
    assert await find(database, intent)
    assert len(await find(database, intent, limit=2)) == 2


@requirement("search:any-tool")
@pytest.mark.parametrize("hostile", HOSTILE_TOOLS.values(), ids=HOSTILE_TOOLS)
async def test_whatever_a_server_lists_is_recorded_and_found_by_name(
    database: Database, hostile: dict[str, Any]
) -> None:
    await record(database, listed("zebra_tool", **hostile), listed("other"))
    assert (await find(database, "zebra"))[0] == "demo/zebra_tool"


@requirement("search:any-tool")
async def test_tools_recorded_before_the_search_came_are_found(
    database: Database, database_url: str
) -> None:
    def migrate_back() -> None:
        config = Config()
        config.set_main_option("script_location", str(migrations_folder()))
        config.attributes["url"] = database_url
        command.downgrade(config, "0002")

    await asyncio.to_thread(migrate_back)
    await record(database, listed("look"), listed("other"))
    await asyncio.to_thread(upgrade_database, database_url)
    assert (await find(database, "look"))[0] == "demo/look"
