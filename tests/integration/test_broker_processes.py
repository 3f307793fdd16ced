"""Brokers in many processes, killed and starved: what holds among fifty workers."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from registry import credential_store
from registry.errors import FleetError
from registry.stored_credential import CredentialState
from tests.brokering import Tenancy, by_refresh
from tests.requirements import requirement
from tests.servers.authorization import AuthorizationServer, Reply, authorization_server
from tests.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.long, pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[2]
LIMIT_S = 60


@pytest.fixture
def server() -> Iterator[AuthorizationServer]:
    with authorization_server() as server:
        yield server


@asynccontextmanager
async def brokers(tenancy: Tenancy, count: int) -> AsyncIterator[Process]:
    """Run some brokers in a process of their own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.servers.broker_process",
        tenancy.url, str(tenancy.keys.path), str(count),
        cwd=ROOT, stdin=PIPE, stdout=PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        async with asyncio.timeout(LIMIT_S):
            assert await process.stdout.readline() == b"ready\n"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def ask(process: Process, tenant: str = "alice") -> None:
    assert process.stdin is not None
    process.stdin.write(f"{tenant}\n".encode())


async def answers(process: Process) -> list[str]:
    assert process.stdout is not None
    async with asyncio.timeout(LIMIT_S):
        found: list[str] = json.loads(await process.stdout.readline())
    return found


async def blocked(tenancy: Tenancy) -> bool:
    """Say whether somebody waits to store what a renewal brought."""
    return bool(
        await tenancy.database.statement(
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database()"
            " AND wait_event = 'advisory' AND wait_event_type = 'Lock'"
        )
    )


@requirement("broker:once")
async def test_fifty_workers_in_five_processes_meet_an_expired_token_and_renew_it_once(
    tenancy: Tenancy, server: AuthorizationServer
) -> None:
    await tenancy.consent("alice", server)
    async with AsyncExitStack() as stack:
        processes = [await stack.enter_async_context(brokers(tenancy, 10)) for _ in range(5)]
        for round_ in range(10):
            server.said.clear()
            server.live.clear()
            server.delay_s = 0.3 * (round_ % 2)
            for process in processes:
                ask(process)
            found = [it for process in processes for it in await answers(process)]
            assert len(found) == 50
            assert server.said == {"refreshed": 1, "token": 1}
            assert set(found) == {f"Bearer {token}" for token in server.live}
            await tenancy.age("expires_at", "renew_at")
    row = await tenancy.row("alice")
    assert row.state is CredentialState.READY
    assert (await tenancy.events()) == ["set", *["renewed"] * 10]


@requirement("broker:never-lost")
async def test_while_its_server_is_down_for_a_minute_nothing_is_lost(
    tenancy: Tenancy, server: AuthorizationServer
) -> None:
    server.life_s = 40
    tenants = [f"tenant-{number}" for number in range(5)]
    for tenant in tenants:
        await tenancy.consent(tenant, server)
    workers = [tenancy.broker(patience_s=2) for _ in range(5)]
    broker = workers[0]
    old = {tenant: await tenancy.grant(broker, tenant) for tenant in tenants}
    served: list[float] = []
    began = time.monotonic()
    server.broken = Reply(503)

    async def look(tenant: str) -> str:
        try:
            return (await tenancy.grant(broker, tenant)).secret
        except FleetError as error:
            return error.code.code

    while (now := time.monotonic() - began) < 60:
        await asyncio.gather(*(worker.look_after() for worker in workers))
        for tenant in tenants:
            found = await look(tenant)
            assert found in {old[tenant].secret, "credential_unavailable"}
            if found == old[tenant].secret:
                served.append(now)
        rows = [await tenancy.row(tenant) for tenant in tenants]
        assert {row.state for row in rows} == {CredentialState.READY}
        await asyncio.sleep(0.5)
    assert max(served) > 30
    assert server.said["broken"] > 0
    server.broken = None

    async def back() -> bool:
        await asyncio.gather(*(worker.look_after() for worker in workers))
        return all([(await look(tenant)).startswith("Bearer") for tenant in tenants])

    await until(back, within_s=70, every_s=0.5)
    assert server.said["invalid_grant"] == 0
    assert set(await tenancy.events()) == {"set", "renewed"}
    assert len(await credential_store.list_all(tenancy.database)) == len(tenants)
    for worker in workers:
        await worker.close()


# -- kill -9 of whoever renews


@requirement("broker:dead-renewer")
@pytest.mark.parametrize("where", ["before it asks", "before it is heard"])
async def test_who_is_killed_before_its_request_is_heard_costs_nothing(
    tenancy: Tenancy, server: AuthorizationServer, where: str
) -> None:
    server.metadata = {"issuer": server.url, "token_endpoint": f"{server.url}/token"}
    document = by_refresh(server, server.consent("alice"))
    del document["token_endpoint"]
    await tenancy.set("alice", document)
    server.gate.clear()
    server.slow_metadata = where == "before it asks"
    async with brokers(tenancy, 1) as process:
        ask(process)
        await asyncio.to_thread(server.arrived.wait, LIMIT_S)
        process.kill()
        await process.wait()
    server.broken, server.slow_metadata = Reply(503), False
    server.gate.set()
    if where == "before it is heard":
        await until(lambda: server.said["broken"] == 1)
    server.broken = None
    assert (await tenancy.row("alice")).renewing_by is not None
    await tenancy.age("renewing_until")
    grant = await tenancy.grant(tenancy.broker())
    assert grant.secret.removeprefix("Bearer ") in server.live
    assert server.said["refreshed"] == 1
    assert server.said["invalid_grant"] == 0


@requirement("broker:dead-renewer", "broker:states")
async def test_who_is_killed_between_answer_and_record_needs_a_consent_and_says_so(
    tenancy: Tenancy, server: AuthorizationServer
) -> None:
    await tenancy.consent("alice", server)
    async with brokers(tenancy, 1) as process, tenancy.database.transaction() as connection:
        await credential_store.next_serial(connection, "crm")
        ask(process)
        await until(lambda: blocked(tenancy))
        assert server.said["refreshed"] == 1
        process.kill()
        await process.wait()
    await tenancy.age("renewing_until")
    broker = tenancy.broker()
    with pytest.raises(FleetError) as refused:
        await tenancy.grant(broker)
    row = await tenancy.row("alice")
    assert refused.value.code.code == "credential_expired"
    assert (row.state, row.sealed is None) == (CredentialState.NEEDS_CONSENT, False)
    await tenancy.consent("alice", server)
    await broker.look_after()
    assert (await tenancy.grant(broker)).secret.removeprefix("Bearer ") in server.live


@requirement("broker:dead-renewer")
async def test_who_is_killed_after_the_record_leaves_its_token_to_all(
    tenancy: Tenancy, server: AuthorizationServer
) -> None:
    await tenancy.consent("alice", server)
    async with brokers(tenancy, 1) as process:
        ask(process)
        (secret,) = await answers(process)
    assert process.returncode == -9
    assert (await tenancy.grant(tenancy.broker())).secret == secret
    assert server.said["refreshed"] == 1
