"""Cancellation thrown into a coroutine at its n-th suspension, for each n."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any


class CancelledAt:
    """Await a coroutine; at suspension number ``at`` (from 1) cancel it as a task would."""

    def __init__(self, work: Coroutine[Any, Any, Any], at: int) -> None:
        self._work = work
        self._at = at
        self.reached = False

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self._work.__await__()
        suspensions = 0
        try:
            awaited = next(steps)
            while True:
                suspensions += 1
                if suspensions == self._at:
                    self.reached = True
                    if asyncio.isfuture(awaited):
                        awaited._asyncio_future_blocking = False  # as the task that takes it does
                        awaited.cancel()
                    awaited = steps.throw(asyncio.CancelledError())
                    continue
                try:
                    yield awaited
                except BaseException as error:  # noqa: BLE001 goes where the task would send it
                    awaited = steps.throw(error)
                else:
                    awaited = steps.send(None)
        except StopIteration as end:
            return end.value
