"""Secrets in definitions: sealed in the record, given to servers, shown to nobody."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from registry import catalog, credential_store, document
from registry.database import Database
from registry.definition_secrets import NO_KEYS
from registry.definitions import ServerDefinition, parse_definition
from registry.document import RegistryDocument, parse_document
from registry.envelope import KeyWrapper
from registry.errors import Code, FleetError
from registry.settings import Settings
from tests.approving import decide, dispatch, gated, waiting_call
from tests.brokering import Keys
from tests.ledger import definition
from tests.requirements import requirement
from tests.serving import Api, problem_of, serving
from tests.waiting import until
from workers.runtime import WorkerRuntime

pytestmark = pytest.mark.anyio

SECRETS = ("kanari-of-env", "kanari-of-url", "kanari-of-header", "kanari-of-query")
ENV = {"API_KEY": SECRETS[0], "DATABASE_URL": f"postgresql://app:{SECRETS[1]}@db/app", "MODE": "on"}
WEB = {
    "name": "web",
    "transport": "http",
    "url": f"https://mcp.example.com/mcp?a=1&api_key={SECRETS[3]}",
    "headers": {"x-api-key": SECRETS[2], "accept-language": "de"},
}
TELLER = """
import os, pathlib, sys
told = pathlib.Path(sys.argv[1])
told.with_suffix(".part").write_text(os.environ["API_KEY"] + " " + os.environ["DATABASE_URL"])
told.with_suffix(".part").replace(told)
"""


def crm(**rest: Any) -> ServerDefinition:
    return definition("crm", **{"env": ENV, **rest})


async def register(database: Database, keys: Keys, *definitions: ServerDefinition) -> None:
    for it in definitions:
        await catalog.add_server(database, it, actor="ops", keys=keys.file)


async def dump(database: Database) -> str:
    rows = await database.statement(
        "SELECT v::text AS row FROM server_versions v UNION ALL SELECT a::text FROM audit a"
    )
    return "\n".join(row["row"] for row in rows)


async def opened(
    database: Database, keys: KeyWrapper, name: str, version: str = "1"
) -> ServerDefinition:
    async with database.transaction() as connection:
        id_ = await catalog.version_id(connection, name, version)
    return await catalog.get_definition(database, id_, keys)


async def refused(doing: Any) -> FleetError:
    with pytest.raises(FleetError) as caught:
        await doing
    return caught.value


async def in_the_clear(database: Database, it: ServerDefinition) -> None:
    """Have a version's row as an earlier release wrote it."""
    await database.statement(
        "UPDATE server_versions SET definition = CAST(%(body)s AS jsonb), digest = 'of old'"
        " WHERE server_name = %(name)s AND version = %(version)s RETURNING 1",
        body=json.dumps(it.model_dump(mode="json")),
        name=it.name,
        version=it.version,
    )


# -- in the record


@requirement("sealed:dump")
async def test_the_record_has_no_secret_of_a_definition(database: Database, keys: Keys) -> None:
    await register(database, keys, crm(), parse_definition(WEB))
    rows = await dump(database)
    assert [it for it in SECRETS if it in rows] == []
    assert rows.count("toolfleet-sealed.") == 4
    assert await opened(database, keys.file, "crm") == crm()
    assert await opened(database, keys.file, "web") == parse_definition(WEB)


@requirement("sealed:dump")
@pytest.mark.parametrize(("name", "version"), [("other", "1"), ("crm", "2")])
async def test_a_copied_row_gives_nothing_away(
    database: Database, keys: Keys, name: str, version: str
) -> None:
    await register(database, keys, crm(), definition("other", env={"API_KEY": "another"}))
    await catalog.add_version(database, crm(version="2"), actor="ops", keys=keys.file)
    await database.statement(
        "UPDATE server_versions v SET definition = jsonb_set(v.definition, '{env}',"
        " o.definition -> 'env') FROM server_versions o WHERE o.server_name = 'crm'"
        " AND o.version = '1' AND v.server_name = %(name)s AND v.version = %(version)s RETURNING 1",
        name=name,
        version=version,
    )
    error = await refused(opened(database, keys.file, name, version))
    assert error.code is Code.CREDENTIAL_UNAVAILABLE
    assert error.details == {"server": name, "version": version}


@requirement("sealed:no-key")
async def test_without_a_key_nothing_with_a_secret_is_registered(
    database: Database, keys: Keys
) -> None:
    await register(database, keys, definition("crm"))
    wanted = RegistryDocument.model_validate(
        {
            "servers": [
                {"name": "web", "serve": "1", "versions": [{"version": "1", **WEB}]},
            ]
        }
    )
    for doing in (
        catalog.add_server(database, parse_definition(WEB), actor="ops"),
        catalog.add_version(database, crm(version="2"), actor="ops"),
        document.apply(database, wanted, actor="ops"),
    ):
        error = await refused(doing)
        assert error.code is Code.CREDENTIAL_UNAVAILABLE
        assert "TOOLFLEET_ENCRYPTION_KEYS_FILE" in error.hint
        assert error.details["secrets"]
        assert not [it for it in SECRETS if it in str(error.as_dict())]
    assert len(await database.statement("SELECT id FROM server_versions")) == 1
    await catalog.add_version(database, definition("crm", version="2"), actor="ops")


# -- compared


@requirement("sealed:same")
async def test_a_version_is_the_same_by_its_secrets_and_takes_no_second_key(
    database: Database, keys: Keys
) -> None:
    await register(database, keys, crm())
    again = await catalog.add_version(database, crm(), actor="ops", keys=keys.file)
    assert again == (await catalog.get_server(database, "crm")).id
    assert len(await database.statement("SELECT id FROM data_keys")) == 1
    other = crm(env={**ENV, "API_KEY": "another-secret"})
    error = await refused(catalog.add_version(database, other, actor="ops", keys=keys.file))
    assert error.code is Code.VERSION_EXISTS
    for wanted, same in ((crm(), True), (crm(version="2"), True), (other, False)):
        error = await refused(catalog.add_server(database, wanted, actor="ops", keys=keys.file))
        assert (error.code, error.details["same"]) == (Code.NAME_COLLISION, same)


@requirement("sealed:same")
async def test_whose_key_only_seals_adds_versions_and_is_told_what_it_cannot_compare(
    database: Database, keys: Keys, tmp_path: Path
) -> None:
    await register(database, keys, crm())
    (tmp_path / "other").mkdir()
    others = Keys(tmp_path / "other" / "encryption.keys").file
    taken = await refused(catalog.add_server(database, crm(), actor="ops", keys=others))
    assert (taken.code, taken.details) == (Code.NAME_COLLISION, {"server": "crm"})
    same = await refused(catalog.add_version(database, crm(), actor="ops", keys=others))
    assert same.code is Code.CREDENTIAL_UNAVAILABLE
    await catalog.add_version(database, crm(version="2"), actor="ops", keys=others)


@requirement("sealed:same")
async def test_of_many_registrations_at_once_one_leaves_a_row_and_a_key(
    database: Database, keys: Keys
) -> None:
    await register(database, keys, definition("crm"))
    versions = [
        catalog.add_version(database, crm(version="2"), actor="ops", keys=keys.file)
        for _ in range(8)
    ]
    assert len(set(await asyncio.gather(*versions))) == 1
    assert len(await database.statement("SELECT id FROM data_keys")) == 1
    assert await opened(database, keys.file, "crm", "2") == crm(version="2")


@requirement("sealed:same", "document:round-trip")
async def test_the_export_has_the_secrets_and_is_applied_elsewhere_by_another_key(
    database: Database, other_database: Database, keys: Keys, tmp_path: Path
) -> None:
    await register(database, keys, crm(), parse_definition(WEB))
    (tmp_path / "other").mkdir()
    others = Keys(tmp_path / "other" / "encryption.keys")
    first = json.dumps((await document.export(database, keys.file)).as_dict())
    assert [it for it in SECRETS if it not in first] == []
    wanted = parse_document(json.loads(first))
    await document.apply(other_database, wanted, actor="ops", keys=others.file)
    again = (await document.export(other_database, others.file)).as_dict()
    assert json.dumps(again) == first
    assert await document.apply(other_database, wanted, actor="ops", keys=others.file) == []
    assert [it for it in SECRETS if it in await dump(other_database)] == []


@requirement("sealed:same")
async def test_a_lost_key_keeps_no_server_from_being_removed(
    database: Database, keys: Keys
) -> None:
    await register(database, keys, crm(), parse_definition(WEB))
    await document.apply(database, RegistryDocument(), actor="ops", keys=NO_KEYS)
    assert await catalog.list_servers(database) == []


# -- shown


@pytest.fixture
async def api(database: Database, redis_url: str, keys: Keys) -> AsyncIterator[Api]:
    async with serving(database, redis_url, encryption_keys_file=keys.path) as api:
        yield api


@requirement("sealed:shown")
async def test_only_the_export_shows_the_secrets_of_a_definition(api: Api) -> None:
    stdio = {"name": "crm", "transport": "stdio", "command": "true", "env": ENV}
    answers = [await api.http.post("/v1/servers", json=it) for it in (stdio, WEB)]
    answers += [
        await api.http.post("/v1/servers/web/versions", json={**WEB, "version": "2"}),
        await api.http.post("/v1/servers", json=WEB),
        *[await api.http.get(it) for it in ("/v1/servers", "/v1/servers/web", "/v1/audit")],
    ]
    assert [it.status_code for it in answers] == [201, 201, 201, 409, 200, 200, 200]
    said = "".join(it.text for it in answers)
    assert [it for it in (*SECRETS, "toolfleet-sealed") if it in said] == []
    assert answers[1].json()["definition"]["url"].endswith("/mcp?a=1&api_key=***")
    exported = (await api.http.get("/v1/registry")).text
    assert [it for it in SECRETS if it not in exported] == []
    assert "toolfleet-sealed" not in exported


@requirement("sealed:no-key")
async def test_the_api_says_what_a_server_with_secrets_needs(
    database: Database, redis_url: str
) -> None:
    async with serving(database, redis_url) as api:
        problem = problem_of(await api.http.post("/v1/servers", json=WEB))
    assert (problem["code"], problem["status"]) == ("credential_unavailable", 503)
    assert problem["details"]["secrets"] == ["headers/x-api-key", "url/api_key"]


# -- given to servers


@asynccontextmanager
async def working(name: str, database_url: str, redis_url: str, keys: Path) -> AsyncIterator[None]:
    settings = Settings(
        database_url=database_url,
        redis_url=redis_url,
        drain_grace=timedelta(0),
        encryption_keys_file=keys,
        _env_file=None,
    )
    worker = WorkerRuntime(name, settings)
    opening = asyncio.create_task(worker.open())
    try:
        yield
        await opening
    finally:
        await worker.close()


@requirement("sealed:worker")
async def test_a_program_gets_its_secrets_in_its_environment(
    database: Database, database_url: str, redis_url: str, keys: Keys, tmp_path: Path
) -> None:
    program, told = tmp_path / "teller.py", tmp_path / "told"
    program.write_text(TELLER)
    how = {"command": sys.executable, "args": ["-I", str(program), str(told)]}
    await register(database, keys, crm(**how))
    async with working("crm", database_url, redis_url, keys.path):
        await until(told.exists)
    assert told.read_text() == f"{ENV['API_KEY']} {ENV['DATABASE_URL']}"


@requirement("sealed:worker")
async def test_a_server_of_the_web_gets_its_secrets_in_headers_and_address(
    database: Database, database_url: str, redis_url: str, keys: Keys
) -> None:
    heads: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}/mcp?a=1&api_key={SECRETS[3]}"
    await register(
        database, keys, parse_definition({**WEB, "url": url, "networks": ["127.0.0.0/8"]})
    )
    async with working("web", database_url, redis_url, keys.path):
        await until(lambda: heads)
    server.close()
    assert f"/mcp?a=1&api_key={SECRETS[3]} HTTP" in heads[0]
    assert f"x-api-key: {SECRETS[2]}" in heads[0]


@requirement("sealed:worker")
async def test_a_worker_with_the_wrong_key_says_so_until_it_has_the_right_one(
    database: Database, database_url: str, redis_url: str, keys: Keys, tmp_path: Path
) -> None:
    program, told = tmp_path / "teller.py", tmp_path / "told"
    program.write_text(TELLER)
    how = {"command": sys.executable, "args": ["-I", str(program), str(told)]}
    await register(database, keys, crm(**how))
    (tmp_path / "worker").mkdir()
    wrong = Keys(tmp_path / "worker" / "encryption.keys")

    async def said() -> dict[str, Any] | None:
        return (await catalog.get_server(database, "crm")).refresh_error

    async with working("crm", database_url, redis_url, wrong.path):
        error = await until(said)
        assert error["code"] == "credential_unavailable"
        assert "the secrets of version 1 of server 'crm' cannot be opened" in error["message"]
        keys.path.replace(wrong.path)
        await until(told.exists)
    assert ENV["API_KEY"] in told.read_text()


# -- of earlier releases


@requirement("sealed:older")
async def test_rewrapping_seals_what_an_earlier_release_stored_in_the_clear(
    database: Database, keys: Keys
) -> None:
    older, newer = (crm(), parse_definition(WEB)), definition("new", env=ENV)
    await register(database, keys, newer)
    for it in older:
        await register(database, keys, definition(it.name))
        await in_the_clear(database, it)
        assert await opened(database, NO_KEYS, it.name) == it
    shown = (await catalog.get_server(database, "web")).as_dict()
    assert not [it for it in SECRETS if it in str(shown)]
    keys.put("second", "first")
    done = await credential_store.rewrap(database, keys.file, actor="ops")
    assert (done["definitions_sealed"], done["definitions_left"]) == (2, 0)
    assert (done["rewrapped"], done["wrapped_by"]) == (1, {"file:second": 3})
    keys.put("second")
    assert not [it for it in SECRETS if it in await dump(database)]
    for it in (*older, newer):
        assert await opened(database, keys.file, it.name) == it
        assert await catalog.add_version(database, it, actor="ops", keys=keys.file)
    again = await credential_store.rewrap(database, keys.file, actor="ops")
    assert (again["rewrapped"], again["definitions_sealed"]) == (0, 0)
    rows = await database.statement("SELECT details FROM audit WHERE event LIKE '%%secrets_sealed'")
    assert [row["details"]["server"] for row in rows] == ["crm", "web"]


@requirement("sealed:older")
async def test_the_checkup_names_the_versions_whose_secrets_lie_in_the_clear(api: Api) -> None:
    plain = {**WEB, "url": "https://mcp.example.com/mcp", "headers": {}}
    await catalog.add_server(api.database, parse_definition(plain), actor="test")

    async def told() -> list[str]:
        found = (await api.http.get("/v1/checkup")).json()["findings"]
        return [it["what"] for it in found if it["check"] == "definitions"]

    assert await told() == []
    await in_the_clear(api.database, parse_definition(WEB))
    (what,) = await told()
    assert "web@1 " in what


@requirement("sealed:older")
async def test_rewrapping_voids_no_approval(database: Database, keys: Keys) -> None:
    ledger = await gated(database)
    id_ = (await catalog.get_server(database, "gate")).id
    gate = await catalog.get_definition(database, id_)
    await in_the_clear(database, gate.model_copy(update={"env": ENV}))
    call_id = await waiting_call(ledger)
    for state in ("waiting", "approved"):
        done = await credential_store.rewrap(database, keys.file, actor="ops")
        assert (done["definitions_sealed"], done["definitions_left"]) == (0, 1), state
        if state == "waiting":
            await decide(ledger, call_id)
    claim = await ledger.claim(call_id)
    await dispatch(ledger, claim)
    await ledger.finish(claim)
    done = await credential_store.rewrap(database, keys.file, actor="ops")
    assert (done["definitions_sealed"], done["definitions_left"]) == (1, 0)
