"""What servers have beside their tools, through a real API and a real worker."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from registry import policies
from registry.database import Database
from registry.scopes import Scopes
from registry.tiers import parse_tenant
from tests.changing import KINDS, Kind
from tests.library import TEXT, Library, library, listed, served
from tests.mcp_clients import Session, Stateless, error_of
from tests.requirements import requirement
from tests.serving import Api, serving
from tests.waiting import until

pytestmark = pytest.mark.anyio

PREFIX = "toolfleet://library/"


@pytest.fixture(scope="module")
async def server(
    shared_api: Api, _redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Library]:
    """A library that the tests of this module share, served to everybody but tenant ``globex``."""
    folder = tmp_path_factory.mktemp("library") / "server"
    shut = parse_tenant({"name": "globex", "servers": {"library": False}})
    await policies.put_tenant(shared_api.database, shut, actor="test")
    async with (
        library("stdio", folder) as server,
        served(shared_api.database, _redis_url, server),
    ):
        yield server


@pytest.fixture
async def client(shared_api: Api, server: Library) -> AsyncIterator[Stateless]:
    async with shared_api.client(await shared_api.key()) as http:
        yield Stateless(http)


@pytest.fixture
async def direct(client: Stateless) -> Stateless:
    """A client of the one server's own address."""
    return Stateless(client.http, "/mcp/servers/library")


# -- lists


@requirement("passage:lists")
async def test_lists_have_what_the_server_has_under_the_names_of_the_fleet(
    client: Stateless,
) -> None:
    prompts = await client.result("prompts/list")
    assert [it["name"] for it in prompts["prompts"]] == ["library_greet", "library_part"]
    assert prompts["prompts"][0]["arguments"] == [{"name": "colour", "required": True}]
    assert (prompts["resultType"], prompts["cacheScope"]) == ("complete", "private")
    assert prompts["ttlMs"] >= 0
    resources = (await client.result("resources/list"))["resources"]
    assert [it["uri"] for it in resources] == [
        PREFIX + "test://static-text",
        PREFIX + "test://card?of=ada#back",
    ]
    templates = (await client.result("resources/templates/list"))["resourceTemplates"]
    assert [it["uriTemplate"] for it in templates] == [PREFIX + "test://template/{id}/data"]


@requirement("passage:lists")
async def test_at_its_own_address_a_server_is_as_it_is(direct: Stateless) -> None:
    prompts = (await direct.result("prompts/list"))["prompts"]
    assert [it["name"] for it in prompts] == ["greet", "part"]
    resources = (await direct.result("resources/list"))["resources"]
    assert resources[0]["uri"] == "test://static-text"
    read = await direct.result("resources/read", {"uri": "test://static-text"})
    assert read["contents"][0]["uri"] == "test://static-text"


@requirement("passage:lists")
async def test_a_cursor_that_is_none_of_the_list_is_refused(client: Stateless) -> None:
    for method in ("prompts/list", "resources/list", "resources/templates/list"):
        error = error_of(await client.ask(method, {"cursor": "bm9uZQ=="}))
        assert error["code"] == -32602


@requirement("passage:policy")
async def test_a_tenant_that_may_not_use_the_server_sees_and_reads_nothing(
    shared_api: Api, server: Library
) -> None:
    async with shared_api.client(await shared_api.key(tenant="globex")) as http:
        client = Stateless(http)
        assert (await client.result("prompts/list"))["prompts"] == []
        assert (await client.result("resources/list"))["resources"] == []
        error = error_of(await client.ask("resources/read", {"uri": PREFIX + "test://static-text"}))
        assert error["code"] == -32602
        error = error_of(await client.ask("prompts/get", {"name": "library_greet"}))
        assert error["code"] == -32602


@requirement("passage:policy")
async def test_a_rule_that_names_a_method_denies_it_and_leaves_the_others(
    shared_api: Api, server: Library
) -> None:
    narrowed = parse_tenant({"name": "initech", "tools": {"deny": ["library/resources*"]}})
    await policies.put_tenant(shared_api.database, narrowed, actor="test")
    async with shared_api.client(await shared_api.key(tenant="initech")) as http:
        client = Stateless(http)
        assert (await client.result("resources/list"))["resources"] == []
        assert len((await client.result("prompts/list"))["prompts"]) == 2
        error = error_of(await client.ask("resources/read", {"uri": PREFIX + "test://static-text"}))
        assert error["code"] == -32602


@requirement("passage:policy")
async def test_a_key_that_is_narrowed_sees_and_asks_no_more_than_it_may(
    shared_api: Api, server: Library
) -> None:
    narrow = Scopes.model_validate({"tools": {"allow": ["library/prompts*"]}})
    async with shared_api.client(await shared_api.key(scopes=narrow)) as http:
        client = Stateless(http)
        assert (await client.result("resources/list"))["resources"] == []
        assert len((await client.result("prompts/list"))["prompts"]) == 2
        reading = {"uri": PREFIX + "test://static-text"}
        assert error_of(await client.ask("resources/read", reading))["code"] == -32602


# -- requests


@requirement("passage:requests", "passage:audit")
async def test_what_is_read_is_a_call_with_its_audit(client: Stateless, shared_api: Api) -> None:
    uri = PREFIX + "test://static-text"
    read = await client.result("resources/read", {"uri": uri})
    assert read["contents"] == [{"uri": uri, "mimeType": "text/plain", "text": TEXT}]
    assert (read["resultType"], read["cacheScope"]) == ("complete", "private")
    (call,) = await shared_api.database.statement(
        "SELECT id, tool, method, delivery, state, tool_version_id FROM calls"
        " ORDER BY created_at DESC LIMIT 1"
    )
    assert (call["tool"], call["method"]) == ("resources/read", "resources/read")
    assert (call["delivery"], call["state"], call["tool_version_id"]) == ("read", "succeeded", 0)
    events = await shared_api.database.statement(
        "SELECT event FROM audit WHERE call_id = %(id)s ORDER BY id", id=call["id"]
    )
    assert [it["event"] for it in events] == ["call.queued", "call.running", "call.succeeded"]


@requirement("passage:requests")
async def test_bytes_and_templates_are_read(client: Stateless) -> None:
    picture = await client.result("resources/read", {"uri": PREFIX + "test://picture"})
    blob = base64.b64decode(picture["contents"][0]["blob"])
    assert blob.startswith(b"\x89PNG")
    expanded = PREFIX + "test://template/{id}/data".replace("{id}", "12%2F3")
    data = await client.result("resources/read", {"uri": expanded})
    assert data["contents"][0]["uri"] == expanded
    assert "12%2F3" in data["contents"][0]["text"]


@requirement("passage:redaction")
async def test_personal_data_in_a_resource_is_masked(client: Stateless) -> None:
    card = await client.result("resources/read", {"uri": PREFIX + "test://card?of=ada#back"})
    assert card["contents"][0]["text"] == "write to [email]"


@requirement("passage:large", "passage:redaction")
async def test_a_large_resource_is_read_whole_and_masked(
    client: Stateless, shared_api: Api
) -> None:
    read = await client.result("resources/read", {"uri": PREFIX + "test://long"})
    text = read["contents"][0]["text"]
    assert (len(text) > 400_000, text[-12:]) == (True, "from [email]")
    (kept,) = await shared_api.database.statement(
        "SELECT result FROM calls ORDER BY created_at DESC LIMIT 1"
    )
    link = kept["result"]["content"][1]["uri"]
    whole = await client.result("resources/read", {"uri": link})
    assert json.loads(whole["contents"][0]["text"])["contents"][0]["text"] == text
    async with shared_api.client(await shared_api.key(tenant="globex")) as http:
        error = error_of(await Stateless(http).ask("resources/read", {"uri": link}))
    assert error["code"] == -32602


@requirement("passage:requests")
async def test_a_prompt_comes_with_uris_that_can_be_read(client: Stateless) -> None:
    prompt = await client.result(
        "prompts/get", {"name": "library_greet", "arguments": {"colour": "red"}}
    )
    first, second = prompt["messages"]
    assert first["content"]["text"] == "greet in red"
    assert second["content"]["resource"]["uri"] == PREFIX + "test://static-text"


@requirement("passage:requests")
async def test_arguments_are_completed_by_their_server(client: Stateless) -> None:
    argument = {"name": "colour", "value": "gr"}
    found = await client.result(
        "completion/complete",
        {"ref": {"type": "ref/prompt", "name": "library_greet"}, "argument": argument},
    )
    assert found["completion"]["values"] == ["green", "grey", "greet"]
    uri = PREFIX + "test://template/{id}/data"
    found = await client.result(
        "completion/complete", {"ref": {"type": "ref/resource", "uri": uri}, "argument": argument}
    )
    assert found["completion"]["values"][-1] == "test://template/{id}/data"


@requirement("passage:errors")
async def test_what_is_unknown_is_an_error_by_its_revision(
    client: Stateless, direct: Stateless
) -> None:
    for one, uri in ((client, "test://nothing"), (direct, "test://nothing")):
        error = error_of(await one.ask("resources/read", {"uri": uri}))
        assert (error["code"], error["data"]["uri"]) == (-32602, uri)
    session = await Session.start(client.http, path="/mcp/servers/library")
    error = error_of(await session.ask("resources/read", {"uri": "test://nothing"}))
    assert (error["code"], error["message"]) == (-32002, "Resource not found")
    error = error_of(await client.ask("prompts/get", {"name": "nothing"}))
    assert error["code"] == -32602


@requirement("passage:errors")
async def test_what_a_server_refuses_is_told_as_it_said_it(client: Stateless) -> None:
    error = error_of(await client.ask("prompts/get", {"name": "library_greet"}))
    assert (error["code"], error["message"]) == (-32602, "colour is missing")


@requirement("passage:questions")
async def test_a_server_may_ask_for_what_a_prompt_needs(client: Stateless) -> None:
    able = Stateless(client.http, capabilities={"elicitation": {}})
    asking = await able.result("prompts/get", {"name": "library_part"})
    assert asking["resultType"] == "input_required"
    ((key, question),) = asking["inputRequests"].items()
    assert question["params"]["message"] == "Which colour?"
    given = {key: {"action": "accept", "content": {"colour": "blue"}}}
    state = {"inputResponses": given, "requestState": asking["requestState"]}
    prompt = await able.result("prompts/get", {"name": "library_part", **state})
    assert prompt["messages"][0]["content"]["text"] == "part in blue"
    error = error_of(await client.ask("prompts/get", {"name": "library_part"}))
    assert error["data"]["code"] == "input_required"


# -- servers


@requirement("passage:every-server")
@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
async def test_every_kind_of_server_is_listed_and_read(
    database: Database, redis_url: str, tmp_path: Path, kind: Kind
) -> None:
    async with (
        library(kind, tmp_path / "server") as server,
        serving(database, redis_url) as api,
        served(database, redis_url, server),
        api.client(await api.key()) as http,
    ):
        session = await Session.start(http)
        resources = (await session.result("resources/list"))["resources"]
        read = await session.result("resources/read", {"uri": resources[0]["uri"]})
        assert read["contents"][0]["text"] == TEXT
        assert "resultType" not in read
        server.says(prompts=["greet", "part", "return"])

        async def listed_() -> bool:
            prompts = (await session.result("prompts/list"))["prompts"]
            return [it["name"] for it in prompts][-1] == "library_return"

        await until(listed_)


@requirement("passage:tools-first")
@pytest.mark.long
async def test_a_list_that_fails_hurts_neither_tools_nor_other_lists(
    database: Database, redis_url: str, tmp_path: Path
) -> None:
    async with library("stdio", tmp_path / "server") as server:
        server.says(broken=["resources/list"])
        async with served(database, redis_url, server):
            found = await listed(database, "library")
    assert [it["name"] for it in found["prompts"]] == ["greet", "part"]
    assert "resources" not in found
    assert len(found["templates"]) == 1
    assert found["about"]["instructions"] == "Read quietly."


# -- changes


@requirement("passage:subscriptions")
@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
async def test_who_listens_is_told_when_a_resource_or_a_list_changes(
    database: Database, redis_url: str, tmp_path: Path, kind: Kind
) -> None:
    async with (
        library(kind, tmp_path / "server") as server,
        serving(database, redis_url) as api,
        served(database, redis_url, server),
        api.client(await api.key()) as http,
    ):
        uri, unknown = PREFIX + "test://static-text", PREFIX.replace("library", "nothing") + "x"
        wanted = {"promptsListChanged": True, "resourceSubscriptions": [uri, unknown]}
        client = Stateless(http)
        async with client.stream("subscriptions/listen", {"notifications": wanted}) as stream:
            acknowledged = await stream.next()
            assert acknowledged is not None
            assert acknowledged.data["params"]["notifications"] == {
                "promptsListChanged": True,
                "resourceSubscriptions": [uri],
            }
            await until(lambda: "subscribed test://static-text" in server.journal)
            server.says(resources={**server.said["resources"], "test://static-text": "new"})
            updated = await stream.next()
            assert updated is not None
            assert updated.data["method"] == "notifications/resources/updated"
            assert updated.data["params"]["uri"] == uri
            server.says(prompts=["greet"])
            changed = await stream.next()
            assert changed is not None
            assert changed.data["method"] == "notifications/prompts/list_changed"


@requirement("passage:subscriptions", "passage:audit")
async def test_a_session_is_told_at_whichever_api_it_listens(
    database: Database, redis_url: str, tmp_path: Path
) -> None:
    async with (
        library("http", tmp_path / "server") as server,
        serving(database, redis_url) as api,
        serving(database, redis_url) as other,
        served(database, redis_url, server),
        api.client(await api.key()) as http,
    ):
        session = await Session.start(http, path="/mcp/servers/library")
        async with other.client(http.headers["authorization"].removeprefix("Bearer ")) as elsewhere:
            there = replace(session, http=elsewhere)
            async with there.listen() as stream:
                uri = {"uri": "test://static-text"}
                assert await session.result("resources/subscribe", uri) == {}
                await until(lambda: "subscribed test://static-text" in server.journal)
                server.says(resources={**server.said["resources"], "test://static-text": "new"})
                while (event := await stream.next()) is not None and not event.data:
                    pass
                assert event is not None
                assert event.data["params"] == uri
                server.says(prompts=["greet"])
                changed = await stream.next()
                assert changed is not None
                assert changed.data["method"] == "notifications/prompts/list_changed"
                assert await session.result("resources/unsubscribe", uri) == {}
                await until(lambda: "left test://static-text" in server.journal)
    entries = await database.statement(
        "SELECT event FROM audit WHERE event LIKE 'resource.%%' ORDER BY id"
    )
    assert [it["event"] for it in entries] == ["resource.subscribed", "resource.unsubscribed"]


@requirement("passage:uris")
async def test_a_link_in_a_tools_result_can_be_read(client: Stateless) -> None:
    result = await client.result("tools/call", {"name": "library_link", "arguments": {}})
    read = await client.result("resources/read", {"uri": result["content"][0]["uri"]})
    assert read["contents"][0]["text"] == TEXT
