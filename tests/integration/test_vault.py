"""Secrets and encryption keys that a Vault keeps: the API as documented, no Vault being at hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import SecretStr

from registry import credential_store
from registry.credential_kinds import parse_credential
from registry.errors import Code, FleetError
from registry.settings import Settings
from tests.brokering import LOOPBACK, FakeClock, Tenancy
from tests.requirements import requirement
from tests.servers.vault import ROLE_ID, ROOT, SECRET_ID, VaultServer, vault_server
from workers.encryption_keys import EncryptionKeys
from workers.outbound import open_client
from workers.vault import TransitKeys, Vault

pytestmark = pytest.mark.anyio

AT_CRM = {"kind": "vault", "path": "crm/alice", "field": "token"}


@pytest.fixture
def server() -> Iterator[VaultServer]:
    with vault_server() as server:
        server.write("secret/crm/alice", token="alice-of-vault-1")
        yield server


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def vault(server: VaultServer, clock: FakeClock, **rest: Any) -> Vault:
    role = {"vault_role_id": ROLE_ID, "vault_secret_id": SecretStr(SECRET_ID)}
    settings = Settings(**{"vault_address": server.url, **(rest or role)})
    return Vault(settings, open_client, LOOPBACK, clock=clock)


@requirement("broker:vault", "broker:kinds")
async def test_a_secret_is_read_from_a_vault_and_again_when_a_minute_has_passed(
    tenancy: Tenancy, server: VaultServer, clock: FakeClock
) -> None:
    await tenancy.set("alice", AT_CRM)
    broker = tenancy.broker(vault=vault(server, clock), clock=clock)
    first = await tenancy.grant(broker)
    assert first.secret == "alice-of-vault-1"
    server.write("secret/crm/alice", token="alice-of-vault-2")
    assert await tenancy.grant(broker) == first
    assert server.asked["GET secret/data/crm/alice"] == 1
    clock.now += 61
    second = await tenancy.grant(broker)
    assert (second.secret, second.generation) == ("alice-of-vault-2", first.generation + 1)


@requirement("broker:vault")
async def test_a_lease_of_a_secret_is_kept_to(
    tenancy: Tenancy, server: VaultServer, clock: FakeClock
) -> None:
    server.secret_lease_s = 600
    await tenancy.set("alice", AT_CRM)
    broker = tenancy.broker(vault=vault(server, clock), clock=clock)
    await tenancy.grant(broker)
    clock.now += 470
    await tenancy.grant(broker)
    assert server.asked["GET secret/data/crm/alice"] == 1
    clock.now += 20
    await tenancy.grant(broker)
    assert server.asked["GET secret/data/crm/alice"] == 2


@requirement("broker:vault", "broker:rejected")
async def test_a_rejected_secret_is_looked_for_in_the_vault_at_once(
    tenancy: Tenancy, server: VaultServer, clock: FakeClock
) -> None:
    await tenancy.set("alice", AT_CRM)
    broker = tenancy.broker(vault=vault(server, clock), clock=clock)
    grant = await tenancy.grant(broker)
    assert not await broker.renewed("alice", grant.generation, tenancy.definition)
    server.write("secret/crm/alice", token="alice-of-vault-2")
    assert await broker.renewed("alice", grant.generation, tenancy.definition)
    assert (await tenancy.grant(broker)).secret == "alice-of-vault-2"


@requirement("broker:vault", "broker:never-lost")
async def test_a_vault_that_is_away_takes_no_secret_away(
    tenancy: Tenancy, server: VaultServer, clock: FakeClock
) -> None:
    await tenancy.set("alice", AT_CRM)
    broker = tenancy.broker(vault=vault(server, clock), clock=clock)
    before = await tenancy.grant(broker)
    server.sealed = True
    for _ in range(3):
        clock.now += 4000
        await broker.look_after()
        assert await tenancy.grant(broker) == before
    fresh = tenancy.broker(vault=vault(server, clock), clock=clock)
    with pytest.raises(FleetError) as refused:
        await tenancy.grant(fresh)
    assert refused.value.code is Code.CREDENTIAL_UNAVAILABLE
    server.sealed = False
    clock.now += 6
    assert await tenancy.grant(broker) == before
    assert (await tenancy.grant(fresh)).secret == before.secret


@requirement("broker:vault")
async def test_a_secret_that_is_deleted_or_lacks_the_field_is_missing(
    tenancy: Tenancy, server: VaultServer, clock: FakeClock
) -> None:
    server.write("secret/crm/bob", other="a-value-of-bobs")
    await tenancy.set("alice", AT_CRM)
    await tenancy.set("bob", {**AT_CRM, "path": "crm/bob"})
    await tenancy.set("carol", {**AT_CRM, "version": 1})
    broker = tenancy.broker(vault=vault(server, clock), clock=clock)
    server.delete("secret/crm/alice")
    for tenant in ("alice", "bob"):
        with pytest.raises(FleetError) as refused:
            await tenancy.grant(broker, tenant)
        assert refused.value.code is Code.CREDENTIAL_MISSING
    assert (await tenancy.grant(broker, "carol")).secret == "alice-of-vault-1"


@requirement("broker:vault")
async def test_a_login_is_renewed_at_80_percent_of_its_life(
    server: VaultServer, clock: FakeClock
) -> None:
    mine = vault(server, clock)
    await mine.read("secret", "crm/alice", None)
    for _ in range(3):
        clock.now += 2900
        await mine.stay_logged_in()
    assert server.asked["POST auth/token/renew-self"] == 3
    assert server.asked["POST auth/approle/login"] == 1
    server.renewable = False
    clock.now += 2900
    await mine.read("secret", "crm/alice", None)
    assert server.asked["POST auth/approle/login"] == 2


@requirement("broker:vault")
async def test_a_login_that_is_refused_is_replaced_once(
    server: VaultServer, clock: FakeClock
) -> None:
    mine = vault(server, clock)
    await mine.read("secret", "crm/alice", None)
    server.tokens.clear()
    await mine.read("secret", "crm/alice", None)
    assert server.asked["POST auth/approle/login"] == 2
    server.allowed = []
    with pytest.raises(FleetError, match="HTTP 403"):
        await mine.read("secret", "crm/alice", None)
    assert server.asked["POST auth/approle/login"] == 3


@requirement("broker:vault")
async def test_a_renewal_that_fails_leaves_the_login_as_long_as_it_lives(
    server: VaultServer, clock: FakeClock
) -> None:
    mine = vault(server, clock, vault_token=SecretStr(ROOT))
    await mine.read("secret", "crm/alice", None)
    server.sealed = True
    clock.now += 3000
    await mine.stay_logged_in()
    server.sealed = False
    await mine.read("secret", "crm/alice", None)
    clock.now += 5
    await mine.read("secret", "crm/alice", None)
    assert server.asked["POST auth/token/renew-self"] == 2


@requirement("broker:vault", "broker:key-rotation")
async def test_keys_move_from_a_file_into_a_vault_while_every_worker_reads(
    tenancy: Tenancy, server: VaultServer, clock: FakeClock
) -> None:
    server.rotate("fleet")
    await tenancy.set("alice", {"kind": "static", "secret": "alice-secret-1"})
    by_vault = EncryptionKeys(
        tenancy.keys.file, TransitKeys(vault(server, clock), "fleet"), by_transit=True
    )
    reading = tenancy.broker(keys=by_vault)
    await tenancy.grant(reading)
    done = await credential_store.rewrap(tenancy.database, by_vault, actor="ops")
    assert (done["rewrapped"], done["wrapped_by"]) == (1, {"transit:fleet:v1": 1})
    server.rotate("fleet")
    done = await credential_store.rewrap(tenancy.database, by_vault, actor="ops")
    assert (done["rewrapped"], done["wrapped_by"]) == (1, {"transit:fleet:v2": 1})
    assert (await credential_store.rewrap(tenancy.database, by_vault, actor="ops"))[
        "rewrapped"
    ] == 0
    server.retire("fleet", before=2)
    for broker in (reading, tenancy.broker(keys=by_vault)):
        assert (await tenancy.grant(broker)).secret == "alice-secret-1"
    back = EncryptionKeys(tenancy.keys.file, TransitKeys(vault(server, clock), ""))
    done = await credential_store.rewrap(tenancy.database, back, actor="ops")
    assert (done["rewrapped"], done["wrapped_by"]) == (1, {"file:first": 1})
    assert (await tenancy.grant(tenancy.broker())).secret == "alice-secret-1"


@requirement("broker:vault")
async def test_who_sets_and_rewraps_needs_not_be_able_to_read(
    tenancy: Tenancy, server: VaultServer, clock: FakeClock
) -> None:
    server.rotate("fleet")
    reader = EncryptionKeys(
        tenancy.keys.file, TransitKeys(vault(server, clock), "fleet"), by_transit=True
    )
    server.allowed = [("POST", "transit/encrypt/fleet"), ("POST", "transit/rewrap/fleet")]
    writer = EncryptionKeys(
        tenancy.keys.file, TransitKeys(vault(server, clock), "fleet"), by_transit=True
    )
    for secret in ("alice-secret-1", "alice-secret-2"):
        static = parse_credential({"kind": "static", "secret": secret})
        await credential_store.put(
            tenancy.database, writer, static, tenant="alice", server="crm", actor="ops"
        )
    server.rotate("fleet")
    assert (await credential_store.rewrap(tenancy.database, writer, actor="ops"))["rewrapped"] == 1
    with pytest.raises(FleetError, match="HTTP 403"):
        await tenancy.grant(tenancy.broker(keys=writer))
    server.allowed = [("", "")]
    assert (await tenancy.grant(tenancy.broker(keys=reader))).secret == "alice-secret-2"


@requirement("broker:vault", "broker:sealed")
async def test_a_data_key_of_vaults_opens_in_its_own_row_alone(
    tenancy: Tenancy, server: VaultServer, clock: FakeClock
) -> None:
    server.rotate("fleet")
    keys = TransitKeys(vault(server, clock), "fleet")
    wrapped = await keys.wrap(b"k" * 32, b"here")
    assert await keys.unwrap(wrapped, b"here") == b"k" * 32
    with pytest.raises(FleetError, match="not that of its row"):
        await keys.unwrap(wrapped, b"elsewhere")
