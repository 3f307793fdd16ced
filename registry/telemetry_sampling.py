"""Which traces are recorded: a share of those that begin here, and no more than so many a second.

Whoever began a trace elsewhere has decided for it. What failed or was slow is worth its cost to
whoever sees it, within the same bound.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from registry.allowance import Allowance

_RATIO_BITS: Final = 56
"""The part of a trace id that is random by all revisions of W3C's, so that processes agree."""


class Sampler:
    """Decides for one process; ``ratio`` from 0 to 1, ``most_per_s`` of each kind of trace."""

    def __init__(
        self,
        ratio: float = 1.0,
        most_per_s: float = 50.0,
        slow_s: float = 5.0,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.slow_s = slow_s
        self._below = round(ratio * (1 << _RATIO_BITS))
        most = max(1.0, most_per_s) if most_per_s else 0.0  # one in ten seconds is one at a time
        self._new = Allowance(most_per_s, most, clock)
        self._spare = Allowance(most_per_s, most, clock)

    def wants(self, trace_id: str) -> bool:
        """Say whether a trace that begins here is recorded."""
        return int(trace_id[-_RATIO_BITS // 4 :], 16) < self._below and self._new.take()

    def spares(self) -> bool:
        """Say whether there is room for a part that is kept although its trace is not recorded."""
        return self._spare.take()
