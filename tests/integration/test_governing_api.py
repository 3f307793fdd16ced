"""What operators and tenants observe of rollouts, changes, tenants and the registry, over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from registry import catalog, holds, ingest
from tests.requirements import requirement
from tests.serving import ECHO, Api, problem_of

pytestmark = pytest.mark.anyio

BREAKING = {**ECHO, "inputSchema": {**ECHO["inputSchema"], "required": ["text", "at"]}}


async def ok(answer: Any, status: int = 200) -> Any:
    assert answer.status_code == status, answer.text
    return answer.json() if answer.content else None


async def drift(api: Api) -> int:
    """Serve `demo`, whose tool then breaks its callers; return the id of the held change."""
    await api.serve()
    server = await catalog.get_server(api.database, "demo")
    await ingest.ingest(api.database, server.id, server.definition, [BREAKING])
    (hold,) = await holds.list_holds(api.database, "demo")
    return hold.id


async def second_version(api: Api, **query: Any) -> Any:
    shown = (await api.http.get("/v1/servers/demo")).json()["definition"]
    return await api.http.post(
        "/v1/servers/demo/versions", json={**shown, "version": "2"}, params=query
    )


@requirement("api:operators-only")
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/v1/servers/demo/rollout"),
        ("GET", "/v1/servers/demo/rollout"),
        ("GET", "/v1/servers/demo/rollouts"),
        ("POST", "/v1/servers/demo/rollout/promote"),
        ("POST", "/v1/servers/demo/rollout/rollback"),
        ("POST", "/v1/servers/demo/restore"),
        ("POST", "/v1/servers/demo/changes/1/accept"),
        ("POST", "/v1/servers/demo/changes/1/reject"),
        ("GET", "/v1/tiers"),
        ("PUT", "/v1/tiers/gold"),
        ("DELETE", "/v1/tiers/gold"),
        ("GET", "/v1/tenants"),
        ("PUT", "/v1/tenants/acme"),
        ("POST", "/v1/approvals/1/approve"),
        ("POST", "/v1/approvals/1/deny"),
        ("GET", "/v1/audit"),
        ("GET", "/v1/registry"),
        ("PUT", "/v1/registry"),
        ("GET", "/v1/checkup"),
        ("GET", f"/v1/snapshots/{'0' * 64}/changes/{'0' * 64}"),
    ],
)
async def test_governing_is_for_operators(api: Api, method: str, path: str) -> None:
    await api.serve()
    body = {"json": {}} if method in {"PUT", "POST"} else {}
    async with api.client(await api.key()) as tenant:
        answer = await tenant.request(method, path, **body)
    assert problem_of(answer)["code"] == "forbidden"


@requirement("rollout:pinned", "rollout:states")
async def test_a_version_with_a_percentage_is_a_canary_until_it_is_promoted(api: Api) -> None:
    await api.serve()
    shown = await ok(await second_version(api, percent=5), 201)
    assert (shown["version"], shown["rollout"]["canary"]) == ("1", "2")
    rollout = await ok(await api.http.get("/v1/servers/demo/rollout"))
    assert (rollout["plan"]["percent"], rollout["report"]["decision"]) == (5, "wait")
    promoted = await ok(await api.http.post("/v1/servers/demo/rollout/promote"))
    assert (promoted["state"], promoted["report"]["decision"]) == ("promoted", "wait")
    assert (await ok(await api.http.get("/v1/servers/demo")))["version"] == "2"
    restored = await ok(await api.http.post("/v1/servers/demo/restore"))
    assert restored["version"] == "1"


@requirement("rollout:bad-input")
async def test_a_wrong_rollout_is_refused_with_the_path_of_what_is_wrong(api: Api) -> None:
    await api.serve()
    body = {"version": "2", "percent": 500}
    problem = problem_of(await api.http.put("/v1/servers/demo/rollout", json=body))
    assert problem["code"] == "invalid_request"
    assert problem["details"]["problems"][0]["path"] == "percent"


@requirement("drift:decided")
@pytest.mark.parametrize(("decision", "state"), [("accept", "accepted"), ("reject", "rejected")])
async def test_a_held_change_is_shown_and_decided_about(
    api: Api, decision: str, state: str
) -> None:
    hold = await drift(api)
    (held,) = (await ok(await api.http.get("/v1/servers/demo/changes")))["held"]
    assert (held["id"], held["tool"], held["kind"]) == (hold, "echo", "breaking")
    assert held["change"]["differences"]
    decided = await ok(await api.http.post(f"/v1/servers/demo/changes/{hold}/{decision}"))
    assert decided["state"] == state


@requirement("drift:held")
async def test_a_call_of_a_drifted_tool_is_refused_within_a_second_of_the_hold(api: Api) -> None:
    await api.serve()
    run = await ok(await api.http.post("/v1/runs", json={"tenant": "acme"}), 201)
    server = await catalog.get_server(api.database, "demo")
    await ingest.ingest(api.database, server.id, server.definition, [BREAKING])
    await ok(await api.http.post("/v1/runs", json={"tenant": "acme"}), 201)
    refused = await api.http.post(
        f"/v1/runs/{run['id']}/calls", json={"tool": "demo_echo", "arguments": {"text": "a"}}
    )
    assert problem_of(refused)["code"] == "tool_held"


@requirement("policy:kept")
async def test_tiers_and_tenants_are_put_shown_and_removed(api: Api) -> None:
    tier = {"limits": {"calls_per_minute": 60}, "priority": 7}
    await ok(await api.http.put("/v1/tiers/gold", json=tier))
    shown = await ok(await api.http.put("/v1/tenants/acme", json={"tier": "gold", "flags": ["x"]}))
    assert (shown["limits"]["calls_per_minute"], shown["priority"]) == (60, 7)
    in_use = problem_of(await api.http.delete("/v1/tiers/gold"))
    assert in_use["code"] == "in_use"
    await ok(await api.http.put("/v1/tenants/acme", json={}))
    await ok(await api.http.delete("/v1/tiers/gold"), 204)
    tiers = (await ok(await api.http.get("/v1/tiers")))["tiers"]
    assert [it["name"] for it in tiers] == ["default"]


@requirement("policy:kept")
async def test_a_tenant_sees_itself_and_no_other(api: Api) -> None:
    await ok(await api.http.put("/v1/tenants/other", json={}))
    async with api.client(await api.key()) as tenant:
        assert (await ok(await tenant.get("/v1/tenants/acme")))["name"] == "acme"
        assert problem_of(await tenant.get("/v1/tenants/other"))["code"] == "not_found"


@requirement("policy:limits")
async def test_a_tenant_over_its_limit_is_told_when_to_come_back(api: Api) -> None:
    await api.serve()
    await ok(await api.http.put("/v1/tenants/acme", json={"limits": {"concurrent_calls": 1}}))
    run = await ok(await api.http.post("/v1/runs", json={"tenant": "acme"}), 201)
    await api.submit(run)
    again = await api.http.post(
        f"/v1/runs/{run['id']}/calls", json={"tool": "demo_echo", "arguments": {"text": "b"}}
    )
    assert problem_of(again)["code"] == "tenant_limited"
    assert int(again.headers["retry-after"]) >= 1


@requirement("document:round-trip", "document:plan")
async def test_the_registry_is_exported_and_applied(api: Api) -> None:
    await api.serve()
    document = await ok(await api.http.get("/v1/registry"))
    assert [it["name"] for it in document["servers"]] == ["demo"]
    nothing = await ok(await api.http.put("/v1/registry", json=document))
    assert nothing == {"steps": [], "applied": True}
    plan = await ok(
        await api.http.put("/v1/registry", json={"toolfleet": 1}, params={"dry_run": True})
    )
    assert plan["applied"] is False
    assert ("remove", "server", "demo") in {
        (it["action"], it["kind"], it["name"]) for it in plan["steps"]
    }
    assert (await ok(await api.http.get("/v1/servers")))["servers"]


@requirement("offer:search")
async def test_a_run_shows_the_tools_that_fit_a_task(api: Api) -> None:
    await api.serve()
    run = await ok(
        await api.http.post("/v1/runs", json={"tenant": "acme", "exposure": "search"}), 201
    )
    assert [it["name"] for it in run["tools"]] == ["find_tools", "call_tool"]
    query = {"query": "give a text back"}
    found = await ok(await api.http.get(f"/v1/runs/{run['id']}/tools", params=query))
    assert [it["name"] for it in found["tools"]] == ["demo_echo"]
    call = await ok(
        await api.http.post(
            f"/v1/runs/{run['id']}/calls",
            json={"tool": "find_tools", "arguments": query},
            headers={"prefer": "wait=20"},
        )
    )
    assert call["result"]["structuredContent"]["tools"] == found["tools"]
    assert (call["state"], call["server"]) == ("succeeded", "toolfleet")


@requirement("offer:differences")
async def test_two_snapshots_are_compared(api: Api) -> None:
    await api.serve()
    before = await ok(await api.http.post("/v1/runs", json={"tenant": "acme"}), 201)
    server = await catalog.get_server(api.database, "demo")
    more = [ECHO, {**ECHO, "name": "shout"}]
    await ingest.ingest(api.database, server.id, server.definition, more)
    after = await ok(await api.http.post("/v1/runs", json={"tenant": "acme"}), 201)
    path = f"/v1/snapshots/{before['snapshot']}/changes/{after['snapshot']}"
    changes = (await ok(await api.http.get(path)))["changes"]
    assert changes == [{"tool": "demo_shout", "change": "added"}]
    unknown = await api.http.get(f"/v1/snapshots/{'0' * 64}/changes/{after['snapshot']}")
    assert problem_of(unknown)["code"] == "not_found"


@requirement("audit:shown")
async def test_the_audit_says_who_changed_what(api: Api) -> None:
    await ok(await api.http.put("/v1/tiers/gold", json={}))
    await ok(await api.http.put("/v1/tenants/acme", json={"tier": "gold"}))
    entries = (await ok(await api.http.get("/v1/audit", params={"event": "tenant.*"})))["entries"]
    assert [(it["event"], it["details"]["tier"]) for it in entries] == [("tenant.changed", "gold")]
    assert entries[0]["actor"].startswith("key:")
    older = await ok(await api.http.get("/v1/audit", params={"before": entries[0]["id"]}))
    assert all(it["id"] < entries[0]["id"] for it in older["entries"])


@requirement("command:doctor")
async def test_the_checkup_says_what_is_not_well_and_what_to_do(api: Api) -> None:
    await drift(api)
    answer = await ok(await api.http.get("/v1/checkup", params={"time_s": 1.0}))
    by_check: dict[str, list[dict[str, Any]]] = {}
    for finding in answer["findings"]:
        by_check.setdefault(finding["check"], []).append(finding)
    assert by_check["database"][0]["state"] == "ok"
    assert by_check["steward"][0]["state"] == "failed"
    assert by_check["clock"][0]["state"] == "warning"
    assert {it["state"] for it in by_check["server demo"]} == {"failed", "warning"}
    assert all(it["advice"] for it in by_check["server demo"])
    assert answer["well"] is False
