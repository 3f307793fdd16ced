"""The pool's invariants over many steps, and stops that race with the ends of calls.

``make soak``; ``TOOLFLEET_SOAK_STEPS`` (50000) and ``TOOLFLEET_SOAK_RACES`` (100000) say how many.
"""

from __future__ import annotations

import os
import time

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from registry.settings import Settings
from tests.cancel_races import race
from tests.pool_machine import PoolMachine
from tests.requirements import requirement

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

STEPS = int(os.environ.get("TOOLFLEET_SOAK_STEPS", "50000"))
RACES = int(os.environ.get("TOOLFLEET_SOAK_RACES", "100000"))
STEPS_IN_A_ROW = 60


class CountedMachine(PoolMachine):
    steps = 0

    def check_invariants(self, *arguments: object, **options: object) -> None:
        CountedMachine.steps += 1
        super().check_invariants(*arguments, **options)


@requirement("pool:invariants")
def test_the_pool_keeps_its_promises_over_many_random_steps() -> None:
    begun = time.monotonic()
    run_state_machine_as_test(
        CountedMachine,
        settings=settings(
            max_examples=STEPS // STEPS_IN_A_ROW * 4 // 3,  # some runs are shorter
            stateful_step_count=STEPS_IN_A_ROW,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(f"\n{CountedMachine.steps} steps in {time.monotonic() - begun:.0f} s, 0 violations")
    assert CountedMachine.steps >= STEPS


@requirement("stop:never-the-next")
@pytest.mark.anyio
async def test_stops_that_race_with_the_end_of_a_call(database_url: str, redis_url: str) -> None:
    begun = time.monotonic()
    races = await race(Settings(database_url=database_url, redis_url=redis_url), RACES)
    print(f"\n{RACES} calls in {time.monotonic() - begun:.0f} s: {races}")
    assert races.wrong == []
