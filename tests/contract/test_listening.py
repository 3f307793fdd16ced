"""How a worker hears that a server's tools changed; servers and subscriptions are real."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from registry.credentials import FileProvider
from registry.definitions import ServerDefinition, parse_definition
from registry.errors import FleetError
from tests.changing import KINDS, PATIENCE_S, Changing, Kind, changing
from tests.faulty import Face, Faulty, faulty
from tests.requirements import requirement
from tests.waiting import until
from workers import subscription
from workers.keyring import Keyring
from workers.lending import SessionKey
from workers.listening import Listening
from workers.pool import SessionPool
from workers.session import Session
from workers.watching import ListingWatch

pytestmark = [pytest.mark.anyio, pytest.mark.long]

KEY = SessionKey(1)
HTTP: tuple[Kind, ...] = ("http", "http-legacy")


class Follower:
    """What a worker has of a server version: its sessions, and its ears."""

    def __init__(self, definition: ServerDefinition, secrets: Path | None = None) -> None:
        self.definition = definition
        self.told = 0
        self.watch = ListingWatch(self._tell)
        self.keyring = Keyring(KEY.server_version_id, definition, FileProvider(secrets))
        self.opened: list[Session] = []
        self.listening = Listening(self.watch, self.keyring, self._open)
        self.pool = SessionPool(definition.name, definition.pool, self.listening.open)

    def _tell(self) -> None:
        self.told += 1

    async def _open(self, key: SessionKey) -> Session:
        session = await Session.open(
            self.definition,
            credential=await self.keyring.credential(key),
            connect_timeout_s=PATIENCE_S,
            stop_grace_s=1.0,
            max_result_bytes=10**6,
        )
        self.keyring.opened(session, key)
        self.opened.append(session)
        return session

    async def listed(self) -> list[str]:
        """List the tools as a worker does; what was heard before is answered."""
        self.watch.begin()
        key = await self.keyring.listing_key()
        async with self.pool.borrow(key, PATIENCE_S) as lease:
            tools = await lease.session.list_tools()
            self.watch.succeeded(lease.session.introduction, key, changed=True)
        return [tool["name"] for tool in tools]

    async def tried(self) -> list[str]:
        """List the tools; none while that fails."""
        with suppress(FleetError):
            return await self.listed()
        return []

    async def settled(self) -> None:
        """Return once somebody listens, and what was heard until then is answered."""
        await until(lambda: self.listening.ears)
        await self.listed()
        assert not self.watch.pending

    async def close(self) -> None:
        """Close it as a served version is."""
        await asyncio.gather(self.listening.close(), self.pool.close())


@asynccontextmanager
async def following(
    document: dict[str, Any], secrets: Path | None = None, **pool: Any
) -> AsyncIterator[Follower]:
    """Follow a server, with a warm session or more."""
    pool = {"min_idle": 1, "max_size": 4, **pool}
    follower = Follower(parse_definition({**document, "pool": pool}), secrets)
    follower.listening.start()
    try:
        await follower.pool.start(await follower.keyring.listing_key())
        yield follower
    finally:
        await follower.close()


@pytest.fixture(params=KINDS)
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Changing]:
    async with changing(request.param, tmp_path / "server") as server:
        yield server


@pytest.fixture
async def web(tmp_path: Path) -> AsyncIterator[Changing]:
    async with changing("http", tmp_path / "server") as server:
        yield server


@pytest.fixture
async def child(tmp_path: Path) -> AsyncIterator[Changing]:
    async with changing("stdio", tmp_path / "server") as server:
        yield server


# -- a change


@requirement("listing:heard")
async def test_a_tool_that_is_added_while_the_server_runs_is_heard_of(server: Changing) -> None:
    async with following(server.definition()) as follower:
        await follower.settled()
        told = follower.told
        server.says("first", "second")
        await until(lambda: follower.watch.pending)
        assert follower.told == told + 1
        assert await follower.listed() == ["first", "second"]


@requirement("listing:heard")
async def test_nothing_is_heard_of_a_server_that_changes_nothing(server: Changing) -> None:
    async with following(server.definition()) as follower:
        await follower.settled()
        async with follower.pool.borrow(KEY, PATIENCE_S) as lease:
            await lease.session.call_tool("first", {}, timeout_s=PATIENCE_S)
        assert not follower.watch.pending


@requirement("listing:heard")
async def test_a_change_that_is_told_in_the_handshake_is_heard_of(tmp_path: Path) -> None:
    async with misbehaving("stdio", tmp_path, "tells_early", era="legacy", min_idle=2) as (
        _,
        follower,
    ):
        await follower.settled()
        first = follower.opened[0]
        follower.pool.retire(lambda session: "old" if session is first else "")
        await until(lambda: len(follower.opened) == 3 and follower.watch.pending)


# -- who listens


@requirement("listing:one-stream")
async def test_over_http_one_session_listens_that_is_none_of_the_pools(web: Changing) -> None:
    async with following(web.definition(), min_idle=3) as follower:
        await follower.settled()
        stats = follower.pool.stats()
        assert (stats.size, len(follower.opened), web.count("listening")) == (3, 4, 1)


@requirement("listing:one-stream")
async def test_over_stdio_every_session_listens_for_itself(child: Changing) -> None:
    async with following(child.definition(), min_idle=3) as follower:
        await until(lambda: follower.listening.ears == 3)
        assert (follower.pool.stats().size, len(follower.opened)) == (3, 3)


@requirement("listing:one-stream")
@pytest.mark.parametrize("kind", KINDS)
async def test_who_listens_takes_no_room_in_the_pool(kind: Kind, tmp_path: Path) -> None:
    async with (
        changing(kind, tmp_path / "server") as server,
        following(server.definition(), min_idle=0, max_size=1) as follower,
    ):
        await follower.listed()
        await until(lambda: follower.listening.ears)
        for _ in range(3):
            async with follower.pool.borrow(KEY, PATIENCE_S) as lease:
                answer = await lease.session.call_tool("first", {}, timeout_s=PATIENCE_S)
                assert answer.body["content"][0]["text"] == "first"
        async with asyncio.timeout(PATIENCE_S):
            await follower.pool.drain()
        assert follower.pool.stats().size == 0


@requirement("listing:one-stream")
async def test_over_http_the_stream_outlives_the_sessions_of_the_pool(web: Changing) -> None:
    async with following(web.definition(), max_calls=1) as follower:
        await follower.settled()
        for _ in range(5):
            await follower.listed()
        web.says("first", "second")
        await until(lambda: follower.watch.pending)
        assert (web.count("listening"), web.count("left")) == (1, 0)


@requirement("listing:one-stream")
async def test_nobody_listens_over_http_for_a_version_that_is_not_followed(web: Changing) -> None:
    async with following(web.definition()) as follower:
        await follower.settled()
        follower.listening.stop()
        await until(lambda: web.count("left") == 1)
        assert not follower.watch.pending
        follower.listening.start()
        await until(lambda: web.count("listening") == 2)
        await until(lambda: follower.watch.pending)


@requirement("listing:one-stream", "credentials:rotation")
@pytest.mark.parametrize(("inject", "name"), [("header", "x-token"), ("meta", "io.example/token")])
async def test_who_listens_does_so_with_the_credential_of_listings_and_its_successor(
    inject: str, name: str, web: Changing, tmp_path: Path
) -> None:
    secrets = tmp_path / "secrets"

    def hand_out(secret: str) -> None:
        new = tmp_path / "new secrets"
        new.touch(0o600)
        new.write_text(json.dumps({"*": {"changing": secret}}))
        new.replace(secrets)

    hand_out("first secret")
    credentials = {"inject": inject, "name": name, "required": True}
    async with following(web.definition(credentials=credentials), secrets) as follower:
        await until(lambda: web.count("as first secret") == 1)
        hand_out("second secret")
        (newer,) = await follower.keyring.changed()
        follower.listening.rotate(newer)
        await until(lambda: web.count("as second secret") == 1)
        await until(lambda: web.count("left") == 1)


# -- what was missed


@requirement("listing:renewed")
async def test_a_session_that_follows_upon_nobody_is_news(child: Changing) -> None:
    async with following(child.definition(), min_idle=0, max_idle_s=0.2) as follower:
        await follower.listed()
        await until(lambda: not follower.pool.stats().size)
        child.says("first", "second")
        assert await follower.listed() == ["first", "second"]
        await until(lambda: follower.watch.pending)


@requirement("listing:renewed")
async def test_a_session_that_is_recycled_leaves_no_gap(child: Changing) -> None:
    async with following(child.definition(), min_idle=2) as follower:
        await until(lambda: follower.listening.ears == 2)
        await follower.settled()
        first = follower.opened[0]
        follower.pool.retire(lambda session: "old" if session is first else "")
        await until(lambda: len(follower.opened) == 3 and follower.listening.ears == 2)
        assert not follower.watch.pending


@requirement("listing:renewed")
@pytest.mark.parametrize("gently", [True, False])
@pytest.mark.parametrize("kind", HTTP)
async def test_an_http_server_that_was_restarted_is_listened_to_again(
    kind: Kind, gently: bool, tmp_path: Path
) -> None:
    async with (
        changing(kind, tmp_path / "server") as server,
        following(server.definition()) as follower,
    ):
        await follower.settled()
        await server.stop(gently=gently)
        server.says("first", "second")
        await server.start()
        await until(lambda: follower.watch.pending)
        assert await until(follower.tried) == ["first", "second"]
        await until(lambda: follower.listening.ears)
        await follower.settled()
        server.says("first", "second", "third")
        await until(lambda: follower.watch.pending)


# -- servers that misbehave


@asynccontextmanager
async def misbehaving(
    face: Face, folder: Path, mode: str, *, era: str = "modern", **pool: Any
) -> AsyncIterator[tuple[Faulty, Follower]]:
    """Follow a server that misbehaves in telling of its tools; ``era`` is for stdio."""
    args = ("--start", mode, *(("--era", era) if face == "stdio" else ()))
    async with (
        faulty(face, folder / "journal", *args) as server,
        following(server.definition.model_dump(mode="json", exclude_none=True), **pool) as follower,
    ):
        yield server, follower


async def answers(follower: Follower) -> None:
    """Make a call in a session of the pool; it succeeds and the session is kept."""
    async with follower.pool.borrow(KEY, PATIENCE_S) as lease:
        answer = await lease.session.call_tool("behave", {}, timeout_s=PATIENCE_S)
        assert answer.body["content"][0]["text"] == "here"
        assert not lease.session.poisoned


@requirement("listing:misheard")
@pytest.mark.parametrize("mode", ["listen_refused", "listen_silent", "listen_to_nothing"])
@pytest.mark.parametrize("face", ["stdio", "http"])
async def test_a_server_that_refuses_a_subscription_is_asked_again_much_later(
    face: Face, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscription, "CONFIRM_LIMIT_S", 0.2)
    async with misbehaving(face, tmp_path, mode) as (server, follower):
        wait_s = await until(lambda: follower.listening.waits_s)
        assert 4.0 < wait_s <= 10.0
        await answers(follower)
        assert (follower.listening.ears, server.count("listen")) == (0, 1)


@requirement("listing:misheard")
async def test_a_server_that_lets_nobody_subscribe_for_now_is_not_asked_before(
    tmp_path: Path,
) -> None:
    async with misbehaving("http", tmp_path, "listen_429") as (server, follower):
        assert await until(lambda: follower.listening.waits_s) > 6.0
        await answers(follower)
        assert server.count("listen") == 1


@requirement("listing:misheard", "listing:renewed")
@pytest.mark.parametrize(
    ("face", "mode"),
    [
        ("stdio", "listen_ends"),
        ("stdio", "listen_cancelled"),
        ("http", "listen_ends"),
        ("http", "listen_drops"),
    ],
)
async def test_a_subscription_that_ends_over_and_over_is_renewed_later_and_later(
    face: Face, mode: str, tmp_path: Path
) -> None:
    async with misbehaving(face, tmp_path, mode) as (server, follower):
        await until(lambda: server.count("listen") >= 3)
        assert await until(lambda: follower.listening.waits_s) > 0.5
        await answers(follower)


@requirement("listing:misheard")
async def test_a_child_that_dies_of_a_subscription_is_left_alone_in_its_next_life(
    tmp_path: Path,
) -> None:
    async with misbehaving("stdio", tmp_path, "listen_dies", min_idle=0) as (server, follower):
        await follower.tried()
        await until(lambda: follower.listening.waits_s > 0)
        await answers(follower)
        assert server.count("listen") == 1


@requirement("listing:misheard", "faults:neighbours")
@pytest.mark.parametrize(
    ("face", "mode"),
    [
        ("stdio", "listen_floods"),
        ("http", "listen_floods"),
        ("http-legacy", "streams_flood"),
    ],
)
async def test_a_server_that_tells_without_end_is_served_and_not_listened_to_all_the_time(
    face: Face, mode: str, tmp_path: Path
) -> None:
    async with misbehaving(face, tmp_path, mode) as (_, follower):
        await until(lambda: follower.watch.pending and follower.listening.ears)
        heard, began = follower.watch._news, time.monotonic()
        for _ in range(20):
            await answers(follower)
            await asyncio.sleep(0.1)
        heard_per_s = (follower.watch._news - heard) / (time.monotonic() - began)
        # A child's answers come the same way: what is held up there, it holds up itself.
        assert face == "stdio" or heard_per_s < 5_000
        assert follower.told == 0, "nobody has listed the tools since it was heard first"


@requirement("session:misses-its-peer")
@pytest.mark.skipif(sys.platform != "linux", reason="it is read from /proc")
async def test_a_connection_that_is_quiet_is_probed(web: Changing) -> None:
    async with following(web.definition()) as follower:
        await follower.settled()
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        to_server = [it for it in lines if it[2].endswith(f":{web.port:04X}") and it[3] == "01"]
        assert len(to_server) == 2, "one of the pool, and the one that listens"
        assert {timer.partition(":")[0] for _, _, _, _, _, timer, *_ in to_server} == {"02"}


# -- its end


@requirement("listing:one-stream", "soak:leaves-nothing")
@pytest.mark.parametrize("kind", KINDS)
async def test_following_a_server_leaves_no_file_and_no_task_behind(
    kind: Kind, tmp_path: Path
) -> None:
    def held() -> tuple[int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), len(asyncio.all_tasks())

    async with changing(kind, tmp_path / "server") as server:
        before: tuple[int, int] | None = None
        for _ in range(4):
            async with following(server.definition(), min_idle=2) as follower:
                await follower.settled()
            before = before or held()
        await until(lambda: held() <= before)
