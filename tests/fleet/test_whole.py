"""A fleet from its start to its end: what it needs, and what it leaves."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from compose.embedded import EmbeddedPostgres, EmbeddedRedis, free_port
from compose.migrate import upgrade_database
from registry import tenants
from registry.database import Database
from registry.tenants import Role
from tests.fleet.driver import family, living, running
from tests.requirements import requirement
from tests.waiting import until

pytestmark = pytest.mark.anyio


@requirement("fleet:leaves-no-process")
@pytest.mark.long
async def test_a_fleet_that_stops_in_mid_call_leaves_no_process(folder: Path) -> None:
    before = family()
    async with running(folder, environment={"TOOLFLEET_DRAIN_GRACE": "0.5"}) as fleet:
        await fleet.serve(fleet.echo("local"))
        run, journal = await fleet.run(), fleet.journal("local")
        await fleet.submit(run, "local_sleep", seconds=60, token="sleeps")
        await fleet.submit(run, "local_block", seconds=60)
        await journal.saw("started", "sleeps")
        during = family() - before
    assert len(during) > 7
    assert living(during) == set()
    assert family() - before == set()


@asynccontextmanager
async def api_process(database_url: str, redis_url: str) -> AsyncIterator[str]:
    """Run the API by itself; yield its address once it answers at all."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "compose.cli", "api",
        env={
            **os.environ,
            "TOOLFLEET_DATABASE_URL": database_url,
            "TOOLFLEET_REDIS_URL": redis_url,
            "TOOLFLEET_SECRET_KEY": "a signing key of at least thirty-two bytes",
            "TOOLFLEET_API_PORT": str(port),
        },
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"

    async def alive() -> bool:
        async with httpx2.AsyncClient() as http:
            try:
                return (await http.get(f"{url}/healthz")).is_success
            except httpx2.HTTPError:
                return False

    try:
        await until(alive)
        yield url
    finally:
        process.terminate()
        await process.wait()


@requirement("fleet:starts-without-postgres")
async def test_an_api_that_starts_without_postgres_says_so_and_recovers(folder: Path) -> None:
    postgres, redis = EmbeddedPostgres(folder, durable=False), EmbeddedRedis(folder, durable=False)
    database_url, redis_url = await postgres.start(), await redis.start()
    await asyncio.to_thread(upgrade_database, database_url)
    database = Database(database_url)
    _, key = await tenants.create_key(database, name="test", role=Role.OPERATOR)
    await database.close()
    await postgres.stop()
    try:
        async with (
            api_process(database_url, redis_url) as url,
            httpx2.AsyncClient(
                base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=30
            ) as http,
        ):
            refused = await http.post("/v1/runs", json={"tenant": "acme"})
            assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
            assert refused.json()["retryable"] is True
            assert refused.json()["hint"]
            assert (await http.get("/readyz")).status_code == 503
            await postgres.start()

            async def ready() -> bool:
                return (await http.get("/readyz")).is_success

            await until(ready)
            assert (await http.post("/v1/runs", json={"tenant": "acme"})).status_code == 201
    finally:
        await redis.stop()
        await postgres.stop()
