"""What a breaker is and decides: states, verdicts, the store's interface, a store in memory.

Pure but for the clock that `MemoryStore` is given. The invariants are in `workers.breaker`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Protocol

from registry.definitions import BreakerDefinition

BUCKETS: Final = 10
"""The window moves in steps of a tenth."""
BY_HAND: Final = "by hand"
"""Why a breaker is open that an operator opened without saying more."""


class BreakerState(StrEnum):
    """Whether calls pass."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Verdict(StrEnum):
    """What a call said about its server; a timeout is a failure that also lengthens the run."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    ABSTAINED = "abstained"


LEGAL: Final[dict[BreakerState, frozenset[BreakerState]]] = {
    BreakerState.CLOSED: frozenset({BreakerState.OPEN}),
    # Open to open and open to closed are an operator's doing: `force_open`, `force_close`.
    BreakerState.OPEN: frozenset({BreakerState.HALF_OPEN, BreakerState.OPEN, BreakerState.CLOSED}),
    BreakerState.HALF_OPEN: frozenset({BreakerState.OPEN, BreakerState.CLOSED}),
}


def check_transition(old: BreakerState, new: BreakerState) -> None:
    """Raise RuntimeError unless `LEGAL` lists the transition."""
    if new not in LEGAL[old]:
        raise RuntimeError(f"a breaker cannot go from {old} to {new}")


@dataclass(frozen=True, slots=True)
class BreakerSnapshot:
    """A breaker at one instant, by its store's clock."""

    state: BreakerState = BreakerState.CLOSED
    generation: int = 0
    consecutive_timeouts: int = 0
    calls: int = 0
    failures: int = 0
    opened_at_s: float | None = None
    retry_after_s: float = 0.0
    """Open: until a probe may go. Half-open: until the probe's lease lapses, 0 if none is out."""
    probe: str | None = None
    """The token of the probe that is out."""
    open_s: float = 0.0
    """For how long it has not been closed, whatever probes said meanwhile."""
    why: str = ""
    """Why it has not been closed since, in words."""


@dataclass(slots=True)
class Tally:
    """Verdicts of one generation, in order, reduced to what a store has to know."""

    calls: int = 0
    failures: int = 0
    leading: int = 0
    """Timeouts before the first success: they lengthen the run that the store knows."""
    longest: int = 0
    trailing: int = 0
    """Timeouts after the last success: the run that goes on."""

    def add(self, verdict: Verdict) -> None:
        """Count one more verdict."""
        if verdict is Verdict.ABSTAINED:
            return
        self.calls += 1
        if verdict is Verdict.SUCCEEDED:
            self.trailing = 0
            return
        self.failures += 1
        if verdict is Verdict.TIMED_OUT:
            self.trailing += 1
            self.longest = max(self.longest, self.trailing)
            if self.failures == self.calls:
                self.leading = self.trailing

    def runs_after(self, run: int) -> tuple[int, int]:
        """Return the longest run of timeouts and the run that goes on, if ``run`` came before."""
        longest = max(run + self.leading, self.longest)
        return longest, self.trailing if self.calls > self.failures else run + self.trailing


def opens(definition: BreakerDefinition, run: int, calls: int, failures: int) -> bool:
    """Decide whether a closed breaker has to open."""
    return bool(why_opens(definition, run, calls, failures))


def why_opens(definition: BreakerDefinition, run: int, calls: int, failures: int) -> str:
    """Say why a closed breaker has to open; an empty text where it has not."""
    if run >= definition.consecutive_timeouts:
        return f"{run} timeouts in a row"
    if calls >= definition.minimum_calls and failures / calls >= definition.failure_rate:
        return f"{failures} of {calls} calls failed"
    return ""


class BreakerStore(Protocol):
    """Where the state of breakers lives; each operation is atomic and returns the state after it.

    ``name`` is ``<server>:<version id>``. Raises `store_unavailable` when the store cannot answer.
    """

    async def read(self, name: str, definition: BreakerDefinition) -> BreakerSnapshot:
        """Return the state."""

    async def report(
        self, name: str, definition: BreakerDefinition, generation: int, tally: Tally
    ) -> BreakerSnapshot:
        """Count verdicts and open if they say so."""

    async def take_probe(
        self, name: str, definition: BreakerDefinition, token: str
    ) -> BreakerSnapshot:
        """Lease the probe if half-open and none is out: then ``probe`` is ``token``."""

    async def settle_probe(
        self,
        name: str,
        definition: BreakerDefinition,
        generation: int,
        token: str,
        verdict: Verdict,
    ) -> BreakerSnapshot:
        """Take the probe's verdict: close, open again, or free the lease."""

    async def force(
        self, name: str, definition: BreakerDefinition, open_for_s: float, why: str = BY_HAND
    ) -> BreakerSnapshot:
        """Open for ``open_for_s`` seconds, or close if that is 0, whatever was counted."""


@dataclass(slots=True)
class _Facts:
    """What the memory store remembers of one breaker; times in milliseconds of its clock."""

    state: BreakerState = BreakerState.CLOSED
    generation: int = 0
    run: int = 0
    opened_at: int = 0
    open_until: int = 0
    probe: str | None = None
    probe_until: int = 0
    since: int = 0
    why: str = ""
    buckets: dict[int, tuple[int, int]] = field(default_factory=dict)


class MemoryStore:
    """Breakers of this process alone, for tests and for when the shared store is away."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._facts: dict[str, _Facts] = {}

    async def read(self, name: str, definition: BreakerDefinition) -> BreakerSnapshot:
        """Return the state."""
        facts, now = self._at_now(name)
        return _snapshot(facts, definition, now)

    async def report(
        self, name: str, definition: BreakerDefinition, generation: int, tally: Tally
    ) -> BreakerSnapshot:
        """Count verdicts and open if they say so."""
        facts, now = self._at_now(name)
        if facts.state is BreakerState.CLOSED and facts.generation == generation:
            longest, facts.run = tally.runs_after(facts.run)
            current = bucket_of(definition, now)
            calls, failures = facts.buckets.get(current, (0, 0))
            facts.buckets[current] = (calls + tally.calls, failures + tally.failures)
            why = why_opens(definition, longest, *_window(facts, definition, now))
            if why:
                self._move(name, BreakerState.OPEN, now, definition.open_for_s, why)
        return _snapshot(self._facts[name], definition, now)

    async def take_probe(
        self, name: str, definition: BreakerDefinition, token: str
    ) -> BreakerSnapshot:
        """Lease the probe if the breaker is half-open and none is out."""
        facts, now = self._at_now(name)
        if facts.state is BreakerState.HALF_OPEN and now >= facts.probe_until:
            facts.probe, facts.probe_until = token, now + milliseconds(definition.probe_lease_s)
        return _snapshot(facts, definition, now)

    async def settle_probe(
        self,
        name: str,
        definition: BreakerDefinition,
        generation: int,
        token: str,
        verdict: Verdict,
    ) -> BreakerSnapshot:
        """Take the probe's verdict; a lapsed probe still counts until another one has its lease."""
        facts, now = self._at_now(name)
        if facts.generation == generation and facts.probe == token:
            if verdict is Verdict.ABSTAINED:
                facts.probe, facts.probe_until = None, 0
            elif verdict is Verdict.SUCCEEDED:
                self._move(name, BreakerState.CLOSED, now)
            else:
                self._move(name, BreakerState.OPEN, now, definition.open_for_s)
        return _snapshot(self._facts[name], definition, now)

    async def force(
        self, name: str, definition: BreakerDefinition, open_for_s: float, why: str = BY_HAND
    ) -> BreakerSnapshot:
        """Open for ``open_for_s`` seconds, or close if that is 0, whatever was counted."""
        facts, now = self._at_now(name)
        if open_for_s:
            self._move(name, BreakerState.OPEN, now, open_for_s, why)
        elif facts.state is not BreakerState.CLOSED:
            self._move(name, BreakerState.CLOSED, now)
        return _snapshot(self._facts[name], definition, now)

    def adopt(self, name: str, definition: BreakerDefinition, snapshot: BreakerSnapshot) -> None:
        """Go on from another store's answer: same generation, counts, and time left open."""
        now = self._now()
        waits = snapshot.state is BreakerState.OPEN
        self._facts[name] = _Facts(
            state=snapshot.state,
            generation=snapshot.generation,
            run=snapshot.consecutive_timeouts,
            opened_at=now,
            open_until=now + milliseconds(snapshot.retry_after_s) if waits else now,
            since=now - milliseconds(snapshot.open_s),
            why=snapshot.why,
            buckets={bucket_of(definition, now): (snapshot.calls, snapshot.failures)},
        )

    def _now(self) -> int:
        return milliseconds(self._clock())

    def _at_now(self, name: str) -> tuple[_Facts, int]:
        now = self._now()
        facts = self._facts.setdefault(name, _Facts())
        if facts.state is BreakerState.OPEN and now >= facts.open_until:
            check_transition(facts.state, BreakerState.HALF_OPEN)
            facts.state = BreakerState.HALF_OPEN
        return facts, now

    def _move(
        self, name: str, state: BreakerState, now: int, open_for_s: float = 0.0, why: str = ""
    ) -> None:
        facts = self._facts[name]
        check_transition(facts.state, state)
        # Larger than any earlier one even if the store lost its memory in between.
        generation = max(facts.generation + 1, now)
        moved = _Facts(state, generation, 0, now, now + milliseconds(open_for_s))
        if state is BreakerState.OPEN:
            moved.since = now if facts.state is BreakerState.CLOSED else facts.since
            moved.why = why or facts.why
        self._facts[name] = moved


def bucket_of(definition: BreakerDefinition, now_ms: int) -> int:
    """Return the number of the window's bucket that an instant belongs to."""
    return now_ms // bucket_ms(definition)


def bucket_ms(definition: BreakerDefinition) -> int:
    """Return the milliseconds that one bucket of the window spans."""
    return max(1, milliseconds(definition.window_s) // BUCKETS)


def milliseconds(seconds: float) -> int:
    """Return whole milliseconds."""
    return round(seconds * 1000)


def _window(facts: _Facts, definition: BreakerDefinition, now: int) -> tuple[int, int]:
    oldest = bucket_of(definition, now) - BUCKETS + 1
    facts.buckets = {index: counts for index, counts in facts.buckets.items() if index >= oldest}
    kept = facts.buckets.values()
    return sum(calls for calls, _ in kept), sum(failures for _, failures in kept)


def _snapshot(facts: _Facts, definition: BreakerDefinition, now: int) -> BreakerSnapshot:
    calls, failures = _window(facts, definition, now)
    held = facts.probe_until > now
    until = facts.probe_until if held else facts.open_until
    return BreakerSnapshot(
        state=facts.state,
        generation=facts.generation,
        consecutive_timeouts=facts.run,
        calls=calls,
        failures=failures,
        opened_at_s=None if facts.state is BreakerState.CLOSED else facts.opened_at / 1000,
        retry_after_s=max(0, until - now) / 1000,
        probe=facts.probe if held else None,
        open_s=0.0 if facts.state is BreakerState.CLOSED else (now - facts.since) / 1000,
        why=facts.why,
    )
