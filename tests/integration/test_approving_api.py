"""What approvers, tenants and others observe of calls that wait, over HTTP."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from tests.requirements import requirement
from tests.serving import Api, problem_of

pytestmark = pytest.mark.anyio

UNKNOWN_ID = "00000000-0000-4000-8000-000000000000"
BINDING = "0" * 64
PAY = {"name": "pay", "inputSchema": {"type": "object"}}


async def ok(answer: httpx2.Response, status: int = 200) -> Any:
    assert answer.status_code == status, answer.text
    return answer.json()


async def gate(api: Api, **rule: Any) -> None:
    """Serve `demo`, whose tool `pay` needs an approval."""
    await api.serve("demo", PAY, tools={"pay": {"approval": rule or True}})


async def waiting(api: Api, tenant: str = "acme", **arguments: Any) -> str:
    """Return the id of a tenant's call that waits, submitted with a key of its own."""
    async with api.client(await api.key(tenant=tenant)) as agent:
        run = await ok(await agent.post("/v1/runs", json={}), 201)
        body = {"tool": "demo_pay", "arguments": arguments}
        call = await ok(await agent.post(f"/v1/runs/{run['id']}/calls", json=body), 202)
    assert call["state"] == "awaiting_approval"
    return str(call["id"])


async def shown(api: Api, call_id: str) -> dict[str, Any]:
    return dict(await ok(await api.http.get(f"/v1/approvals/{call_id}")))


async def bodies(api: Api, *ids: str, **rest: Any) -> list[dict[str, Any]]:
    """Return decisions about calls as they are shown now."""
    seen = [(await shown(api, id_))["binding"] for id_ in ids]
    return [
        {"id": id_, "binding": binding, "approve": True, **rest}
        for id_, binding in zip(ids, seen, strict=True)
    ]


@requirement("approval:waits", "approval:once")
async def test_a_gated_call_is_shown_approved_and_then_runs(api: Api) -> None:
    await gate(api)
    call_id = await waiting(api, text="hi")
    (listed,) = (await ok(await api.http.get("/v1/approvals")))["approvals"]
    assert (listed["id"], listed["arguments"], listed["tool"]) == (
        call_id, {"text": "hi"}, "demo_pay",
    )  # fmt: skip
    body = {"binding": listed["binding"], "reason": "known"}
    approved = await ok(await api.http.post(f"/v1/approvals/{call_id}/approve", json=body))
    assert approved["state"] == "queued"
    assert [it["reason"] for it in approved["decisions"]] == ["known"]
    await api.work(call_id)
    assert (await ok(await api.http.get(f"/v1/calls/{call_id}")))["state"] == "succeeded"
    again = await api.http.post(f"/v1/approvals/{call_id}/deny", json=body)
    assert problem_of(again)["code"] == "already_decided"


@requirement("approval:shown")
async def test_an_approver_sees_what_runs_where_for_whom_and_until_when(api: Api) -> None:
    await gate(api)
    view = await shown(api, await waiting(api, amount=7))
    assert (view["server_name"], view["server_version"], view["delivery"]) == (
        "demo", "1", "write",
    )  # fmt: skip
    assert view["requested_by"] == view["started_by"]
    assert view["requested_by"].startswith("key:")
    assert view["tool_version_id"] > 0
    assert view["expires_at"] > view["created_at"]
    assert (view["approvers"], view["decisions"], view["hidden"]) == (1, [], [])


@requirement("approval:shown")
async def test_what_a_rule_hides_of_the_arguments_is_not_shown_to_approvers(api: Api) -> None:
    await gate(api, redact=["/card/number", "/notes/1", "/a~1b", "/nowhere"])
    arguments = {"card": {"number": "4111", "name": "Ana"}, "notes": ["x", "y"], "a/b": 1}
    view = await shown(api, await waiting(api, **arguments))
    assert view["arguments"] == {
        "card": {"number": "[hidden]", "name": "Ana"}, "notes": ["x", "[hidden]"],
        "a/b": "[hidden]",
    }  # fmt: skip
    assert view["hidden"] == ["/card/number", "/notes/1", "/a~1b"]
    assert "arguments_digest" not in view, "it would let anyone guess what is hidden"


@requirement("approval:shown")
async def test_what_waits_is_found_by_tenant_server_and_tool_page_by_page(api: Api) -> None:
    await gate(api)
    ids = [await waiting(api, tenant) for tenant in ("acme", "acme", "globex")]

    async def found(**query: Any) -> list[str]:
        answer = await ok(await api.http.get("/v1/approvals", params=query))
        return [it["id"] for it in answer["approvals"]]

    assert await found() == ids
    assert await found(tenant="globex", server="demo", tool="demo_pay") == ids[2:]
    assert await found(server="other") == await found(tool="demo_other") == []
    first = await ok(await api.http.get("/v1/approvals", params={"limit": 2}))
    assert await found(after=first["next"]) == ids[2:]


@requirement("approval:shown")
async def test_what_was_decided_is_found_newest_first(api: Api) -> None:
    await gate(api)
    ids = [await waiting(api) for _ in range(3)]
    for approve, body in zip((True, False, True), await bodies(api, *ids), strict=True):
        await ok(
            await api.http.post(
                "/v1/approvals/decide", json={"decisions": [{**body, "approve": approve}]}
            )
        )
    query = {"state": "decided", "limit": 2}
    first = await ok(await api.http.get("/v1/approvals", params=query))
    assert [(it["id"], it["state"]) for it in first["approvals"]] == [
        (ids[2], "queued"), (ids[1], "denied"),
    ]  # fmt: skip
    rest = await ok(await api.http.get("/v1/approvals", params={**query, "after": first["next"]}))
    assert [it["id"] for it in rest["approvals"]] == ids[:1]


@requirement("approval:bound")
@pytest.mark.parametrize("body", [{}, {"reason": "x"}, {"binding": "yes"}, {"binding": None}])
async def test_a_decision_without_the_binding_that_was_shown_is_refused(
    api: Api, body: dict[str, Any]
) -> None:
    await gate(api)
    call_id = await waiting(api)
    answer = await api.http.post(f"/v1/approvals/{call_id}/approve", json=body)
    assert problem_of(answer)["code"] == "invalid_request"
    wrong = await api.http.post(f"/v1/approvals/{call_id}/approve", json={"binding": BINDING})
    assert (problem_of(wrong)["code"], wrong.status_code) == ("approval_mismatch", 409)
    assert (await shown(api, call_id))["state"] == "awaiting_approval"


@requirement("approval:approvers")
@pytest.mark.parametrize(
    ("role", "tenant", "status"),
    [
        ("approver", "acme", 200),
        ("approver", None, 200),
        ("operator", None, 200),
        ("approver", "globex", 404),
        ("tenant", "acme", 403),
        ("tenant", "globex", 403),
        ("auditor", "acme", 403),
        ("auditor", None, 403),
    ],
)
async def test_only_the_tenants_approvers_and_those_of_all_decide(
    api: Api, role: str, tenant: str | None, status: int
) -> None:
    await gate(api)
    (body,) = await bodies(api, await waiting(api))
    call_id, binding = body["id"], {"binding": body["binding"]}
    async with api.client(await api.key(role, tenant)) as somebody:
        answer = await somebody.post(f"/v1/approvals/{call_id}/approve", json=binding)
        many = await somebody.post("/v1/approvals/decide", json={"decisions": [body]})
        seen = await somebody.get(f"/v1/approvals/{call_id}")
    assert answer.status_code == status
    assert many.status_code == (403 if status == 403 else 200)
    assert seen.status_code == (200 if (role, tenant) == ("tenant", "acme") else
                                404 if tenant == "globex" else status)  # fmt: skip
    after = (await shown(api, call_id))["state"]
    assert after == ("queued" if status == 200 else "awaiting_approval")


@requirement("approval:approvers")
async def test_an_approver_of_one_tenant_sees_that_tenants_calls_alone(api: Api) -> None:
    await gate(api)
    mine, _ = await waiting(api), await waiting(api, "globex")
    async with api.client(await api.key("approver", "acme")) as approver:
        for query in ({}, {"tenant": "acme"}):
            answer = await ok(await approver.get("/v1/approvals", params=query))
            assert [it["id"] for it in answer["approvals"]] == [mine]
        other = await ok(await approver.get("/v1/approvals", params={"tenant": "globex"}))
    assert other["approvals"] == []


@requirement("approval:four-eyes")
async def test_an_operator_cannot_approve_its_own_call(api: Api) -> None:
    await gate(api)
    run = await api.run()
    path = f"/v1/runs/{run['id']}/calls"
    call = await ok(await api.http.post(path, json={"tool": "demo_pay"}), 202)
    (body,) = await bodies(api, call["id"])
    binding = {"binding": body["binding"]}
    answer = await api.http.post(f"/v1/approvals/{call['id']}/approve", json=binding)
    assert problem_of(answer)["code"] == "forbidden"
    (result,) = (await ok(await api.http.post(
        "/v1/approvals/decide", json={"decisions": [body]})))["results"]  # fmt: skip
    assert result["error"]["code"] == "forbidden"


@requirement("approval:bulk")
async def test_of_many_decisions_each_stands_for_itself(api: Api) -> None:
    await gate(api)
    first, second, third = [await waiting(api) for _ in range(3)]
    decisions = await bodies(api, first, second, third)
    decisions[1] |= {"binding": BINDING}
    decisions[2] |= {"approve": False, "reason": "no"}
    wanted = [*decisions, decisions[0], {**decisions[0], "id": UNKNOWN_ID}]
    answer = await ok(await api.http.post("/v1/approvals/decide", json={"decisions": wanted}))
    said = [it["error"]["code"] if "error" in it else it["approval"]["state"]
            for it in answer["results"]]  # fmt: skip
    assert said == ["queued", "approval_mismatch", "denied", "already_decided", "unknown_call"]
    assert [it["id"] for it in answer["results"]] == [it["id"] for it in wanted]
    assert (await shown(api, second))["state"] == "awaiting_approval"


@requirement("approval:bulk")
@pytest.mark.parametrize("count", [0, 101])
async def test_a_bulk_has_one_to_a_hundred_decisions(api: Api, count: int) -> None:
    decisions = [{"id": UNKNOWN_ID, "binding": BINDING, "approve": True}] * count
    answer = await api.http.post("/v1/approvals/decide", json={"decisions": decisions})
    assert problem_of(answer)["code"] == "invalid_request"


@requirement("approval:shown")
@pytest.mark.parametrize("call_id", [UNKNOWN_ID, "nothing", "%00", "decide"])
async def test_a_call_that_never_waited_has_no_approval(api: Api, call_id: str) -> None:
    answer = await api.http.get(f"/v1/approvals/{call_id}")
    assert problem_of(answer)["code"] == "unknown_call"
    await api.serve("plain")
    run = await api.run()
    body = {"tool": "plain_echo", "arguments": {"text": "x"}}
    call = await ok(await api.http.post(f"/v1/runs/{run['id']}/calls", json=body), 202)
    answer = await api.http.get(f"/v1/approvals/{call['id']}")
    assert problem_of(answer)["code"] == "unknown_call"
