"""What every breaker store does, in memory and in Redis; then what only a shared store does.

Numbers are the invariants of `workers.breaker`.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from redis.asyncio import Redis

from registry.definitions import BreakerDefinition
from registry.errors import FleetError
from tests.requirements import requirement
from workers.breaker import Breaker, BreakerSnapshot, BreakerState, MemoryStore, Tally, Verdict
from workers.breaker_redis import CHANNEL, RedisStore, connect, redis_key

pytestmark = pytest.mark.anyio

DEFINITION = BreakerDefinition()
NAME = "crm:7"
OK, FAILED, TIMED_OUT = Verdict.SUCCEEDED, Verdict.FAILED, Verdict.TIMED_OUT
PROCESS = Path(__file__).with_name("breaker_process.py")


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


class Spec:
    """A store with its clock, and the few words that the specs below are written in."""

    def __init__(self, store: MemoryStore | RedisStore, clock: Clock) -> None:
        self.store = store
        self.clock = clock

    async def read(self, name: str = NAME) -> BreakerSnapshot:
        return await self.store.read(name, DEFINITION)

    async def report(self, *verdicts: Verdict, generation: int | None = None) -> BreakerSnapshot:
        tally = Tally()
        for verdict in verdicts:
            tally.add(verdict)
        if generation is None:
            generation = (await self.read()).generation
        return await self.store.report(NAME, DEFINITION, generation, tally)

    async def half_open(self) -> BreakerSnapshot:
        await self.report(*[TIMED_OUT] * 10)
        self.clock.now_s += 30
        return await self.read()

    async def take(self, token: str) -> bool:
        return (await self.store.take_probe(NAME, DEFINITION, token)).probe == token

    async def settle(self, token: str, verdict: Verdict) -> BreakerSnapshot:
        generation = (await self.read()).generation
        return await self.store.settle_probe(NAME, DEFINITION, generation, token, verdict)


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with connect(redis_url, timeout_s=10) as redis:
        yield redis


@pytest.fixture(params=["memory", "redis"])
def spec(request: pytest.FixtureRequest, redis: Redis) -> Spec:
    clock = Clock()
    shared = request.param == "redis"
    return Spec(RedisStore(redis, now=clock) if shared else MemoryStore(clock), clock)


@requirement("breaker:opens-on-timeouts")
async def test_the_tenth_consecutive_timeout_opens(spec: Spec) -> None:
    nine = await spec.report(*[TIMED_OUT] * 9)
    ten = await spec.report(TIMED_OUT)
    assert (nine.state, ten.state) == (BreakerState.CLOSED, BreakerState.OPEN)


@requirement("breaker:opens-on-timeouts")
async def test_a_success_ends_the_run_of_timeouts(spec: Spec) -> None:
    await spec.report(*[TIMED_OUT] * 9)
    await spec.report(OK)
    assert (await spec.report(*[TIMED_OUT] * 9)).state is BreakerState.CLOSED


@requirement("breaker:opens-on-timeouts")
async def test_a_failure_that_is_no_timeout_neither_ends_nor_lengthens_the_run(spec: Spec) -> None:
    await spec.report(*[TIMED_OUT] * 9)
    assert (await spec.report(FAILED)).consecutive_timeouts == 9


@requirement("breaker:opens-on-timeouts")
async def test_a_run_that_ended_within_one_group_of_verdicts_still_opens(spec: Spec) -> None:
    await spec.report(*[TIMED_OUT] * 4)
    answer = await spec.report(*[TIMED_OUT] * 6, OK)
    assert answer.state is BreakerState.OPEN


@requirement("breaker:opens-on-failure-rate")
@pytest.mark.parametrize(
    ("calls", "failures", "state"),
    [
        (99, 99, BreakerState.CLOSED),
        (100, 4, BreakerState.CLOSED),
        (100, 5, BreakerState.OPEN),
        (140, 7, BreakerState.OPEN),
    ],
)
async def test_five_percent_of_at_least_a_hundred_calls_open(
    spec: Spec, calls: int, failures: int, state: BreakerState
) -> None:
    answer = await spec.report(*[FAILED] * failures, *[OK] * (calls - failures))
    assert answer.state is state


@requirement("breaker:opens-on-failure-rate")
async def test_failures_of_more_than_five_minutes_ago_do_not_count(spec: Spec) -> None:
    await spec.report(*[FAILED] * 90)
    spec.clock.now_s += 300
    answer = await spec.report(FAILED, *[OK] * 99)
    assert (answer.state, answer.calls, answer.failures) == (BreakerState.CLOSED, 100, 1)


@requirement("breaker:probes-after-30s")
async def test_it_stays_open_for_30_s_and_says_how_long(spec: Spec) -> None:
    opened = await spec.report(*[TIMED_OUT] * 10)
    spec.clock.now_s += 29.999
    almost = await spec.read()
    spec.clock.now_s += 0.001
    after = await spec.read()
    assert [(each.state, each.retry_after_s) for each in (opened, almost, after)] == [
        (BreakerState.OPEN, 30),
        (BreakerState.OPEN, 0.001),
        (BreakerState.HALF_OPEN, 0),
    ]


@requirement("breaker:one-probe-per-lease")
async def test_no_probe_leaves_while_open(spec: Spec) -> None:
    await spec.report(*[TIMED_OUT] * 10)
    assert not await spec.take("a")


@requirement("breaker:one-probe-per-lease")
async def test_a_probe_that_never_reports_gives_way_after_its_lease(spec: Spec) -> None:
    await spec.half_open()
    granted = [await spec.take("a"), await spec.take("b")]
    spec.clock.now_s += 60
    granted += [await spec.take("c"), await spec.take("d")]
    assert granted == [True, False, True, False]


@requirement("breaker:one-probe-per-lease")
async def test_a_probe_replaced_after_its_lease_has_no_say(spec: Spec) -> None:
    await spec.half_open()
    await spec.take("a")
    spec.clock.now_s += 60
    await spec.take("b")
    answer = await spec.settle("a", OK)
    assert (answer.state, answer.probe) == (BreakerState.HALF_OPEN, "b")


@requirement("breaker:one-probe-per-lease")
async def test_a_slow_probe_nobody_replaced_still_closes(spec: Spec) -> None:
    await spec.half_open()
    await spec.take("a")
    spec.clock.now_s += 90
    assert (await spec.settle("a", OK)).state is BreakerState.CLOSED


@requirement("breaker:probes-after-30s")
async def test_a_successful_probe_closes_and_forgets_the_past(spec: Spec) -> None:
    before = await spec.half_open()
    await spec.take("a")
    after = await spec.settle("a", OK)
    assert after.generation > before.generation
    assert after == BreakerSnapshot(generation=after.generation)


@requirement("breaker:probes-after-30s")
@pytest.mark.parametrize("verdict", [FAILED, TIMED_OUT])
async def test_a_failed_probe_opens_for_another_30_s(spec: Spec, verdict: Verdict) -> None:
    await spec.half_open()
    await spec.take("a")
    answer = await spec.settle("a", verdict)
    assert (answer.state, answer.retry_after_s) == (BreakerState.OPEN, 30)


@requirement("breaker:abstains")
async def test_a_probe_that_abstains_gives_its_lease_back(spec: Spec) -> None:
    await spec.half_open()
    await spec.take("a")
    answer = await spec.settle("a", Verdict.ABSTAINED)
    assert (answer.state, await spec.take("b")) == (BreakerState.HALF_OPEN, True)


@requirement("breaker:generations")
async def test_late_verdicts_of_an_older_generation_change_nothing(spec: Spec) -> None:
    old = (await spec.read()).generation
    await spec.half_open()
    await spec.take("a")
    closed = await spec.settle("a", OK)
    assert await spec.report(*[TIMED_OUT] * 50, generation=old) == closed


@requirement("breaker:generations")
async def test_a_probe_of_another_generation_has_no_say(spec: Spec) -> None:
    half_open = await spec.half_open()
    await spec.take("a")
    answer = await spec.store.settle_probe(NAME, DEFINITION, half_open.generation - 1, "a", OK)
    assert (answer.state, answer.probe) == (BreakerState.HALF_OPEN, "a")


@requirement("breaker:by-hand")
async def test_forced_open_lasts_as_long_as_was_said(spec: Spec) -> None:
    forced = await spec.store.force(NAME, DEFINITION, 3_600)
    longer = await spec.store.force(NAME, DEFINITION, 7_200)
    assert [each.retry_after_s for each in (forced, longer)] == [3_600, 7_200]


@requirement("breaker:by-hand")
async def test_forced_closed_admits_and_forgets_the_past(spec: Spec) -> None:
    await spec.report(*[TIMED_OUT] * 10)
    answer = await spec.store.force(NAME, DEFINITION, 0)
    assert answer == BreakerSnapshot(generation=answer.generation)


@requirement("breaker:says-why")
@pytest.mark.parametrize(
    ("verdicts", "why"),
    [
        ([TIMED_OUT] * 10, "10 timeouts in a row"),
        ([OK] * 90 + [FAILED] * 10, "10 of 100 calls failed"),
    ],
)
async def test_an_open_breaker_says_why_and_since_when_whatever_probes_said(
    spec: Spec, verdicts: list[Verdict], why: str
) -> None:
    opened = await spec.report(*verdicts)
    assert (opened.why, opened.open_s) == (why, 0)
    spec.clock.now_s += 40
    await spec.take("a")
    again = await spec.settle("a", TIMED_OUT)
    assert (again.state, again.why, again.open_s) == (BreakerState.OPEN, why, 40)
    spec.clock.now_s += 40
    await spec.take("b")
    closed = await spec.settle("b", OK)
    assert (closed.why, closed.open_s) == ("", 0)


@requirement("breaker:says-why", "breaker:by-hand")
async def test_a_breaker_that_is_forced_open_says_whose_doing_that_is(spec: Spec) -> None:
    await spec.report(*[TIMED_OUT] * 10)
    spec.clock.now_s += 5
    forced = await spec.store.force(NAME, DEFINITION, 60, "by hand of Kim")
    assert (forced.why, forced.open_s, forced.retry_after_s) == ("by hand of Kim", 5, 60)


@requirement("breaker:shared")
async def test_many_breakers_are_read_at_once(redis: Redis) -> None:
    store = RedisStore(redis)
    await store.force(NAME, DEFINITION, 60)
    states = await store.read_all([(NAME, DEFINITION), ("crm:8", DEFINITION)])
    assert [it.state for it in states] == [BreakerState.OPEN, BreakerState.CLOSED]


@requirement("breaker:shared")
async def test_breakers_of_other_versions_are_untouched(spec: Spec) -> None:
    await spec.report(*[TIMED_OUT] * 10)
    assert await spec.read("crm:8") == BreakerSnapshot()


@requirement("breaker:legal-transitions", "breaker:shared")
@pytest.mark.parametrize("seed", range(4))
async def test_memory_and_redis_tell_the_same_story(redis: Redis, seed: int) -> None:
    choose = random.Random(seed)
    clock = Clock()
    specs = Spec(MemoryStore(clock), clock), Spec(RedisStore(redis, now=clock), clock)
    for step in range(300):
        token = f"token-{choose.randrange(max(0, step - 3), step + 1)}"
        verdicts = choose.choices([*Verdict], [60, 4, 4, 4], k=choose.randrange(1, 25))
        count = choose.choice([1, 1, 3, 10])
        operation = choose.choices(["report", "time", "take", "settle", "force"], [6, 3, 6, 6, 1])[
            0
        ]
        clock.now_s = round(clock.now_s + choose.choice([0, 0.5, 15, 30, 60, 200]), 3)
        forced_s = choose.choice([0, 20])
        answers = []
        for spec in specs:
            if operation == "report":
                await spec.report(*verdicts, *[TIMED_OUT] * count)
            elif operation == "take":
                await spec.take(token)
            elif operation == "settle":
                held = (await spec.read()).probe or token
                await spec.settle(held, verdicts[0])
            elif operation == "force":
                await spec.store.force(NAME, DEFINITION, forced_s)
            answers.append(await spec.read())
        assert answers[0] == answers[1], f"step {step}: {operation}"


@requirement("breaker:shared")
async def test_a_transition_is_published_once(redis: Redis) -> None:
    spec = Spec(RedisStore(redis), Clock())
    async with redis.pubsub() as channel:
        await channel.subscribe(CHANNEL)
        await channel.get_message(timeout=5)
        await spec.report(*[TIMED_OUT] * 30)
        heard = [await channel.get_message(timeout=5), await channel.get_message(timeout=0)]
    assert [message and message["data"] for message in heard] == [
        f"{redis_key(NAME)} open".encode(),
        None,
    ]


@requirement("breaker:shared")
async def test_redis_forgets_a_closed_breaker_after_a_day_but_never_an_open_one(
    redis: Redis,
) -> None:
    spec = Spec(RedisStore(redis), Clock())
    await spec.report(OK)
    closed = await redis.ttl(redis_key(NAME))
    await spec.report(*[TIMED_OUT] * 10)
    assert (0 < closed <= 86_400, await redis.ttl(redis_key(NAME))) == (True, -1)


@requirement("breaker:generations")
async def test_verdicts_from_before_redis_lost_its_memory_change_nothing(redis: Redis) -> None:
    spec = Spec(RedisStore(redis), Clock())
    opened = await spec.report(*[TIMED_OUT] * 10)
    await redis.flushdb()
    await spec.report(*[TIMED_OUT] * 50, generation=opened.generation)
    assert await spec.read() == BreakerSnapshot()


@requirement("breaker:one-clock")
@pytest.mark.parametrize("jump_s", [3_600, -3_600])
async def test_a_worker_whose_clock_jumps_is_refused_as_long_as_the_others(
    redis: Redis, jump_s: int
) -> None:
    clock = Clock()
    store = RedisStore(redis)
    breaker = Breaker("crm", "7", DEFINITION, store, clock=clock)
    opened = await Spec(store, clock).report(*[TIMED_OUT] * 10)
    for now_s in (clock.now_s, clock.now_s + jump_s):
        clock.now_s = now_s
        with pytest.raises(FleetError):
            await breaker.allow()
    shared = await breaker.snapshot()
    opened_ago = replace(opened, retry_after_s=shared.retry_after_s, open_s=shared.open_s)
    assert shared == opened_ago
    await breaker.close()


@requirement("breaker:one-probe-per-lease")
async def test_sixteen_workers_hammering_an_expired_breaker_send_one_probe_per_lease(
    redis_url: str,
) -> None:
    clock = Clock()
    probes: list[str] = []

    async def hammer(breaker: Breaker) -> None:
        for _ in range(200):
            with suppress(FleetError):
                probes.append((await breaker.allow()).probe or "admitted without a probe")

    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(connect(redis_url, timeout_s=10)) for _ in range(16)
        ]
        # Without a cache every attempt asks Redis.
        workers = [
            Breaker("crm", "7", DEFINITION, RedisStore(each, now=clock), clock=clock, cache_s=0)
            for each in clients
        ]
        await Spec(RedisStore(clients[0], now=clock), clock).half_open()
        found = []
        for _ in range(3):
            probes.clear()
            async with anyio.create_task_group() as group:
                for worker in workers:
                    group.start_soon(hammer, worker)
            found.append(len(probes))
            clock.now_s += DEFINITION.probe_lease_s
    assert found == [1, 1, 1]


class Worker:
    """The other end of breaker_process.py."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def do(self, command: str) -> str:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(f"{command}\n".encode())
        with anyio.fail_after(20):
            return str(json.loads(await stdout.readline()))


@asynccontextmanager
async def worker(redis_url: str) -> AsyncIterator[Worker]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(PROCESS), redis_url, stdin=pipe, stdout=pipe
    )
    try:
        yield Worker(process)
    finally:
        await process.communicate(b"")


@requirement("breaker:shared", "breaker:one-probe-per-lease")
async def test_two_processes_open_together_send_one_probe_and_close_together(
    redis_url: str,
) -> None:
    async with worker(redis_url) as one, worker(redis_url) as two:

        async def both(command: str) -> list[str]:
            return list(await asyncio.gather(one.do(command), two.do(command)))

        await both("timeouts 5")
        # The first to report has an answer of before the tenth timeout for at most 250 ms.
        await both("now 1000000.25")
        refused = await both("allow")
        await both("now 1000030.25")
        probing = await both("allow")
        await (one, two)[probing.index("probe")].do("succeeded")
        await both("now 1000030.5")
        admitted = await both("allow")
    no = "refused: breaker_open"
    assert (refused, sorted(probing), admitted) == ([no, no], ["probe", no], ["admitted"] * 2)
