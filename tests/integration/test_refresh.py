"""When and how a worker lists its server's tools into the record; servers are real processes."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from registry import catalog, ingest
from registry.catalog import ServerVersion
from registry.database import Database
from registry.definitions import parse_definition
from registry.errors import Code, FleetError
from registry.settings import Settings
from tests.changing import Changing, changing
from tests.faulty import over_stdio
from tests.ledger import listed, register
from tests.requirements import requirement
from tests.waiting import until
from workers.runtime import WorkerRuntime

pytestmark = pytest.mark.anyio


@pytest.fixture
def settings(database_url: str, redis_url: str) -> Settings:
    return Settings(
        database_url=database_url, redis_url=redis_url, drain_grace=timedelta(0), _env_file=None
    )


@asynccontextmanager
async def working(settings: Settings, server: str) -> AsyncIterator[WorkerRuntime]:
    worker = WorkerRuntime(server, settings)
    await worker.open()
    try:
        yield worker
    finally:
        await worker.close()


@pytest.fixture
async def child(tmp_path: Path) -> AsyncIterator[Changing]:
    async with changing("stdio", tmp_path / "server") as server:
        yield server


async def add(database: Database, server: Changing, **rest: Any) -> None:
    definition = parse_definition(server.definition(**rest))
    await catalog.add_server(database, definition, actor="test")


async def tools_of(database: Database, server: str = "changing") -> tuple[str, ...]:
    return (await catalog.get_server(database, server)).tools


async def lists(database: Database, *tools: str) -> None:
    """Return once the record has these tools of the server."""

    async def same() -> bool:
        return await tools_of(database) == tools

    await until(same)


# -- what was heard


@requirement("listing:heard")
async def test_a_worker_lists_the_tools_of_its_server_when_they_change(
    database: Database, settings: Settings, child: Changing
) -> None:
    await add(database, child)
    async with working(settings, "changing"):
        assert await tools_of(database) == ("first",)
        child.says("first", "second")
        await lists(database, "first", "second")
        child.says("second")
        await lists(database, "second")


@requirement("listing:answers-news")
async def test_a_worker_that_starts_lists_what_changed_while_there_was_none(
    database: Database, settings: Settings, child: Changing
) -> None:
    await add(database, child)
    async with working(settings, "changing"):
        pass
    child.says("first", "second")
    async with working(settings, "changing"):
        await lists(database, "first", "second")


@requirement("listing:paced")
async def test_a_server_that_tells_a_thousand_times_a_second_is_listed_once_a_second(
    database: Database, settings: Settings, child: Changing
) -> None:
    await add(database, child)
    async with working(settings, "changing"):
        child.storm(on=True)
        await until(lambda: child.count("listed") >= 2)
        before, began = child.count("listed"), time.monotonic()
        # Two whole intervals, whenever in one it begins.
        await until(lambda: child.count("listed") >= before + 3)
        assert time.monotonic() - began > 1.5
        child.says("first", "second")
        await lists(database, "first", "second")


@requirement("listing:one-stream")
async def test_over_http_only_the_version_that_is_followed_is_listened_to(
    database: Database, settings: Settings, tmp_path: Path
) -> None:
    async with changing("http", tmp_path / "server") as server:
        await add(database, server)
        async with working(settings, "changing"):
            await until(lambda: server.count("listening") == 1)
            newer = parse_definition(server.definition(version="2"))
            await catalog.add_version(database, newer, actor="test")
            await until(lambda: (server.count("listening"), server.count("left")) == (2, 1))
        await until(lambda: server.count("left") == 2)


# -- another server in its place


@requirement("listing:introductions")
async def test_a_child_that_was_upgraded_in_place_is_listed_and_called_as_it_is_now(
    database: Database, settings: Settings, tmp_path: Path
) -> None:
    async with changing("stdio", tmp_path / "server", "--silent") as server:
        await add(database, server, pool={"min_idle": 2, "max_size": 4})
        async with working(settings, "changing") as worker:
            (served,) = worker._versions.ready()
            server.says("first", "second", version="2")
            async with served.pool.borrow(await served.keyring.listing_key(), 20) as lease:
                lease.discard("grown")  # so that one of the two is replaced
            await lists(database, "first", "second")
            await until(lambda: served.pool.stats().closed_total == {"grown": 1, "outdated": 1})


@requirement("listing:introductions")
async def test_sessions_that_introduce_themselves_alike_cost_no_listing(
    database: Database, settings: Settings, tmp_path: Path
) -> None:
    async with changing("stdio", tmp_path / "server", "--silent") as server:
        await add(database, server, pool={"min_idle": 2, "max_size": 4})
        async with working(settings, "changing") as worker:
            (served,) = worker._versions.ready()
            await until(lambda: served.listening.ears == 2 and not served.watch.pending)
            before, key = server.count("listed"), await served.keyring.listing_key()
            for opened in (3, 4, 5):
                async with served.pool.borrow(key, 20) as lease:
                    lease.discard("test")
                await until(lambda opened=opened: served.pool.stats().opened_total == opened)
                await until(lambda: served.listening.ears == 2)
            assert (server.count("listed"), served.watch.pending) == (before, False)


# -- a listing that cannot be taken


@requirement("listing:bounded")
@pytest.mark.parametrize(
    ("mode", "code"),
    [("many_tools", Code.LIMIT_EXCEEDED), ("large_tools_are_texts", Code.PROTOCOL_ERROR)],
)
async def test_a_server_that_lists_what_cannot_be_taken_stays_with_its_last_good_listing(
    database: Database, settings: Settings, mode: str, code: Code
) -> None:
    definition = over_stdio("fault.py", "--start", mode)
    await register(database, definition, listed("good"))
    async with working(settings, "faulty"):

        async def failed() -> ServerVersion | None:
            server = await catalog.get_server(database, "faulty")
            return server if server.refresh_error else None

        server = await until(failed)
        assert server is not None
        assert (server.tools, server.stale) == (("good",), True)
        assert server.refresh_error is not None
        assert server.refresh_error["code"] == code.code
        assert "server faulty" in server.refresh_error["message"]
        assert server.refresh_error["hint"]


@requirement("listing:bounded")
async def test_a_tool_that_is_nested_too_deeply_is_refused(database: Database) -> None:
    nested: dict[str, Any] = {}
    for _ in range(5_000):
        nested = {"x": nested}
    definition = over_stdio("fault.py")
    version = await register(database, definition, listed("good"))
    with pytest.raises(FleetError, match="definition of tool 'deep' is not valid JSON") as refused:
        await ingest.ingest(database, version, definition, [listed("deep", outputSchema=nested)])
    assert refused.value.code is Code.PROTOCOL_ERROR
