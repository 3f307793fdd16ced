"""The guide's story: a new version for a few tenants, what it breaks, and a bad one undone."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import httpx2
import pytest

from registry import runs
from registry.offer import Offers
from registry.snapshots import Shelf
from registry.tenants import ensure_tenant
from tests.fleet.driver import LIMIT_S, SERVERS, Fleet
from tests.requirements import requirement
from tests.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]

SERVER = "crm-mcp"
AT_ONCE = 8


def crm(version: str, name: str = SERVER, *arguments: str, **rest: Any) -> dict[str, Any]:
    """Return the definition of a version of the CRM server."""
    return {
        "name": name,
        "version": version,
        "transport": "stdio",
        "command": sys.executable,
        "args": ["-I", "-S", str(SERVERS / "versions.py"), version, *arguments],
        "tools": {"find_contact": {"delivery": "read"}},
        "pool": {"min_idle": 1, "max_size": 4},
        **rest,
    }


async def add_canary(fleet: Fleet, definition: dict[str, Any], percent: float) -> None:
    """Add a version as a canary; return once its tools are listed."""
    name = definition["name"]
    answer = await fleet.http.post(
        f"/v1/servers/{name}/versions", json=definition, params={"percent": percent}
    )
    assert answer.status_code == 201, answer.text

    async def listed() -> bool:
        rollout = await rollout_of(fleet, name)
        assert rollout["refresh_error"] is None, rollout["refresh_error"]
        return not rollout["stale"]

    await until(listed, within_s=LIMIT_S)


async def rollout_of(fleet: Fleet, name: str = SERVER) -> dict[str, Any]:
    answer = await fleet.http.get(f"/v1/servers/{name}/rollout")
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


async def who_is_to_see_the_canary(fleet: Fleet, tenants: Iterable[str]) -> set[str]:
    """Start a run for each tenant in the registry; return those that have 2.1."""
    offers, shelf = Offers(fleet.database), Shelf(fleet.database)
    seen = set()
    for tenant in tenants:
        run = await runs.start_run(
            fleet.database, tenant=tenant, actor="test", lifetime=timedelta(hours=1),
            servers=[SERVER], offers=offers, shelf=shelf,
        )  # fmt: skip
        if run.find("crm_mcp_find_contact").description.endswith("2.1"):
            seen.add(tenant)
    return seen


async def who_sees_the_canary(fleet: Fleet, tenants: Iterable[str]) -> set[str]:
    """Start a run for each tenant over HTTP; return the tenants whose runs have 2.1."""
    gate = asyncio.Semaphore(AT_ONCE)
    seen = set()

    async def look(tenant: str) -> None:
        async with gate:
            run = await fleet.run(tenant, servers=[SERVER])
        if described(run, "find_contact").endswith("2.1"):
            seen.add(tenant)

    await asyncio.gather(*(look(tenant) for tenant in tenants))
    return seen


def tool(run: dict[str, Any], name: str, server: str = "crm_mcp") -> dict[str, Any]:
    found: dict[str, Any] = next(it for it in run["tools"] if it["name"] == f"{server}_{name}")
    return found


def described(run: dict[str, Any], name: str) -> str:
    description: str = tool(run, name)["description"]
    return description


async def answered_by(fleet: Fleet, run: dict[str, Any], which: str, **arguments: Any) -> str:
    """Call a tool; return the server version that answered."""
    call = await fleet.call(run, f"crm_mcp_{which}", **arguments)
    assert call["state"] == "succeeded", call["error"]
    version: str = json.loads(call["result"]["content"][0]["text"])["version"]
    return version


@requirement("rollout:share", "rollout:names", "runs:pinned", "drift:new-version")
@pytest.mark.parametrize("count", [500, pytest.param(1000, marks=pytest.mark.long)])
async def test_a_version_reaches_five_percent_of_the_tenants_and_breaks_none(
    empty_fleet: Fleet, count: int
) -> None:
    fleet, tenants = empty_fleet, [f"tenant-of-{count}-{number}" for number in range(count)]
    for tenant in tenants:
        await ensure_tenant(fleet.database, tenant)
    await fleet.serve(crm("2.0"))
    before = await fleet.run(tenants[0])

    await add_canary(fleet, crm("2.1"), percent=5)
    brave = await who_is_to_see_the_canary(fleet, tenants)
    # One percentage point; it is exact among each hundred tenants in the order they came in.
    assert abs(len(brave) - count // 20) <= count // 100
    assert await who_sees_the_canary(fleet, brave | set(tenants[:50])) == brave

    async with fleet.without("api"):
        pass

    async def answers() -> bool:
        with suppress(httpx2.HTTPError):
            return (await fleet.http.get("/healthz")).is_success
        return False

    await until(answers)
    assert await who_sees_the_canary(fleet, brave | set(tenants[:50])) == brave

    # A run opened before sees 2.0's schema to its end, and 2.0 answers it, whoever its tenant is.
    assert (await fleet.http.get(f"/v1/runs/{before['id']}")).json()["tools"] == before["tools"]
    assert await answered_by(fleet, before, "find_contact", name="Ana") == "2.0"

    # A run opened after the change by one of the few sees 2.1; what 2.1 breaks is still 2.0's.
    after = await fleet.run(min(brave))
    names = {it["name"] for it in before["tools"]}
    assert {it["name"] for it in after["tools"]} == names | {"crm_mcp_merge_contacts"}
    assert await answered_by(fleet, after, "find_contact", name="Ana", limit=3) == "2.1"
    assert tool(after, "delete_contact") == tool(before, "delete_contact")
    assert await answered_by(fleet, after, "delete_contact", id="7") == "2.0"

    report = (await rollout_of(fleet))["report"]
    said = {it["tool"]: (it["change"], it["reaction"]) for it in report["changes"]}
    assert said == {
        "find_contact": ("widening", "accept"),
        "delete_contact": ("breaking", "hold"),
        "merge_contacts": ("added", "accept"),
    }
    refused = await fleet.http.post(f"/v1/servers/{SERVER}/rollout/promote")
    assert refused.json()["code"] == "changes_held"


@requirement("rollout:automatic", "rollout:verdict")
async def test_a_bad_canary_is_rolled_back_by_the_verdict_and_no_stable_call_fails(
    empty_fleet: Fleet,
) -> None:
    fleet, name = empty_fleet, "crm-next"
    await fleet.serve(crm("2.1", name))
    plan = {
        "version": "2.2",
        "tenants": ["brave"],
        "verdict": {"automatic": True, "minimum_calls": 50},
    }
    await add_canary(fleet, crm("2.2", name), percent=0)
    answer = await fleet.http.put(f"/v1/servers/{name}/rollout", json=plan)
    assert answer.status_code == 200, answer.text
    steady, brave = await fleet.run("steady"), await fleet.run("brave")
    ended: dict[str, list[str]] = {"steady": [], "brave": []}

    async def keep_calling(tenant: str, run: dict[str, Any]) -> None:
        while (await rollout_of(fleet, name))["state"] == "active":
            call = await fleet.call(run, "crm_next_find_contact", name="Ana")
            ended[tenant].append(call["state"])

    async with asyncio.timeout(120):
        await asyncio.gather(
            keep_calling("steady", steady),
            keep_calling("steady", steady),
            keep_calling("brave", brave),
        )
    rollout = await rollout_of(fleet, name)
    assert (rollout["state"], rollout["ended_by"]) == ("rolled_back", "verdict")
    assert rollout["report"]["reasons"][0].startswith("transport errors")
    assert set(ended["brave"]) == {"failed"}
    assert set(ended["steady"]) == {"succeeded"}
    again = await fleet.run("brave")
    call = await fleet.call(again, "crm_next_find_contact", name="Ana")
    assert call["state"] == "succeeded"


@requirement("drift:held", "drift:decided")
async def test_a_drifted_tool_is_refused_before_its_next_call_until_an_operator_accepts_it(
    empty_fleet: Fleet,
) -> None:
    fleet, name = empty_fleet, "crm-drift"
    note = fleet.folder / "description"
    definition = crm("2.0", name, str(note), changes={"description": "hold"})
    await fleet.serve(definition)
    run = await fleet.run()
    assert (await fleet.call(run, "crm_drift_find_contact", name="Ana"))["state"] == "succeeded"

    note.write_text("Find a contact by name.")  # one byte more
    answer = await fleet.http.post(
        f"/v1/servers/{name}/refresh", headers={"prefer": f"wait={LIMIT_S}"}
    )
    assert answer.status_code == 200, answer.text
    call = await fleet.ask(run, "crm_drift_find_contact", wait_s=LIMIT_S, name="Ana")
    body = call.json()
    code = body["code"] if call.status_code >= 400 else body["error"]["code"]
    assert code == "tool_held"
    assert (await fleet.call(run, "crm_drift_add_contact", name="Ana"))["state"] == "succeeded"

    (held,) = (await fleet.http.get(f"/v1/servers/{name}/changes")).json()["held"]
    accepted = await fleet.http.post(f"/v1/servers/{name}/changes/{held['id']}/accept")
    assert accepted.status_code == 200, accepted.text

    async def called() -> bool:
        answer = await fleet.ask(run, "crm_drift_find_contact", wait_s=LIMIT_S, name="Ana")
        return answer.status_code == 200 and answer.json()["state"] == "succeeded"

    await until(called)
    described_now = tool(await fleet.run(), "find_contact", "crm_drift")["description"]
    assert described_now == "Find a contact by name."
