"""Whether code holds up an event loop, or takes too long: told by a yardstick, never by a clock.

What is compared is CPU time of one thread, so what others do on the machine is left out; what they
do to its caches and its clock rate slows down the yardstick too. Noise only ever adds: what holds
the loop does so in each of several attempts.
"""

from __future__ import annotations

import asyncio
import gc
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

import pytest

ATTEMPTS: Final = 4
YARDSTICK: Final = "[" + "[]," * 60_000 + "[]]"
"""180 kB of JSON; measured, reading it takes 2.6 ms."""


class Watch:
    """The longest that one callback took, in seconds of its thread's CPU."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._began_s = math.inf

    @contextmanager
    def on(self) -> Iterator[None]:
        """Measure every callback of asyncio's own loop in this block."""
        run = asyncio.Handle._run

        def timed(handle: asyncio.Handle) -> None:
            self._began_s = time.thread_time()
            run(handle)
            self._ended()

        with _without_collector(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(asyncio.Handle, "_run", timed)
            yield
            self._ended()  # the part of the callback that leaves the block

    def _ended(self) -> None:
        self.longest_s = max(self.longest_s, time.thread_time() - self._began_s)
        self._began_s = math.inf


def attempts(*, most: float) -> Iterator[AbstractContextManager[None]]:
    """Yield blocks to try a thing in, until one in which the loop ran on; fail after the last.

    It ran on if no callback took longer than ``most`` times what reading the yardstick takes::

        for attempt in attempts(most=8):
            with attempt:
                await session.list_tools()

    Leave the loop by no other way than its end: an attempt is judged when the next is asked for.
    """
    for _ in range(ATTEMPTS):
        watch = Watch()
        yield watch.on()
        if watch.longest_s <= most * yardstick_s():
            return
    pytest.fail(
        f"in each of {ATTEMPTS} attempts a callback held the loop for too long: in the last one "
        f"{watch.longest_s / yardstick_s():.1f} times as long as the yardstick, {most} are allowed"
    )


def grows_by_less(than: float, act: Callable[[int], Any], short: int, long: int) -> bool:
    """Say whether an act of one length takes less than so many times as long as one of another."""

    def ratio() -> float:
        base_s = max(shortest_s(lambda: act(short)), 0.001)  # what takes next to nothing is noise
        return shortest_s(lambda: act(long), times=1) / base_s

    return any(ratio() < than for _ in range(ATTEMPTS))


def yardstick_s() -> float:
    """Return what reading the yardstick takes of CPU."""
    with _without_collector():
        return shortest_s(lambda: json.loads(YARDSTICK))


def shortest_s(act: Callable[[], Any], times: int = 3) -> float:
    """Return the least CPU time that one of several goes at something took."""
    took = []
    for _ in range(times):
        started = time.thread_time()
        act()
        took.append(time.thread_time() - started)
    return min(took)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Keep the garbage collector out: its pauses depend on all that pytest holds."""
    gc.disable()
    yield
    gc.enable()
