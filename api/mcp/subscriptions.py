"""Streams of what happens: ``subscriptions/listen`` (2026-07-28), and the GET of a session."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

from api.mcp.asked import INVALID_PARAMS, INVALID_REQUEST, META, Answered, Asked, Notify, RpcError
from api.mcp.changes import Source, Subscription
from api.waiting import WaitingRoom

SUBSCRIPTION: Final = META + "subscriptionId"
EVERY_LIST: Final = {
    "toolsListChanged": True,
    "promptsListChanged": True,
    "resourcesListChanged": True,
}


class Subscriptions:
    """The sources of all that clients can be told of, and the streams on which they are."""

    def __init__(self, room: WaitingRoom, sources: Sequence[Source]) -> None:
        self._room = room
        self._sources = tuple(sources)

    async def listen(self, asked: Asked) -> Answered:
        """Answer ``subscriptions/listen``: acknowledge, and tell until the process stops."""
        wanted = asked.params.get("notifications")
        if not isinstance(wanted, dict):
            raise RpcError(INVALID_PARAMS, "params.notifications is an object: what to be told of")
        notify = asked.notify
        if notify is None:
            raise RpcError(
                INVALID_REQUEST, "subscriptions/listen is answered by text/event-stream alone"
            )

        async def tell(method: str, params: dict[str, Any]) -> None:
            meta = {**(params.get("_meta") or {}), SUBSCRIPTION: asked.id}
            await notify(method, {**params, "_meta": meta})

        subscriptions = await self._subscribe(asked, wanted)
        honoured = {name: it for one in subscriptions for name, it in one.honoured.items()}
        await tell("notifications/subscriptions/acknowledged", {"notifications": honoured})
        await self.watch(subscriptions, tell)
        return {"_meta": {SUBSCRIPTION: asked.id}}

    async def to_all(self, asked: Asked) -> list[Subscription]:
        """Return a session's subscriptions to all that it can be told of."""
        return await self._subscribe(asked, EVERY_LIST)

    async def watch(self, subscriptions: Sequence[Subscription], tell: Notify) -> None:
        """Tell of what happens until the process stops."""
        async with asyncio.TaskGroup() as watching:
            watchers = [watching.create_task(one.watch(tell)) for one in subscriptions]
            await self._room.dismissal.wait()
            for watcher in watchers:
                watcher.cancel()

    async def _subscribe(self, asked: Asked, wanted: Mapping[str, Any]) -> list[Subscription]:
        found = [await source.subscribe(asked, wanted) for source in self._sources]
        return [subscription for subscription in found if subscription is not None]
