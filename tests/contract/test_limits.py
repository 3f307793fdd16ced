"""What callers observe of the fleet's limiter: the script, its model, and Redis away."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis as SyncRedis
from redis.asyncio import Redis

from compose.embedded import EmbeddedRedis
from registry.errors import Code, FleetError
from registry.rates import Bucket
from tests.requirements import requirement
from tests.waiting import until
from workers.limits_redis import Ask, Lease, Limiter, RedisLimits, connect
from workers.limits_state import Answer, LocalBuckets, Reason

pytestmark = pytest.mark.anyio

HOUR_S = 3600.0
START_S = 40_000_000.0  # of the scripts' own epoch


class Clock:
    def __init__(self) -> None:
        self.now_s = START_S

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def redis(anyio_backend: str, redis_url: str) -> AsyncIterator[Redis]:
    async with connect(redis_url, timeout_s=10) as redis:
        yield redis


@pytest.fixture
def limits(redis: Redis, clock: Clock) -> RedisLimits:
    return RedisLimits(redis, now=clock)


def bucket(name: str = "tenant:acme:60", calls: int = 60, period_s: int = 60, burst: int = 3):
    return Bucket(name, calls, period_s, burst)


def ask(*buckets: Bucket, **rest) -> Ask:
    return Ask(buckets, "submissions", **rest)


# -- the buckets


@requirement("limits:rate")
async def test_a_bucket_grants_its_burst_and_then_as_it_fills(
    limits: RedisLimits, clock: Clock
) -> None:
    said = [await limits.take(ask(bucket())) for _ in range(4)]
    assert [it.granted for it in said] == [True, True, True, False]
    assert [it.left for it in said] == [(2,), (1,), (0,), (0,)]
    assert (said[3].reason, said[3].short, said[3].wait_s) == (Reason.SHORT, 0, 1.0)
    clock.now_s += 0.999
    assert not (await limits.take(ask(bucket()))).granted
    clock.now_s += 0.001
    assert (await limits.take(ask(bucket()))).granted


@requirement("limits:all-or-nothing")
async def test_a_call_is_taken_from_all_of_its_buckets_or_from_none(limits: RedisLimits) -> None:
    wide, narrow = bucket("tenant:acme:60", burst=9), bucket("tier:free:60", burst=1)
    assert (await limits.take(ask(wide, narrow))).granted
    refused = [await limits.take(ask(wide, narrow)) for _ in range(5)]
    assert {(it.granted, it.short, it.left) for it in refused} == {(False, 1, (8, 0))}
    assert (await limits.take(ask(wide))).left == (7,)


@requirement("limits:all-or-nothing")
async def test_what_is_put_back_can_be_taken_again(limits: RedisLimits, clock: Clock) -> None:
    own = bucket(burst=1)
    assert (await limits.take(ask(own))).granted
    await limits.give_back([own])
    assert (await limits.take(ask(own))).granted
    clock.now_s += 100
    await limits.give_back([own])  # long filled again: it holds no more than it can
    assert [(await limits.take(ask(own))).granted for _ in range(2)] == [True, False]


@requirement("limits:clocks")
async def test_a_clock_of_redis_that_goes_back_costs_no_more_than_an_empty_bucket(
    limits: RedisLimits, clock: Clock
) -> None:
    await limits.take(ask(bucket()))
    clock.now_s -= HOUR_S
    assert (await limits.take(ask(bucket()))).wait_s == pytest.approx(1.0)


@requirement("limits:clocks")
async def test_an_hour_more_or_less_on_a_process_changes_no_decision(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, steps = bucket(calls=1, burst=5), (0.0, HOUR_S, -HOUR_S, 0.0, HOUR_S, -HOUR_S)
    granted = []
    for step_s in steps:
        monkeypatch.setattr("time.time", lambda step_s=step_s: 1_790_000_000.0 + step_s)
        limiter = Limiter(RedisLimits(redis))
        granted.append((await limiter.take(ask(own), by_share=True)).granted)
        await limiter.close()
    assert granted == [True] * 5 + [False]


@requirement("limits:rate")
async def test_keys_name_what_they_limit_and_end_by_themselves(redis: Redis) -> None:
    limits = RedisLimits(redis)
    own = Bucket("tool:acme:crm/*:60", 60_000, 60, 1)
    lease = Lease("server:crm", 3, 5.0, "token")
    await limits.take(ask(own, lease=lease))
    await limits.pause("crm", "", 1.0, [own])
    kept = {key.decode(): await redis.pttl(key) for key in await redis.keys("*")}
    assert set(kept) == {
        "toolfleet:{limits}:tool:acme:crm/*:60",
        "toolfleet:{limits}:askers:submissions",
        "toolfleet:{limits}:leases:server:crm",
        "toolfleet:{limits}:pauses:crm",
    }
    assert all(0 < ttl_ms < 70_000 for ttl_ms in kept.values()), kept


SIZES = st.tuples(st.integers(1, 500), st.sampled_from([1, 60, 3600]), st.integers(1, 20))
STEPS = st.lists(
    st.tuples(
        st.one_of(st.just(0.0), st.floats(0, 5), st.floats(0, 200), st.floats(-10, 0)),
        st.sets(st.integers(0, 2), min_size=1),
        st.booleans(),
    ),
    min_size=1,
    max_size=25,
)


@requirement("limits:all-or-nothing")
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(sizes=st.lists(SIZES, min_size=3, max_size=3), steps=STEPS)
def test_the_script_decides_as_the_model(
    redis_url: str, sizes: list[tuple[int, int, int]], steps: list[tuple[float, set[int], bool]]
) -> None:
    with SyncRedis.from_url(redis_url) as client:
        client.flushall()
    made = [Bucket(f"tenant:t{n}:60", *size) for n, size in enumerate(sizes)]

    async def both() -> list[tuple[Answer, Answer]]:
        clock, told = Clock(), []
        local = LocalBuckets(clock)
        async with connect(redis_url, timeout_s=10) as redis:
            limits = RedisLimits(redis, now=clock)
            for step_s, chosen, put_back in steps:
                clock.now_s += step_s
                wanted = [made[n] for n in sorted(chosen)]
                if put_back:
                    await limits.give_back(wanted)
                    local.give_back(wanted)
                told.append((await limits.take(ask(*wanted)), local.take(wanted)))
        return told

    for shared, alone in asyncio.run(both()):
        assert shared == alone


# -- calls under way


@requirement("quota:kept")
async def test_as_many_calls_are_under_way_as_may_be_and_a_dead_holder_frees_its_place(
    limits: RedisLimits, clock: Clock
) -> None:
    leases = [Lease("server:crm", 2, 10.0, f"token {n}") for n in range(4)]
    said = [(await limits.take(ask(lease=lease))).reason for lease in leases[:3]]
    assert said == [None, None, Reason.FULL]
    await limits.end(leases[0])
    assert (await limits.take(ask(lease=leases[2]))).granted
    assert (await limits.take(ask(lease=leases[3]))).reason is Reason.FULL
    clock.now_s += 10.0
    assert (await limits.take(ask(lease=leases[3]))).granted


@requirement("limits:all-or-nothing")
async def test_a_call_that_finds_no_place_costs_nothing(limits: RedisLimits) -> None:
    own = bucket(burst=2)
    await limits.take(ask(own, lease=Lease("server:crm", 1, 10.0, "first")))
    full = await limits.take(ask(own, lease=Lease("server:crm", 1, 10.0, "second")))
    assert (full.reason, full.left) == (Reason.FULL, (1,))
    assert (await limits.take(ask(own))).granted


# -- pauses


@requirement("quota:pause")
async def test_a_pause_holds_for_its_identity_and_leaves_the_bucket_empty(
    limits: RedisLimits, clock: Clock
) -> None:
    own = bucket("server:crm:acme:60", burst=2)
    assert await limits.pause("crm", "acme", 7.0, [own]) == 7.0
    assert await limits.pauses("crm") == {"acme": 7.0}
    paused = await limits.take(ask(own, server="crm", identity="acme"))
    assert (paused.reason, paused.wait_s) == (Reason.PAUSED, 7.0)
    assert (await limits.take(ask(server="crm", identity="other"))).granted
    clock.now_s += 7.0
    again = [await limits.take(ask(own, server="crm", identity="acme")) for _ in range(2)]
    assert [(it.reason, it.wait_s) for it in again] == [(Reason.SHORT, 1.0)] * 2
    assert await limits.pauses("crm") == {}


@requirement("quota:pause")
async def test_the_longest_pause_that_was_asked_for_holds_and_none_is_endless(
    limits: RedisLimits,
) -> None:
    assert await limits.pause("crm", "", 9.0, []) == 9.0
    assert await limits.pause("crm", "", 2.0, []) == 9.0
    assert await limits.pause("crm", "", 1e9, []) == HOUR_S


@requirement("quota:pause")
async def test_a_server_that_does_not_say_for_how_long_is_left_alone_longer_each_time(
    limits: RedisLimits, clock: Clock
) -> None:
    waits = []
    for _ in range(4):
        waits.append(await limits.pause("crm", "", None, []))
        clock.now_s += waits[-1]
    assert waits == [1, 2, 4, 8]
    await limits.pause("crm", "", 1.0, [])
    clock.now_s += 1.0
    assert await limits.pause("crm", "", None, []) == 1


# -- Redis away


class Process:
    """What one process holds, on a Redis that the test can stop."""

    def __init__(self, redis: EmbeddedRedis) -> None:
        self.clock = Clock()
        self.redis = redis
        self.client = connect(redis.url)
        self.limiter = Limiter(RedisLimits(self.client), clock=self.clock)

    def signal(self, number: signal.Signals) -> None:
        assert self.redis.pid is not None
        os.kill(self.redis.pid, number)

    async def take(self, own: Sequence[Bucket], *, by_share: bool = True) -> str:
        try:
            answer = await self.limiter.take(ask(*own), by_share=by_share)
        except FleetError as error:
            return error.code.code
        return "granted" if answer.granted else "refused"

    async def come_back(self) -> None:
        """Let the retry time pass until Redis has answered."""

        async def back() -> bool:
            self.clock.now_s += 1
            await self.limiter.pauses("crm")
            return not self.limiter.away

        await until(back)


@pytest.fixture
async def process(anyio_backend: str) -> AsyncIterator[Process]:
    with tempfile.TemporaryDirectory(prefix="toolfleet-") as folder:
        redis = EmbeddedRedis(Path(folder), durable=False)
        await redis.start()
        process = Process(redis)
        try:
            yield process
        finally:
            process.signal(signal.SIGCONT)
            await process.limiter.close()
            await process.client.aclose()
            await redis.stop()


@requirement("limits:redis-away")
async def test_without_redis_writes_are_refused_and_reads_have_a_share(process: Process) -> None:
    own = [bucket(calls=40, burst=40)]
    process.signal(signal.SIGSTOP)
    assert await process.take(own, by_share=False) == Code.LIMITER_UNAVAILABLE.code
    # Nobody ever said how many processes there are: it has a tenth.
    assert [await process.take(own) for _ in range(5)] == ["granted"] * 4 + ["refused"]
    process.clock.now_s += 15.0
    assert [await process.take(own) for _ in range(2)] == ["granted", "refused"]


@requirement("limits:redis-away")
async def test_the_share_is_that_of_one_of_the_processes_that_asked_lately(
    process: Process,
) -> None:
    own = [bucket(calls=40, burst=40)]
    others = [RedisLimits(process.client) for _ in range(3)]
    for other in others:
        await other.take(ask(*own))
    assert await process.take(own) == "granted"
    process.signal(signal.SIGSTOP)
    said = [await process.take(own) for _ in range(11)]
    assert said == ["granted"] * 10 + ["refused"]


@requirement("limits:redis-away")
async def test_after_the_first_call_that_noticed_none_waits_for_redis(process: Process) -> None:
    own = [bucket(calls=1_000_000, burst=1_000_000)]
    process.signal(signal.SIGSTOP)

    async def took_s(*, by_share: bool) -> float:
        begun = time.perf_counter()
        await process.take(own, by_share=by_share)
        return time.perf_counter() - begun

    first_s = await took_s(by_share=True)
    later_s = [await took_s(by_share=by_share) for by_share in (True, False) * 200]
    # Whoever waits for Redis waits as long as the first; a busy machine holds up only some.
    assert statistics.median(later_s) < first_s / 5


@requirement("limits:redis-away")
async def test_a_connection_that_was_cut_while_idle_refuses_nobody(process: Process) -> None:
    own = [bucket()]
    async with Redis.from_url(process.redis.url) as other:
        await process.take(own)
        await other.client_kill_filter(_type="normal", skipme=True)
        assert await process.take(own, by_share=False) == "granted"
    assert not process.limiter.outages


@requirement("limits:redis-away")
async def test_when_redis_is_back_its_buckets_count(process: Process) -> None:
    own = [bucket(calls=1, burst=3)]
    assert await process.take(own) == "granted"
    process.signal(signal.SIGSTOP)
    await process.take(own)  # which Redis may take all the same, once it goes on
    process.signal(signal.SIGCONT)
    await process.come_back()
    said = [await process.take(own, by_share=False) for _ in range(3)]
    assert said[-1] == "refused"
    assert said[0] == "granted"


@requirement("limits:redis-away")
async def test_a_redis_that_forgot_everything_limits_from_then_on(process: Process) -> None:
    own = [bucket(calls=1, burst=2)]
    said = [await process.take(own) for _ in range(3)]
    await process.client.flushall()
    await process.client.script_flush()
    said += [await process.take(own) for _ in range(3)]
    assert said == ["granted", "granted", "refused"] * 2
