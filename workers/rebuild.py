"""When sessions may be opened again after they died, or could not be opened (pure; no I/O).

1. An opening that failed is tried again later and later, one attempt at a time for each key; until
   then borrowers are told why, at once (PgBouncer: ``server_login_retry``).
2. Sessions that died unasked are replaced at ``rate_per_s``, after a burst of `BURST`, over all
   keys of the server: one that comes back is not knocked down by those who waited for it.
3. Sessions that the pool closed itself (age, cancelled calls) are replaced without a limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final

from registry.errors import Code, FleetError

BURST: Final = 4.0
BACKOFF_S: Final = 0.5
BACKOFF_LIMIT_S: Final = 30.0
_FORGET_AFTER_S: Final = 300.0
_EPISODE_S: Final = 60.0


@dataclass(slots=True)
class Failure:
    """Why the latest attempt to open a session failed, and when the next one may start."""

    error: FleetError
    attempts: int
    retry_at: float


class Rebuild:
    """The pace of one pool's openings; times are the caller's monotonic seconds."""

    def __init__(self, rate_per_s: float, jitter: Callable[[], float]) -> None:
        self._rate_per_s = rate_per_s
        self._jitter = jitter
        self._failures: dict[Hashable, Failure] = {}
        self._debt = 0
        self._tokens = BURST
        self._filled_at: float | None = None
        self._died_at = -math.inf

    # -- failed openings, key by key

    def failing(self, key: Hashable, now: float) -> Failure | None:
        """Return why no session of this key may be opened now, if so."""
        failure = self._failures.get(key)
        return failure if failure is not None and failure.retry_at > now else None

    def failed(self, key: Hashable, error: FleetError, now: float) -> None:
        """Note a failed attempt: the next one may start after a growing, jittered pause."""
        previous = self._failures.get(key)
        if previous is not None and now < previous.retry_at < math.inf:
            return  # what fails together is one failure
        attempts = previous.attempts + 1 if previous else 1
        ceiling = min(BACKOFF_LIMIT_S, BACKOFF_S * 2 ** min(attempts - 1, 10))
        delay_s = ceiling * (0.5 + 0.5 * self._jitter())
        if error.code is Code.RATE_LIMITED and error.retry_after_s is not None:
            delay_s = error.retry_after_s  # the server named the time: neither before nor later
        elif error.retry_after_s is not None:
            delay_s = max(delay_s, min(error.retry_after_s, BACKOFF_LIMIT_S))
        self._failures[key] = Failure(error, attempts, now + delay_s)

    def succeeded(self, key: Hashable, now: float) -> None:
        """Note an opened session; the failures before it count until it has proved itself."""
        if (failure := self._failures.get(key)) is not None:
            failure.retry_at = now

    def forget(self, key: Hashable) -> None:
        """Forget a key's failures: the server works again."""
        self._failures.pop(key, None)

    # -- deaths, all keys together

    def died(self, now: float) -> None:
        """Note a session whose successor is to be paced."""
        self._fill(now)
        self._died_at = now
        self._debt += 1

    def may_open(self, key: Hashable, now: float) -> bool:
        """Say whether a session of this key may be opened now."""
        return self.failing(key, now) is None and self.wait_s(now) == 0

    def opening(self, key: Hashable, now: float) -> None:
        """Note an attempt that begins now."""
        self._fill(now)
        if self._debt:
            self._debt -= 1
            self._tokens -= 1
        if (failure := self._failures.get(key)) is not None:
            failure.retry_at = math.inf  # one attempt at a time until it is known to be back

    def wait_s(self, now: float, ahead: int = 0) -> float:
        """Return how long the pace makes an opening wait that has ``ahead`` others before it."""
        self._fill(now)
        if not self._debt:
            return 0.0
        return max(0.0, (1 + ahead - self._tokens) / self._rate_per_s)

    def next_in_s(self, now: float) -> float | None:
        """Return the seconds until something may be opened that may not be opened now."""
        times = [f.retry_at - now for f in self._failures.values() if now < f.retry_at < now + 3600]
        if (wait_s := self.wait_s(now)) > 0:
            times.append(wait_s)
        return min(times, default=None)

    def _fill(self, now: float) -> None:
        if self._filled_at is not None:
            gained = max(0.0, now - self._filled_at) * self._rate_per_s
            self._tokens = min(BURST, self._tokens + gained)
        self._filled_at = now
        if self._debt and now - self._died_at > _EPISODE_S:
            self._debt = 0  # what died then is not what is missing now
        if self._failures:
            forgotten = now - _FORGET_AFTER_S
            self._failures = {k: f for k, f in self._failures.items() if f.retry_at > forgotten}
