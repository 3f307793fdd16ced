"""The migrations make the tables that the code believes in."""

from __future__ import annotations

import asyncio

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection

from compose.migrate import upgrade_database
from registry.database import Database
from registry.tables import metadata
from tests.requirements import requirement

pytestmark = pytest.mark.anyio


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
