"""The migrations make the tables that the code believes in."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection

from compose.migrate import upgrade_database
from registry.database import Database
from registry.tables import metadata
from tests.requirements import requirement

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
PREVIOUS = "50af84b"
"""The newest commit whose schema ended with revision 0002: what may run beside today's code."""
OLD_TESTS = ("test_calls.py", "test_runs.py", "test_ingest.py", "test_steward_leases.py")


def _differences(connection: Connection) -> list[object]:
    context = MigrationContext.configure(
        connection, opts={"compare_type": True, "compare_server_default": True}
    )
    return list(compare_metadata(context, metadata))


@requirement("migrations:models-equal-schema")
async def test_the_migrated_schema_is_what_the_models_say(database: Database) -> None:
    async with database.transaction() as connection:
        assert await connection.run_sync(_differences) == []


@requirement("migrations:repeatable")
async def test_migrating_a_migrated_database_changes_nothing(
    database: Database, database_url: str
) -> None:
    await asyncio.to_thread(upgrade_database, database_url)
    async with database.transaction() as connection:
        assert await connection.run_sync(_differences) == []


def _code_of(commit: str, folder: Path) -> None:
    """Write the code of a commit into a folder."""
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True)
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)


@requirement("migrations:old-code-runs")
@pytest.mark.long
@pytest.mark.timeout(240)
def test_the_code_of_the_revision_before_runs_on_todays_pre_schema(tmp_path: Path) -> None:
    known = subprocess.run(
        ["git", "cat-file", "-e", f"{PREVIOUS}^{{commit}}"], cwd=ROOT, check=False
    )
    if known.returncode:
        pytest.skip(f"this tree has no history: commit {PREVIOUS} is not in it")
    _code_of(PREVIOUS, tmp_path)
    plugin = tmp_path / "todays_schema.py"
    plugin.write_text(
        "from pathlib import Path\n"
        "import compose.migrate\n"
        f"compose.migrate.migrations_folder = lambda: Path({str(ROOT / 'migrations')!r})\n"
    )
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "todays_schema", "-p", "no:cacheprovider",
         "-p", "no:randomly", *(f"tests/integration/{name}" for name in OLD_TESTS)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-4000:]
    assert int(re.findall(r"(\d+) passed", ran.stdout)[-1]) > 80


@requirement("migrations:up-and-down")
def test_the_newest_migrations_can_be_undone_and_done_again(database_url: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(ROOT / "migrations"))
    config.attributes["url"] = database_url
    command.downgrade(config, "0002")
    command.upgrade(config, "head")


@requirement("migrations:names")
def test_each_migration_says_whether_it_comes_before_or_after_its_code() -> None:
    names = sorted(path.name for path in (ROOT / "migrations" / "versions").glob("*.py"))
    assert all(re.fullmatch(r"\d{4}_(pre|post)_[a-z0-9_]+\.py", name) for name in names)
    assert [int(name[:4]) for name in names] == list(range(1, len(names) + 1))
