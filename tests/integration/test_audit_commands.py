"""`toolfleet audit` where no fleet runs: an export is verified, old entries go, a key is made."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from compose.cli import app
from registry import audit
from registry.database import Database
from registry.export import Wanted, json_lines
from registry.settings import get_settings
from tests.requirements import requirement
from workers.notary import Notary

pytestmark = pytest.mark.anyio


class Auditor:
    """Somebody at a shell, with the data folder of a fleet."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database = database
        self.folder = folder
        self.notary = Notary(get_settings(), database)

    async def types(self, *arguments: str) -> Result:
        return await asyncio.to_thread(CliRunner().invoke, app, ["audit", *arguments])

    async def verdict(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        result = await self.types("verify", *arguments, "--json")
        return result.exit_code, json.loads(result.output)

    async def write(self, count: int) -> None:
        async with self.database.transaction() as connection:
            for _ in range(count):
                await audit.record(connection, "somebody", "thing.done", {}, tenant="acme")
        await self.notary.seal_audit()
        await self.notary.sign_audit()

    async def export(self) -> str:
        pages = [page async for page in json_lines(self.database, Wanted())]
        path = self.folder / "export.jsonl"
        path.write_bytes(b"".join(line for page in pages for line in page))
        return str(path)


@pytest.fixture
def _settings(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TOOLFLEET_DATABASE_URL", database_url)
    monkeypatch.setenv("TOOLFLEET_DATA_DIR", str(tmp_path))
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


@pytest.fixture
async def auditor(_settings: None, database: Database, tmp_path: Path) -> Auditor:
    auditor = Auditor(database, tmp_path)
    made = await auditor.types("key", "--new")
    assert made.output.startswith("ed25519 "), made.output
    return auditor


@requirement("audit:commands")
async def test_an_export_is_verified_from_files_alone(auditor: Auditor) -> None:
    await auditor.write(5)
    export = await auditor.export()
    status, verdict = await auditor.verdict(export)
    assert (status, verdict["sound"], verdict["entries"]) == (0, True, 5)
    assert verdict["notes"] == []
    lines = Path(export).read_text().splitlines()
    Path(export).write_text("\n".join(line for line in lines if '"seq":3,' not in line))
    status, verdict = await auditor.verdict(export)
    assert status == 1
    assert ("deleted", "acme", 3) in {
        (it["kind"], it["chain"], it["seq"]) for it in verdict["problems"]
    }
    shown = await auditor.types("verify", export)
    assert "entries 3 to 3 are missing" in shown.output


@requirement("audit:commands")
async def test_without_keys_or_checkpoints_it_says_what_it_cannot_see(auditor: Auditor) -> None:
    await auditor.write(2)
    export = await auditor.export()
    for path in (auditor.folder / "audit.pub", auditor.folder / "audit-checkpoints.jsonl"):
        path.rename(path.with_suffix(".away"))
    status, verdict = await auditor.verdict(export)
    assert (status, {it["kind"] for it in verdict["problems"]}) == (1, {"signature"})
    assert ["no public key" in verdict["notes"][0], "outside" in verdict["notes"][1]] == [True] * 2
    given = ("--public-key", str(auditor.folder / "audit.away"))
    status, verdict = await auditor.verdict(export, *given)
    assert (status, len(verdict["notes"])) == (0, 1)


@requirement("audit:commands", "audit:retention")
async def test_old_entries_are_removed_by_a_command(auditor: Auditor) -> None:
    await auditor.write(6)
    assert "removed" in (await auditor.types("prune", "--before", "2020-01-31")).output
    pruned = await auditor.types("prune", "--before", "2999-01-31T00:00:00+01:00", "--json")
    assert json.loads(pruned.output) == {"removed": 5, "chains": {"acme": 5}}
    await auditor.write(1)
    status, verdict = await auditor.verdict(await auditor.export())
    assert (status, verdict["problems"]) == (0, [])
    assert (await auditor.types("prune", "--before", "soon")).exit_code == 2


@requirement("audit:commands", "audit:checkpoints")
async def test_a_new_key_signs_from_then_on_and_the_old_one_still_counts(auditor: Auditor) -> None:
    await auditor.write(1)
    both = (await auditor.types("key", "--new")).output
    assert len(both.splitlines()) == 2
    await auditor.write(1)
    checkpoints = (auditor.folder / "audit-checkpoints.jsonl").read_text().splitlines()
    used = [json.loads(line)["key"] for line in checkpoints]
    assert used == [line.split()[1] for line in both.splitlines()]
    assert (await auditor.verdict(await auditor.export()))[0] == 0
