"""Wait for what a test expects, bounded; never for time to pass."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, overload

Seen = TypeVar("Seen")


@overload
async def until(
    look: Callable[[], Awaitable[Seen]], *, within_s: float = ..., every_s: float = ...
) -> Seen: ...
@overload
async def until(
    look: Callable[[], Seen], *, within_s: float = ..., every_s: float = ...
) -> Seen: ...
async def until(
    look: Callable[[], Awaitable[Seen] | Seen], *, within_s: float = 20.0, every_s: float = 0.02
) -> Seen:
    """Return the first truthy answer of ``look``; fail with the last one when it never comes."""
    deadline = time.monotonic() + within_s
    while True:
        seen = look()
        if isinstance(seen, Awaitable):
            seen = await seen
        if seen:
            return seen
        if time.monotonic() > deadline:
            raise AssertionError(f"{look} still gave {seen!r} after {within_s:g} s")
        await asyncio.sleep(every_s)


def until_true(look: Callable[[], bool], what: str, *, within_s: float = 20.0) -> None:
    """Return when ``look`` holds, for tests without a loop; fail with ``what`` when it does not."""
    deadline = time.monotonic() + within_s
    while not look():
        if time.monotonic() > deadline:
            raise AssertionError(f"it was not so within {within_s:g} s that {what}")
        time.sleep(0.02)
