"""The commands that govern a fleet, as an operator types them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from compose.cli import app
from tests.fleet.driver import LIMIT_S, Fleet, running
from tests.fleet.test_rollouts import crm
from tests.requirements import requirement
from tests.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(240)]

NAME = "crm-typed"


class Operator:
    """Somebody who types `toolfleet` commands."""

    def __init__(self, fleet: Fleet, folder: Path, key: str | None = None) -> None:
        self.folder = folder
        self.environment = {
            "TOOLFLEET_URL": fleet.local.api_url,
            "TOOLFLEET_KEY": key or fleet.local.operator_key,
        }

    async def types(self, *arguments: str, status: int = 0, piped: str = "") -> str:
        """Run a command, in this process to save its start; return what it printed."""
        runner = CliRunner(env=self.environment)
        result = await asyncio.to_thread(runner.invoke, app, list(arguments), input=piped)
        assert result.exit_code == status, result.output
        return result.output

    async def asks(self, *arguments: str) -> Any:
        """Run a command with --json; return its answer."""
        return json.loads(await self.types(*arguments, "--json"))

    def file(self, name: str, content: Any) -> str:
        """Write a YAML file; return its path."""
        path = self.folder / name
        path.write_text(yaml.safe_dump(content))
        return str(path)


@pytest.fixture
async def operator(empty_fleet: Fleet, tmp_path: Path) -> Operator:
    return Operator(empty_fleet, tmp_path)


@requirement("command:governs")
async def test_a_version_is_tried_decided_about_and_promoted_by_commands(
    empty_fleet: Fleet, operator: Operator
) -> None:
    await empty_fleet.serve(crm("2.0", NAME))
    newer = operator.file("newer.yaml", crm("2.1", NAME))
    await operator.types("servers", "version", newer, "--percent", "5")

    async def listed() -> bool:
        return not (await operator.asks("servers", "rollout", NAME))["stale"]

    await until(listed, within_s=LIMIT_S)
    assert "delete_contact" in await operator.types("servers", "changes", NAME)
    refused = await operator.types("servers", "rollout", NAME, "--promote", status=1)
    assert refused.startswith("changes_held: ")
    (held,) = (await operator.asks("servers", "changes", NAME))["held"]
    await operator.types("servers", "accept", NAME, str(held["id"]))
    promoted = await operator.asks("servers", "rollout", NAME, "--promote")
    assert promoted["state"] == "promoted"
    assert (await operator.asks("servers", "restore", NAME))["version"] == "2.0"


@requirement("broker:command", "broker:secret")
async def test_credentials_are_set_listed_rewrapped_and_removed_by_commands(
    empty_fleet: Fleet, operator: Operator
) -> None:
    if (await empty_fleet.http.get("/v1/servers/crm-gated")).status_code == 404:
        await empty_fleet.serve(crm("2.0", "crm-gated"))
    secret = "s3cret-canary-of-a-command"
    told = [await operator.types("credentials", "set", "acme", "crm-gated", piped=f"{secret}\n")]
    oauth = {
        "kind": "oauth_client_credentials",
        "issuer": "https://login.example.com",
        "client": {"id": "fleet", "secret": secret},
    }
    file = operator.file("oauth.yaml", oauth)
    told.append(await operator.types("credentials", "set", "*", "crm-gated", "--file", file))
    listed = (await operator.asks("credentials", "list"))["credentials"]
    assert [(it["tenant"], it["kind"]) for it in listed] == [
        ("*", "oauth_client_credentials"),
        ("acme", "static"),
    ]
    told.append(await operator.types("credentials", "show", "acme", "crm-gated"))
    key_file = empty_fleet.local.folder.path / "encryption.keys"
    assert key_file.stat().st_mode & 0o777 == 0o600
    rewrapped = await operator.asks("credentials", "rewrap")
    assert (rewrapped["rewrapped"], rewrapped["wrapped_by"]) == (0, {"file:local-1": 2})
    await operator.types("credentials", "remove", "acme", "crm-gated")
    gone = await operator.types("credentials", "show", "acme", "crm-gated", status=1)
    assert gone.startswith("not_found: ")
    assert secret not in "".join(told) + json.dumps(listed)


@requirement("command:governs")
async def test_tenants_tiers_approvals_and_the_audit_are_governed_by_commands(
    empty_fleet: Fleet, operator: Operator
) -> None:
    if (await empty_fleet.http.get("/v1/servers/crm-gated")).status_code == 404:
        await empty_fleet.serve(crm("2.0", "crm-gated"))
    gold = {"name": "gated", "classes": {"write": "approve"}, "limits": {"concurrent_calls": 9}}
    gold["results"] = {"instructions": "block"}
    await operator.types("tenants", "set-tier", operator.file("gold.yaml", gold))
    careful = operator.file("careful.yaml", {"redaction": {"types": ["card"]}})
    await operator.types("tenants", "set", "careful", "--file", careful)
    await operator.types("tenants", "set", "careful", "--tier", "gated", "--flag", "beta")
    await operator.types("tenants", "set", "careful", "--disable", "elsewhere")
    shown = await operator.asks("tenants", "show", "careful")
    assert (shown["tier"], shown["flags"]) == ("gated", ["beta"])
    assert (shown["servers"], shown["limits"]["concurrent_calls"]) == ({"elsewhere": False}, 9)
    assert (shown["output"]["types"], shown["output"]["instructions"]) == (["card"], "block")

    run = await empty_fleet.run("careful")
    call_id = await empty_fleet.submit(run, "crm_gated_add_contact", name="Ana")
    assert call_id in await operator.types("approvals", "list", "--tenant", "careful")
    own = await operator.types("approvals", "approve", call_id, status=1)
    assert "forbidden: " in own, "the operator asked for this call"
    body = {"name": "boss", "role": "approver"}
    boss = (await empty_fleet.http.post("/v1/keys", json=body)).json()["key"]
    approver = Operator(empty_fleet, operator.folder, boss)
    shown = await approver.types("approvals", "approve", call_id, "--reason", "known", "--yes")
    assert "Ana" in shown, "what is approved is shown"
    assert call_id in await approver.types("approvals", "list", "--decided")
    assert (await empty_fleet.ended(call_id))["state"] == "succeeded"
    trail = (await operator.asks("audit", "--call", call_id))["entries"]
    assert [it["event"] for it in trail][::-1] == [
        "call.awaiting_approval", "call.decision_refused", "call.approved", "call.running",
        "call.succeeded",
    ]  # fmt: skip
    assert "in_use" in await operator.types("tenants", "remove-tier", "gated", status=1)


@requirement("command:governs", "document:round-trip")
async def test_an_exported_registry_applied_where_it_comes_from_changes_nothing(
    operator: Operator, tmp_path: Path
) -> None:
    await operator.types("tenants", "set", "zoe", "--flag", "early")
    file = tmp_path / "registry.yaml"
    await operator.types("registry", "export", "-o", str(file))
    assert file.stat().st_mode & 0o077 == 0
    assert "zoe" in file.read_text()
    assert "nothing to do" in await operator.types("registry", "apply", str(file))


@pytest.mark.long
@requirement("command:governs", "document:round-trip")
async def test_an_exported_registry_is_applied_to_an_empty_fleet_and_exported_alike(
    empty_fleet: Fleet, operator: Operator, tmp_path: Path
) -> None:
    await operator.types("tenants", "set", "zoe", "--flag", "early")
    await empty_fleet.http.post("/v1/servers", json=crm("2.0", "crm-kept", env={"NOTE": "ü: 1"}))
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    await operator.types("registry", "export", "-o", str(first))
    assert first.stat().st_mode & 0o077 == 0
    async with running(tmp_path) as elsewhere:
        other = Operator(elsewhere, tmp_path)
        plan = await other.types("registry", "apply", str(first), "--dry-run")
        assert "+ add server crm-kept" in plan
        await other.types("registry", "apply", str(first), "--yes")
        await other.types("registry", "export", "-o", str(second))
        assert first.read_bytes() == second.read_bytes()
        assert "nothing to do" in await other.types("registry", "apply", str(first))


@requirement("command:governs", "offer:search", "offer:differences")
async def test_tools_are_found_and_runs_compared_by_commands(
    empty_fleet: Fleet, operator: Operator
) -> None:
    await empty_fleet.serve(crm("2.0", "crm-found"))
    only = ("--server", "crm-found")
    whole = await operator.asks("run", "start", *only)
    found = (await operator.asks("run", "tools", whole["id"], "look up a person"))["tools"]
    assert found[0]["name"] == "crm_found_find_contact"
    one = await operator.asks("run", "start", *only, "--intent", "erase somebody", "--limit", "1")
    assert [it["name"] for it in one["tools"]] == ["crm_found_delete_contact"]
    two = await operator.asks("run", "start", *only, "--search")
    assert [it["name"] for it in two["tools"]] == ["find_tools", "call_tool"]
    changes = (await operator.asks("run", "compare", whole["id"], one["id"]))["changes"]
    assert {(it["tool"], it["change"]) for it in changes} == {
        ("crm_found_add_contact", "removed"),
        ("crm_found_find_contact", "removed"),
    }


@requirement("command:doctor")
async def test_the_doctor_finds_a_fleet_well_and_says_what_is_not(
    empty_fleet: Fleet, operator: Operator
) -> None:
    bad = crm("2.0", "crm-ill")
    await empty_fleet.http.post("/v1/servers", json={**bad, "command": "/nowhere/no-server"})

    async def seen() -> bool:
        findings = (await empty_fleet.http.get("/v1/checkup")).json()["findings"]
        ill = [it for it in findings if it["check"] == "server crm-ill"]
        return bool(ill) and "no-server" in ill[0]["what"]

    await until(seen, within_s=LIMIT_S, every_s=0.2)
    said = await operator.types("doctor", status=1)
    await empty_fleet.http.delete("/v1/servers/crm-ill")
    for check in ("API", "database", "broker", "steward", "clock", "schema"):
        assert f"ok      {check}: " in said
    assert "failed  server crm-ill: " in said


@requirement("command:doctor")
async def test_the_doctor_says_that_no_fleet_answers(operator: Operator) -> None:
    operator.environment["TOOLFLEET_URL"] = "http://127.0.0.1:1"
    assert "toolfleet up" in await operator.types("doctor", status=1)


@requirement("audit:commands", "audit:checkpoints")
async def test_the_audit_of_a_fleet_is_sealed_signed_exported_and_verified(
    empty_fleet: Fleet, operator: Operator, tmp_path: Path
) -> None:
    folder = empty_fleet.local.folder.path
    assert (folder / "audit.key").stat().st_mode & 0o077 == 0
    await empty_fleet.run("audited")
    export = tmp_path / "audit.jsonl"

    async def sealed() -> bool:
        await operator.types("audit", "export", "-o", str(export), "--tenant", "audited")
        return b'"event":"run.started"' in b"".join(
            line for line in export.read_bytes().splitlines() if b'"seq":null' not in line
        )

    await until(sealed, within_s=LIMIT_S)
    offline = ("--public-key", str(folder / "audit.pub"), "--checkpoints", str(folder / "none"))
    (folder / "none").touch()

    async def signed() -> bool:
        verdict = await operator.asks("audit", "verify", str(export), *offline)
        await operator.types("audit", "export", "-o", str(export), "--tenant", "audited")
        return verdict["checkpoints"] == 1

    await until(signed, within_s=LIMIT_S)
    verdict = await operator.asks("audit", "verify")
    assert verdict["problems"] == []
    assert verdict["checkpoints"] >= 1
    assert (folder / "audit-checkpoints.jsonl").read_bytes().count(b"\n") >= 1
