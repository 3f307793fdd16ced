"""Bring a database to the shape this release needs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory


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
