"""A fleet whose parts are Redis users of their own, as compose/redis/users.acl says."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from compose.container_secrets import make_secrets
from compose.embedded import EmbeddedRedis
from compose.local import toolfleet_command
from tests.fleet.driver import Fleet, running, script
from tests.fleet.test_celery import RAW_CLIENT
from tests.requirements import requirement
from tests.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.long, pytest.mark.timeout(240)]

LIMIT_S = 100
ROLES = ("api", "steward", "worker", "flower")
LIMITED = {"name": "limited", "limits": {"calls_per_minute": 600, "concurrent_calls": 5}}
LIBRARY = "client"
"""redis-py asks to hear of maintenance, which only Redis' own service knows; it goes on without."""
FORBIDDEN = (
    ("flushall",),
    ("config", "get", "*"),
    ("client", "list"),
    ("acl", "list"),
    ("keys", "*"),
    ("get", "somebody:else"),
    ("publish", "somebody:else", "x"),
    ("debug", "sleep", "0"),
)


class RedisWithUsers(EmbeddedRedis):
    """The embedded Redis with a file of users, and an administrator for the test."""

    def __init__(self, data_dir: Path, users: Path) -> None:
        super().__init__(data_dir, durable=False)
        self._users = users

    def _configure(self) -> Path:
        path = super()._configure()
        users = path.with_name("users.acl")
        # The embedded server is asked whether it answers by the default user.
        default = f"user default on >{self._password} ~* &* +@all\n"
        users.write_text(default + self._users.read_text().partition("\n")[2])
        kept = [it for it in path.read_text().splitlines() if not it.startswith("requirepass")]
        path.write_text("\n".join([*kept, f'aclfile "{users}"', "acllog-max-len 1000", ""]))
        return path


@asynccontextmanager
async def with_users(folder: Path) -> AsyncIterator[RedisWithUsers]:
    """Run a Redis with new users in a folder."""
    make_secrets(folder / "secrets")
    redis = RedisWithUsers(folder, folder / "secrets" / "redis_users.acl")
    await redis.start()
    yield redis
    await redis.stop()


@pytest.fixture(scope="module")
async def redis(anyio_backend: str, folder: Path) -> AsyncIterator[RedisWithUsers]:
    """The Redis of the fleet: what it refuses is refused to our parts."""
    async with with_users(folder) as redis:
        yield redis


@pytest.fixture(scope="module")
async def other_redis(anyio_backend: str, folder: Path) -> AsyncIterator[RedisWithUsers]:
    """A Redis with the same kinds of users, and no fleet."""
    (folder / "other").mkdir()
    async with with_users(folder / "other") as redis:
        yield redis


@pytest.fixture(scope="module")
async def fleet(redis: RedisWithUsers, folder: Path) -> AsyncIterator[Fleet]:
    def command(role: str, *rest: str) -> list[str]:
        url = url_of(redis, role)
        return ["env", f"TOOLFLEET_REDIS_URL={url}", *toolfleet_command(role, *rest)]

    async with running(folder, redis_url=redis.url, command=command) as fleet:
        local = fleet.sleeper("local", quota={"calls_per_minute": 6000})
        await fleet.serve(local, within_s=LIMIT_S)
        yield fleet


def url_of(redis: RedisWithUsers, user: str) -> str:
    """Return the URL of a user at the Redis of the test."""
    folder = redis._data.parent / "secrets"
    password = urlsplit((folder / f"redis_url_{user}").read_text().strip()).password
    return f"redis://{user}:{password}@127.0.0.1:{urlsplit(redis.url).port}/0"


async def refused(redis: RedisWithUsers) -> list[dict[str, Any]]:
    """Return what Redis has refused to our parts."""
    async with Redis.from_url(redis.url, protocol=2) as admin:
        return [it for it in await admin.acl_log() if it["object"] != LIBRARY]


@requirement("containers:redis-users")
async def test_calls_stops_limits_breakers_and_flower_need_no_other_rights(
    fleet: Fleet, redis: RedisWithUsers
) -> None:
    (await fleet.http.put("/v1/tiers/limited", json=LIMITED)).raise_for_status()
    (await fleet.http.put("/v1/tenants/acme", json={"tier": "limited"})).raise_for_status()
    run = await fleet.run()
    calls = [await fleet.call(run, "local_echo", text=f"{n}") for n in range(20)]
    assert {it["state"] for it in calls} == {"succeeded"}

    stopped = await fleet.submit(run, "local_sleep", seconds=30, token="stopped")
    await fleet.journal("local").saw("started", "stopped")
    await fleet.cancel(stopped)
    assert (await fleet.ended(stopped))["state"] == "stopped"

    wish = json.dumps([run["run_token"], "local_echo", {"text": "raw"}, None])
    url = url_of(redis, "orchestrator")
    raw = json.loads(await script(RAW_CLIENT, url, "1", secrets.token_hex(8), wish))
    assert raw["state"] == "SUCCESS"

    for state in ("open", "closed"):
        answer = await fleet.http.post("/v1/servers/local/breaker", json={"state": state})
        answer.raise_for_status()
    assert (await fleet.http.get("/metrics")).is_success
    assert (await fleet.http.get("/v1/checkup")).is_success

    async def shown() -> bool:
        answer = await fleet.flower.get("/api/workers", params={"refresh": "true"})
        return answer.is_success and len(answer.json()) == 2

    await until(shown)
    assert (await fleet.flower.get("/api/queues/length")).is_success
    assert await refused(redis) == []


@pytest.mark.parametrize("user", [*ROLES, "orchestrator", "scaler"])
@requirement("containers:redis-users")
async def test_nobody_may_change_redis_or_look_at_what_is_not_theirs(
    other_redis: RedisWithUsers, user: str
) -> None:
    async with Redis.from_url(url_of(other_redis, user), protocol=2) as client:
        for command in FORBIDDEN:
            with pytest.raises(NoPermissionError):
                await client.execute_command(*command)


@requirement("containers:redis-users")
async def test_what_scales_workers_may_count_a_queue(other_redis: RedisWithUsers) -> None:
    async with Redis.from_url(url_of(other_redis, "scaler"), protocol=2) as client:
        counting = "return redis.call('type', KEYS[1]).ok == 'none' and redis.call('llen', KEYS[1])"
        assert await client.eval(counting, 1, "mcp.local") == 0
        with pytest.raises(NoPermissionError):
            await client.lrange("mcp.local", 0, -1)
