"""Who is let in, to what, and what others cannot find out: over real HTTP, on every route."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from fastapi.routing import iter_route_contexts

from api.attempts import Attempts, source_of
from registry import artifacts, tenants
from registry.artifacts import NewArtifact
from registry.database import Database
from registry.errors import Code, FleetError
from registry.scopes import Scopes, Verb
from registry.tenants import Role
from tests.requirements import requirement
from tests.serving import Api, problem_of, serving
from tests.waiting import until

pytestmark = pytest.mark.anyio

UNKNOWN_ID = "00000000-0000-4000-8000-000000000000"
CANARY = "canary-of-acme"

# Who may ask what: (o)perator, (t)enant, a(p)prover, (a)uditor; everything else is refused.
ROLES = {
    "GET /docs": "otpa",
    "GET /openapi.json": "otpa",
    "GET /metrics": "o",
    "GET /v1/approvals": "otp",
    "POST /v1/approvals/decide": "op",
    "GET /v1/approvals/{call_id}": "otp",
    "POST /v1/approvals/{call_id}/approve": "op",
    "POST /v1/approvals/{call_id}/deny": "op",
    "GET /v1/artifacts/{artifact_id}": "ot",
    "GET /v1/audit": "oa",
    "GET /v1/audit/export": "oa",
    "GET /v1/audit/verify": "oa",
    "GET /v1/calls/{call_id}": "ot",
    "POST /v1/calls/{call_id}/answers": "ot",
    "POST /v1/calls/{call_id}/cancel": "ot",
    "GET /v1/calls/{call_id}/events": "ot",
    "GET /v1/capacity": "o",
    "GET /v1/checkup": "o",
    "GET /v1/credentials": "o",
    "POST /v1/credentials/rewrap": "o",
    "GET /v1/credentials/{tenant}/{server}": "o",
    "PUT /v1/credentials/{tenant}/{server}": "o",
    "DELETE /v1/credentials/{tenant}/{server}": "o",
    "GET /v1/fleet": "o",
    "GET /v1/keys": "o",
    "POST /v1/keys": "o",
    "DELETE /v1/keys/{key_id}": "o",
    "POST /v1/keys/{key_id}/rotate": "o",
    "GET /v1/registry": "o",
    "PUT /v1/registry": "o",
    "POST /v1/runs": "ot",
    "GET /v1/runs/{run_id}": "ot",
    "GET /v1/runs/{run_id}/calls": "ot",
    "POST /v1/runs/{run_id}/calls": "ot",
    "POST /v1/runs/{run_id}/cancel": "ot",
    "POST /v1/runs/{run_id}/close": "ot",
    "GET /v1/runs/{run_id}/tools": "ot",
    "GET /v1/servers": "ot",
    "POST /v1/servers": "o",
    "GET /v1/servers/{name}": "ot",
    "DELETE /v1/servers/{name}": "o",
    "GET /v1/servers/{name}/breaker": "o",
    "POST /v1/servers/{name}/breaker": "o",
    "GET /v1/servers/{name}/changes": "o",
    "POST /v1/servers/{name}/changes/{hold_id}/accept": "o",
    "POST /v1/servers/{name}/changes/{hold_id}/reject": "o",
    "POST /v1/servers/{name}/refresh": "o",
    "POST /v1/servers/{name}/restore": "o",
    "GET /v1/servers/{name}/rollout": "o",
    "PUT /v1/servers/{name}/rollout": "o",
    "POST /v1/servers/{name}/rollout/promote": "o",
    "POST /v1/servers/{name}/rollout/rollback": "o",
    "GET /v1/servers/{name}/rollouts": "o",
    "POST /v1/servers/{name}/versions": "o",
    "GET /v1/snapshots/{before}/changes/{after}": "o",
    "GET /v1/tenants": "o",
    "GET /v1/tenants/{name}": "ot",
    "PUT /v1/tenants/{name}": "o",
    "GET /v1/tiers": "o",
    "DELETE /v1/tiers/{name}": "o",
    "PUT /v1/tiers/{name}": "o",
    "GET /v1/workers": "o",
    "POST /v1/workers/{worker_id}/drain": "o",
}
# The same for the console's pages; everybody who is signed in may sign out, and read that a page
# is not there.
PAGES = {
    "GET /console/": "o",
    "GET /console/approvals": "otp",
    "POST /console/approvals/{call_id}/approve": "op",
    "POST /console/approvals/{call_id}/deny": "op",
    "GET /console/audit": "oa",
    "GET /console/audit/export": "oa",
    "GET /console/audit/verify": "oa",
    "GET /console/calls": "ot",
    "GET /console/calls/{call_id}": "ot",
    "POST /console/calls/{call_id}/cancel": "ot",
    "GET /console/changes": "o",
    "GET /console/runs": "ot",
    "GET /console/runs/{run_id}": "ot",
    "POST /console/runs/{run_id}/cancel": "ot",
    "POST /console/runs/{run_id}/close": "ot",
    "GET /console/servers/{name}": "o",
    "POST /console/servers/{name}/breaker": "o",
    "GET /console/servers/{name}/changes": "o",
    "POST /console/servers/{name}/changes/{hold_id}/accept": "o",
    "POST /console/servers/{name}/changes/{hold_id}/reject": "o",
    "POST /console/servers/{name}/refresh": "o",
    "POST /console/servers/{name}/restore": "o",
    "POST /console/servers/{name}/rollout": "o",
    "POST /console/servers/{name}/rollout/promote": "o",
    "POST /console/servers/{name}/rollout/rollback": "o",
    "POST /console/session/calls/{call_id}/cancel": "o",
    "GET /console/tenants": "o",
    "POST /console/workers/{worker_id}/drain": "o",
}
ALL_ROLES = {
    "GET /console", "GET /console/session", "POST /console/sign-out",
    "GET /console/{path:path}", "POST /console/{path:path}",
}  # fmt: skip
OPEN_PAGES = {"GET /console/sign-in", "POST /console/sign-in", "GET /console/static/{name}"}
OPEN = {"GET /healthz", "GET /readyz"}
LETTERS = {Role.OPERATOR: "o", Role.TENANT: "t", Role.APPROVER: "p", Role.AUDITOR: "a"}


def operations(api: Api) -> dict[str, dict[str, Any]]:
    """Return every operation of the document as ``METHOD /path``."""
    return {
        f"{method.upper()} {path}": operation
        for path, methods in api.app.openapi()["paths"].items()
        for method, operation in methods.items()
    }


async def ask(
    client: httpx2.AsyncClient, operation: str, ids: dict[str, str] | None = None
) -> httpx2.Response:
    method, _, path = operation.partition(" ")
    given = {"hold_id": "1", "before": "0" * 64, "after": "1" * 64, **(ids or {})}
    path = re.sub(r"{(\w+)[^}]*}", lambda found: given.get(found[1], UNKNOWN_ID), path)
    body = None if method in {"GET", "DELETE"} else {}
    return await client.request(method, path, json=body)


# -- roles


@requirement("door:roles", "api:no-route-without-key")
async def test_each_route_is_for_the_roles_of_the_table_and_for_nobody_without_a_key(
    api: Api,
) -> None:
    missing = set(operations(api)) - OPEN - set(ROLES)
    assert not missing, "name in ROLES who may ask these"
    for role, letter in LETTERS.items():
        key = await api.key(role.value, None if role is Role.OPERATOR else "acme")
        async with api.client(key) as client:
            for operation, allowed in ROLES.items():
                answer = await ask(client, operation)
                forbidden = answer.status_code == 403 and problem_of(answer)["code"] == "forbidden"
                assert forbidden is (letter not in allowed), (role, operation, answer.text)
                assert answer.status_code not in {401, 500}, (role, operation)
    async with api.client(None) as nobody:
        for operation in ROLES:
            assert (await ask(nobody, operation)).status_code == 401, operation
        for operation in OPEN:
            assert (await ask(nobody, operation)).status_code == 200, operation


@requirement("door:roles", "console:roles")
async def test_each_page_of_the_console_is_for_the_roles_of_the_table_and_for_nobody_else(
    api: Api,
) -> None:
    routes = {
        f"{method} {context.path}"
        for context in iter_route_contexts(api.app.routes)
        for method in context.methods or ()
        if (context.path or "").startswith("/console") and method != "HEAD"
    }
    assert routes == set(PAGES) | ALL_ROLES | OPEN_PAGES, "name in PAGES who may ask these"
    for role, letter in LETTERS.items():
        key = await api.key(role.value, None if role is Role.OPERATOR else "acme")
        async with api.client(key) as client:
            for page, allowed in PAGES.items():
                answer = await ask(client, page)
                assert ("has the role" in answer.text) is (letter not in allowed), (role, page)
                assert (answer.status_code == 403) is (letter not in allowed), (role, page)
                assert answer.status_code not in {401, 500}, (role, page, answer.text)
    async with api.client(None) as nobody:
        for page in {*PAGES, *ALL_ROLES}:
            assert (await ask(nobody, page)).status_code == 401, page


@requirement("contract:whole", "keys:scopes")
async def test_the_document_says_the_roles_and_the_verb_of_each_route(api: Api) -> None:
    for name, operation in operations(api).items():
        if name in OPEN:
            assert operation["security"] == []
            continue
        assert {LETTERS[Role(role)] for role in operation["x-roles"]} == set(ROLES[name]), name
        ((verb,),) = [need["key"] for need in operation["security"]]
        assert verb in list(Verb), f"{name} needs {verb}: name it in registry.scopes.Verb"


@requirement("keys:scopes")
async def test_a_narrowed_key_is_refused_on_every_route_of_another_verb(api: Api) -> None:
    scopes = Scopes(verbs=(Verb.CALLS_READ,))
    async with api.client(await api.key("operator", None, scopes=scopes)) as narrow:
        for name, operation in operations(api).items():
            if name in OPEN:
                continue
            answer = await ask(narrow, name)
            out = answer.status_code == 403 and problem_of(answer)["code"] == "out_of_scope"
            assert out is (operation["security"] != [{"key": ["calls:read"]}]), name


# -- tenants


@requirement("door:tenants-cannot-tell", "api:tenants-are-apart")
async def test_another_tenants_id_is_answered_as_one_that_nobody_has(api: Api) -> None:
    known = await _acmes(api)
    unknown = {name: "f" * 32 if name == "artifact_id" else UNKNOWN_ID for name in known}
    unknown["name"] = "nobody"
    for role in (Role.TENANT, Role.APPROVER, Role.AUDITOR):
        async with api.client(await api.key(role.value, "globex")) as globex:
            for operation in ROLES:
                if "{" in operation:
                    told = [
                        _without(await ask(globex, operation, ids), ids) for ids in (known, unknown)
                    ]
                    assert told[0] == told[1], (role, operation)
                    assert told[0][0] >= 400, (role, operation)
                shown = _without(await ask(globex, operation, known), known)
                assert CANARY not in shown[1], (role, operation)
    state = (await api.http.get(f"/v1/calls/{known['call_id']}")).json()
    assert (state["state"], state["stop_requested_at"]) == ("queued", None)
    run = (await api.http.get(f"/v1/runs/{known['run_id']}")).json()
    assert run["state"] == "open"


async def _acmes(api: Api) -> dict[str, str]:
    """Make one of everything that acme alone may know of; return the ids."""
    await api.serve()
    await api.serve(CANARY, tenants=["acme"])
    run = await api.run("acme")
    call = await api.submit(run, CANARY)
    content = f'"{CANARY}"'.encode()
    artifact = NewArtifact("acme", call["id"], 0, hashlib.sha256(content).hexdigest(), content)
    await artifacts.store(api.database, artifact)
    mine = await api.http.get(f"/v1/artifacts/{artifact.id}")
    assert CANARY in mine.text
    return {
        "run_id": run["id"],
        "call_id": call["id"],
        "artifact_id": artifact.id,
        "name": CANARY,
    }


def _without(answer: httpx2.Response, ids: dict[str, str]) -> tuple[int, str, list[str]]:
    text = answer.text
    for given in ids.values():
        text = text.replace(given, "ID")
    return answer.status_code, text, sorted(answer.headers)


# -- keys


@requirement("keys:scopes")
async def test_a_narrowed_key_calls_the_tools_that_it_names_and_no_others(api: Api) -> None:
    await api.serve()
    await api.serve("other")
    made = await api.http.post(
        "/v1/keys",
        json={
            "name": "narrow",
            "role": "tenant",
            "tenant": "acme",
            "scopes": {"verbs": ["runs:write", "calls:write"], "servers": ["demo"]},
        },
    )
    assert made.json()["scopes"] == {"verbs": ["runs:write", "calls:write"], "servers": ["demo"]}
    whole = await api.run("acme")
    async with api.client(made.json()["key"]) as narrow:
        run = (await narrow.post("/v1/runs", json={})).json()
        assert [tool["name"] for tool in run["tools"]] == ["demo_echo"]
        assert run["run_token"] is None
        beyond = await narrow.post("/v1/runs", json={"servers": ["other"]})
        body: dict[str, Any] = {"tool": "demo_echo", "arguments": {"text": "x"}}
        inside = await narrow.post(f"/v1/runs/{whole['id']}/calls", json=body)
        body["tool"] = "other_echo"
        outside = await narrow.post(f"/v1/runs/{whole['id']}/calls", json=body)
        read = await narrow.get(f"/v1/runs/{run['id']}")
    assert inside.status_code == 202
    told = [problem_of(answer)["code"] for answer in (beyond, outside, read)]
    assert told == ["out_of_scope"] * 3


@requirement("keys:scopes")
async def test_the_tool_that_counts_is_the_one_in_the_body_of_a_searching_run(api: Api) -> None:
    await api.serve()
    scopes = Scopes.model_validate({"tools": {"deny": ["demo/*"]}})
    async with api.client(await api.key(scopes=scopes)) as narrow:
        run = (await narrow.post("/v1/runs", json={"exposure": "search"})).json()
        wrapped = {"name": "demo_echo", "arguments": {"text": "x"}}
        answer = await narrow.post(
            f"/v1/runs/{run['id']}/calls", json={"tool": "call_tool", "arguments": wrapped}
        )
    assert problem_of(answer)["code"] == "out_of_scope"


@requirement("keys:scopes")
@pytest.mark.parametrize(
    ("scopes", "path"),
    [
        ({"verbs": ["calls:all"]}, "body.scopes.verbs.0"),
        ({"servers": ["No Server"]}, "body.scopes.servers.0"),
        ({"tools": {"allow": ["no pattern"]}}, "body.scopes.tools.allow.0"),
        ({"verb": ["calls:read"]}, "body.scopes.verb"),
    ],
)
async def test_scopes_that_are_none_are_refused_by_their_path(
    api: Api, scopes: Any, path: str
) -> None:
    body = {"name": "x", "role": "operator", "scopes": scopes}
    problem = problem_of(await api.http.post("/v1/keys", json=body))
    assert problem["code"] == "invalid_request"
    assert problem["details"]["problems"][0]["path"] == path


@requirement("keys:scopes")
async def test_a_narrowed_operator_makes_no_key_that_may_do_more(api: Api) -> None:
    scopes = Scopes(verbs=(Verb.KEYS_WRITE,))
    whole = (await api.http.post("/v1/keys", json={"name": "w", "role": "operator"})).json()["id"]
    async with api.client(await api.key("operator", None, scopes=scopes)) as narrow:
        body = {"name": "x", "role": "operator"}
        made = await narrow.post("/v1/keys", json=body)
        rotated = await narrow.post(f"/v1/keys/{whole}/rotate", json={})
        same = await narrow.post("/v1/keys", json={**body, "scopes": {"verbs": ["keys:write"]}})
    assert [problem_of(answer)["code"] for answer in (made, rotated)] == ["out_of_scope"] * 2
    assert same.status_code == 201


@requirement("keys:rotation")
async def test_a_rotated_key_works_until_its_overlap_is_over(api: Api) -> None:
    made = (
        await api.http.post(
            "/v1/keys",
            json={
                "name": "agent",
                "role": "tenant",
                "tenant": "acme",
                "scopes": {"verbs": ["servers:read"]},
            },
        )
    ).json()
    rotate = f"/v1/keys/{made['id']}/rotate"
    new = await api.http.post(rotate, json={"overlap_s": 3600, "lifetime_s": 7200})
    assert new.status_code == 201
    assert {name: new.json()[name] for name in ("name", "role", "tenant", "scopes")} == {
        name: made[name] for name in ("name", "role", "tenant", "scopes")
    }
    for key in (made["key"], new.json()["key"]):
        async with api.client(key) as client:
            assert (await client.get("/v1/servers")).status_code == 200
            assert (await client.post("/v1/runs", json={})).status_code == 403
    assert (await api.http.post(rotate, json={"overlap_s": 0})).status_code == 201
    async with api.client(made["key"]) as old:
        assert problem_of(await old.get("/v1/servers"))["code"] == "key_expired"
    listed = (await api.http.get("/v1/keys")).text
    assert made["key"] not in listed
    assert new.json()["key"] not in listed
    await api.http.delete(f"/v1/keys/{made['id']}")
    assert problem_of(await api.http.post(rotate, json={}))["code"] == "not_found"


@requirement("keys:last-use")
async def test_keys_show_their_last_use_and_the_audit_their_changes(api: Api) -> None:
    made = (await api.http.post("/v1/keys", json={"name": "k", "role": "auditor"})).json()
    async with api.client(made["key"]) as auditor:
        for _ in range(3):
            await auditor.get("/v1/servers")

    async def used() -> Any:
        keys = (await api.http.get("/v1/keys")).json()["keys"]
        return next(it["last_used_at"] for it in keys if it["id"] == made["id"])

    first = await until(used)
    await tenants.note_use(api.database, made["id"])
    assert await used() == first
    await api.http.delete(f"/v1/keys/{made['id']}")
    await api.http.delete(f"/v1/keys/{made['id']}")
    entries = (await api.http.get("/v1/audit", params={"event": "key.*"})).json()["entries"]
    mine = [it for it in entries if it["details"]["key"] == made["id"]]
    assert [it["event"] for it in mine] == ["key.revoked", "key.created"]
    assert mine[0]["actor"].startswith("key:")
    assert made["key"] not in str(entries)


# -- failed attempts


@requirement("door:attempts", "door:refusals-audited")
async def test_failed_attempts_are_limited_audited_and_keep_nobody_out_who_was_in(
    api: Api,
) -> None:
    assert (await api.http.get("/v1/servers")).status_code == 200
    secrets = [f"tf_guess-{number}" for number in range(40)]
    codes = []
    async with api.client(None) as guesser:
        for secret in secrets:
            headers = {"authorization": f"Bearer {secret}"}
            answer = await guesser.get("/v1/servers", headers=headers)
            codes.append(problem_of(answer)["code"])
        assert answer.headers["retry-after"]
    assert codes[:30] == ["unauthenticated"] * 30
    assert codes[-5:] == ["too_many_attempts"] * 5
    assert (await api.http.get("/v1/servers")).status_code == 200

    async def audited() -> Any:
        query = {"event": "access.refused"}
        return (await api.http.get("/v1/audit", params=query)).json()["entries"]

    entries = await until(audited)
    assert entries[0]["actor"] == "source:127.0.0.1"
    assert entries[0]["details"]["code"] == "unauthenticated"
    assert len(entries) <= 10
    assert "guess" not in str(entries)


@requirement("door:refusals-audited")
async def test_what_was_counted_is_in_the_audit_when_the_process_has_ended(
    database: Database, redis_url: str
) -> None:
    async with serving(database, redis_url) as api, api.client("tf_nobody") as nobody:
        answers = await asyncio.gather(*(nobody.get("/v1/servers") for _ in range(5)))
        assert {answer.status_code for answer in answers} == {401}
    rows = await database.statement("SELECT details FROM audit WHERE event = 'access.refused'")
    assert sum(row["details"]["count"] for row in rows) == 5


@requirement("door:attempts")
def test_attempts_come_back_with_time_and_sources_are_bounded() -> None:
    now = [0.0]
    attempts = Attempts(burst=2, refill_per_s=0.5, clock=lambda: now[0])
    attempts.take("a")
    attempts.take("a")
    with pytest.raises(FleetError) as refused:
        attempts.take("a")
    assert (refused.value.code, refused.value.retry_after_s) == (Code.TOO_MANY_ATTEMPTS, 2.0)
    attempts.take("b")
    now[0] += 2
    attempts.take("a")
    attempts.give_back("a")
    attempts.take("a")
    for number in range(5000):
        attempts.take(f"source {number}")
    assert len(attempts._buckets) <= 4096


@requirement("door:attempts")
def test_a_source_is_an_address_or_its_network() -> None:
    assert source_of("10.1.2.3") == "10.1.2.3"
    assert source_of("2001:db8:1:2:3::4") == source_of("2001:db8:1:2::9") == "2001:db8:1:2::/64"
    assert source_of("") == "local"


@requirement("keys:scopes")
async def test_an_expired_key_keeps_its_scopes_to_itself(api: Api) -> None:
    key = await api.key(scopes=Scopes(verbs=()), lifetime=timedelta(seconds=-1))
    async with api.client(key) as late:
        assert problem_of(await late.get("/v1/servers"))["code"] == "key_expired"


# -- text that no database takes


@requirement("contract:kept")
@pytest.mark.parametrize("text", ["\ud800", "a\0b", "\u0085\u2028", "\uffff"], ids=ascii)
async def test_no_text_makes_the_api_fail(shared_api: Api, text: str) -> None:
    api = shared_api
    run = (await api.http.post("/v1/runs", json={})).json()
    server = {"name": "x", "transport": "stdio", "command": "true"}
    bodies: list[tuple[str, Any]] = [
        ("POST /v1/runs", {"servers": [text]}),
        ("POST /v1/runs", {"intent": text}),
        ("POST /v1/runs", {"tenant": text}),
        (f"POST /v1/runs/{run['id']}/calls", {"tool": text}),
        (f"POST /v1/runs/{run['id']}/calls", {"tool": "x", "arguments": {text: text}}),
        (f"POST /v1/runs/{run['id']}/calls", {"tool": "x", "idempotency_key": text}),
        ("POST /v1/servers", {**server, "name": text}),
        ("POST /v1/servers", {**server, "version": text}),
        ("POST /v1/servers", {**server, "tools": {text: {}}}),
        ("POST /v1/servers", {**server, "env": {text: text}}),
        ("POST /v1/servers", {**server, text: 1}),
        ("PUT /v1/servers/x/rollout", {"version": text}),
        ("PUT /v1/tiers/x", {"name": text}),
        ("PUT /v1/tiers/x", {"tools": {"allow": [f"x/{text}"]}}),
        ("PUT /v1/tenants/x", {"servers": {text: True}}),
        ("PUT /v1/tenants/x", {"tier": text}),
        ("POST /v1/keys", {"name": text, "role": "operator"}),
        ("POST /v1/keys", {"name": "x", "role": "operator", "scopes": {"servers": [text]}}),
        (f"POST /v1/approvals/{UNKNOWN_ID}/deny", {"reason": text}),
    ]
    for operation, body in bodies:
        method, _, path = operation.partition(" ")
        answer = await api.http.request(
            method, path, content=json.dumps(body), headers={"content-type": "application/json"}
        )
        assert answer.status_code < 500, (operation, body)
    escaped = quote(text, errors="surrogatepass")
    for operation in ROLES:
        path = re.sub(r"{\w+}", escaped, operation)
        assert (await ask(api.http, path)).status_code < 500, path
    for query in ("tenant", "run", "call", "event"):
        answer = await api.http.get(f"/v1/audit?{query}={escaped}")
        assert answer.status_code in {200, 422}
