"""How often something may be done: so many times at once, and so many a second over time."""

from __future__ import annotations

from collections.abc import Callable


class Allowance:
    """What is left of it; ``clock`` counts seconds."""

    def __init__(self, per_s: float, most: float, clock: Callable[[], float]) -> None:
        self._per_s = per_s
        self._most = most
        self._clock = clock
        self._left = most
        self._since = clock()

    def take(self) -> bool:
        """Take one; say whether there was one."""
        now = self._clock()
        self._left = min(self._most, self._left + (now - self._since) * self._per_s)
        self._since = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
