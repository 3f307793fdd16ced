"""The pool's invariants under chance (`tests.pool_machine`); `make soak` takes 50,000 steps."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

from tests.pool_machine import PoolMachine
from tests.requirements import requirement


@requirement("pool:invariants")
class TestPoolMachine(PoolMachine.TestCase):  # type: ignore[name-defined,misc]
    settings = settings(
        max_examples=200,
        stateful_step_count=50,
        deadline=None,
        derandomize=False,
        suppress_health_check=list(HealthCheck),
    )
