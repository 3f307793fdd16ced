"""What a limiter decides: pure, but for the clock that `LocalBuckets` is given.

The invariants are in `workers.limits_redis`; `limit_take.lua` decides the same by Redis' clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from registry.rates import Bucket

_FORGIVEN_US: Final = 1
_MOST_BUCKETS: Final = 10_000


class Reason(Enum):
    """Why a call has to wait."""

    SHORT = "short"
    """A bucket is empty."""
    PAUSED = "paused"
    """The server asked to be left alone."""
    FULL = "full"
    """As many calls are under way as may be at once."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of asking several buckets for one call."""

    left: tuple[int, ...]
    """Calls left in each bucket."""
    reason: Reason | None = None
    """Why the call was not granted; None when it was."""
    wait_s: float = 0.0
    """When asking again may help."""
    short: int | None = None
    """Which bucket takes longest, if that is why."""
    peers: int = 1
    """How many processes ask for the like."""

    @property
    def granted(self) -> bool:
        """Say whether one call was taken from every bucket."""
        return self.reason is None


def microseconds(seconds: float) -> float:
    """Return seconds in microseconds: what the scripts count in."""
    return seconds * 1e6


def weigh(
    full_at: Sequence[float | None], sizes: Sequence[tuple[float, float]], now: float
) -> tuple[list[float], Answer]:
    """Decide about one call of several buckets; return when each is full then, and the answer.

    Instants and intervals in microseconds; ``sizes`` are intervals and bursts. A bucket that is
    not known (None) is full.
    """
    after: list[float] = []
    left: list[int] = []
    longest, short = 0, None
    for number, (kept, (interval, burst)) in enumerate(zip(full_at, sizes, strict=True)):
        begun = bounded(kept, interval * burst, now)
        room = now + interval * burst - begun
        after.append(begun + interval)
        left.append(max(0, math.floor((room + _FORGIVEN_US) / interval)))
        wait = interval - room
        if wait >= _FORGIVEN_US and math.ceil(wait) > longest:
            longest, short = math.ceil(wait), number
    if short is not None:
        return after, Answer(tuple(left), Reason.SHORT, longest / 1e6, short)
    return after, Answer(tuple(count - 1 for count in left))


def bounded(kept: float | None, fills_in: float, now: float) -> float:
    """Return when a bucket is full, between now and the time that an empty one takes to fill."""
    return now if kept is None else min(max(kept, now), now + fills_in)


class LocalBuckets:
    """Buckets of this process alone, for tests and for when the shared ones are away."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._full_at: dict[str, float] = {}

    def take(self, buckets: Sequence[Bucket], share: float = 1.0) -> Answer:
        """Take one call from this process's share of each bucket, or from none."""
        now = microseconds(self._clock())
        full_at = [self._full_at.get(it.name) for it in buckets]
        after, answer = weigh(full_at, _sizes(buckets, share), now)
        if answer.granted:
            if len(self._full_at) >= _MOST_BUCKETS:
                self._full_at = {name: at for name, at in self._full_at.items() if at > now}
            self._full_at.update(zip((it.name for it in buckets), after, strict=True))
        return answer

    def give_back(self, buckets: Sequence[Bucket], share: float = 1.0) -> None:
        """Put one call back into each bucket."""
        now = microseconds(self._clock())
        for bucket, (interval, burst) in zip(buckets, _sizes(buckets, share), strict=True):
            begun = bounded(self._full_at.get(bucket.name), interval * burst, now)
            self._full_at[bucket.name] = begun - interval


def _sizes(buckets: Sequence[Bucket], share: float) -> list[tuple[float, float]]:
    """Return interval and burst of a share of each bucket; one call may always come at once."""
    return [
        (microseconds(it.interval_s) / share, max(1.0, math.floor(it.burst * share)))
        for it in buckets
    ]
