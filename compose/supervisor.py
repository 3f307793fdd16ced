"""Keep programs running: start, watch, restart with back-off, stop.

Invariants:
 1. A child changes state only along `TRANSITIONS`.
 2. A child that was asked to stop is never started again by a restart that was under way.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Final, Protocol

log = logging.getLogger("toolfleet.supervisor")

FIRST_DELAY_S: Final = 0.5
LONGEST_DELAY_S: Final = 30.0
SETTLED_AFTER_S: Final = 5.0
"""A child that lived this long had started well: its end is no part of a crash loop."""


class State(StrEnum):
    """Where a child is."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    BACKING_OFF = "backing off"
    STOPPING = "stopping"


TRANSITIONS: Final[Mapping[State, frozenset[State]]] = {
    State.STOPPED: frozenset({State.STARTING}),
    State.STARTING: frozenset({State.RUNNING, State.BACKING_OFF, State.STOPPING}),
    State.RUNNING: frozenset({State.BACKING_OFF, State.STOPPING}),
    State.BACKING_OFF: frozenset({State.STARTING, State.STOPPING}),
    State.STOPPING: frozenset({State.STOPPED}),
}


def deaths_in_a_row(before: int, lived_s: float, status: int | None) -> int:
    """Return how many deaths count against a child that just ended after ``lived_s`` seconds.

    ``status`` is None if it did not start; one that ended with 0 was asked to, and is no crash.
    """
    return 1 if status == 0 or lived_s >= SETTLED_AFTER_S else before + 1


def restart_delay_s(deaths: int) -> float:
    """Return the seconds to wait before the next start: doubling, bounded."""
    return min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(deaths - 1, 16))


class Program(Protocol):
    """What a child runs: a command, or an embedded server that knows when it is ready."""

    @property
    def pid(self) -> int | None:
        """Return the process id while it runs."""

    async def start(self) -> object:
        """Start it; may be called again after its end."""

    async def wait(self) -> int:
        """Return its exit status at its end."""

    async def stop(self) -> None:
        """End it within its grace, whatever its state."""

    def kill(self) -> None:
        """End it at once."""


class Child:
    """One program and the wish to keep it running.

    ``on_change`` is told after every change of state.
    """

    def __init__(
        self,
        name: str,
        program: Program,
        *,
        on_change: Callable[[Child], None] = lambda _child: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.program = program
        self.state = State.STOPPED
        self.restarts = 0
        self._on_change = on_change
        self._clock = clock
        self._keeper: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Child {self.name} {self.state.value} pid={self.program.pid}>"

    async def start(self) -> None:
        """Start the program and keep it running from now on; raise if this first start fails."""
        self._become(State.STARTING)
        born = self._clock()
        try:
            await self.program.start()
        except BaseException:
            await self._end()
            raise
        self._become(State.RUNNING)
        self._keeper = asyncio.create_task(self._keep(born), name=f"keep {self.name}")

    async def stop(self) -> None:
        """Stop the program for good; return when it has ended. Harmless when it is stopped."""
        if self._keeper is None:
            return
        keeper, self._keeper = self._keeper, None
        keeper.cancel()
        await asyncio.wait([keeper])
        await self._end()

    def hasten(self) -> None:
        """Kill the program if it is being stopped."""
        if self.state is State.STOPPING:
            self.program.kill()

    async def _keep(self, born: float) -> None:
        deaths = 0
        while True:
            ended, status = await self._end_of_life()
            deaths = deaths_in_a_row(deaths, self._clock() - born, status)
            delay_s = restart_delay_s(deaths)
            log.warning("%s %s; starting it again in %g s", self.name, ended, delay_s)
            self._become(State.BACKING_OFF)
            await asyncio.sleep(delay_s)
            self.restarts += 1
            born = self._clock()

    async def _end_of_life(self) -> tuple[str, int | None]:
        """Start the program unless it runs; return how it ended, and with which status."""
        if self.state is State.BACKING_OFF:
            self._become(State.STARTING)
            try:
                await self.program.start()
            except (OSError, RuntimeError) as error:
                return f"did not start ({error})", None
            self._become(State.RUNNING)
        status = await self.program.wait()
        return f"ended with status {status}", status

    async def _end(self) -> None:
        self._become(State.STOPPING)
        await self.program.stop()
        self._become(State.STOPPED)

    def _become(self, state: State) -> None:
        if state not in TRANSITIONS[self.state]:
            raise RuntimeError(f"{self.name} cannot become {state.value} while {self.state.value}")
        self.state = state
        self._on_change(self)


class Supervisor:
    """The children of one fleet, by name, in the order they were started."""

    def __init__(self, on_change: Callable[[Child], None] = lambda _child: None) -> None:
        self._children: dict[str, Child] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self._on_change = on_change

    @property
    def children(self) -> Mapping[str, Child]:
        """Return every child that is not stopped, by name."""
        return self._children

    def pids(self) -> dict[str, int]:
        """Return the process id of every child that runs now."""
        return {
            name: child.program.pid
            for name, child in self._children.items()
            if child.program.pid is not None
        }

    async def start(self, name: str, program: Program) -> None:
        """Start a child under a free name; raise, and forget it, if its first start fails."""
        if name in self._children:
            raise ValueError(f"there is already a child {name}")
        child = self._children[name] = Child(name, program, on_change=self._on_change)
        try:
            await child.start()
        except BaseException:
            del self._children[name]
            raise

    def retire(self, name: str) -> None:
        """Stop a child without waiting for it; its name is free again once it has ended."""
        if self._children[name].state is not State.STOPPING:
            task = asyncio.create_task(self._stop(name), name=f"retire {name}")
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    async def stop(self, names: Iterable[str]) -> None:
        """Stop these children at the same time; return when all have ended."""
        known = [name for name in names if name in self._children]
        await asyncio.gather(*self._retiring, *(self._stop(name) for name in known))

    def hasten(self) -> None:
        """Kill every child that is being stopped."""
        for child in self._children.values():
            child.hasten()

    async def _stop(self, name: str) -> None:
        child = self._children.get(name)
        if child is not None:
            await child.stop()
            if child.state is State.STOPPED:
                self._children.pop(name, None)
