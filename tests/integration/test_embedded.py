"""The private PostgreSQL and Redis, as real processes on real files."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError

from compose.embedded import EmbeddedPostgres, EmbeddedRedis
from tests.requirements import requirement

pytestmark = pytest.mark.anyio


@pytest.fixture
def data_dir() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="toolfleet-embedded-"))
    yield folder
    shutil.rmtree(folder)


async def _write(postgres_url: str, redis_url: str) -> None:
    async with await psycopg.AsyncConnection.connect(postgres_url) as connection:
        await connection.execute("CREATE TABLE kept AS SELECT 'a row' AS what")
    async with Redis.from_url(redis_url) as client:
        await client.set("kept", "a key")


async def _read(postgres_url: str, redis_url: str) -> tuple[str, bytes]:
    async with await psycopg.AsyncConnection.connect(postgres_url) as connection:
        row = await (await connection.execute("SELECT what FROM kept")).fetchone()
    async with Redis.from_url(redis_url) as client:
        return (row or ("nothing",))[0], await client.get("kept") or b"nothing"


@requirement("local:embedded-data-survives")
async def test_data_written_before_a_stop_is_there_after_a_start(data_dir: Path) -> None:
    postgres, redis = EmbeddedPostgres(data_dir), EmbeddedRedis(data_dir)
    try:
        await _write(await postgres.start(), await redis.start())
        await postgres.stop()
        await redis.stop()
        kept = await _read(await postgres.start(), await redis.start())
    finally:
        await postgres.stop()
        await redis.stop()
    assert kept == ("a row", b"a key")


@requirement("local:leaves-nothing")
async def test_a_stop_leaves_no_process_no_socket_and_no_pid_file(data_dir: Path) -> None:
    postgres, redis = EmbeddedPostgres(data_dir), EmbeddedRedis(data_dir)
    await postgres.start()
    await redis.start()
    servers = [psutil.Process(pid) for pid in (postgres.pid, redis.pid)]
    family = [*servers, *(child for server in servers for child in server.children())]
    await postgres.stop()
    await redis.stop()
    left = [path.name for path in data_dir.rglob("*") if path.is_socket() or ".pid" in path.name]
    assert ([process for process in family if process.is_running()], left) == ([], [])


@requirement("local:recovers-from-crash")
async def test_a_killed_server_is_started_again_on_the_data_it_left(data_dir: Path) -> None:
    postgres, redis = EmbeddedPostgres(data_dir), EmbeddedRedis(data_dir)
    try:
        await _write(await postgres.start(), await redis.start())
        # Redis writes to its file before it answers; only the fsync comes later.
        for server in (postgres, redis):
            server.kill()
            await server.wait()
        kept = await _read(await postgres.start(), await redis.start())
    finally:
        await postgres.stop()
        await redis.stop()
    assert kept == ("a row", b"a key")


@requirement("local:recovers-from-crash")
async def test_a_server_that_lost_its_parent_is_ended_before_its_data_is_used(
    data_dir: Path,
) -> None:
    orphan, successor = EmbeddedPostgres(data_dir, durable=False), EmbeddedPostgres(data_dir)
    await orphan.start()
    pid = orphan.pid
    try:
        await successor.start()
        assert not psutil.pid_exists(pid or 0)
    finally:
        await successor.stop()
        await orphan.wait()


@requirement("local:recovers-from-crash")
async def test_a_stale_pid_file_that_names_another_process_harms_nobody(data_dir: Path) -> None:
    redis = EmbeddedRedis(data_dir, durable=False)
    (data_dir / "redis").mkdir()
    (data_dir / "redis" / "redis.pid").write_text(f"{os.getpid()}\n")
    received: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, _frame: received.append(number))
    try:
        await redis.start()
    finally:
        await redis.stop()
        signal.signal(signal.SIGINT, previous)
    assert received == []


@requirement("local:long-paths")
async def test_a_data_folder_may_lie_deeper_than_a_socket_path_can_say(data_dir: Path) -> None:
    deep = data_dir.joinpath(*["a-rather-long-folder-name"] * 6)
    assert await _select_one(EmbeddedPostgres(deep, durable=False)) == (1,)


@requirement("local:any-folder")
async def test_postgres_runs_where_other_users_may_not_enter(data_dir: Path) -> None:
    closed = data_dir / "closed"
    closed.mkdir(mode=0o700)
    assert await _select_one(EmbeddedPostgres(closed / "fleet", durable=False)) == (1,)


async def _select_one(postgres: EmbeddedPostgres) -> tuple[int] | None:
    try:
        async with await psycopg.AsyncConnection.connect(await postgres.start()) as connection:
            return await (await connection.execute("SELECT 1")).fetchone()
    finally:
        await postgres.stop()


@requirement("local:private-redis")
async def test_redis_answers_nobody_who_lacks_the_password(data_dir: Path) -> None:
    redis = EmbeddedRedis(data_dir, durable=False)
    try:
        url = await redis.start()
        async with Redis.from_url(f"redis://{url.partition('@')[2]}") as stranger:
            with pytest.raises(AuthenticationError):
                await stranger.ping()
    finally:
        await redis.stop()
