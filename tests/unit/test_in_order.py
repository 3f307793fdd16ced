"""What a server says of a call is told in its order, and no faster than it is listened to."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.requirements import requirement
from workers.progress import LARGEST_LOG_BYTES, LOGS_PER_S, InOrder
from workers.scrub import Scrubber

pytestmark = pytest.mark.anyio


class Listener:
    """Listens one by one, once it is let."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.may = asyncio.Event()

    async def progress(self, done: float, _total: float | None, message: str | None) -> None:
        await self.may.wait()
        self.heard.append(message or done)

    async def log(self, body: dict[str, Any]) -> None:
        await self.may.wait()
        self.heard.append(body["data"])


async def tell(told: InOrder, *items: Any) -> None:
    async with asyncio.TaskGroup() as group:
        for item in items:
            if isinstance(item, float):
                group.create_task(told.progress(item, None, None))
            else:
                group.create_task(told.log({"level": "info", "data": item}))


@requirement("logs:on-demand")
async def test_progress_and_logs_keep_their_order_and_stale_progress_is_left_out() -> None:
    listener = Listener()
    told = InOrder(listener.progress, listener.log, Scrubber())
    telling = asyncio.create_task(tell(told, 1.0, "a", 2.0, 3.0, "b", "c", 4.0))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    listener.may.set()
    await telling
    assert listener.heard == [1.0, "a", 3.0, "b", "c", 4.0]


@requirement("logs:on-demand")
async def test_a_flood_of_log_messages_is_bounded() -> None:
    listener = Listener()
    listener.may.set()
    told = InOrder(None, listener.log, Scrubber())
    await tell(told, *map(str, range(3 * LOGS_PER_S)))
    assert listener.heard == list(map(str, range(LOGS_PER_S)))


@requirement("logs:on-demand")
async def test_what_is_too_long_or_secret_is_not_told() -> None:
    listener = Listener()
    listener.may.set()
    told = InOrder(listener.progress, listener.log, Scrubber("a-secret-of-the-server"))
    await tell(told, "x" * LARGEST_LOG_BYTES, {"key": "a-secret-of-the-server"})
    assert listener.heard[0].startswith("(left out")
    assert listener.heard[1] == {"key": "[credential]"}
    await told.progress(1.0, None, "with a-secret-of-the-server")
    assert listener.heard[-1] == "with [credential]"
