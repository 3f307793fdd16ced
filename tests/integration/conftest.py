"""What the integration tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from registry.database import Database
from tests.brokering import Keys, Tenancy
from tests.conftest import fresh_database
from tests.serving import Api, serving


@pytest.fixture(scope="module")
def shared_database_url(postgres_url: str) -> Iterator[str]:
    """A database that the tests of one module share."""
    with fresh_database(postgres_url) as url:
        yield url


@pytest.fixture(scope="module")
async def shared_api(
    anyio_backend: str, shared_database_url: str, _redis_url: str
) -> AsyncIterator[Api]:
    """A running API that the tests of one module share."""
    database = Database(shared_database_url, application="toolfleet tests")
    async with serving(database, _redis_url) as api:
        yield api
    await database.close()


@pytest.fixture
async def api(database: Database, redis_url: str) -> AsyncIterator[Api]:
    """A running API that nothing else uses."""
    async with serving(database, redis_url) as api:
        yield api


@pytest.fixture
async def emptied_api(shared_api: Api) -> AsyncIterator[Api]:
    """The API that a module's tests share, which has no servers again after each of them."""
    yield shared_api
    for server in (await shared_api.http.get("/v1/servers")).json()["servers"]:
        await shared_api.http.delete(f"/v1/servers/{server['name']}")


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    """A file of encryption keys, with one in it."""
    return Keys(tmp_path / "encryption.keys")


@pytest.fixture
async def tenancy(database: Database, database_url: str, tmp_path: Path) -> Tenancy:
    """A registry with server `crm` and no credentials."""
    return await Tenancy.open(database, tmp_path, database_url)
