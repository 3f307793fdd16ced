"""A stock Celery app whose task does nothing: what the fleet's worker is measured against.

Its worker runs Celery's own threads pool with Celery's own settings; nothing of ours is in it.
"""

from __future__ import annotations

import os
import time
from typing import Any, Final

from celery import Celery

BROKER_VARIABLE: Final = "TOOLFLEET_BENCH_BROKER"
THREADS: Final = 16
RESULT_WITHIN_S: Final = 30

broker = os.environ.get(BROKER_VARIABLE, "")
app = Celery("noop", broker=broker, backend=broker)
ran_at: list[float] = []


@app.task  # type: ignore[untyped-decorator]
def noop() -> None:
    """Do nothing but note when."""
    ran_at.append(time.monotonic())


@app.task  # type: ignore[untyped-decorator]
def ran() -> dict[str, float]:
    """Return how many no-ops ran since the last question, and when the first and last did."""
    known = ran_at[:]
    del ran_at[: len(known)]
    return {"count": len(known), "first": min(known, default=0), "last": max(known, default=0)}


def round_trip() -> None:
    """Send a no-op and wait for its result."""
    noop.delay().get(timeout=RESULT_WITHIN_S)


def send(count: int) -> None:
    """Send many no-ops."""
    for _ in range(count):
        noop.delay()


def ask_what_ran() -> dict[str, Any]:
    """Return what `ran` says in the worker."""
    told: dict[str, Any] = ran.delay().get(timeout=RESULT_WITHIN_S)
    return told
