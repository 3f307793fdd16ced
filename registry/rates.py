"""How often something may happen: rates as operators write them, and the buckets they make.

A rate is a token bucket. Full it holds ``burst`` calls, and it fills steadily: any stretch of time
sees ``burst`` calls more than the rate at most, and a longer one no more than that. A bucket is
named by what it limits, never by a secret. Pure values; `workers.limits_redis` fills them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, model_validator

from registry.problems import misplaced

MINUTE_S: Final = 60
_PERIODS: Final = {"calls_per_second": 1, "calls_per_minute": MINUTE_S, "calls_per_hour": 3_600}

Calls = Annotated[int, Field(ge=1, le=1_000_000, strict=True)]


class Rates(BaseModel):
    """Calls in a second, a minute and an hour; all that are given hold, None is no limit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    calls_per_second: Calls | None = None
    calls_per_minute: Calls | None = None
    calls_per_hour: Calls | None = None
    burst: Calls | None = None
    """How many of the shortest period's may come at once."""

    @property
    def limited(self) -> bool:
        """Say whether there is any rate."""
        return any(getattr(self, field) is not None for field in _PERIODS)


class RateLimit(Rates):
    """Rates that stand alone: a burst is one of theirs."""

    @model_validator(mode="after")
    def _bursts_of_something(self) -> RateLimit:
        if self.burst is not None and not self.limited:
            raise misplaced("burst", f"needs a rate beside it: one of {', '.join(_PERIODS)}")
        return self


@dataclass(frozen=True, slots=True)
class Bucket:
    """One rate of one thing: ``calls`` in ``period_s`` seconds, ``burst`` of them at once."""

    name: str
    """What is limited, and by which period: ``tenant:acme:60``."""
    calls: int
    period_s: int
    burst: int

    @property
    def kind(self) -> str:
        """Return what sort of thing is limited: the first part of the name."""
        return self.name.partition(":")[0]

    @property
    def interval_s(self) -> float:
        """Return the seconds that one call takes to be filled in."""
        return self.period_s / self.calls


def buckets(rates: Rates, name: str, *, burst_s: float = MINUTE_S) -> tuple[Bucket, ...]:
    """Return the bucket of each period that has a rate, the shortest first.

    Where no burst is given a bucket holds what ``burst_s`` seconds fill in: one call at least, a
    period's worth at most.
    """
    made: list[Bucket] = []
    for field, period_s in _PERIODS.items():
        calls: int | None = getattr(rates, field)
        if calls is None:
            continue
        worth = max(1, math.ceil(calls * min(burst_s, period_s) / period_s))
        burst = worth if made or rates.burst is None else rates.burst
        made.append(Bucket(f"{name}:{period_s}", calls, period_s, burst))
    return tuple(made)
