"""The registry as one document: exported, applied, planned, and refused with reasons."""

from __future__ import annotations

import json
from typing import Any

import pytest

from registry import catalog, document, policies, rollouts
from registry.database import Database
from registry.definition_secrets import NO_KEYS
from registry.document import RegistryDocument, parse_document
from registry.errors import Code, FleetError
from registry.rollouts import RolloutPlan
from registry.tiers import parse_tenant, parse_tier
from tests.brokering import Keys
from tests.ledger import definition, start
from tests.requirements import requirement

pytestmark = pytest.mark.anyio

HTTP = {"name": "web", "transport": "http", "url": "https://mcp.example.com/mcp"}
SERVER = {
    "name": "crm",
    "serve": "1",
    "versions": [{"version": "1", "transport": "stdio", "command": "true"}],
}
TIER = {
    "name": "gold",
    "priority": 8,
    "limits": {"calls_per_minute": 600},
    "redaction": {"types": ["card"], "patterns": [{"name": "badge", "pattern": "B[0-9]{6}"}]},
    "results": {"instructions": "block"},
}


async def full(database: Database, keys: Keys) -> None:
    """Put something of everything into a registry."""
    await policies.put_tier(database, parse_tier(TIER), actor="ops")
    for tenant in ("zoe", "adam", "eve"):
        await start(database, tenant=tenant)
    flagged = {"name": "adam", "tier": "gold", "flags": ["beta"], "servers": {"web": True}}
    await policies.put_tenant(database, parse_tenant(flagged), actor="ops")
    for version in ("2.0", "2.1", "2.2"):
        crm = definition("crm", version=version, env={"TOKEN": "s3cret"}, cohorts=["beta"])
        if version == "2.0":
            await catalog.add_server(database, crm, actor="ops", keys=keys.file)
        else:
            await catalog.add_version(database, crm, actor="ops", keys=keys.file, serve=False)
    plan = RolloutPlan(version="2.1", percent=5, cohorts=("beta",))
    await rollouts.put_rollout(database, "crm", plan, actor="ops")
    await catalog.add_server(database, definition("gone"), actor="ops")
    await catalog.remove_server(database, "gone", actor="ops")


async def written(database: Database, keys: Keys | None = None) -> str:
    found = await document.export(database, keys.file if keys else NO_KEYS)
    return json.dumps(found.as_dict(), indent=1)


async def applied(database: Database, *servers: Any, **rest: Any) -> list[tuple[str, str, str]]:
    """Apply a document; return its steps."""
    wanted = parse_document({"toolfleet": 1, "servers": list(servers), **rest})
    steps = await document.apply(database, wanted, actor="ops")
    return [(step.action, step.kind, step.name) for step in steps]


@requirement("document:round-trip")
async def test_what_was_exported_and_applied_elsewhere_is_exported_alike(
    database: Database, other_database: Database, keys: Keys
) -> None:
    await full(database, keys)
    first = await written(database, keys)
    await document.apply(
        other_database, parse_document(json.loads(first)), actor="ops", keys=keys.file
    )
    assert await written(other_database, keys) == first


@requirement("document:round-trip")
async def test_a_tenant_keeps_its_place_in_rollouts_elsewhere(
    database: Database, other_database: Database, keys: Keys
) -> None:
    await full(database, keys)
    body = json.loads(await written(database, keys))
    await start(other_database, tenant="eve")
    await document.apply(other_database, parse_document(body), actor="ops", keys=keys.file)
    places = {it.tenant.name: it.ordinal for it in await policies.list_tenants(other_database)}
    assert places == {"eve": 1, "adam": 2, "zoe": 3}  # zoe's own, 1, was taken by then


@requirement("document:plan")
async def test_applying_twice_does_nothing_the_second_time(database: Database, keys: Keys) -> None:
    await full(database, keys)
    wanted = await document.export(database, keys.file)
    assert await document.apply(database, wanted, actor="ops", keys=keys.file) == []


@requirement("document:plan")
async def test_a_dry_run_says_the_steps_and_does_none(database: Database, keys: Keys) -> None:
    await full(database, keys)
    before = await written(database, keys)
    steps = await document.apply(
        database, RegistryDocument(), actor="ops", keys=keys.file, dry_run=True
    )
    said = {(step.action, step.kind, step.name) for step in steps}
    assert said == {
        ("remove", "tier", "gold"),
        ("reset", "tenant", "adam"),
        ("remove", "server", "crm"),
    }
    assert await written(database, keys) == before


@requirement("document:plan")
async def test_the_steps_that_were_said_are_done(database: Database, keys: Keys) -> None:
    await full(database, keys)
    await document.apply(database, RegistryDocument(), actor="ops", keys=keys.file)
    left = await document.export(database, keys.file)
    assert (left.tiers, left.servers) == ((), ())
    assert {tenant.tier for tenant in left.tenants} == {"default"}


@requirement("document:plan")
async def test_a_server_is_added_changed_switched_and_tried_step_by_step(
    database: Database,
) -> None:
    assert await applied(database, SERVER) == [("add", "server", "crm"), ("add", "version", "crm")]
    versions = [*SERVER["versions"], {"version": "2", "transport": "stdio", "command": "false"}]
    tried = {**SERVER, "versions": versions, "rollout": {"version": "2", "percent": 5}}
    assert await applied(database, tried) == [("add", "version", "crm"), ("add", "rollout", "crm")]
    more = {**tried, "rollout": {"version": "2", "percent": 50}}
    assert await applied(database, more) == [("change", "rollout", "crm")]
    switched = {**SERVER, "versions": versions, "serve": "2"}
    assert await applied(database, switched) == [
        ("serve", "version", "crm"),
        ("remove", "rollout", "crm"),
    ]
    assert (await catalog.get_server(database, "crm")).definition.version == "2"


@requirement("document:plan")
async def test_a_step_that_fails_leaves_everything_as_it_was(database: Database) -> None:
    await applied(database, SERVER)
    before = await written(database)
    clash = {**SERVER, "name": "other"}
    clash["versions"] = [{**SERVER["versions"][0], "tool_prefix": "crm_"}]
    with pytest.raises(FleetError) as refused:
        await applied(database, SERVER, clash, tiers=[TIER])
    assert refused.value.code is Code.NAME_COLLISION
    assert await written(database) == before


@requirement("document:plan")
async def test_a_version_with_other_content_is_refused_before_anything_is_done(
    database: Database,
) -> None:
    await applied(database, SERVER)
    other = {**SERVER, "versions": [{**SERVER["versions"][0], "command": "false"}]}
    with pytest.raises(FleetError) as refused:
        await applied(database, other, tiers=[TIER])
    assert refused.value.code is Code.VERSION_EXISTS


@requirement("document:bad-input")
@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"toolfleet": 2}, "toolfleet"),
        ({"server": []}, "server"),
        ({"servers": [{**SERVER, "serve": "9"}]}, "servers/0/serve"),
        ({"servers": [{**SERVER, "rollout": {"version": "9"}}]}, "servers/0/rollout/version"),
        ({"servers": [{**SERVER, "versions": [*SERVER["versions"]] * 2}]}, "servers/0/versions"),
        ({"servers": [SERVER, SERVER]}, "servers"),
        ({"servers": [{**SERVER, "versions": [{"transport": "carrier"}]}]}, "servers/0"),
        ({"tiers": [{"name": "a b"}]}, "tiers/0/name"),
        ({"tenants": [{"name": "acme", "tear": "gold"}]}, "tenants/0/tear"),
        ([], ""),
    ],
)  # fmt: skip
def test_a_wrong_document_is_refused_with_the_path_of_what_is_wrong(body: Any, path: str) -> None:
    with pytest.raises(FleetError) as refused:
        parse_document(body)
    assert refused.value.code is Code.INVALID_DEFINITION
    assert path in [it["path"] for it in refused.value.details["problems"]]
