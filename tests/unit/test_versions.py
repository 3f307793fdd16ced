"""How the versions of a server come, lend and go in a worker; sessions are in memory."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, cast

import pytest

from registry.definitions import PoolDefinition, ServerDefinition, parse_definition
from registry.errors import Code, FleetError
from tests.requirements import requirement
from tests.unit.test_pool import LIMIT_S, FakeClock, FakeSession, Server
from tests.waiting import until
from workers.breaker import Breaker, MemoryStore
from workers.figures import Figures
from workers.keyring import Keyring
from workers.lending import PoolState
from workers.listening import Listening
from workers.pool import SessionKey, SessionPool
from workers.resource_watch import ResourceWatch
from workers.versions import UNUSED_S, ServedVersion, Versions
from workers.watching import ListingWatch

pytestmark = pytest.mark.anyio


def definition(version: int) -> ServerDefinition:
    return parse_definition(
        {"name": "crm", "version": str(version), "transport": "stdio", "command": "true"}
    )


class Maker:
    """Makes versions whose pools open sessions in memory; it can be made slow or broken."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.servers: dict[int, Server] = {}
        self.may_make = asyncio.Event()
        self.may_make.set()
        self.error: FleetError | None = None

    async def make(self, version_id: int) -> ServedVersion:
        self.made.append(version_id)
        await self.may_make.wait()
        if self.error is not None:
            raise self.error
        what = definition(version_id)
        server = self.servers[version_id] = Server()
        config = PoolDefinition(min_idle=0, max_idle_s=60)
        server.pool = SessionPool[FakeSession]("crm", config, server.open)
        breaker = Breaker("crm", str(version_id), what.breaker, MemoryStore())
        pool = cast("SessionPool[Any]", server.pool)
        keyring = cast("Keyring", None)
        listening = Listening(ListingWatch(lambda: None), keyring, cast("Any", server.open))
        resources = ResourceWatch(cast("Any", server.open), lambda _key, _uri: None)
        return ServedVersion(version_id, what, pool, breaker, keyring, listening, resources)


async def use(served: ServedVersion) -> None:
    """Make a call, as far as the pool is concerned."""
    async with served.pool.borrow(SessionKey(served.id), LIMIT_S):
        pass


# -- coming


@requirement("worker:makes-a-version-once")
async def test_calls_that_come_together_make_a_version_once() -> None:
    maker = Maker()
    versions = Versions(maker.make)
    first, second = await asyncio.gather(versions.get(1), versions.get(1))
    assert first is second is await versions.get(1)
    assert maker.made == [1]
    await versions.close()


@requirement("worker:makes-a-version-once")
async def test_a_version_that_could_not_be_made_is_tried_again_by_the_next_call() -> None:
    maker = Maker()
    maker.error = FleetError(Code.STORE_UNAVAILABLE, "away")
    versions = Versions(maker.make)
    with pytest.raises(FleetError, match="away"):
        await versions.get(1)
    maker.error = None
    assert (await versions.get(1)).id == 1
    await versions.close()


@requirement("worker:makes-a-version-once")
async def test_a_cancelled_call_takes_the_version_from_nobody() -> None:
    maker = Maker()
    maker.may_make.clear()
    versions = Versions(maker.make)
    cancelled, other = (asyncio.create_task(versions.get(1)) for _ in range(2))
    await until(lambda: maker.made)
    cancelled.cancel()
    maker.may_make.set()
    assert (await other).id == 1
    await versions.close()


# -- draining


@requirement("worker:drains-all-versions")
async def test_no_version_lends_once_they_drain() -> None:
    maker = Maker()
    versions = Versions(maker.make)
    known = await versions.get(1)
    maker.may_make.clear()
    asked_before = asyncio.create_task(versions.get(2))
    await until(lambda: 2 in maker.made)
    await versions.drain()
    maker.may_make.set()
    for served in (known, await asked_before, await versions.get(3)):
        with pytest.raises(FleetError) as refused:
            await use(served)
        assert refused.value.code is Code.POOL_CLOSED
    await versions.close()


# -- going


@requirement("worker:lets-old-versions-go")
async def test_a_version_is_let_go_when_it_is_old_and_unused_and_holds_nothing() -> None:
    clock, maker = FakeClock(), Maker()
    versions = Versions(maker.make, clock=clock)
    unused, busy, recent, current = [await versions.get(id_) for id_ in (1, 2, 3, 4)]
    await use(busy)
    clock.now_s += UNUSED_S + 1
    await versions.get(recent.id)
    await versions.let_go(but={current.id})
    assert versions.ready() == [busy, recent, current]
    assert unused.pool.stats().state == PoolState.CLOSED.value
    await versions.close()


@requirement("worker:lets-old-versions-go")
async def test_a_run_pinned_to_a_version_that_was_let_go_has_it_made_anew() -> None:
    clock, maker = FakeClock(), Maker()
    versions = Versions(maker.make, clock=clock)
    await versions.get(1)
    clock.now_s += UNUSED_S + 1
    await versions.let_go(but={2})
    await use(await versions.get(1))
    assert maker.made == [1, 1]
    await versions.close()


@requirement("worker:lets-old-versions-go")
async def test_a_version_that_was_let_go_is_gone_from_the_figures() -> None:
    versions, figures = Versions(Maker().make), Figures("crm")
    figures.take([await versions.get(1), await versions.get(2)])
    assert 'version="1"' in figures.exposition()
    figures.take([await versions.get(2)])
    assert 'version="1"' not in figures.exposition()
    assert 'version="2"' in figures.exposition()
    await versions.close()


@requirement("worker:closes-in-time")
async def test_versions_are_closed_at_the_same_time() -> None:
    maker = Maker()
    versions = Versions(maker.make)
    both = [await versions.get(id_) for id_ in (1, 2)]
    for served in both:
        await use(served)
    opened = [server.sessions[0] for server in maker.servers.values()]
    for session in opened:
        session.may_close.clear()
    closing = asyncio.create_task(versions.close())
    await until(lambda: all(served.pool.stats().closing == 1 for served in both))
    for session in opened:
        session.may_close.set()
    await closing
    assert [served.pool.stats().size for served in both] == [0, 0]


@requirement("worker:closes-in-time")
async def test_a_version_that_fails_to_close_does_not_keep_the_others_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    maker = Maker()
    versions = Versions(maker.make)
    broken, other = await versions.get(1), await versions.get(2)
    maker.may_make.clear()
    being_made = asyncio.create_task(versions.get(3))
    await until(lambda: 3 in maker.made)

    async def fail() -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(broken.pool, "close", fail)
    await versions.close()
    assert other.pool.stats().state == PoolState.CLOSED.value
    with suppress(asyncio.CancelledError):
        await being_made
    assert being_made.cancelled()
