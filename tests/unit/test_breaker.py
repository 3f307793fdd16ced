"""What one process observes of a breaker; numbers are the invariants of `workers.breaker`."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from registry.definitions import BreakerDefinition
from registry.errors import Code, FleetError
from tests.requirements import requirement
from workers.breaker import (
    LEGAL,
    Breaker,
    BreakerSnapshot,
    BreakerState,
    MemoryStore,
    Tally,
    Verdict,
)
from workers.breaker_state import BUCKETS, bucket_of, check_transition

pytestmark = pytest.mark.anyio

Result = TypeVar("Result")
DEFINITION = BreakerDefinition()
CALLED = st.sampled_from([Verdict.SUCCEEDED, Verdict.FAILED, Verdict.TIMED_OUT])


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


class WatchedStore(MemoryStore):
    """The memory store; it says what it was asked, and can hold its answers back."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.asked: list[str] = []
        self.was_asked = anyio.Event()
        self.may_answer = anyio.Event()
        self.may_answer.set()

    async def _hold(self, operation: str) -> None:
        self.asked.append(operation)
        self.was_asked.set()
        await self.may_answer.wait()

    async def report(
        self, name: str, definition: BreakerDefinition, generation: int, tally: Tally
    ) -> BreakerSnapshot:
        answer = await super().report(name, definition, generation, tally)
        await self._hold("report")
        return answer

    async def read(self, name: str, definition: BreakerDefinition) -> BreakerSnapshot:
        self.asked.append("read")
        return await super().read(name, definition)

    async def take_probe(
        self, name: str, definition: BreakerDefinition, token: str
    ) -> BreakerSnapshot:
        answer = await super().take_probe(name, definition, token)
        await self._hold("take_probe")
        return answer


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> WatchedStore:
    return WatchedStore(clock)


@pytest.fixture
def breaker(store: WatchedStore, clock: Clock) -> Breaker:
    return Breaker("crm", "7", DEFINITION, store, clock=clock)


async def open_up(breaker: Breaker) -> None:
    for _ in range(DEFINITION.consecutive_timeouts):
        await (await breaker.allow()).report(Verdict.TIMED_OUT)


async def refusal(breaker: Breaker) -> FleetError:
    with pytest.raises(FleetError) as caught:
        await breaker.allow()
    return caught.value


@requirement("breaker:cheap")
async def test_a_closed_breaker_asks_its_store_once_in_250_ms(
    breaker: Breaker, store: WatchedStore, clock: Clock
) -> None:
    for _ in range(100):
        await breaker.allow()
    clock.now_s += 0.25
    await breaker.allow()
    assert store.asked == ["read", "read"]


@requirement("breaker:cheap")
async def test_an_open_breaker_refuses_without_asking_its_store(
    breaker: Breaker, store: WatchedStore
) -> None:
    await open_up(breaker)
    store.asked.clear()
    for _ in range(100):
        await refusal(breaker)
    assert store.asked == []


@requirement("breaker:cheap")
async def test_verdicts_that_arrive_together_travel_together(
    breaker: Breaker, store: WatchedStore
) -> None:
    permits = [await breaker.allow() for _ in range(50)]
    store.asked.clear()
    async with anyio.create_task_group() as group:
        for permit in permits[:45]:
            group.start_soon(permit.report, Verdict.SUCCEEDED)
        for permit in permits[45:]:
            group.start_soon(permit.report, Verdict.FAILED)
    assert store.asked[:1] == ["report"]
    assert "report" not in store.asked[1:]
    assert (await breaker.snapshot()).calls == 50


@requirement("breaker:cheap")
async def test_successes_are_sent_without_anyone_waiting(
    breaker: Breaker, store: WatchedStore
) -> None:
    await (await breaker.allow()).report(Verdict.SUCCEEDED)
    with anyio.fail_after(5):
        await store.was_asked.wait()
    assert store.asked[1] == "report"


@requirement("breaker:opens-on-timeouts")
async def test_the_call_after_the_tenth_timeout_is_refused(breaker: Breaker) -> None:
    permits = [await breaker.allow() for _ in range(10)]
    async with anyio.create_task_group() as group:
        for permit in permits:
            group.start_soon(permit.report, Verdict.TIMED_OUT)
    error = await refusal(breaker)
    assert error.code is Code.BREAKER_OPEN
    assert error.retry_after_s == pytest.approx(30)
    assert "'crm'" in error.message


@requirement("breaker:opens-on-timeouts")
async def test_a_permit_counts_its_first_report_only(breaker: Breaker) -> None:
    permit = await breaker.allow()
    for _ in range(10):
        await permit.report(Verdict.TIMED_OUT)
    assert (await breaker.snapshot()).consecutive_timeouts == 1


@requirement("breaker:abstains")
async def test_abstained_calls_are_not_told_to_the_store(
    breaker: Breaker, store: WatchedStore
) -> None:
    for _ in range(1_000):
        await (await breaker.allow()).report(Verdict.ABSTAINED)
    await breaker.flush()
    assert "report" not in store.asked


@requirement("breaker:probes-after-30s")
async def test_after_30_s_one_of_many_callers_probes_and_the_others_are_told_to_come_back_soon(
    breaker: Breaker, clock: Clock
) -> None:
    await open_up(breaker)
    clock.now_s += 30
    probes, waits = 0, []

    async def call() -> None:
        nonlocal probes
        try:
            probes += (await breaker.allow()).probe is not None
        except FleetError as error:
            waits.append(error.retry_after_s)

    async with anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(call)
    assert (probes, waits) == (1, [1.0] * 49)


@requirement("breaker:probes-after-30s")
async def test_a_successful_probe_lets_everyone_pass(breaker: Breaker, clock: Clock) -> None:
    await open_up(breaker)
    clock.now_s += 30
    await (await breaker.allow()).report(Verdict.SUCCEEDED)
    permits = [await breaker.allow() for _ in range(20)]
    assert {permit.probe for permit in permits} == {None}


@requirement("breaker:survives-cancel")
async def test_a_verdict_reaches_the_store_though_its_reporter_is_cancelled(
    breaker: Breaker, store: WatchedStore
) -> None:
    permit = await breaker.allow()
    store.may_answer = anyio.Event()
    store.was_asked = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(permit.report, Verdict.TIMED_OUT)
        await store.was_asked.wait()
        group.cancel_scope.cancel()
    store.may_answer.set()
    assert (await breaker.snapshot()).consecutive_timeouts == 1


@requirement("breaker:survives-cancel")
async def test_a_probe_granted_to_a_caller_that_was_cancelled_goes_to_the_next(
    breaker: Breaker, store: WatchedStore, clock: Clock
) -> None:
    await open_up(breaker)
    clock.now_s += 30
    store.may_answer = anyio.Event()
    store.was_asked = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(breaker.allow)
        await store.was_asked.wait()
        group.cancel_scope.cancel()
    store.may_answer.set()
    await breaker.flush()
    assert (await breaker.allow()).probe is not None


@requirement("breaker:survives-cancel")
async def test_closing_sends_what_was_counted(breaker: Breaker, store: WatchedStore) -> None:
    await (await breaker.allow()).report(Verdict.SUCCEEDED)
    await breaker.close()
    assert (await store.read(breaker.name, DEFINITION)).calls == 1


@requirement("breaker:by-hand")
async def test_a_breaker_closed_by_hand_admits_in_another_process(
    breaker: Breaker, store: WatchedStore, clock: Clock
) -> None:
    other = Breaker("crm", "7", DEFINITION, store, clock=clock)
    await breaker.force_open(3_600)
    await refusal(other)
    await breaker.force_close()
    clock.now_s += 0.25
    await refusal(other)
    await other.flush()
    assert (await other.allow()).probe is None


@requirement("breaker:by-hand")
async def test_a_breaker_told_of_a_change_asks_at_once(
    breaker: Breaker, store: WatchedStore, clock: Clock
) -> None:
    other = Breaker("crm", "7", DEFINITION, store, clock=clock)
    await other.allow()
    await breaker.force_open(60)
    other.expire()
    assert (await refusal(other)).retry_after_s == pytest.approx(60)


@requirement("breaker:shared")
async def test_who_only_watches_sees_each_change_and_admits_no_call_by_an_older_look(
    breaker: Breaker, store: WatchedStore, clock: Clock
) -> None:
    other = Breaker("crm", "7", DEFINITION, store, clock=clock)
    await other.allow()
    clock.now_s += 0.2
    assert (await other.look()).state is BreakerState.CLOSED
    await breaker.force_open(60)
    clock.now_s += 0.1
    await refusal(other)
    await breaker.force_close()
    await other.look()
    assert other.known.state is BreakerState.CLOSED


@requirement("breaker:by-hand")
async def test_forcing_open_for_no_time_is_refused(breaker: Breaker) -> None:
    with pytest.raises(ValueError, match="positive"):
        await breaker.force_open(0)


@requirement("breaker:legal-transitions")
@pytest.mark.parametrize("old", BreakerState)
@pytest.mark.parametrize("new", BreakerState)
def test_a_transition_outside_the_table_raises(old: BreakerState, new: BreakerState) -> None:
    if new in LEGAL[old]:
        check_transition(old, new)
    else:
        with pytest.raises(RuntimeError, match="cannot go"):
            check_transition(old, new)


@requirement("breaker:opens-on-timeouts")
@given(run=st.integers(0, 20), verdicts=st.lists(st.sampled_from(Verdict)))
def test_a_tally_knows_the_runs_that_its_verdicts_would_make_one_by_one(
    run: int, verdicts: list[Verdict]
) -> None:
    tally, longest, now = Tally(), run, run
    for verdict in verdicts:
        tally.add(verdict)
        now = 0 if verdict is Verdict.SUCCEEDED else now + (verdict is Verdict.TIMED_OUT)
        longest = max(longest, now)
    assert tally.runs_after(run) == (longest, now)


def at_once(operation: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine that never waits, as the memory store's do not."""
    try:
        operation.send(None)
    except StopIteration as end:
        result: Result = end.value
        return result
    raise AssertionError("the memory store waited for something")


class AnyStory(RuleBasedStateMachine):
    """Walk the memory store at random beside a model that remembers every verdict."""

    name = "crm:7"
    definition = BreakerDefinition(
        consecutive_timeouts=3,
        failure_rate=0.5,
        window_s=10,
        minimum_calls=4,
        open_for_s=5,
        probe_lease_s=7,
    )

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.store = MemoryStore(self.clock)
        self.seen = self.read()
        self.begin(open_for_s=0)
        self.tokens: list[tuple[int, str]] = []

    def begin(self, open_for_s: float) -> None:
        self.counted: list[tuple[int, bool]] = []
        self.run_length = 0
        self.open_until_s = self.clock() + open_for_s if open_for_s else None
        self.lease: tuple[str, float] | None = None

    def read(self) -> BreakerSnapshot:
        return at_once(self.store.read(self.name, self.definition))

    def window(self) -> list[bool]:
        oldest = bucket_of(self.definition, round(self.clock() * 1000)) - BUCKETS + 1
        return [failed for bucket, failed in self.counted if bucket >= oldest]

    @rule(verdicts=st.lists(st.one_of(CALLED, st.just(Verdict.ABSTAINED)), max_size=8))
    def calls_end(self, verdicts: list[Verdict]) -> None:
        generation, tally = self.seen.generation, Tally()
        closed, too_long = self.open_until_s is None, False
        for verdict in verdicts:
            tally.add(verdict)
            if closed and verdict is not Verdict.ABSTAINED:
                bucket = bucket_of(self.definition, round(self.clock() * 1000))
                self.counted.append((bucket, verdict is not Verdict.SUCCEEDED))
                if verdict is Verdict.SUCCEEDED:
                    self.run_length = 0
                self.run_length += verdict is Verdict.TIMED_OUT
                too_long |= self.run_length >= 3
        at_once(self.store.report(self.name, self.definition, generation, tally))
        window = self.window()
        too_many = len(window) >= 4 and sum(window) / len(window) >= 0.5
        if closed and (too_long or too_many):
            self.begin(open_for_s=5)

    @rule(age=st.integers(1, 10_000), verdicts=st.lists(CALLED, min_size=1))
    def calls_of_an_older_generation_end(self, age: int, verdicts: list[Verdict]) -> None:
        tally = Tally()
        for verdict in verdicts:
            tally.add(verdict)
        generation = self.seen.generation - age
        at_once(self.store.report(self.name, self.definition, generation, tally))

    @rule()
    def someone_asks_for_the_probe(self) -> None:
        token = f"token-{len(self.tokens)}"
        answer = at_once(self.store.take_probe(self.name, self.definition, token))
        half_open = self.open_until_s is not None and self.clock() >= self.open_until_s
        free = self.lease is None or self.clock() >= self.lease[1]
        assert (answer.probe == token) == (half_open and free), "invariant 2"
        if answer.probe == token:
            self.lease = (token, self.clock() + 7)
            self.tokens.append((answer.generation, token))

    @rule(pick=st.integers(0, 3), verdict=st.sampled_from(Verdict))
    def a_probe_ends(self, pick: int, verdict: Verdict) -> None:
        if pick >= len(self.tokens):
            return
        generation, token = self.tokens[-1 - pick]
        operation = self.store.settle_probe(self.name, self.definition, generation, token, verdict)
        at_once(operation)
        if self.lease is not None and self.lease[0] == token:
            if verdict is Verdict.ABSTAINED:
                self.lease = None
            else:
                self.begin(open_for_s=0 if verdict is Verdict.SUCCEEDED else 5)

    @rule(seconds=st.sampled_from([0.001, 0.5, 1, 4.999, 5, 7, 10, 60]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now_s = round(self.clock.now_s + seconds, 3)

    @rule(open_for_s=st.sampled_from([0, 0, 2]))
    def an_operator_acts(self, open_for_s: int) -> None:
        at_once(self.store.force(self.name, self.definition, open_for_s))
        if open_for_s or self.open_until_s is not None:
            self.begin(open_for_s)

    @invariant()
    def the_store_agrees_with_the_model(self) -> None:
        was, now = self.seen, self.read()
        self.seen = now
        state, wait_s = BreakerState.CLOSED, 0.0
        held = self.lease is not None and self.clock() < self.lease[1]
        if self.open_until_s is not None:
            opened = self.clock() < self.open_until_s
            state = BreakerState.OPEN if opened else BreakerState.HALF_OPEN
            until_s = self.lease[1] if held and self.lease else self.open_until_s
            wait_s = max(0.0, until_s - self.clock())
        window = self.window()
        assert now.state is state, "invariants 4 and 6"
        assert now.state is was.state or now.state in LEGAL[was.state], "invariant 1"
        assert (now.calls, now.failures) == (len(window), sum(window)), "invariants 3 and 5"
        assert now.consecutive_timeouts == self.run_length, "invariants 3, 4 and 5"
        assert now.retry_after_s == pytest.approx(wait_s), "invariants 6 and 7"
        assert (now.probe is not None) == held, "invariants 2, 5 and 6"
        begins = {was.state, now.state} != {BreakerState.OPEN, BreakerState.HALF_OPEN}
        if was.state is not now.state and begins:
            assert now.generation > was.generation, "invariant 3"
        assert now.generation >= was.generation, "invariant 3"


@requirement("breaker:legal-transitions", "breaker:generations", "breaker:abstains")
def test_no_story_breaks_an_invariant() -> None:
    story = settings(max_examples=150, stateful_step_count=60, deadline=None)
    run_state_machine_as_test(AnyStory, settings=story)
