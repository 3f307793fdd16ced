"""Credentials over HTTP: they go in, and nothing that comes out has them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from registry import credential_store, renewals
from registry.database import Database
from registry.oauth import Failure, TokenError
from tests.brokering import Keys
from tests.requirements import requirement
from tests.serving import Api, problem_of, serving

pytestmark = pytest.mark.anyio

SECRET = "s3cret-canary-0123456789"
STATIC = {"kind": "static", "secret": SECRET}
OAUTH = {
    "kind": "oauth_refresh_token",
    "issuer": "https://login.example.com",
    "client": {"id": "fleet", "secret": SECRET},
    "refresh_token": SECRET,
}


@pytest.fixture
async def api(database: Database, redis_url: str, keys: Keys) -> AsyncIterator[Api]:
    async with serving(database, redis_url, encryption_keys_file=keys.path) as api:
        await api.serve()
        yield api


async def entries(api: Api) -> list[Any]:
    answer = await api.http.get("/v1/audit", params={"event": "credential.*"})
    return answer.json()["entries"]


@requirement("broker:secret", "broker:states")
async def test_a_credential_is_set_shown_and_removed_without_its_secrets(api: Api) -> None:
    told = []
    for tenant, document in (("acme", OAUTH), ("*", STATIC)):
        answer = await api.http.put(f"/v1/credentials/{tenant}/demo", json=document)
        assert answer.status_code == 200
        told.append(answer.json())
    assert (told[0]["tenant"], told[0]["state"]) == ("acme", "ready")
    assert sorted(told[0]["secrets"]) == ["client/secret", "refresh_token"]
    assert told[0]["definition"]["client"] == {
        "id": "fleet",
        "authentication": "client_secret_basic",
    }
    listed = (await api.http.get("/v1/credentials")).json()["credentials"]
    assert [it["tenant"] for it in listed] == ["*", "acme"]
    shown = (await api.http.get("/v1/credentials/acme/demo")).json()
    assert shown == told[0]
    assert (await api.http.delete("/v1/credentials/acme/demo")).status_code == 204
    assert problem_of(await api.http.get("/v1/credentials/acme/demo"))["code"] == "not_found"
    audit = await entries(api)
    assert [entry["event"] for entry in audit] == [
        "credential.removed",
        "credential.set",
        "credential.set",
    ]
    assert SECRET not in json.dumps([told, listed, shown, audit])


@requirement("broker:operators")
@pytest.mark.parametrize("role", ["tenant", "approver", "auditor"])
async def test_credentials_are_for_operators(api: Api, role: str) -> None:
    async with api.client(await api.key(role=role)) as other:
        for method, path, body in (
            ("GET", "/v1/credentials", None),
            ("GET", "/v1/credentials/acme/demo", None),
            ("PUT", "/v1/credentials/acme/demo", STATIC),
            ("DELETE", "/v1/credentials/acme/demo", None),
            ("POST", "/v1/credentials/rewrap", None),
        ):
            answer = await other.request(method, path, json=body)
            assert problem_of(answer)["code"] == "forbidden"
            assert SECRET not in answer.text


@requirement("broker:typed-errors", "broker:secret")
async def test_what_is_refused_is_not_quoted(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    for body in (
        {"kind": "static", "secret": [SECRET]},
        {"kind": SECRET},
        {"secret": SECRET},
        [SECRET],
        SECRET,
        {**OAUTH, "issuer": SECRET},
        {**OAUTH, "client": SECRET},
        {**OAUTH, "client": {"id": "x", "private_key": SECRET, "authentication": SECRET}},
    ):
        answer = await api.http.put("/v1/credentials/acme/demo", json=body)
        assert answer.status_code == 422
        assert "s3cret" not in answer.text
    broken = await api.http.put(
        "/v1/credentials/acme/demo", content=f'{{"kind": "static", "secret": "{SECRET}'
    )
    assert broken.status_code == 422
    assert "s3cret" not in broken.text + caplog.text
    unknown = await api.http.put("/v1/credentials/acme/nothing", json=STATIC)
    assert problem_of(unknown)["code"] == "unknown_server"
    for tenant in ("no%20tenant", "%2A%2A", "a" * 65):
        answer = await api.http.put(f"/v1/credentials/{tenant}/demo", json=STATIC)
        assert answer.status_code == 422


@requirement("broker:key-rotation")
async def test_data_keys_are_rewrapped_on_demand(api: Api, keys: Keys) -> None:
    await api.http.put("/v1/credentials/acme/demo", json=STATIC)
    keys.put("second", "first")
    answer = await api.http.post("/v1/credentials/rewrap")
    assert answer.json() == {
        "rewrapped": 1,
        "wrapped_by": {"file:second": 1},
        "definitions_sealed": 0,
        "definitions_left": 0,
    }
    assert (await entries(api))[0]["details"]["to"] == "file:second"


@requirement("broker:states")
async def test_the_checkup_names_what_needs_a_consent_and_what_is_not_renewed(api: Api) -> None:
    for tenant in ("acme", "globex"):
        await api.http.put(f"/v1/credentials/{tenant}/demo", json=OAUTH)
    for tenant, failure in (("acme", Failure.CONSENT), ("globex", Failure.TRANSIENT)):
        stored = await credential_store.read(api.database, tenant, "demo")
        assert stored is not None
        error = TokenError(failure, f"said of {tenant}")
        await renewals.fail(api.database, stored, error, by="worker", pause_s=60)
    findings = (await api.http.get("/v1/checkup")).json()["findings"]
    found = {it["check"]: it for it in findings if it["check"].startswith("credential of")}
    assert [it["state"] for it in found.values()] == ["failed", "warning"]
    assert "said of acme" in found["credential of acme for demo"]["what"]


@requirement("broker:private-keys")
async def test_without_an_encryption_key_nothing_is_taken_in(
    database: Database, redis_url: str
) -> None:
    async with serving(database, redis_url) as api:
        await api.serve()
        answer = await api.http.put("/v1/credentials/acme/demo", json=STATIC)
        problem = problem_of(answer)
        assert (problem["status"], problem["code"]) == (503, "credential_unavailable")
        assert "TOOLFLEET_ENCRYPTION_KEYS_FILE" in problem["hint"]
        kept_elsewhere = {"kind": "env", "variable": "TOOLFLEET_CREDENTIAL_CRM"}
        answer = await api.http.put("/v1/credentials/acme/demo", json=kept_elsewhere)
        assert answer.status_code == 200
