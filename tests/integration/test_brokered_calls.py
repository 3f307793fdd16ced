"""Calls made with brokered tokens, from the API to a server that checks them and back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from registry.database import Database
from registry.settings import Settings
from tests.brokering import Keys, by_refresh
from tests.jobs import make_job
from tests.requirements import requirement
from tests.servers.authorization import AuthorizationServer, authorization_server
from tests.servers.guarded import Guarded, guarded
from tests.serving import Api, serving
from tests.waiting import until
from workers.invoke import invoke
from workers.runtime import WorkerRuntime

pytestmark = pytest.mark.anyio

CREDENTIALS = {"inject": "header", "name": "Authorization", "required": True}


@dataclass
class World:
    """An API, a worker of server `demo`, that server, and who gives it tokens."""

    api: Api
    worker: WorkerRuntime
    server: Guarded
    authority: AuthorizationServer

    async def call(self, tenant: str, key: str | None = None) -> dict[str, Any]:
        """Make a call as a tenant's key, or as the operator; return it once it has ended."""
        async with self.api.client(key) as mine:
            http = mine if key else self.api.http
            run = (await http.post("/v1/runs", json={"tenant": tenant})).json()
            asked = {"tool": "demo_say", "arguments": {"text": "hello"}}
            call = (await http.post(f"/v1/runs/{run['id']}/calls", json=asked)).json()
            job = make_job()
            job.task = asyncio.create_task(invoke(self.worker, call["id"], job))
            await job.task
            return (await http.get(f"/v1/calls/{call['id']}")).json()

    async def listed(self) -> bool:
        return not (await self.api.http.get("/v1/servers/demo")).json()["stale"]

    async def consent(self, tenant: str) -> None:
        document = by_refresh(self.authority, self.authority.consent(tenant))
        answer = await self.api.http.put(f"/v1/credentials/{tenant}/demo", json=document)
        assert answer.status_code == 200, answer.text


@pytest.fixture(scope="module")
async def world(
    anyio_backend: str,
    shared_database_url: str,
    _redis_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[World]:
    """One for all tests of this module; each of them has tenants of its own."""
    keys = Keys(tmp_path_factory.mktemp("keys") / "encryption.keys")
    database = Database(shared_database_url, application="toolfleet tests")
    async with AsyncExitStack() as stack:
        authority = stack.enter_context(authorization_server())
        server = await stack.enter_async_context(guarded(authority.live))
        api = await stack.enter_async_context(
            serving(database, _redis_url, encryption_keys_file=keys.path)
        )
        definition = {
            "name": "demo",
            "transport": "http",
            "url": server.url,
            "networks": ["127.0.0.0/8"],
            "credentials": CREDENTIALS,
            "tools": {"say": {"delivery": "write"}},
            "pool": {"min_idle": 0, "max_size": 2},
        }
        assert (await api.http.post("/v1/servers", json=definition)).status_code == 201
        settings = Settings(
            database_url=shared_database_url,
            redis_url=_redis_url,
            encryption_keys_file=keys.path,
        )
        worker = WorkerRuntime("demo", settings)
        world = World(api, worker, server, authority)
        await world.consent("an-earlier-tenant")
        await worker.open()
        try:
            await until(world.listed)
            yield world
        finally:
            await worker.close()
    await database.close()


@requirement("broker:passthrough", "broker:own")
async def test_a_server_hears_its_own_token_and_nothing_of_the_callers(world: World) -> None:
    keys = {tenant: await world.api.key(tenant=tenant) for tenant in ("alice", "bob")}
    world.server.heard.clear()
    for tenant, key in keys.items():
        await world.consent(tenant)
        call = await world.call(tenant, key)
        assert call["state"] == "succeeded", call["error"]
    heard = b"\n".join(world.server.heard)
    tokens = [token for token in world.authority.live if token.encode() in heard]
    assert {world.authority.live[token] for token in tokens} >= {"alice", "bob"}
    operator = world.api.http.headers["authorization"].removeprefix("Bearer ")
    for inbound in (*keys.values(), operator):
        assert inbound.encode() not in heard
        assert inbound.removeprefix("tf_").encode() not in heard


@requirement("broker:rejected")
async def test_a_call_whose_token_is_rejected_is_made_once_more_with_a_new_one(
    world: World,
) -> None:
    await world.consent("carol")
    assert (await world.call("carol"))["state"] == "succeeded"
    ran, refreshed = world.server.ran, world.authority.said["refreshed"]
    world.authority.forget("carol")
    call = await world.call("carol")
    assert call["state"] == "succeeded", call["error"]
    assert world.server.ran == ran + 1
    assert world.authority.said["refreshed"] == refreshed + 1


@requirement("broker:rejected")
async def test_a_server_that_rejects_every_token_is_told_of_and_no_storm_begins(
    world: World,
) -> None:
    await world.consent("dave")
    ran, refreshed = world.server.ran, world.authority.said["refreshed"]
    world.server.admitted = ()
    calls = [await world.call("dave") for _ in range(5)]
    world.server.admitted = world.authority.live
    assert {(call["state"], call["error"]["code"]) for call in calls} == {
        ("failed", "credential_rejected")
    }
    assert world.server.ran == ran
    assert world.authority.said["refreshed"] == refreshed + 2


@requirement("broker:never-lost")
async def test_a_call_without_a_token_ends_as_what_can_be_sent_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.consent("erin")
    world.authority.gate.clear()
    monkeypatch.setattr(world.worker._credentials._renewals, "_patience_s", 0.2)
    call = await world.call("erin")
    world.authority.gate.set()
    assert (call["error"]["code"], call["error"]["retryable"]) == ("credential_unavailable", True)
    assert call["error"]["retry_after_s"] > 0


@requirement("broker:states", "broker:own")
async def test_a_removed_credential_closes_its_sessions_and_fails_the_next_call(
    world: World,
) -> None:
    await world.consent("frank")
    assert (await world.call("frank"))["state"] == "succeeded"
    (served,) = world.worker._versions.ready()

    def identities() -> set[str]:
        return {entry.key.identity for entry in served.pool._lending.entries}

    assert "frank" in identities()
    assert (await world.api.http.delete("/v1/credentials/frank/demo")).status_code == 204
    await until(lambda: "frank" not in identities())
    call = await world.call("frank")
    assert (call["state"], call["error"]["code"]) == ("failed", "credential_missing")
