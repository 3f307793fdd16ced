"""Hints through Redis: which calls have ended, how far the running ones are, what a process counts.

A hint that is lost costs time, never truth: whoever waits reads the row.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

from registry.allowance import Allowance
from registry.errors import Code, FleetError

ENDED_CHANNEL: Final = "toolfleet:ended"
PROGRESS_CHANNEL: Final = "toolfleet:progress:"
ANSWERED_CHANNEL: Final = "toolfleet:answered"
RESOURCES_CHANNEL: Final = "toolfleet:resources"
FIGURES_KEY: Final = "toolfleet:figures:"
TURN_KEY: Final = "toolfleet:turn:"
FIGURES_LIFETIME_S: Final = 15
STEWARD: Final = "steward"
PROGRESS_PER_S: Final = 10.0
HEAR_QUIET_S: Final = 10.0
HEAR_AGAIN_S: Final = 1.0

logger = logging.getLogger("toolfleet.signals")


def connect(url: str) -> Redis:
    """Return a Redis client whose waits are bounded; nothing is opened yet."""
    return Redis.from_url(
        url, socket_timeout=5, socket_connect_timeout=5, health_check_interval=15, protocol=2
    )


class Signals:
    """One process's hints; every failure is logged and swallowed, because hints may be lost."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._progress: dict[str, Allowance] = {}
        """By call: how many reports may be told."""

    async def ended(self, ids: Sequence[str]) -> None:
        """Tell whoever waits that these calls have ended."""
        if ids:
            await self._publish(ENDED_CHANNEL, json.dumps(list(ids)))

    async def asked(self, call_id: str) -> None:
        """Have whoever waits for a call look at it: its server asks something."""
        await self._publish(ENDED_CHANNEL, json.dumps([call_id]))

    async def answered(self, call_id: str) -> None:
        """Have the worker of a call look for the answer to what its server asks."""
        await self._publish(ANSWERED_CHANNEL, json.dumps(call_id))

    async def resources_updated(self, keys: Sequence[str]) -> None:
        """Tell who wants to know that resources changed, by keys (`registry.interests`)."""
        await self._publish(RESOURCES_CHANNEL, json.dumps(list(keys)))

    async def progress(
        self, call_id: str, done: float, total: float | None, message: str | None
    ) -> None:
        """Tell a call's listeners how far it is, at most `PROGRESS_PER_S` times a second over time.

        So many reports may come at once: a short call's are all told.
        """
        allowance = self._progress.get(call_id)
        if allowance is None:
            clock = asyncio.get_running_loop().time
            allowance = self._progress[call_id] = Allowance(PROGRESS_PER_S, PROGRESS_PER_S, clock)
        if not allowance.take():
            return
        body = {"progress": done, "total": total, "message": message}
        await self._publish(PROGRESS_CHANNEL + call_id, json.dumps(body))

    async def log(self, call_id: str, body: dict[str, Any]) -> None:
        """Tell a call's listeners what its server logs."""
        await self._publish(PROGRESS_CHANNEL + call_id, json.dumps({"log": body}))

    async def hear(self, channel: str, heard: Callable[[bytes], None]) -> None:
        """Pass on what is published on a channel, until cancelled; hints may be lost."""
        while True:
            with suppress(RedisError, OSError):
                async with self._redis.pubsub(ignore_subscribe_messages=True) as pubsub:
                    await pubsub.subscribe(channel)
                    while True:
                        message = await pubsub.get_message(timeout=HEAR_QUIET_S)
                        if message is not None:
                            heard(message["data"])
            await asyncio.sleep(HEAR_AGAIN_S)

    def forget(self, call_id: str) -> None:
        """Drop what is remembered about a call that has ended."""
        self._progress.pop(call_id, None)

    async def figures(self, process: str, exposition: str) -> None:
        """Leave this process's figures (Prometheus text) where the API finds them."""
        try:
            await self._redis.set(FIGURES_KEY + process, exposition, ex=FIGURES_LIFETIME_S)
        except (RedisError, OSError) as error:
            logger.warning("figures not stored: %s", type(error).__name__)

    async def alive(self, role: str) -> None:
        """Say that a process which has no lease works."""
        await self.figures(role, "")

    async def turn(self, what: str, process: str, for_s: float) -> bool:
        """Say whether it is this process's turn to do what one of several is to do.

        Then it is nobody else's for a while; while Redis is away it is everybody's.
        """
        try:
            key, lasts_ms = TURN_KEY + what, int(for_s * 1_000)
            return bool(await self._redis.set(key, process, nx=True, px=lasts_ms))
        except (RedisError, OSError):
            return True

    async def _publish(self, channel: str, body: str) -> None:
        try:
            await self._redis.publish(channel, body)
        except (RedisError, OSError) as error:
            logger.warning("hint on %s lost: %s", channel, type(error).__name__)


async def queue_length(redis: Redis, queue: str) -> int:
    """Return how many messages wait in a queue; raise `broker_unavailable`."""
    try:
        return int(await redis.llen(queue))
    except (RedisError, OSError) as error:
        raise broker_unavailable(error) from error


async def is_alive(redis: Redis, role: str) -> bool:
    """Say whether a process of a role has said lately that it works (`Signals.alive`)."""
    try:
        return bool(await redis.exists(FIGURES_KEY + role))
    except (RedisError, OSError) as error:
        raise broker_unavailable(error) from error


async def broker_facts(redis: Redis) -> dict[str, Any]:
    """Return Redis' time (seconds since 1970), and what it does when its memory is full."""
    try:
        seconds, microseconds = await redis.time()
        info = await redis.info("memory")
    except (RedisError, OSError) as error:
        raise broker_unavailable(error) from error
    return {
        "time_s": seconds + microseconds / 1e6,
        "maxmemory_policy": info.get("maxmemory_policy", "unknown"),
        "maxmemory": info.get("maxmemory", 0),
    }


async def all_figures(redis: Redis) -> dict[str, str]:
    """Return the figures of every live process (Prometheus text) by its name."""
    try:
        keys = [key async for key in redis.scan_iter(match=FIGURES_KEY + "*", count=500)]
        values: list[Any] = await redis.mget(keys) if keys else []
    except (RedisError, OSError):
        return {}
    return {
        key.decode().removeprefix(FIGURES_KEY): value.decode()
        for key, value in zip(keys, values, strict=True)
        if value
    }


def broker_unavailable(error: BaseException) -> FleetError:
    """Return the error a caller sees while Redis cannot be reached."""
    return FleetError(
        Code.BROKER_UNAVAILABLE,
        f"the message broker cannot be reached ({type(error).__name__})",
        hint="check that Redis is up and TOOLFLEET_REDIS_URL is right",
        retry_after_s=1,
    )
