"""`toolfleet top`: ask the API every second, draw a frame, and end when told to.

While the API is away the last frame stays, and above it for how long; what is refused for good (a
key that is not valid, not an operator's) ends it.
"""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final

from rich.console import Console
from rich.live import Live

from compose.api_client import AskError, find_fleet
from compose.printing import WIDTH_OF_A_PIPE
from compose.top_frame import frame

EVERY_S: Final = 1.0
BEATS: Final = {"beats": 18, "beat_s": 10}
TIMEOUT_S: Final = 5.0
MOST_TYPED: Final = 64
PASSING: Final = frozenset(
    {"unreachable", "no_fleet", "store_unavailable", "broker_unavailable", "busy", "internal"}
)
"""Problems that may be over by the next second."""


def run_once() -> None:
    """Print one frame; raise `AskError` if it cannot be had."""
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = WIDTH_OF_A_PIPE
    console.print(frame(_ask(), console.width))


def run_top(
    console: Console | None = None,
    *,
    ask: Callable[[], Mapping[str, Any]] | None = None,
    every_s: float = EVERY_S,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Draw the fleet until q or Ctrl-C; raise `AskError` if it is away at once, or for good.

    ``ask`` returns the fleet's state, as `GET /v1/fleet` has it.
    """
    console = console or Console(highlight=False)
    watched = Watched(ask or _ask, clock)
    live = Live(console=console, screen=console.is_terminal, auto_refresh=False)
    with suppress(KeyboardInterrupt), _keys() as ended, live:
        while True:
            live.update(frame(watched.state, console.width, watched.problem), refresh=True)
            if ended(every_s):
                return
            watched.look()


class Watched:
    """The fleet as it was seen last, and since when it is not seen any more."""

    def __init__(self, ask: Callable[[], Mapping[str, Any]], clock: Callable[[], float]) -> None:
        self._ask = ask
        self._clock = clock
        self._error: AskError | None = None
        self._away_since = 0.0
        self.state = ask()

    def look(self) -> None:
        """Ask for the fleet's state; raise `AskError` for a problem that will not pass."""
        asked_at = self._clock()
        try:
            self.state = self._ask()
        except AskError as error:
            if error.code not in PASSING:
                raise
            if self._error is None:
                self._away_since = asked_at
            self._error = error
        else:
            self._error = None

    @property
    def problem(self) -> str:
        """Return why there is no newer state, and since when; empty if it is new."""
        if self._error is None:
            return ""
        since_s = self._clock() - self._away_since
        return f"{self._error.message} for {since_s:.0f} s: what is below is old; trying again"


def _ask() -> Mapping[str, Any]:
    with find_fleet(timeout_s=TIMEOUT_S) as fleet:  # it may have moved meanwhile
        state: Mapping[str, Any] = fleet.ask("GET", "fleet", query=BEATS)
        return state


@contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """Yield what waits for so many seconds and says whether q or Ctrl-C was typed meanwhile."""
    if not sys.stdin.isatty():
        yield _sleep
        return
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield _typed
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def _typed(seconds: float) -> bool:
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    if not ready:
        return False
    typed = os.read(sys.stdin.fileno(), MOST_TYPED)
    return not typed or b"q" in typed.lower()
