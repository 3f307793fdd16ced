"""Named promises, each printed the moment it is known to hold or not, and what was left alive."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
from rich.console import Console
from rich.text import Text

LOOK_EVERY_S = 0.3
GONE_WITHIN_S = 5.0


class Checks:
    """The demo's promises so far."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._held: list[bool] = []

    @property
    def all_held(self) -> bool:
        """Say whether there were promises and every one was kept."""
        return bool(self._held) and all(self._held)

    def __len__(self) -> int:
        return len(self._held)

    def check(self, name: str, held: bool, detail: object = "") -> None:
        """Print one line for one promise."""
        self._held.append(held)
        mark = Text("ok    ", "green") if held else Text("FAILED", "bold red")
        self._console.print(mark, Text(name), Text(str(detail), "dim"), soft_wrap=True)

    @contextmanager
    def act(self, title: str) -> Iterator[None]:
        """Print a heading; an error in the act is a promise not kept, and the next act goes on."""
        self._console.print(Text(f"\n{title}", "bold"))
        try:
            yield
        except Exception as error:  # noqa: BLE001 whatever went wrong, the other acts can be shown
            self.check(title, False, f"{type(error).__name__}: {error}")


class Census:
    """Every process that was ever seen below this one."""

    def __init__(self) -> None:
        self._seen: set[psutil.Process] = set()
        self._looking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look now and every `LOOK_EVERY_S` from now on."""
        self._looking = asyncio.create_task(self._look())

    def look(self) -> None:
        """Note who lives below us now."""
        self._seen.update(psutil.Process().children(recursive=True))

    async def survivors(self) -> tuple[int, list[psutil.Process]]:
        """Stop looking; return how many were seen, and who of them does not end soon."""
        if self._looking is not None:
            self._looking.cancel()
        self.look()
        seen = list(self._seen)
        _, alive = await asyncio.to_thread(psutil.wait_procs, seen, GONE_WITHIN_S)
        return len(seen), alive

    async def _look(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(LOOK_EVERY_S)
