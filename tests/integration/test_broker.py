"""Tokens renewed once across the fleet, and what no failure takes away: real servers all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import text

from registry import credential_store, renewals
from registry.database import Database
from registry.errors import Code, FleetError
from registry.oauth import Failure, TokenError
from registry.stored_credential import CredentialState
from tests.brokering import FakeClock, Tenancy, by_refresh, client, crm
from tests.requirements import requirement
from tests.servers.authorization import AuthorizationServer, Reply, authorization_server
from tests.waiting import until
from workers.broker import Broker
from workers.renewing import LEASE

pytestmark = pytest.mark.anyio

WALL_CLOCK = time.time  # noqa: TID251 - it is made to jump


@pytest.fixture
def server() -> Iterator[AuthorizationServer]:
    with authorization_server() as server:
        yield server


def bearer(server: AuthorizationServer) -> set[str]:
    return {f"Bearer {token}" for token in server.live}


async def refused(tenancy: Tenancy, broker: Broker, tenant: str = "alice") -> FleetError:
    with pytest.raises(FleetError) as caught:
        await broker.resolve(tenant, tenancy.definition)
    return caught.value


async def settled(tenancy: Tenancy, broker: Broker) -> None:
    """Let what is due be renewed, and the renewal end."""
    await broker.look_after()
    await broker.close()


# -- once


@requirement("broker:once")
async def test_ten_workers_meet_an_expired_token_and_renew_it_once(
    tenancy: Tenancy, server: AuthorizationServer
) -> None:
    await tenancy.consent("alice", server)
    brokers = [tenancy.broker() for _ in range(10)]
    server.life_s = 1
    await tenancy.grant(brokers[0])
    await tenancy.age("expires_at", "renew_at")
    server.said.clear()
    server.live.clear()
    server.delay_s, server.life_s = 0.2, 3600
    await asyncio.gather(*(broker.look_after() for broker in brokers))
    grants = await asyncio.gather(*(tenancy.grant(broker) for broker in brokers))
    assert server.said == {"refreshed": 1, "token": 1}
    assert {grant.secret for grant in grants} == bearer(server)


@requirement("broker:once")
async def test_many_calls_of_one_worker_renew_a_token_once(
    tenancy: Tenancy, server: AuthorizationServer
) -> None:
    await tenancy.consent("alice", server)
    broker = tenancy.broker()
    grants = await asyncio.gather(*(tenancy.grant(broker) for _ in range(50)))
    assert len(set(grants)) == 1
    assert server.said["refreshed"] == 1


@requirement("broker:once")
async def test_each_renewal_uses_the_refresh_token_that_the_one_before_it_brought(
    tenancy: Tenancy, server: AuthorizationServer
) -> None:
    await tenancy.consent("alice", server)
    for _ in range(3):
        grant = await tenancy.grant(tenancy.broker())
        await tenancy.age("expires_at", "renew_at")
    assert grant.secret.removeprefix("Bearer ") in server.live
    assert server.said == {"refreshed": 3, "token": 3}


@requirement("broker:once", "broker:ahead")
async def test_answers_come_from_memory_and_outlive_postgres(
    tenancy: Tenancy, server: AuthorizationServer
) -> None:
    await tenancy.consent("alice", server)
    mine = Database(tenancy.url)
    broker = tenancy.broker(database=mine)
    before = await tenancy.grant(broker)
    await mine.close()
    mine.engine = Database("postgresql://127.0.0.1:1/nothing").engine
    mine._statements = Database("postgresql://127.0.0.1:1/nothing", pool_size=1)._statements
    async with asyncio.timeout(1):
        assert {await tenancy.grant(broker) for _ in range(100)} == {before}


# -- ahead of its end


@requirement("broker:ahead")
async def test_the_old_token_serves_while_a_new_one_is_fetched(
    tenancy: Tenancy, server: AuthorizationServer
) -> None:
    await tenancy.consent("alice", server)
    first, second = tenancy.broker(), tenancy.broker()
    old = await tenancy.grant(first)
    assert await tenancy.grant(second) == old
    await tenancy.age("renew_at")
    server.gate.clear()
    server.arrived.clear()
    await first.look_after()
    await asyncio.to_thread(server.arrived.wait, 10)
    assert await tenancy.grant(first) == old
    server.gate.set()
    await first.close()
    new = await tenancy.grant(first)
    assert new.secret != old.secret
    assert new.generation == old.generation + 1
    await second.look_after()
    assert await tenancy.grant(second) == new


@requirement("broker:ahead")
async def test_a_token_is_due_at_about_80_percent_of_its_life(
    tenancy: Tenancy, server: AuthorizationServer
) -> None:
    await tenancy.consent("alice", server)
    await tenancy.grant(tenancy.broker())
    row = await tenancy.row("alice")
    assert row.expires_in_s == pytest.approx(3600, abs=5)
    assert 0.75 * 3600 - 5 < row.renew_in_s < 0.85 * 3600


@requirement("broker:ahead")
async def test_a_token_that_nobody_has_asked_for_lately_is_left_alone(
    tenancy: Tenancy, server: AuthorizationServer
) -> None:
    await tenancy.consent("alice", server)
    clock = FakeClock()
    broker = tenancy.broker(clock=clock)
    await tenancy.grant(broker)
    await tenancy.age("renew_at")
    clock.now += 301
    await settled(tenancy, broker)
    assert server.said["refreshed"] == 1


@requirement("broker:ahead")
async def test_no_jump_of_a_workers_clock_makes_a_token_old(
    tenancy: Tenancy, server: AuthorizationServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await tenancy.consent("alice", server)
    broker = tenancy.broker()
    before = await tenancy.grant(broker)
    for jump_s in (7200, -7200):
        monkeypatch.setattr(time, "time", lambda jump_s=jump_s: WALL_CLOCK() + jump_s)
        await settled(tenancy, broker)
        assert await tenancy.grant(broker) == before
        assert await tenancy.grant(tenancy.broker()) == before
    assert server.said["refreshed"] == 1


# -- what no failure takes away

BROKEN = {
    "down": Reply(503, {}),
    "mute": Reply(0),
    "busy": Reply(429, {}, {"retry-after": "7"}),
    "garbage": Reply(200, b"<html>It works!</html>"),
    "huge": Reply(200, b"x" * 300_000),
    "empty": Reply(200, b""),
    "redirecting": Reply(307, b"", {"location": "http://127.0.0.1:9/token"}),
    "confused": Reply(500, {"error": "invalid_grant"}),
    "refusing": Reply(400, {"error": "invalid_client"}),
}
FEW = ("down", "garbage", "huge", "refusing")


@requirement("broker:never-lost")
@pytest.mark.parametrize(
    "how", [*FEW, *(pytest.param(it, marks=pytest.mark.long) for it in BROKEN if it not in FEW)]
)
async def test_a_broken_authorization_server_takes_nothing_away(
    tenancy: Tenancy, server: AuthorizationServer, how: str
) -> None:
    await tenancy.consent("alice", server)
    broker = tenancy.broker()
    old = await tenancy.grant(broker)
    stored = await tenancy.row("alice")
    server.broken = BROKEN[how]
    await tenancy.age("renew_at")
    await settled(tenancy, broker)
    row = await tenancy.row("alice")
    assert (row.state, row.version, row.sealed) == ("ready", stored.version, stored.sealed)
    assert row.failures == 1
    assert row.retry_in_s > 0
    assert await tenancy.grant(broker) == old
    await tenancy.age("expires_at", by="2 hours")
    await broker.look_after()
    error = await refused(tenancy, broker)
    assert (error.code, error.code.retryable) == (Code.CREDENTIAL_UNAVAILABLE, True)
    assert error.retry_after_s > 0
    server.broken = None
    await tenancy.age("retry_at")
    await broker.look_after()
    assert (await tenancy.grant(broker)).secret != old.secret
    assert (await tenancy.row("alice")).failures == 0


@requirement("broker:never-lost")
async def test_a_server_that_does_not_answer_in_time_takes_nothing_away(
    tenancy: Tenancy, server: AuthorizationServer
) -> None:
    await tenancy.consent("alice", server)
    server.gate.clear()
    error = await refused(tenancy, tenancy.broker(limit_s=0.2))
    server.gate.set()
    assert error.code is Code.CREDENTIAL_UNAVAILABLE
    assert "did not answer within 0.2 s" in error.message
    assert (await tenancy.row("alice")).state is CredentialState.READY


@requirement("broker:never-lost")
async def test_while_its_server_is_down_a_credential_is_tried_ever_less_often(
    tenancy: Tenancy, server: AuthorizationServer
) -> None:
    await tenancy.consent("alice", server)
    server.broken = Reply(503)
    brokers = [tenancy.broker() for _ in range(5)]
    for tries in range(1, 5):
        await asyncio.gather(*(refused(tenancy, broker) for broker in brokers))
        assert server.said["broken"] == tries
        row = await tenancy.row("alice")
        assert 2 ** (tries - 1) / 2 - 0.5 <= row.retry_in_s <= 2 ** (tries - 1)
        await tenancy.age("retry_at")
        await asyncio.gather(*(broker.look_after() for broker in brokers))


@requirement("broker:never-lost", "broker:states")
async def test_a_grant_that_is_gone_needs_a_consent_and_is_kept(
    tenancy: Tenancy, server: AuthorizationServer
) -> None:
    await tenancy.consent("alice", server)
    broker = tenancy.broker()
    old = await tenancy.grant(broker)
    server.broken = Reply(400, {"error": "invalid_grant"})
    await tenancy.age("renew_at")
    await settled(tenancy, broker)
    row = await tenancy.row("alice")
    assert row.state is CredentialState.NEEDS_CONSENT
    assert row.sealed is not None
    assert await tenancy.grant(broker) == old
    await tenancy.age("expires_at", by="2 hours")
    await broker.look_after()
    error = await refused(tenancy, broker)
    assert (error.code, error.code.retryable) == (Code.CREDENTIAL_EXPIRED, False)
    assert "consent" in error.hint
    (ailing,) = await credential_store.ailing(tenancy.database)
    assert (ailing["tenant_id"], ailing["state"]) == ("alice", "needs_consent")
    server.broken = None
    await tenancy.consent("alice", server)
    await broker.look_after()
    assert (await tenancy.grant(broker)).secret in bearer(server)
    assert await tenancy.events() == ["set", "renewed", "needs_consent", "set", "renewed"]


@requirement("broker:never-lost")
async def test_what_was_set_anew_during_a_renewal_stays(
    tenancy: Tenancy, server: AuthorizationServer
) -> None:
    await tenancy.consent("alice", server)
    broker = tenancy.broker()
    for broken in (None, Reply(400, {"error": "invalid_grant"})):
        server.gate.clear()
        server.arrived.clear()
        server.broken, server.broken_once = broken, True
        asking = asyncio.create_task(tenancy.grant(broker))
        await asyncio.to_thread(server.arrived.wait, 10)
        await tenancy.consent("alice", server)
        set_anew = await tenancy.row("alice")
        server.gate.set()
        assert (await asking).secret in bearer(server)
        row = await tenancy.row("alice")
        assert (row.state, row.data_key_id) == ("ready", set_anew.data_key_id)
        await tenancy.age("expires_at", "renew_at")
        await broker.look_after()


@requirement("broker:never-lost")
async def test_a_failure_that_is_told_late_changes_no_newer_credential(
    tenancy: Tenancy, server: AuthorizationServer
) -> None:
    await tenancy.consent("alice", server)
    before = await tenancy.row("alice")
    await tenancy.grant(tenancy.broker())
    late = TokenError(Failure.CONSENT, "it is gone")
    await renewals.fail(tenancy.database, before, late, by="worker", pause_s=60)
    after = await tenancy.row("alice")
    assert (after.state, after.failures, after.retry_in_s) == ("ready", 0, None)


# -- stored before it is used


async def blocked(tenancy: Tenancy) -> list[int]:
    """Return the connections that wait for the lock of a server's credentials."""
    rows = await tenancy.database.statement(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
        " AND wait_event = 'advisory' AND wait_event_type = 'Lock'"
    )
    return [row["pid"] for row in rows]


@requirement("broker:stored-first")
async def test_a_new_token_is_used_by_nobody_before_it_is_stored(
    tenancy: Tenancy, server: AuthorizationServer
) -> None:
    await tenancy.consent("alice", server)
    broker = tenancy.broker()
    async with tenancy.database.transaction() as connection:
        await credential_store.next_serial(connection, "crm")
        asking = asyncio.create_task(tenancy.grant(broker))
        await until(lambda: blocked(tenancy))
        assert server.said["refreshed"] == 1
        assert not asking.done()
    grant = await asking
    row = await tenancy.row("alice")
    content = row.open(await broker._rows.key(row))
    assert grant.secret == f"Bearer {content.access_token}"
    assert content.secrets["refresh_token"] in server._families


@requirement("broker:stored-first")
async def test_what_postgres_did_not_take_is_stored_when_it_is_back(
    tenancy: Tenancy, server: AuthorizationServer
) -> None:
    await tenancy.consent("alice", server)
    broker = tenancy.broker()
    asking = asyncio.create_task(tenancy.grant(broker))
    for _ in range(2):
        async with tenancy.database.transaction() as connection:
            await credential_store.next_serial(connection, "crm")
            for pid in await until(lambda: blocked(tenancy)):
                await connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
    assert (await asking).secret in bearer(server)
    assert server.said == {"refreshed": 1, "token": 1}


@requirement("broker:stored-first")
async def test_a_worker_that_stops_records_what_it_was_renewing(
    tenancy: Tenancy, server: AuthorizationServer
) -> None:
    await tenancy.consent("alice", server)
    broker = tenancy.broker()
    server.gate.clear()
    asking = asyncio.create_task(tenancy.grant(broker))
    await asyncio.to_thread(server.arrived.wait, 10)
    asking.cancel()
    closing = asyncio.create_task(broker.close())
    server.gate.set()
    await closing
    assert (await tenancy.grant(tenancy.broker())).secret in bearer(server)
    assert server.said["refreshed"] == 1


# -- the lease of a dead process


@requirement("broker:dead-renewer")
async def test_the_lease_of_who_died_is_taken_over_once_it_was_watched_for_a_while(
    tenancy: Tenancy, server: AuthorizationServer
) -> None:
    await tenancy.consent("alice", server)
    dead = await renewals.take(tenancy.database, await tenancy.row("alice"), by="dead", lease=LEASE)
    assert dead is not None
    clock = FakeClock()
    broker = tenancy.broker(clock=clock)
    held = asyncio.create_task(tenancy.grant(broker))
    await tenancy.age("renewing_until")
    await until(lambda: broker._renewals._lapsed)
    assert not server.forms
    clock.now += 3
    assert (await held).secret in bearer(server)


@requirement("broker:dead-renewer")
async def test_who_renews_holds_every_other_off(
    tenancy: Tenancy, server: AuthorizationServer
) -> None:
    await tenancy.consent("alice", server)
    row = await tenancy.row("alice")
    take = renewals.take
    first = await take(tenancy.database, row, by="a", lease=LEASE)
    assert first is not None
    assert await take(tenancy.database, row, by="b", lease=LEASE) is None
    assert await take(tenancy.database, row, by="b", lease=LEASE, abandoned="a") is None
    await tenancy.age("renewing_until")
    assert await take(tenancy.database, row, by="b", lease=LEASE) is None
    assert await take(tenancy.database, row, by="b", lease=LEASE, abandoned="c") is None
    assert await take(tenancy.database, row, by="b", lease=LEASE, abandoned="a") is not None


# -- rejected by the server


@requirement("broker:rejected")
async def test_a_rejected_token_is_renewed_once_a_minute_at_most(
    tenancy: Tenancy, server: AuthorizationServer
) -> None:
    await tenancy.consent("alice", server)
    brokers = [tenancy.broker() for _ in range(5)]
    grants = [await tenancy.grant(broker) for broker in brokers]
    server.delay_s = 0.2
    renewed = await asyncio.gather(
        *(
            broker.renewed("alice", grant.generation, tenancy.definition)
            for broker, grant in zip(brokers, grants, strict=True)
        )
    )
    assert renewed == [True] * 5
    assert server.said["refreshed"] == 2
    broker = brokers[0]
    again = await tenancy.grant(broker)
    assert not await broker.renewed("alice", again.generation, tenancy.definition)
    assert server.said["refreshed"] == 2
    await tenancy.age("forced_at")
    assert await broker.renewed("alice", again.generation, tenancy.definition)


@requirement("broker:rejected")
async def test_a_rejected_secret_that_is_always_the_same_is_not_tried_again(
    tenancy: Tenancy,
) -> None:
    await tenancy.set("alice", {"kind": "static", "secret": "a-static-secret"})
    broker = tenancy.broker()
    grant = await tenancy.grant(broker)
    assert not await broker.renewed("alice", grant.generation, tenancy.definition)
    await tenancy.set("alice", {"kind": "static", "secret": "another-secret"})
    assert await broker.renewed("alice", grant.generation, tenancy.definition)


# -- whose authorization server


def listing(server: AuthorizationServer, **rest: Any) -> dict[str, Any]:
    return {"issuer": server.url, "token_endpoint": f"{server.url}/token", **rest}


@requirement("broker:issuer")
async def test_the_endpoint_is_found_in_the_issuers_metadata(
    tenancy: Tenancy, server: AuthorizationServer
) -> None:
    server.metadata = listing(server)
    document = by_refresh(server, server.consent("alice"))
    del document["token_endpoint"]
    await tenancy.set("alice", document)
    assert (await tenancy.grant(tenancy.broker())).secret in bearer(server)


@requirement("broker:issuer")
@pytest.mark.parametrize("metadata", ["none", "of another issuer", "of another endpoint"])
async def test_no_secret_goes_to_an_endpoint_that_its_issuer_does_not_list(
    tenancy: Tenancy, server: AuthorizationServer, metadata: str
) -> None:
    with authorization_server() as other:
        server.metadata = {
            "none": None,
            "of another issuer": listing(other),
            "of another endpoint": listing(server),
        }[metadata]
        document = by_refresh(server, server.consent("alice"), token_endpoint=f"{other.url}/token")
        await tenancy.set("alice", document)
        error = await refused(tenancy, tenancy.broker())
        assert error.code is Code.CREDENTIAL_UNAVAILABLE
        assert (server.forms, other.forms) == ([], [])


@requirement("broker:issuer", "broker:sealed")
async def test_who_writes_to_the_database_cannot_send_a_secret_elsewhere(
    tenancy: Tenancy, server: AuthorizationServer
) -> None:
    await tenancy.consent("alice", server)
    with authorization_server() as other:
        changed = f'{{"issuer": "{other.url}", "token_endpoint": "{other.url}/token"}}'
        await tenancy.database.statement(
            "UPDATE credentials SET definition = definition || %(changed)s::jsonb RETURNING 1",
            changed=changed,
        )
        error = await refused(tenancy, tenancy.broker())
        assert error.code is Code.CREDENTIAL_UNAVAILABLE
        assert (server.forms, other.forms) == ([], [])


@requirement("broker:sealed")
async def test_what_was_sealed_before_cannot_be_put_back(
    tenancy: Tenancy, server: AuthorizationServer
) -> None:
    await tenancy.consent("alice", server)
    before = await tenancy.row("alice")
    await tenancy.grant(tenancy.broker())
    await tenancy.database.statement(
        "UPDATE credentials SET sealed = %(sealed)s RETURNING 1", sealed=before.sealed
    )
    error = await refused(tenancy, tenancy.broker())
    assert error.code is Code.CREDENTIAL_UNAVAILABLE
    assert len(server.forms) == 1


@requirement("broker:issuer")
async def test_a_server_in_a_network_that_is_not_allowed_is_not_asked(
    tenancy: Tenancy, server: AuthorizationServer
) -> None:
    await tenancy.consent("alice", server)
    elsewhere = crm().model_copy(update={"networks": ("10.0.0.0/8",)})
    with pytest.raises(FleetError, match="not a public address"):
        await tenancy.broker().resolve("alice", elsewhere)
    assert server.forms == []


# -- the other ways of OAuth


@requirement("broker:kinds")
async def test_a_client_gets_a_token_for_itself_once_for_the_fleet(
    tenancy: Tenancy, server: AuthorizationServer
) -> None:
    document = by_refresh(server, "", scopes=["crm"], resource="https://crm.example.com")
    del document["refresh_token"]
    await tenancy.set("*", {**document, "kind": "oauth_client_credentials"})
    brokers = [tenancy.broker() for _ in range(3)]
    grants = await asyncio.gather(*(tenancy.grant(broker, "anyone") for broker in brokers))
    assert {grant.secret for grant in grants} == bearer(server)
    assert [(form["scope"], form["resource"]) for form in server.forms] == [
        ("crm", "https://crm.example.com")
    ]


@requirement("broker:kinds", "broker:passthrough")
async def test_a_token_of_the_fleets_own_login_is_exchanged(
    tenancy: Tenancy, server: AuthorizationServer
) -> None:
    common = {
        "issuer": server.url,
        "token_endpoint": f"{server.url}/token",
        "client": client(),
    }
    await tenancy.set("alice", {"kind": "token_exchange", **common, "subject": {"login": common}})
    grant = await tenancy.grant(tenancy.broker())
    assert server.live[grant.secret.removeprefix("Bearer ")] == "for:client"


@requirement("broker:kinds")
async def test_a_stored_token_is_exchanged_until_it_is_gone(
    tenancy: Tenancy, server: AuthorizationServer
) -> None:
    server.live["a-stored-subject-token"] = "alice"
    document = by_refresh(server, "", subject={"token": "a-stored-subject-token"})
    del document["refresh_token"]
    await tenancy.set("alice", {**document, "kind": "token_exchange"})
    broker = tenancy.broker()
    grant = await tenancy.grant(broker)
    assert server.live[grant.secret.removeprefix("Bearer ")] == "for:alice"
    server.revoke("a-stored-subject-token")
    await tenancy.age("expires_at", "renew_at")
    await broker.look_after()
    assert (await refused(tenancy, broker)).code is Code.CREDENTIAL_EXPIRED
