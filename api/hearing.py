"""What a process hears through Redis: any number of channels, on one connection.

Invariants:
 1. One task alone uses the connection; whoever wants another channel wakes it by a message.
 2. What is published after `Hearing.hears` has begun is heard, as long as Redis stays up.
 3. What is not JSON, or not what a listener expects, is no reason to stop hearing.
"""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

QUIET_S: Final = 10.0
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 5.0
HEARS_WITHIN_S: Final = 1.0

Deliver = Callable[[Any], None]

logger = logging.getLogger("toolfleet.hearing")


class _Channel:
    def __init__(self) -> None:
        self.listeners: list[Deliver] = []
        self.confirmed = asyncio.Event()


class Hearing:
    """The ears of one process."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._channels: dict[str, _Channel] = {}
        self._wake = f"toolfleet:wake:{uuid.uuid4()}"
        self._changed = False
        """Whether other channels are wanted than the connection is subscribed to."""
        self._waking = False

    def always(self, channel: str, deliver: Deliver) -> None:
        """Have what is published on a channel delivered for good; before `listen` begins."""
        self._channels.setdefault(channel, _Channel()).listeners.append(deliver)

    @asynccontextmanager
    async def hears(self, channel: str, deliver: Deliver) -> AsyncIterator[None]:
        """Have what is published on a channel delivered for as long as the context lasts.

        While Redis is away nothing is, and it begins `HEARS_WITHIN_S` later.
        """
        heard = self._channels.setdefault(channel, _Channel())
        heard.listeners.append(deliver)
        self._changed = True
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARS_WITHIN_S):
                    await self._wake_up()
                    await heard.confirmed.wait()
            yield
        finally:
            heard.listeners.remove(deliver)
            if not heard.listeners:
                # The connection forgets it when it has something else to do.
                del self._channels[channel]
                self._changed = True

    async def listen(self) -> None:
        """Hear until cancelled; harmless while Redis is away."""
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                async with self._redis.pubsub() as pubsub:
                    subscribed: set[str] = set()
                    while True:
                        subscribed = await self._agree(pubsub, subscribed)
                        message = await pubsub.get_message(timeout=QUIET_S)
                        pause_s = FIRST_PAUSE_S
                        if message is not None:
                            self._take(message)
            except (RedisError, OSError) as error:
                logger.warning("nothing is heard through Redis: %s", type(error).__name__)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    async def _agree(self, pubsub: PubSub, subscribed: set[str]) -> set[str]:
        """Subscribe to what is wanted now, and to nothing else; return what that is."""
        if subscribed and not self._changed:
            return subscribed
        self._changed = self._waking = False
        wanted = {self._wake, *self._channels}
        if new := wanted - subscribed:
            await pubsub.subscribe(*new)
        if gone := subscribed - wanted:
            await pubsub.unsubscribe(*gone)
        for channel in wanted & subscribed & self._channels.keys():
            self._channels[channel].confirmed.set()
        return wanted

    async def _wake_up(self) -> None:
        if self._waking:
            return  # somebody did, and the connection has not looked yet
        self._waking = True
        try:
            await self._redis.publish(self._wake, b"")
        except (RedisError, OSError):
            self._waking = False

    def _take(self, message: dict[str, Any]) -> None:
        heard = self._channels.get(message["channel"].decode())
        if heard is None:
            return
        if message["type"] == "subscribe":
            heard.confirmed.set()
        elif message["type"] == "message":
            # Anyone who reaches Redis can publish.
            with suppress(ValueError):
                body = json.loads(message["data"])
                for deliver in tuple(heard.listeners):
                    with suppress(ValueError, TypeError, LookupError, AttributeError):
                        deliver(body)
