"""Real servers for tests: one private Postgres and Redis per session, a fresh database per test."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from redis.asyncio import Redis

from compose.embedded import EmbeddedPostgres, EmbeddedRedis
from compose.migrate import upgrade_database
from registry.database import Database

TEMPLATE = "toolfleet"


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def session_dir() -> Iterator[Path]:
    """A folder of this test session, with a path short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="toolfleet-tests-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
async def postgres_url(anyio_backend: str, session_dir: Path) -> AsyncIterator[str]:
    """The URL of the session's Postgres; its database `toolfleet` is the migrated template."""
    postgres = EmbeddedPostgres(session_dir, durable=False)
    url = await postgres.start()
    await asyncio.to_thread(upgrade_database, url)
    yield url
    await postgres.stop()


@pytest.fixture
def database_url(postgres_url: str) -> Iterator[str]:
    """The URL of a fresh database with the product's tables, this test's alone."""
    name = f"test_{uuid.uuid4().hex}"
    admin_url = postgres_url.replace("/toolfleet?", "/postgres?")
    create = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
    drop = sql.SQL("DROP DATABASE {} WITH (FORCE)")
    with psycopg.connect(admin_url, autocommit=True) as connection:
        connection.execute(create.format(sql.Identifier(name), sql.Identifier(TEMPLATE)))
        yield postgres_url.replace("/toolfleet?", f"/{name}?")
        connection.execute(drop.format(sql.Identifier(name)))


@pytest.fixture
async def database(anyio_backend: str, database_url: str) -> AsyncIterator[Database]:
    """The registry on a fresh database."""
    database = Database(database_url, application="toolfleet tests")
    yield database
    await database.close()


@pytest.fixture(scope="session")
async def _redis(anyio_backend: str, session_dir: Path) -> AsyncIterator[EmbeddedRedis]:
    redis = EmbeddedRedis(session_dir, durable=False)
    await redis.start()
    yield redis
    await redis.stop()


@pytest.fixture
async def redis_url(anyio_backend: str, _redis: EmbeddedRedis) -> str:
    """The URL of the session's Redis, emptied for this test."""
    async with Redis.from_url(_redis.url) as client:
        await client.flushall()
    return _redis.url
