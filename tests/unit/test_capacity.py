"""How many sessions a server needs: held to a simulation of the queue, call by call."""

from __future__ import annotations

import heapq
import math
import random
from typing import Any

import pytest

from registry.capacity import (
    FEWEST_CALLS,
    NOTHING_ASKED,
    Advice,
    Demand,
    Load,
    Need,
    Target,
    plan,
)
from registry.definitions import parse_definition
from tests.requirements import requirement

CALLS = 12_000
LATE = 0.95
CASES = [
    # load (calls under way), variability of service times, calls in a burst, target / service time
    *((0.6, 1.0, 1, 1.0), (5.0, 1.0, 1, 0.2), (10.0, 1.0, 1, 1.0), (10.0, 0.0, 1, 0.3)),
    *((10.0, 0.2, 1, 1.0), (10.0, 4.0, 1, 1.0), (40.0, 1.0, 1, 0.1), (40.0, 2.0, 1, 0.3)),
    *((10.0, 1.0, 4, 1.0), (10.0, 1.0, 16, 1.0), (5.0, 0.5, 8, 0.5), (20.0, 4.0, 4, 0.5)),
]


def simulate(slots: int, load: Load, burst: int, seed: int = 7) -> float:
    """Return what 95 % of the calls waited at most, in a queue that is played call by call."""
    chance = random.Random(seed)
    variance = math.log(1 + load.service_variability)
    middle = math.log(load.service_s) - variance / 2
    free, now, waits = [0.0] * slots, 0.0, []
    for number in range(CALLS):
        if number % burst == 0:
            now += chance.expovariate(load.per_s / burst)
        begins = max(now, heapq.heappop(free))
        waits.append(begins - now)
        heapq.heappush(free, begins + chance.lognormvariate(middle, math.sqrt(variance)))
    return sorted(waits[CALLS // 10 :])[int(CALLS * 0.9 * LATE)]


@requirement("capacity:enough", "capacity:no-more")
@pytest.mark.parametrize(("erlangs", "variability", "burst", "patience"), CASES)
def test_a_plan_is_enough_in_simulation_and_seven_tenths_of_it_are_not(
    erlangs: float, variability: float, burst: int, patience: float
) -> None:
    load = Load(erlangs / 0.2, 0.2, variability, burst)
    target_s = patience * load.service_s
    slots = load.slots_for(target_s)
    assert load.wait_s(slots) <= target_s < load.wait_s(slots - 1)
    assert simulate(slots, load, burst) <= 1.2 * target_s
    fewer = math.floor(0.7 * slots)
    assert fewer == 0 or simulate(fewer, load, burst) > target_s


@requirement("capacity:enough")
def test_the_wait_of_one_session_is_what_the_textbook_says() -> None:
    load = Load(per_s=0.8, service_s=1.0)  # M/M/1: P(W > t) = rho * exp(-(mu - lambda) t)
    assert load.wait_s(1) == pytest.approx(math.log(0.8 / 0.05) / 0.2)
    assert Load(per_s=10, service_s=1).wait_s(10) == math.inf
    # Erlang's C of 10 erlangs on 12 sessions is 0.4494 in the tables.
    assert Load(per_s=10, service_s=1).wait_s(12) == pytest.approx(
        math.log(0.4494 / 0.05) / 2, rel=1e-3
    )


def asked(per_minute: float = 576, service_s: float = 0.5, **rest: Any) -> Demand:
    known = {
        "calls": 5_000,
        "mean_per_minute": per_minute / 2,
        "peak_per_minute": per_minute,
        "burstiness": 1.0,
        "served": 5_000,
        "service_s": service_s,
        "p95_service_s": 3 * service_s,
        "service_variability": 1.0,
        "p95_wait_s": 0.01,
        "tenants": 3,
    }
    return Demand(**{**known, **rest})


def planned(demand: Demand, workers: int = 1, headroom: float = 1.0, **definition: Any) -> Need:
    server = {"name": "crm", "transport": "stdio", "command": "true", **definition}
    return plan(parse_definition(server), workers, demand, Target(0.2, headroom))


@requirement("capacity:advice")
def test_sessions_that_are_missing_are_found_in_larger_pools_or_in_more_workers() -> None:
    need = planned(asked())  # 4.8 calls under way, on the average
    assert (need.advice, need.needed_sessions, need.needed_workers) == (Advice.NOTHING, 8, 1)
    assert need.utilisation == pytest.approx(0.6)
    assert "0 sessions to spare" in need.why

    need = planned(asked(), headroom=2)
    assert (need.advice, need.needed_sessions, need.needed_workers) == (
        Advice.RAISE_MAX_SIZE, 14, 2,
    )  # fmt: skip
    assert need.utilisation == pytest.approx(1.2)
    assert need.expected_p95_wait_s is None, "its queue would grow without end"
    assert need.expected_p95_wait_then_s is not None
    assert need.expected_p95_wait_then_s <= 0.2
    assert "raise pool.max_size from 8 to 14, or run 2 workers in the place of 1" in need.why

    need = planned(asked(service_s=10))
    assert need.advice is Advice.ADD_WORKERS
    assert need.needed_workers == math.ceil((need.needed_sessions or 0) / 8)

    need = planned(asked(per_minute=30_000, service_s=0.001))
    assert (need.advice, need.needed_workers) == (Advice.ADD_WORKERS, 4)
    assert need.needed_sessions == 4, "it is the process that has too much to do"

    need = planned(asked(), workers=3)
    assert (need.advice, need.needed_workers) == (Advice.SHRINK, 1)
    need = planned(asked(), workers=0)
    assert (need.advice, need.utilisation) == (Advice.ADD_WORKERS, None)


@requirement("capacity:advice")
def test_sessions_that_are_shared_count_as_often_as_they_are() -> None:
    one = planned(asked(), pool={"max_size": 8})
    shared = planned(asked(), pool={"max_size": 8, "calls_per_session": 4})
    assert one.needed_sessions == 8
    assert shared.needed_sessions == 2


@requirement("capacity:advice")
@pytest.mark.parametrize(
    ("quota", "credentials", "limited"),
    [
        ({"calls_per_second": 5}, {}, True),
        ({"calls_per_second": 20}, {}, False),
        ({"calls_per_minute": 240, "calls_per_hour": 90_000}, {}, True),
        ({"concurrent_calls": 3}, {}, True),
        ({"concurrent_calls": 30}, {}, False),
        ({"calls_per_second": 5}, {"inject": "env", "name": "KEY"}, False),
        ({"calls_per_second": 5, "per": "server"}, {"inject": "env", "name": "KEY"}, True),
    ],
)
def test_where_a_quota_holds_calls_up_sessions_are_not_advised(
    quota: dict[str, Any], credentials: dict[str, Any], limited: bool
) -> None:
    need = planned(asked(), quota=quota, credentials=credentials)
    assert (need.advice is Advice.RAISE_QUOTA) is limited
    assert ("sessions cannot help" in need.why) is limited


@requirement("capacity:advice")
def test_of_few_calls_nothing_is_said() -> None:
    for demand in (NOTHING_ASKED, asked(served=FEWEST_CALLS - 1)):
        need = planned(demand)
        assert (need.advice, need.needed_sessions) == (Advice.LOOK_AGAIN, None)
        assert "too few to say" in need.why
