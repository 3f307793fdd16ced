"""Bring a database to the shape this release needs."""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from registry import tenants
from registry.database import Database


def migrations_folder() -> Path:
    """Return where the installed package keeps its migrations."""
    spec = find_spec("migrations")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("the package migrations is not installed: install toolfleet again")
    return Path(spec.submodule_search_locations[0])


def newest_revision() -> str | None:
    """Return the revision that this release's schema has."""
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    return ScriptDirectory.from_config(config).get_current_head()


def upgrade_database(url: str) -> None:
    """Apply every migration that ``url`` does not have yet; harmless when it has them all.

    Raises SQLAlchemy's `OperationalError` when the database is away or a lock is not to be had.
    """
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    config.attributes["url"] = url
    command.upgrade(config, "head")


def adopt_operator_key(url: str, plaintext: str) -> None:
    """Make a key that was made elsewhere an operator's; harmless when it is one, or was.

    Raises `ValueError` for one that might be guessed.
    """

    async def adopt() -> None:
        database = Database(url, pool_size=1, application="toolfleet migrate")
        try:
            await tenants.adopt_operator_key(database, plaintext)
        finally:
            await database.close()

    asyncio.run(adopt())
