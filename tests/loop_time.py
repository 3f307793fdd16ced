"""How long callbacks hold an event loop, in CPU time: what others do on the machine is left out."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


class Held:
    """The longest that one callback took, in seconds of its thread's CPU."""

    longest_s = 0.0


@contextmanager
def watch_callbacks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    """Measure every callback of asyncio's own loop in this block.

    What lives by then is spared the garbage collector, as in a worker: pytest holds far more.
    """
    held = Held()
    run = asyncio.Handle._run

    def timed(handle: asyncio.Handle) -> None:
        started = time.thread_time()
        run(handle)
        held.longest_s = max(held.longest_s, time.thread_time() - started)

    gc.collect()
    gc.freeze()
    with monkeypatch.context() as patch:
        patch.setattr(asyncio.Handle, "_run", timed)
        yield held
    gc.unfreeze()
