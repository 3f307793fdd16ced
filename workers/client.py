"""The one door to the workers: send a call's message, ask for a stop, look at queues and breakers.

Messages that arrive together are pushed queue by queue, each to the turn that its tenant has
(see `workers.fair_queue`). One that cannot be sent is no error to the caller: the row is
committed, and the steward sends it again. Revokes are rare and go through
Celery's synchronous control channel, in a thread of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from celery import Celery
from kombu.exceptions import KombuError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from registry.database import GroupCommit
from registry.definitions import BreakerDefinition, queue_name
from registry.settings import Settings
from registry.telemetry import CALL_ID, Kind, Span, Tracer, make_tracer
from registry.tiers import DEFAULT_PRIORITY
from workers import fair_queue, limits_redis
from workers.admission import Admission, Standing
from workers.breaker_redis import RedisStore
from workers.breaker_state import BreakerSnapshot
from workers.celery_app import CALL_TASK, RUN_STAMP, app, fleet_queue
from workers.kept_traces import MOST_TRACES, TRACES_LAST_S, KeptTraces
from workers.limits_redis import LOCAL_SHARE, Limiter, RedisLimits
from workers.signals import (
    ENDED_CHANNEL,
    PROGRESS_CHANNEL,
    RESOURCES_CHANNEL,
    STEWARD,
    Signals,
    all_figures,
    broker_facts,
    connect,
    is_alive,
    queue_length,
)
from workers.transport import Composer

__all__ = [
    "ENDED_CHANNEL",
    "PROGRESS_CHANNEL",
    "RESOURCES_CHANNEL",
    "BreakerSnapshot",
    "FleetClient",
    "Message",
    "Standing",
    "make_client",
]

logger = logging.getLogger("toolfleet.client")


@dataclass(frozen=True)
class Message:
    """What a worker is told about a queued call, never its arguments; and whose turn it takes."""

    id: str
    run_id: str
    tenant_id: str
    tool: str
    server_name: str
    traceparent: str | None
    remaining_s: float
    priority: int = DEFAULT_PRIORITY
    """0 to 9, the highest; what is beyond counts as the nearer end."""


class FleetClient:
    """One process's sender of messages and revokes, and its door to the fleet's limits and traces.

    What its ``tracer`` keeps is kept in Redis as well, within ``most_traces`` and their lifetime.
    """

    def __init__(
        self,
        redis_url: str,
        *,
        celery: Celery = app,
        local_share: float = LOCAL_SHARE,
        tracer: Tracer | None = None,
        most_traces: int = MOST_TRACES,
        traces_last_s: float = TRACES_LAST_S,
    ) -> None:
        self.redis: Redis = connect(redis_url)
        self.signals = Signals(self.redis)
        self._breakers = RedisStore(self.redis)
        self.tracer = tracer or Tracer()
        self._kept_traces = KeptTraces(self.redis, most_traces, traces_last_s)
        if most_traces:
            self.tracer.outlets.append(self._kept_traces.outlet())
        self._limits_redis = limits_redis.connect(redis_url)
        self.limiter = Limiter(RedisLimits(self._limits_redis), local_share=local_share)
        self.admission = Admission(self.limiter)
        self._celery = celery
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="celery-control")
        self._composer = Composer(celery)
        self._push = self.redis.register_script(fair_queue.PUSH)
        self._sends: GroupCommit[Message, bool] = GroupCommit(self._send_batch)

    async def send(self, message: Message) -> bool:
        """Enqueue a committed call; False when the broker took it not (the steward will retry)."""
        with self.tracer.beside(message.traceparent, "enqueue", Kind.PRODUCER) as step:
            step.attributes = {
                "messaging.destination.name": queue_name(message.server_name),
                CALL_ID: message.id,
            }
            return await self._sends.add(message)

    async def revoke(self, call_ids: Sequence[str]) -> None:
        """Tell the workers to stop these calls now; a lost revoke costs time, not the stop."""
        await self._control(lambda: self._celery.control.revoke(list(call_ids), terminate=True))

    async def revoke_run(self, run_id: str) -> None:
        """Tell the workers to stop every call of a run now."""
        await self._control(
            lambda: self._celery.control.revoke_by_stamped_headers(
                {RUN_STAMP: [run_id]}, terminate=True
            )
        )

    async def queue_lengths(self, servers: Sequence[str]) -> dict[str, int]:
        """Return the number of waiting messages for each server's queue."""
        return {name: await queue_length(self.redis, queue_name(name)) for name in servers}

    async def figures(self) -> dict[str, str]:
        """Return what each live worker counts, as Prometheus text, by worker."""
        return await all_figures(self.redis)

    async def breakers(
        self, wanted: Sequence[tuple[str, int, BreakerDefinition]]
    ) -> list[BreakerSnapshot]:
        """Return the breakers of server versions, by name and version id, as the fleet has them.

        Raises `store_unavailable`.
        """
        named = [(f"{server}:{version_id}", it) for server, version_id, it in wanted]
        return await self._breakers.read_all(named) if named else []

    async def force_breaker(
        self,
        server: str,
        version_id: int,
        definition: BreakerDefinition,
        *,
        open_for_s: float,
        why: str,
    ) -> BreakerSnapshot:
        """Open a server version's breaker for some seconds, whatever was counted; 0 closes it.

        Every worker knows within a moment. Raises `store_unavailable`: then nothing was done, or it
        is not known whether it was.
        """
        return await self._breakers.force(f"{server}:{version_id}", definition, open_for_s, why)

    async def steward_lives(self) -> bool:
        """Say whether a steward works; raise `broker_unavailable`."""
        return await is_alive(self.redis, STEWARD)

    async def broker_facts(self) -> dict[str, Any]:
        """Return what the broker says of itself; raise `broker_unavailable`."""
        return await broker_facts(self.redis)

    async def trace_of(self, trace_id: str) -> list[Span]:
        """Return what is kept of a trace, by the start of its spans; raise `broker_unavailable`.

        A process's part in a call is there about a second after it has ended.
        """
        return await self._kept_traces.of(trace_id)

    async def close(self) -> None:
        """Pass on the last traces; close connections and the control thread."""
        await self.tracer.close()
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)
        await self.limiter.close()
        await self._limits_redis.aclose()
        await self.redis.aclose()

    async def _control(self, broadcast: Callable[[], Any]) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, broadcast)
        except (KombuError, RedisError, OSError) as error:
            logger.warning("revoke not sent: %s", type(error).__name__)

    async def _send_batch(self, batch: Sequence[Message]) -> list[bool]:
        by_queue: dict[str, list[str | int]] = {}
        for message in batch:
            queue, body = self._compose(message)
            cost = fair_queue.cost(message.priority)
            by_queue.setdefault(queue, []).extend((message.tenant_id, cost, body))
        try:
            for queue, arguments in by_queue.items():
                await self._push(keys=fair_queue.keys(queue), args=arguments)
        except (RedisError, OSError) as error:
            logger.warning("%d messages not sent: %s", len(batch), type(error).__name__)
            return [False] * len(batch)
        return [True] * len(batch)

    def _compose(self, message: Message) -> tuple[str, str]:
        return self._composer.compose(
            CALL_TASK,
            args=(message.id,),
            task_id=message.id,
            shadow=message.tool,
            queue=fleet_queue(queue_name(message.server_name)),
            expires=max(message.remaining_s, 0.0),
            argsrepr="()",
            kwargsrepr="{}",
            headers={"traceparent": message.traceparent} if message.traceparent else None,
            stamped_headers=[RUN_STAMP],
            **{RUN_STAMP: message.run_id},
            ignore_result=True,
        )


def make_client(service: str, settings: Settings) -> FleetClient:
    """Return a process's client, with the limits and the traces that its settings allow."""
    return FleetClient(
        settings.redis_url,
        local_share=settings.limiter_local_share,
        tracer=make_tracer(service, settings),
        most_traces=settings.traces_kept,
        traces_last_s=settings.traces_kept_for.total_seconds(),
    )
