"""Stop calling a server that does not answer; let one call at a time find out when it does again.

The breaker of a server version is shared by the fleet. This module holds what callers see of it:
`Breaker` and `Permit`. It does not know what is decided (`workers.breaker_state`), where the state
lives (`workers.breaker_redis`), nor what counts as a failure (`workers.outcome`).

Invariants, cited by number in the tests:

1. Only the transitions in `LEGAL` happen. Open to half-open is a reading of the store's clock.
2. Closed admits every call and open admits none; half-open admits one probe per lease.
3. Opening and closing begin a new, larger generation without counts. A verdict that carries
   another generation, or a probe token that is no longer on record, changes nothing.
4. Closed opens exactly when timeouts with no success between them reach ``consecutive_timeouts``,
   or when the window holds ``minimum_calls`` and ``failures / calls`` reaches ``failure_rate``.
5. An abstained verdict counts nowhere; a probe that abstains gives its lease back at once.
6. A probe that succeeds closes; one that fails opens for ``open_for_s``; one that never reports
   holds up the next for no longer than ``probe_lease_s``.
7. No client clock decides: the wait until the next attempt is a duration that the store computed.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from registry.definitions import BreakerDefinition
from registry.errors import Code, FleetError
from workers.breaker_state import (
    LEGAL,
    BreakerSnapshot,
    BreakerState,
    BreakerStore,
    MemoryStore,
    Tally,
    Verdict,
)

__all__ = [
    "LEGAL",
    "Breaker",
    "BreakerSnapshot",
    "BreakerState",
    "BreakerStore",
    "MemoryStore",
    "Permit",
    "Tally",
    "Verdict",
]

logger = logging.getLogger("toolfleet.breaker")

CACHE_S: Final = 0.25
"""How old the state may be that answers `Breaker.allow`."""
LINGER_S: Final = 0.2
"""How long successes wait for company; failures never wait and take the successes with them."""
PROBE_POLL_S: Final = 1.0
"""Callers refused because of a running probe come back after this: probes end before leases do."""


class Permit:
    """Leave to make one call; bring the verdict back, or let it lapse, which is to abstain."""

    __slots__ = ("_breaker", "_reported", "generation", "probe")

    def __init__(self, breaker: Breaker, generation: int, probe: str | None = None) -> None:
        self._breaker = breaker
        self._reported = False
        self.generation = generation
        self.probe = probe

    async def report(self, verdict: Verdict) -> None:
        """Say how the call went; only the first report counts.

        Failures and probes return when the store has them, so the next `allow` knows; a success
        returns at once. Cancelling the caller does not lose the verdict.
        """
        if self._reported:
            return
        self._reported = True
        if self.probe is not None:
            await self._breaker.settle(self.generation, self.probe, verdict)
        elif verdict is not Verdict.ABSTAINED:
            await self._breaker.count(self.generation, verdict)


class Breaker:
    """One process's view of the breaker of one server version.

    Admits from an answer of the store that is at most ``cache_s`` old, refuses from one until the
    time that it named, and sends verdicts in groups. Belongs to one event loop.
    """

    def __init__(
        self,
        server: str,
        key: str,
        definition: BreakerDefinition,
        store: BreakerStore,
        *,
        clock: Callable[[], float] = time.monotonic,
        cache_s: float = CACHE_S,
    ) -> None:
        self.server = server
        self.name = f"{server}:{key}"
        self._definition = definition
        self._store = store
        self._clock = clock
        self._cache_s = cache_s
        self._known = BreakerSnapshot()
        self._fresh_until = self._wait_until = float("-inf")
        self._pending: dict[int, Tally] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        # One conversation with the store at a time: answers are learnt in the order of events.
        self._line = asyncio.Lock()

    @property
    def known(self) -> BreakerSnapshot:
        """Return the state as this process last heard it."""
        return self._known

    async def allow(self) -> Permit:
        """Admit a call; raise `breaker_open` with ``retry_after_s`` while none may pass."""
        known, now = self._known, self._clock()
        if known.state is BreakerState.CLOSED and now < self._fresh_until:
            return Permit(self, known.generation)
        if known.state is BreakerState.OPEN and now < self._wait_until:
            if now >= self._fresh_until:
                # Nobody waits for this: it only notices when an operator closes the breaker.
                self._fresh_until = min(now + self._cache_s, self._wait_until)
                self._spawn(self._refresh())
            raise self._refusal()
        return await self._ask()

    async def snapshot(self) -> BreakerSnapshot:
        """Return the shared state, with everything this process has counted."""
        await self.flush()
        async with self._line:
            return await self._learn(self._store.read(self.name, self._definition))

    async def look(self) -> BreakerSnapshot:
        """Learn the shared state for whoever watches; a closed one admits no call the longer."""
        async with self._line:
            fresh_until = self._fresh_until
            answer = await self._learn(self._store.read(self.name, self._definition))
            if answer.state is BreakerState.CLOSED:
                self._fresh_until = fresh_until
            return answer

    async def force_open(self, for_s: float) -> BreakerSnapshot:
        """Refuse calls fleet-wide for ``for_s`` seconds (more than 0); then a probe decides."""
        if for_s <= 0:
            raise ValueError(f"for_s is {for_s}; a breaker is forced open for a positive time")
        async with self._line:
            return await self._learn(self._store.force(self.name, self._definition, for_s))

    async def force_close(self) -> BreakerSnapshot:
        """Admit calls again fleet-wide; other processes notice within ``cache_s`` and one call."""
        async with self._line:
            return await self._learn(self._store.force(self.name, self._definition, 0))

    def expire(self) -> None:
        """Ask the store at the next call; for listeners of the transitions' channel."""
        self._fresh_until = self._wait_until = float("-inf")

    async def count(self, generation: int, verdict: Verdict) -> None:
        """Add a verdict to what goes to the store next (called by `Permit`)."""
        tally = self._pending.get(generation)
        if tally is None:
            tally = self._pending[generation] = Tally()
        tally.add(verdict)
        if verdict is not Verdict.SUCCEEDED:
            await self.flush()
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(LINGER_S, self._flush_soon)

    async def settle(self, generation: int, token: str, verdict: Verdict) -> None:
        """Send a probe's verdict (called by `Permit`)."""
        await asyncio.shield(self._spawn(self._settle(generation, token, verdict)))

    async def flush(self) -> None:
        """Return when the store has every verdict reported so far."""
        # In a task of its own: a caller that is cancelled here must not take verdicts with it.
        await asyncio.shield(self._spawn(self._flush()))

    async def _flush(self) -> None:
        async with self._line:
            pending, self._pending = self._pending, {}
            for generation, tally in pending.items():
                await self._learn(
                    self._store.report(self.name, self._definition, generation, tally)
                )

    async def close(self) -> None:
        """Send what was counted and leave nothing running."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await self.flush()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _ask(self) -> Permit:
        async with self._line:
            if self._clock() >= self._fresh_until:
                await self._learn(self._store.read(self.name, self._definition))
            known, token = self._known, None
            if known.state is BreakerState.HALF_OPEN and known.probe is None:
                token = secrets.token_hex(8)
                known = await self._take_probe(token)
            if known.state is BreakerState.CLOSED:
                return Permit(self, known.generation)
            if token is not None and known.probe == token:
                return Permit(self, known.generation, token)
            raise self._refusal()

    async def _take_probe(self, token: str) -> BreakerSnapshot:
        generation = self._known.generation
        try:
            return await self._learn(self._store.take_probe(self.name, self._definition, token))
        except asyncio.CancelledError:
            # It may have been granted in this instant: give it back rather than let it lapse.
            self._spawn(self._settle(generation, token, Verdict.ABSTAINED))
            raise

    async def _settle(self, generation: int, token: str, verdict: Verdict) -> None:
        async with self._line:
            await self._learn(
                self._store.settle_probe(self.name, self._definition, generation, token, verdict)
            )

    async def _refresh(self) -> None:
        async with self._line:
            await self._learn(self._store.read(self.name, self._definition))

    async def _learn(self, asking: Awaitable[BreakerSnapshot]) -> BreakerSnapshot:
        # The answer is as old as the question: one that took long is not fresh for longer.
        asked_at = self._clock()
        answer = await asking
        self._wait_until = asked_at + answer.retry_after_s
        self._fresh_until = asked_at + min(self._cache_s, answer.retry_after_s or self._cache_s)
        if answer.state is not self._known.state:
            change = (self.name, self._known.state, answer.state)
            logger.warning("breaker of %s: %s -> %s", *change)
        self._known = answer
        return answer

    def _refusal(self) -> FleetError:
        wait_s = max(0.001, self._wait_until - self._clock())
        passing = "no call is sent to it"
        if self._known.state is BreakerState.HALF_OPEN:
            wait_s = min(wait_s, PROBE_POLL_S)
            passing = "one call is testing it"
        state = self._known.state.replace("_", "-")
        return FleetError(
            Code.BREAKER_OPEN,
            f"the breaker of server '{self.server}' is {state}: {passing}",
            hint=f"send the call again in {wait_s:.1f} s, or use another server",
            retry_after_s=wait_s,
            details={"server": self.server, "state": self._known.state.value},
        )

    def _flush_soon(self) -> None:
        self._timer = None
        self._spawn(self._flush())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("breaker of %s: its store did not answer: %s", self.name, error)
