"""The audit over HTTP: who may read it, how it is verified, and what an export holds."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import text

from api import auditing
from registry import audit
from registry.database import Database
from registry.settings import Settings
from registry.signing import make_key, public_file, read_public_keys
from registry.verification import Verifier
from tests.requirements import requirement
from tests.serving import Api, problem_of, serving
from workers.notary import Notary

pytestmark = pytest.mark.anyio


class Audited:
    """An API over entries of two tenants and of none, which are sealed and signed."""

    def __init__(self, api: Api, settings: Settings) -> None:
        self.api = api
        self.keys = read_public_keys(public_file(settings.audit_key_path))
        self.notary = Notary(settings, api.database)

    async def write(self, *tenants: str | None) -> None:
        async with self.api.database.transaction() as connection:
            for tenant in tenants:
                await audit.record(connection, "somebody", "thing.done", {}, tenant=tenant)
        await self.notary.seal_audit()
        await self.notary.sign_audit()

    async def client(self, role: str, tenant: str | None = None) -> httpx2.AsyncClient:
        return self.api.client(await self.api.key(role, tenant))


@pytest.fixture
async def audited(database: Database, redis_url: str, tmp_path: Path) -> Any:
    make_key(tmp_path / "audit.key")
    where = {"audit_key_file": tmp_path / "audit.key", "audit_checkpoints": tmp_path / "c.jsonl"}
    async with serving(database, redis_url, **where) as api:
        audited = Audited(api, Settings(**where))
        await audited.write("acme", "acme", "zeta", None)
        yield audited


def lines_of(answer: httpx2.Response) -> list[Any]:
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.content.splitlines()]


@requirement("audit:auditors")
async def test_an_auditor_of_a_tenant_gets_its_chain_and_no_other(audited: Audited) -> None:
    async with await audited.client("auditor", "acme") as auditor:
        entries = (await auditor.get("/v1/audit")).json()["entries"]
        assert {it["tenant_id"] for it in entries} == {"acme"}
        exported = await auditor.get("/v1/audit/export")
        assert b"zeta" not in exported.content
        verdict = lines_of(await auditor.get("/v1/audit/verify"))[-1]["verdict"]
        assert (verdict["sound"], verdict["chains"]) == (True, 1)
        for path in ("audit", "audit/export", "audit/verify"):
            refused = await auditor.get(f"/v1/{path}", params={"tenant": "zeta"})
            assert problem_of(refused)["code"] == "not_found"


@requirement("audit:auditors")
async def test_tenants_and_approvers_read_no_audit(audited: Audited) -> None:
    for role in ("tenant", "approver"):
        async with await audited.client(role, "acme") as client:
            for path in ("audit", "audit/export", "audit/verify"):
                assert problem_of(await client.get(f"/v1/{path}"))["code"] == "forbidden"


@requirement("audit:export", "audit:auditors")
async def test_an_auditors_export_verifies_offline_and_is_an_entry_itself(
    audited: Audited,
) -> None:
    async with await audited.client("auditor") as auditor:
        answer = await auditor.get("/v1/audit/export")
        who = (await auditor.get("/v1/audit", params={"event": "audit.exported"})).json()
    verifier = Verifier(audited.keys)
    verifier.feed(answer.content.splitlines())
    verdict = verifier.finish()
    assert (verdict.problems, verdict.entries) == ([], 5)
    assert verdict.unsealed > 0
    assert [it["details"] for it in who["entries"]] == [{"format": "jsonl", "since": None}]


@requirement("audit:shown")
async def test_the_audit_is_verified_while_it_is_told_how_far(audited: Audited) -> None:
    *progress, last = lines_of(await audited.api.http.get("/v1/audit/verify"))
    assert progress[0] == {"entries": 0}
    assert (last["verdict"]["sound"], last["verdict"]["entries"]) == (True, 5)
    assert last["verdict"]["checkpoints"] == 1


@requirement("audit:shown")
async def test_only_so_many_read_the_whole_audit_at_once(
    audited: Audited, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditing, "AT_ONCE", 0)
    refused = problem_of(await audited.api.http.get("/v1/audit/export"))
    assert (refused["code"], refused["retryable"]) == ("rate_limited", True)


@requirement("audit:cef")
async def test_cef_is_escaped_as_it_is_defined(audited: Audited) -> None:
    async with audited.api.database.transaction() as connection:
        details = {"tool": "a=b\\c|d\ne", "code": "call_timeout", "is_error": True}
        await audit.record(connection, "x|y=z", "call.failed", details, tenant="acme")
    await audited.write()
    query = {"format": "cef", "tenant": "acme", "since": _ago(hours=1)}
    answer = await audited.api.http.get("/v1/audit/export", params=query)
    (line,) = [it for it in answer.text.splitlines() if "call.failed" in it]
    header, extension = line.split("|Call failed|5|")
    assert header.startswith("CEF:0|Toolfleet|toolfleet|")
    assert header.endswith("|call.failed")
    assert r"suser=x|y\=z act=call.failed outcome=failure reason=call_timeout" in extension
    assert r"cs4=a\=b\\c|d\ne cs4Label=tool" in extension
    assert "cn1=3 cn1Label=sequence" in extension


@requirement("audit:cef")
async def test_an_export_since_has_no_older_events(audited: Audited) -> None:
    query = {"format": "cef", "since": _ago(hours=-1)}
    assert (await audited.api.http.get("/v1/audit/export", params=query)).text == ""


@requirement("audit:cef")
@pytest.mark.parametrize(
    "since", ["yesterday", "1767225600", "-1.1e-308", "2026-01-01", "2026-01-01T00:00:00"]
)
async def test_an_instant_is_a_date_and_time_with_its_offset_and_no_number(
    audited: Audited, since: str
) -> None:
    wrong = await audited.api.http.get("/v1/audit/export", params={"since": since})
    problem = problem_of(wrong)
    assert (problem["status"], problem["code"]) == (422, "invalid_request")
    assert problem["details"]["problems"][0]["path"] == "query.since"


def _ago(**how_long: int) -> str:
    return (datetime.now(UTC) - timedelta(**how_long)).isoformat()


@requirement("audit:watched")
async def test_an_audit_that_nobody_seals_is_told_by_checkup_and_metrics(audited: Audited) -> None:
    async def finding() -> tuple[str, str]:
        found = (await audited.api.http.get("/v1/checkup")).json()["findings"]
        (said,) = [it for it in found if it["check"] == "audit"]
        return said["state"], said["what"]

    assert (await finding())[0] == "ok"
    async with audited.api.database.transaction() as connection:
        await connection.execute(
            text(
                "INSERT INTO audit (actor, event, at)"
                " VALUES ('x', 'y', clock_timestamp() - interval '2 minutes')"
            )
        )
    state, what = await finding()
    assert (state, "to be sealed" in what) == ("failed", True)
    figures = (await audited.api.http.get("/metrics")).text
    (line,) = [it for it in figures.splitlines() if it.startswith("toolfleet_audit_unsealed_sec")]
    assert float(line.split()[1]) >= 120
