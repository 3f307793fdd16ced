"""Credentials in the record: whose is whose, where they come from, and that none can be read."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

from compose.embedded import EmbeddedPostgres
from registry import catalog, credential_store
from registry.credential_kinds import parse_credential
from registry.errors import Code, FleetError
from tests.brokering import FakeClock, Tenancy, crm
from tests.requirements import requirement
from workers.broker import Broker

pytestmark = pytest.mark.anyio

TENANTS = [f"tenant-{number}" for number in range(100)]


def static(secret: str, **rest: Any) -> dict[str, Any]:
    return {"kind": "static", "secret": secret, **rest}


async def refused(tenancy: Tenancy, broker: Broker, tenant: str) -> FleetError:
    with pytest.raises(FleetError) as caught:
        await broker.resolve(tenant, tenancy.definition)
    return caught.value


# -- whose


@requirement("broker:own")
async def test_of_a_hundred_tenants_each_gets_its_own_secret_and_no_other(
    tenancy: Tenancy,
) -> None:
    await asyncio.gather(*(tenancy.set(it, static(f"secret-of-{it}")) for it in TENANTS))
    brokers = [tenancy.broker() for _ in range(3)]
    grants = await asyncio.gather(
        *(tenancy.grant(brokers[n % 3], it) for n, it in enumerate(TENANTS))
    )
    assert [(grant.identity, grant.secret) for grant in grants] == [
        (it, f"secret-of-{it}") for it in TENANTS
    ]
    assert (await refused(tenancy, brokers[0], "tenant-100")).code is Code.CREDENTIAL_MISSING


@requirement("broker:own", "broker:sealed")
async def test_rows_that_are_swapped_in_the_database_give_nobody_anothers_secret(
    tenancy: Tenancy,
) -> None:
    for tenant in ("alice", "bob"):
        await tenancy.set(tenant, static(f"secret-of-{tenant}"))
    await tenancy.database.statement(
        "UPDATE credentials c SET sealed = o.sealed, data_key_id = o.data_key_id,"
        " version = o.version FROM credentials o WHERE o.tenant_id <> c.tenant_id RETURNING 1"
    )
    broker = tenancy.broker()
    for tenant in ("alice", "bob"):
        assert (await refused(tenancy, broker, tenant)).code is Code.CREDENTIAL_UNAVAILABLE
    await tenancy.database.statement("UPDATE data_keys SET tenant_id = 'bob' RETURNING 1")
    assert (await refused(tenancy, broker, "alice")).code is Code.CREDENTIAL_UNAVAILABLE


@requirement("broker:own", "broker:sealed")
async def test_a_tenants_secret_for_one_server_does_not_open_for_another(
    tenancy: Tenancy,
) -> None:
    erp = crm().model_copy(update={"name": "erp"})
    with suppress(FleetError):
        await catalog.add_server(tenancy.database, erp, actor="test")
    for server in ("crm", "erp"):
        await tenancy.set("alice", static(f"alice-secret-at-{server}"), server)
    await tenancy.database.statement(
        "UPDATE credentials c SET sealed = o.sealed, data_key_id = o.data_key_id,"
        " version = o.version FROM credentials o WHERE o.server_name <> c.server_name RETURNING 1"
    )
    broker = tenancy.broker()
    for definition in (crm(), erp):
        with pytest.raises(FleetError, match="cannot be opened"):
            await broker.resolve("alice", definition)


@requirement("broker:order")
async def test_the_own_one_comes_first_and_a_filed_one_before_a_stored_one(
    tenancy: Tenancy, tmp_path: Path
) -> None:
    file = tmp_path / "credentials.json"
    file.touch(mode=0o600)
    file.write_text(json.dumps({"alice": {"crm": "filed-of-alice"}, "*": {"crm": "filed-shared"}}))
    for tenant in ("alice", "bob", "*"):
        await tenancy.set(tenant, static(f"stored-of-{tenant}"))
    broker = tenancy.broker(file=file)
    found = {
        tenant: (await tenancy.grant(broker, tenant)).secret for tenant in ("alice", "bob", "carol")
    }
    assert found == {
        "alice": "filed-of-alice",
        "bob": "stored-of-bob",
        "carol": "filed-shared",
    }
    before = await tenancy.grant(broker, "alice")
    file.write_text("{}")
    after = await tenancy.grant(broker, "alice")
    assert (after.secret, after.generation) == ("stored-of-alice", before.generation + 1)
    assert (await tenancy.grant(broker, "carol")).secret == "stored-of-*"
    assert await tenancy.grant(broker, "*") == await tenancy.grant(broker, "carol")


@requirement("broker:order")
async def test_tools_are_listed_with_the_shared_one_or_else_the_first_tenants(
    tenancy: Tenancy,
) -> None:
    broker = tenancy.broker()
    with pytest.raises(FleetError, match="no usable credential"):
        await broker.resolve_listing(tenancy.definition)
    assert await broker.resolve_listing(crm(required=False)) is None
    await tenancy.set("bob", static("stored-of-bob"))
    await tenancy.set("alice", {"kind": "env", "variable": "TOOLFLEET_CREDENTIAL_UNSET"})
    await broker.look_after()
    grant = await broker.resolve_listing(tenancy.definition)
    assert grant is not None
    assert grant.identity == "bob"
    await tenancy.set("*", static("stored-shared"))
    await broker.look_after()
    grant = await broker.resolve_listing(tenancy.definition)
    assert grant is not None
    assert grant.identity == "*"


@requirement("broker:states")
async def test_what_is_changed_or_removed_is_so_in_every_worker_within_a_second(
    tenancy: Tenancy,
) -> None:
    await tenancy.set("alice", static("alice-secret-1"))
    brokers = [tenancy.broker() for _ in range(3)]
    first = [await tenancy.grant(broker) for broker in brokers]
    await tenancy.set("alice", static("alice-secret-2"))
    await asyncio.gather(*(broker.look_after() for broker in brokers))
    second = [await tenancy.grant(broker) for broker in brokers]
    assert {grant.secret for grant in second} == {"alice-secret-2"}
    await credential_store.remove(tenancy.database, "alice", "crm", actor="ops")
    await asyncio.gather(*(broker.look_after() for broker in brokers))
    for broker in brokers:
        assert (await refused(tenancy, broker, "alice")).code is Code.CREDENTIAL_MISSING
    await tenancy.set("alice", static("alice-secret-2"))
    third = [await tenancy.grant(broker) for broker in brokers]
    for one, two, three in zip(first, second, third, strict=True):
        assert one.generation < two.generation < three.generation
    assert await tenancy.events() == ["set", "set", "removed", "set"]


@requirement("broker:states")
async def test_no_change_is_missed_however_many_are_made_at_once(tenancy: Tenancy) -> None:
    broker = tenancy.broker()
    await broker.resolve("nobody", crm(required=False))
    setting = asyncio.gather(*(tenancy.set(it, static(f"secret-of-{it}")) for it in TENANTS[:30]))
    while not setting.done():
        await broker.look_after()
    await broker.look_after()
    known = {known.stored.tenant for known in broker._rows.known("crm")}
    assert known == set(TENANTS[:30])


# -- from where


@requirement("broker:kinds")
async def test_a_file_is_read_below_its_folder_alone_and_again_when_it_changes(
    tenancy: Tenancy, tmp_path: Path
) -> None:
    folder = tmp_path / "secrets"
    folder.mkdir()
    for path in (folder / "crm", tmp_path / "outside"):
        path.touch(mode=0o600)
        path.write_text("a-filed-secret-1\n")
    (folder / "link").symlink_to(tmp_path / "outside")
    await tenancy.set("alice", {"kind": "file", "path": str(folder / "crm"), "prefix": "Bearer "})
    await tenancy.set("bob", {"kind": "file", "path": str(folder / "link")})
    await tenancy.set("carol", {"kind": "file", "path": "/etc/passwd"})
    broker = tenancy.broker(folder=folder)
    first = await tenancy.grant(broker)
    assert first.secret == "Bearer a-filed-secret-1"
    (folder / "crm").write_text("a-filed-secret-2")
    second = await tenancy.grant(broker)
    assert (second.secret, second.generation) == ("Bearer a-filed-secret-2", first.generation + 1)
    (folder / "crm").unlink()
    assert await tenancy.grant(broker) == second
    for tenant in ("bob", "carol"):
        error = await refused(tenancy, broker, tenant)
        assert "is not in" in error.message


@requirement("broker:kinds", "broker:private-keys")
async def test_a_file_that_others_may_read_is_no_credential(
    tenancy: Tenancy, tmp_path: Path
) -> None:
    path = tmp_path / "crm"
    path.write_text("a-filed-secret-1")
    path.chmod(0o644)
    await tenancy.set("alice", {"kind": "file", "path": str(path)})
    for _ in range(2):
        error = await refused(tenancy, tenancy.broker(folder=tmp_path), "alice")
        assert error.code is Code.CREDENTIAL_UNAVAILABLE


@requirement("broker:kinds")
async def test_a_variable_of_the_worker_is_read(tenancy: Tenancy) -> None:
    await tenancy.set("alice", {"kind": "env", "variable": "TOOLFLEET_CREDENTIAL_CRM"})
    there = tenancy.broker(environment={"TOOLFLEET_CREDENTIAL_CRM": "a-secret-of-env"})
    assert (await tenancy.grant(there)).secret == "a-secret-of-env"
    assert (await refused(tenancy, tenancy.broker(), "alice")).code is Code.CREDENTIAL_MISSING


# -- at rest


@requirement("broker:dump", "broker:secret")
async def test_a_dump_of_the_database_has_no_secret_and_no_key(
    tenancy: Tenancy, tmp_path: Path
) -> None:
    canaries = [f"canary-{os.urandom(12).hex()}" for _ in range(20)]
    for number, canary in enumerate(canaries):
        await tenancy.set(f"tenant-{number}", static(canary, prefix="Bearer "))
    for canary in canaries[:5]:  # and what is changed and removed
        await tenancy.set("tenant-19", static(canary))
    await credential_store.remove(tenancy.database, "tenant-0", "crm", actor="ops")
    program = EmbeddedPostgres(tmp_path)._binaries / "pg_dump"
    url = _plain(tenancy.url)
    dump = await asyncio.to_thread(
        subprocess.run, [program, "--dbname", url], capture_output=True, check=True
    )
    assert b"COPY public.credentials" in dump.stdout
    assert b"TABLE public.data_keys" in dump.stdout
    keys = [line.split()[1].encode() for line in tenancy.keys.path.read_text().splitlines()]
    for needle in (*(canary.encode() for canary in canaries), *keys):
        for spelling in (needle, needle.hex().encode()):
            assert spelling not in dump.stdout
    assert (await tenancy.grant(tenancy.broker(), "tenant-7")).secret == f"Bearer {canaries[7]}"


@requirement("broker:dump")
async def test_what_was_removed_or_replaced_leaves_no_data_key(tenancy: Tenancy) -> None:
    for secret in ("alice-secret-1", "alice-secret-2"):
        await tenancy.set("alice", static(secret))
    rows = await tenancy.database.statement("SELECT id FROM data_keys")
    assert len(rows) == 1
    await credential_store.remove(tenancy.database, "alice", "crm", actor="ops")
    assert await tenancy.database.statement("SELECT id FROM data_keys") == []
    assert (await tenancy.row("alice")).sealed is None
    with pytest.raises(FleetError) as refused:
        await credential_store.remove(tenancy.database, "alice", "crm", actor="ops")
    assert refused.value.code is Code.NOT_FOUND


@requirement("broker:key-rotation")
async def test_keys_are_changed_while_every_process_goes_on_reading(tenancy: Tenancy) -> None:
    for tenant in TENANTS[:10]:
        await tenancy.set(tenant, static(f"secret-of-{tenant}"))
    sealed = await tenancy.database.statement("SELECT sealed, version FROM credentials")
    clocks = [FakeClock() for _ in range(3)]
    brokers = [tenancy.broker(clock=clock) for clock in clocks]

    async def all_read() -> None:
        for clock, broker in zip(clocks, brokers, strict=True):
            clock.now += 301  # no data key is remembered
            for tenant in TENANTS[:10]:
                assert (await tenancy.grant(broker, tenant)).secret == f"secret-of-{tenant}"

    await all_read()
    tenancy.keys.put("second", "first")
    await all_read()
    rewrapping = asyncio.create_task(
        credential_store.rewrap(tenancy.database, tenancy.keys.file, actor="ops")
    )
    await all_read()
    done = await rewrapping
    assert (done["rewrapped"], done["wrapped_by"]) == (10, {"file:second": 10})
    tenancy.keys.put("second")
    await all_read()
    assert await tenancy.database.statement("SELECT sealed, version FROM credentials") == sealed
    assert (await tenancy.events())[-10:] == ["rewrapped"] * 10


@requirement("broker:key-rotation")
async def test_a_data_key_is_remembered_for_five_minutes_at_most(tenancy: Tenancy) -> None:
    await tenancy.set("alice", static("alice-secret-1"))
    clock = FakeClock()
    broker = tenancy.broker(clock=clock)
    await tenancy.grant(broker)
    shutil.move(tenancy.keys.path, tenancy.keys.path.with_suffix(".gone"))
    tenancy.keys.file._keys.clear()
    clock.now += 299
    assert (await tenancy.grant(broker)).secret == "alice-secret-1"
    clock.now += 2
    await broker.look_after()
    assert broker._rows._keys == {}
    assert (await refused(tenancy, broker, "alice")).code is Code.CREDENTIAL_UNAVAILABLE


@requirement("broker:states")
async def test_no_change_is_without_its_entry_and_no_entry_without_its_change(
    tenancy: Tenancy,
) -> None:
    with psycopg.connect(_plain(tenancy.url), autocommit=True) as connection:
        connection.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'no audit today'; END $$"
        )
        connection.execute("CREATE TRIGGER refuse BEFORE INSERT ON audit EXECUTE FUNCTION refuse()")
        try:
            with pytest.raises(Exception, match="no audit today"):
                await tenancy.set("alice", static("alice-secret-1"))
        finally:
            connection.execute("DROP FUNCTION refuse CASCADE")
    assert await credential_store.list_all(tenancy.database) == []
    assert await tenancy.database.statement("SELECT id FROM data_keys") == []


@requirement("broker:typed-errors")
@pytest.mark.parametrize(
    ("tenant", "server", "code"),
    [
        ("no tenant!", "crm", Code.INVALID_REQUEST),
        ("", "crm", Code.INVALID_REQUEST),
        ("alice", "no-such-server", Code.UNKNOWN_SERVER),
    ],
)
async def test_a_credential_is_for_a_tenant_and_a_server_that_is_registered(
    tenancy: Tenancy, tenant: str, server: str, code: Code
) -> None:
    with pytest.raises(FleetError) as refused:
        await credential_store.put(
            tenancy.database,
            tenancy.keys.file,
            parse_credential(static("alice-secret-1")),
            tenant=tenant,
            server=server,
            actor="ops",
        )
    assert refused.value.code is code


def _plain(url: str) -> str:
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
