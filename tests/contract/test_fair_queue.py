"""The turns of one queue: scripts on a real Redis, beside a model and under Celery's channel."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from celery import Celery
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from kombu import Consumer
from redis import Redis

from registry.settings import Settings
from tests.fair_queue_model import TICKET, FairQueueModel
from tests.requirements import requirement
from workers import fair_queue
from workers.celery_app import fleet_queue, make_app
from workers.client import FleetClient, Message

QUEUE = "mcp.demo"
TENANTS = ("ada", "bob", "eve")
WISHES = st.lists(st.tuples(st.sampled_from(TENANTS), st.integers(-1, 11)), min_size=1, max_size=12)


class FairQueue:
    """The scripts as producers and workers run them."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self._push = redis.register_script(fair_queue.PUSH)
        self._take = redis.register_script(fair_queue.TAKE)

    def push(self, batch: list[tuple[str, int, str]]) -> None:
        arguments = [(it, fair_queue.cost(priority), message) for it, priority, message in batch]
        self._push(fair_queue.keys(QUEUE), list(itertools.chain(*arguments)))

    def take(self, most: int, tickets: int = 0) -> list[str]:
        found = self._take(fair_queue.keys(QUEUE), [most, tickets])
        return [message.decode() for message in found]

    def elements(self) -> list[str]:
        return [element.decode() for element in self.redis.lrange(QUEUE, 0, -1)]


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url) as redis:
        yield redis


@pytest.fixture
def queue(redis: Redis) -> FairQueue:
    return FairQueue(redis)


def sent(tenant: str, priority: int, count: int) -> list[tuple[str, int, str]]:
    return [(tenant, priority, f"{tenant}-{number}") for number in range(count)]


# -- the scripts and the model


class Machine(RuleBasedStateMachine):
    """Send, fetch, lose and take back in any order; scripts and model have to agree throughout."""

    redis: Redis

    def __init__(self) -> None:
        super().__init__()
        self.redis.flushall()
        self.queue, self.model = FairQueue(self.redis), FairQueueModel()
        self.names = (f"{number:04}" for number in itertools.count())
        self.delivered = Counter[str]()
        self.pushed: list[str] = []
        self.turns: dict[str, list[str]] = {}
        self.served: dict[str, list[str]] = {}

    def deliver(self, messages: list[str]) -> None:
        self.delivered.update(messages)
        for message in messages:
            tenant, _, in_turn = message.partition(":")
            if in_turn:
                self.served.setdefault(tenant, []).append(message)

    @rule(wishes=WISHES)
    def send(self, wishes: list[tuple[str, int]]) -> None:
        batch = [(it, priority, f"{it}:{next(self.names)}") for it, priority in wishes]
        self.pushed += [message for _, _, message in batch]
        for tenant, _, message in batch:
            self.turns.setdefault(tenant, []).append(message)
        self.queue.push(batch)
        self.model.push(batch)

    @rule(most=st.integers(0, 20))
    def fetch(self, most: int) -> None:
        found = self.queue.take(most)
        assert found == self.model.take(most)
        assert len(found) <= most
        self.deliver(found)

    @precondition(lambda self: self.model.elements)
    @rule(most=st.integers(1, 20))
    def wake(self, most: int) -> None:
        element = self.model.elements.pop()
        assert self.redis.rpop(QUEUE) == element.encode()
        if element != TICKET:
            self.deliver([element])
            return
        found = self.queue.take(most, 1)
        assert found == self.model.take(most, 1)
        self.deliver(found)

    @precondition(lambda self: TICKET in self.model.elements)
    @rule()
    def die_with_a_ticket(self) -> None:
        self.redis.lrem(QUEUE, -1, TICKET)
        self.model.elements.reverse()
        self.model.elements.remove(TICKET)
        self.model.elements.reverse()

    @rule()
    def duplicate_a_ticket(self) -> None:
        self.redis.lpush(QUEUE, TICKET)
        self.model.elements.insert(0, TICKET)

    @rule(back=st.booleans())
    def put_a_message_into_the_list(self, back: bool) -> None:
        message = next(self.names)
        self.pushed.append(message)
        if back:
            self.redis.rpush(QUEUE, message)
            self.model.elements.append(message)
        else:
            self.redis.lpush(QUEUE, message)
            self.model.elements.insert(0, message)

    @invariant()
    def lists_agree(self) -> None:
        assert self.queue.elements() == self.model.elements

    @invariant()
    def nothing_is_kept_about_those_who_do_not_wait(self) -> None:
        if not self.model.lines:
            assert self.redis.exists(*fair_queue.keys(QUEUE)[1:]) == 0
        _, waiting, tenants, _ = fair_queue.keys(QUEUE)
        assert self.redis.zcard(waiting) == self.model.waiting
        kept = {tenant.decode() for tenant in self.redis.zrange(tenants, 0, -1)}
        assert kept <= set(self.model.lines)

    @invariant()
    def each_tenant_is_served_in_order(self) -> None:
        for tenant, served in self.served.items():
            assert served == self.turns[tenant][: len(served)]

    def teardown(self) -> None:
        self.queue.take(0)  # as a worker does that has had nothing to do
        while self.redis.llen(QUEUE):
            self.deliver(self.queue.take(7))
        assert self.redis.dbsize() == 0
        assert self.delivered == Counter(self.pushed)


@requirement("fair:nothing-lost", "fair:in-order", "fair:keeps-nothing")
def test_scripts_do_what_the_model_does_and_lose_and_repeat_nothing(redis: Redis) -> None:
    machine = type("Machine", (Machine,), {"redis": redis})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=100,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


# -- shares


@requirement("fair:shares", "fair:weights")
@given(priorities=st.lists(st.integers(0, 9), min_size=2, max_size=4), most=st.integers(1, 9))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_what_backlogged_tenants_are_served_differs_by_one_cost_of_each_at_most(
    redis: Redis, priorities: list[int], most: int
) -> None:
    redis.flushall()
    queue = FairQueue(redis)
    costs = {f"t{number}": fair_queue.cost(it) for number, it in enumerate(priorities)}
    queue.push([("nobody", 9, "first of all")])  # it found nobody waiting, so it has no turn
    for number, priority in enumerate(priorities):
        queue.push(sent(f"t{number}", priority, 60))
    queue.take(1)
    served = Counter[str]()
    while all(served[tenant] < 60 for tenant in costs):
        found = queue.take(most)
        for message in found:
            served[message.partition("-")[0]] += 1
            if max(served.values()) == 60:
                break  # it waits no longer
            for one, other in itertools.combinations(costs, 2):
                lead = served[one] * costs[one] - served[other] * costs[other]
                assert abs(lead) <= costs[one] + costs[other]


@requirement("fair:shares")
def test_a_tenant_that_comes_late_is_next_although_another_has_thousands_waiting(
    queue: FairQueue,
) -> None:
    queue.push(sent("loud", 5, 3000))
    queue.take(500)
    queue.push(sent("steady", 5, 3))
    assert [message.partition("-")[0] for message in queue.take(6)].count("steady") == 3


@requirement("fair:shares")
def test_a_tenant_that_was_away_has_saved_nothing_up(queue: FairQueue) -> None:
    queue.push(sent("loud", 5, 500))
    queue.take(200)
    queue.push(sent("steady", 5, 100))
    served = [message.partition("-")[0] for message in queue.take(60)]
    assert served.count("loud") == 30


@requirement("fair:weights")
def test_single_calls_are_taken_by_priority(queue: FairQueue) -> None:
    queue.push([("first", 5, "first")])
    queue.push([(f"t{priority}", priority, str(priority)) for priority in (2, 9, 5, 0, 7)])
    assert queue.take(6) == ["first", "9", "7", "5", "2", "0"]


@requirement("fair:weights")
@pytest.mark.parametrize(
    ("priority", "like"), [(-1, 0), (-(10**9), 0), (10, 9), (10**9, 9), (5, 5)]
)
def test_a_priority_that_there_is_not_counts_as_the_nearest_one(priority: int, like: int) -> None:
    assert fair_queue.cost(priority) == fair_queue.cost(like)


# -- under kombu's channel


def message(call_id: str, tenant: str = "acme", priority: int = 5) -> Message:
    return Message(
        id=call_id,
        run_id="run",
        tenant_id=tenant,
        tool="demo_echo",
        server_name="demo",
        traceparent=None,
        remaining_s=60,
        priority=priority,
    )


class Worker:
    """A consumer of the queue with Celery's own channel, which acknowledges nothing by itself."""

    def __init__(self, celery: Celery, window: int) -> None:
        self.connection = celery.connection_for_read()
        self.channel = self.connection.default_channel
        self.channel.basic_qos(0, window, False)
        self.got: list[str] = []
        self.unacked: list[Any] = []
        consumer = Consumer(self.channel, [fleet_queue(QUEUE)], callbacks=[self._receive])
        consumer.consume()

    def _receive(self, _: Any, message: Any) -> None:
        self.got.append(message.headers["id"])
        self.unacked.append(message)

    def get(self, count: int) -> list[str]:
        """Return all that was delivered once it is ``count`` messages or more."""
        self.work_until(lambda: len(self.got) >= count)
        got, self.got = self.got, []
        return got

    def step(self) -> int:
        """Ask, and take at most one answer; return how many messages were delivered so far."""
        with suppress(TimeoutError):
            self.connection.drain_events(timeout=0.1)
        return len(self.got)

    def work_until(self, look: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not look():
            assert time.monotonic() < deadline, f"only {self.got} came"
            self.step()

    def ack(self) -> None:
        self.unacked.pop(0).ack()


@pytest.fixture
def celery(redis_url: str) -> Iterator[Celery]:
    with make_app(Settings(redis_url=redis_url)) as app:
        app.conf.task_queues = [fleet_queue(QUEUE)]
        app.conf.broker_transport_options["polling_interval"] = 0.1
        yield app


@contextmanager
def working(celery: Celery, window: int = 100) -> Iterator[Worker]:
    worker = Worker(celery, window)
    try:
        yield worker
    finally:
        worker.connection.close()


@pytest.fixture
async def client(anyio_backend: str, redis_url: str) -> Any:
    client = FleetClient(redis_url)
    yield client
    await client.close()


async def send(client: FleetClient, *messages: Message) -> None:
    for one in messages:
        assert await client.send(one)


@requirement("fair:as-celery-knows-it")
@pytest.mark.anyio
async def test_a_queues_length_is_the_number_of_waiting_messages(
    client: FleetClient, celery: Celery
) -> None:
    await send(client, *(message(f"c{number}") for number in range(9)))
    assert await client.queue_lengths(["demo"]) == {"demo": 9}
    with working(celery, window=4) as worker:
        assert len(worker.get(4)) == 4
        assert await client.queue_lengths(["demo"]) == {"demo": 5}


@requirement("fair:cheap")
@pytest.mark.anyio
async def test_the_first_message_of_an_empty_queue_lies_in_its_list(
    client: FleetClient, redis: Redis
) -> None:
    await send(client, message("c0"))
    (element,) = redis.lrange(QUEUE, 0, -1)
    assert json.loads(element)["headers"]["id"] == "c0"
    assert redis.dbsize() == 1


@requirement("fair:cheap")
@pytest.mark.anyio
async def test_a_deep_queue_is_fetched_with_two_trips_for_each_window(
    client: FleetClient, redis: Redis, celery: Celery
) -> None:
    await send(client, *(message(f"c{number}") for number in range(120)))
    with working(celery, window=12) as worker:
        redis.config_resetstat()
        for _ in range(10):
            worker.get(12)
            while worker.unacked:
                worker.ack()
        statistics = redis.info("commandstats")
    trips = [statistics[f"cmdstat_{name}"]["calls"] for name in ("brpop", "evalsha")]
    assert max(trips) <= 11


@requirement("fair:as-celery-knows-it")
@pytest.mark.anyio
async def test_messages_that_others_put_into_the_list_are_delivered_as_they_are(
    client: FleetClient, redis: Redis, celery: Celery
) -> None:
    composed = [client._compose(message(f"old-{number}"))[1] for number in range(3)]
    redis.lpush(QUEUE, *composed[:2])
    await send(client, message("new-0"), message("new-1"))
    redis.lpush(QUEUE, composed[2])
    with working(celery) as worker:
        assert sorted(worker.get(5)) == ["new-0", "new-1", "old-0", "old-1", "old-2"]


@requirement("fair:nothing-lost")
@pytest.mark.anyio
async def test_a_ticket_without_a_message_is_dropped(
    client: FleetClient, redis: Redis, celery: Celery
) -> None:
    with working(celery) as worker:
        redis.lpush(QUEUE, TICKET, TICKET, TICKET)
        worker.work_until(lambda: not redis.llen(QUEUE))
        await send(client, message("c0"))
        assert worker.get(1) == ["c0"]
        worker.ack()
    assert redis.dbsize() == 0


@requirement("fair:nothing-lost")
@pytest.mark.anyio
async def test_messages_whose_tickets_were_lost_are_found_by_a_worker_that_begins(
    client: FleetClient, redis: Redis, celery: Celery
) -> None:
    await send(client, *(message(f"c{number}") for number in range(4)))
    redis.delete(QUEUE)
    with working(celery) as worker:
        assert worker.get(3) == ["c1", "c2", "c3"]


@requirement("fair:nothing-lost")
@pytest.mark.anyio
async def test_messages_whose_tickets_were_lost_are_found_by_a_worker_with_nothing_to_do(
    client: FleetClient, redis: Redis, celery: Celery
) -> None:
    with working(celery, window=1) as worker:
        await send(client, *(message(f"c{number}") for number in range(3)))
        assert worker.get(1) == ["c0"]
        redis.delete(QUEUE)
        for number in (1, 2):
            worker.ack()
            assert worker.get(1) == [f"c{number}"]


@requirement("fair:nothing-lost")
@pytest.mark.anyio
async def test_messages_whose_tickets_were_lost_are_found_with_the_next_message(
    client: FleetClient, redis: Redis, celery: Celery
) -> None:
    with working(celery, window=1) as worker:
        await send(client, *(message(f"c{number}") for number in range(5)))
        assert worker.get(1) == ["c0"]
        redis.delete(QUEUE)
        await send(client, message("c5"))
        for number in range(1, 6):
            worker.ack()
            assert worker.get(1) == [f"c{number}"]


@requirement("fair:nothing-lost")
@pytest.mark.anyio
async def test_an_emptied_redis_takes_messages_again(
    client: FleetClient, redis: Redis, celery: Celery
) -> None:
    with working(celery, window=1) as worker:
        await send(client, *(message(f"c{number}") for number in range(5)))
        assert worker.get(1) == ["c0"]
        redis.flushall()
        redis.script_flush()
        await send(client, message("c5"), message("c6"))
        for number in (5, 6):
            worker.ack()
            assert worker.get(1) == [f"c{number}"]


@requirement("fair:gives-back")
@pytest.mark.anyio
async def test_what_a_worker_took_and_did_not_start_is_next_again_and_in_order(
    client: FleetClient, celery: Celery
) -> None:
    await send(client, *(message(f"c{number}") for number in range(9)))
    with working(celery, window=4) as worker:
        assert worker.get(4) == ["c0", "c1", "c2", "c3"]
        worker.ack()
    assert await client.queue_lengths(["demo"]) == {"demo": 8}
    with working(celery) as worker:
        assert worker.get(8) == [f"c{number}" for number in range(1, 9)]


@requirement("fair:as-celery-knows-it")
@pytest.mark.anyio
async def test_messages_can_be_fetched_one_by_one(client: FleetClient, celery: Celery) -> None:
    await send(client, message("c0"), message("c1"))
    with celery.connection_for_read() as connection:
        fetched = [connection.default_channel.basic_get(QUEUE, no_ack=True) for _ in range(3)]
    assert [it and it.headers["id"] for it in fetched] == ["c0", "c1", None]


@requirement("fair:as-celery-knows-it")
@pytest.mark.anyio
async def test_a_purge_leaves_nothing_of_a_queue(
    client: FleetClient, redis: Redis, celery: Celery
) -> None:
    await send(client, *(message(f"c{number}") for number in range(5)))
    assert celery.control.purge() == 5
    assert redis.dbsize() == 0


@requirement("fair:spreads")
@pytest.mark.anyio
async def test_calls_that_come_together_are_left_to_every_idle_worker(
    client: FleetClient, celery: Celery
) -> None:
    celery.conf.broker_transport_options["polling_interval"] = 5  # as long as Redis lets them wait
    with working(celery) as one, working(celery) as other:
        workers = (one, other)
        assert [worker.step() for worker in workers] == [0, 0]  # both ask, and wait
        await asyncio.gather(*(client.send(message(f"c{number}")) for number in range(5)))
        assert [worker.step() for worker in workers] == [1, 1]


@requirement("fair:shares")
@pytest.mark.anyio
async def test_a_worker_takes_tenants_in_turn(client: FleetClient, celery: Celery) -> None:
    await send(client, *(message(f"loud-{number}", "loud") for number in range(50)))
    await send(client, *(message(f"steady-{number}", "steady") for number in range(10)))
    with working(celery, window=20) as worker:
        got = [call_id.partition("-")[0] for call_id in worker.get(20)]
    assert got.count("steady") in (9, 10)


@requirement("fair:weights")
@pytest.mark.anyio
async def test_a_worker_takes_more_of_a_higher_priority(
    client: FleetClient, celery: Celery
) -> None:
    await send(client, *(message(f"low-{number}", "low", 5) for number in range(30)))
    await send(client, *(message(f"high-{number}", "high", 8) for number in range(60)))
    with working(celery, window=46) as worker:
        got = [call_id.partition("-")[0] for call_id in worker.get(46)]
    assert got.count("low") in (5, 6, 7)
