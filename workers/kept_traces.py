"""The last traces of the fleet, kept in Redis: every process leaves its parts, anyone reads them.

Invariants:
 1. So many traces are kept at most, the newest, each for so long and with so many parts at most;
    and so many bytes at most, of each and of all together: calls need the Redis they lie in.
 2. What Redis does not take is lost, and nothing else: a call neither waits nor knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

from registry.telemetry import Span
from registry.telemetry_outlet import Outlet, Part
from registry.telemetry_spans import in_order
from workers.signals import broker_unavailable

MOST_TRACES: Final = 2_000
TRACES_LAST_S: Final = 6 * 3600.0
MOST_PARTS: Final = 500
"""Of one trace, the newest: an orchestrator may make any number of calls in one."""
MOST_BYTES: Final = 64 << 20
"""Of all parts together."""
MOST_BYTES_OF_ONE: Final = 1 << 20
"""Of one trace, its newest parts."""
AT_ONCE: Final = 100
"""Parts that one script keeps: longer ones would keep others waiting."""

# One hash tag for all: the script makes up the keys of traces.
_INDEX: Final = "toolfleet:{traces}"
_SIZES: Final = "toolfleet:{traces}:bytes"
_PARTS: Final = "toolfleet:{traces}:"


class KeptTraces:
    """One process's door to the kept traces."""

    def __init__(
        self,
        redis: Redis,
        most: int = MOST_TRACES,
        lifetime_s: float = TRACES_LAST_S,
        *,
        most_bytes: int = MOST_BYTES,
        most_bytes_of_one: int = MOST_BYTES_OF_ONE,
    ) -> None:
        self._redis = redis
        lifetime = max(1, round(lifetime_s))
        self._bounds = (lifetime, most, most_bytes, MOST_PARTS, most_bytes_of_one)
        self._keep = redis.register_script(Path(__file__).with_suffix(".lua").read_text())

    def outlet(self) -> Outlet:
        """Return the way of a process's traces into Redis."""
        return Outlet("redis", self.keep)

    async def keep(self, parts: Sequence[Part]) -> None:
        """Keep parts of traces, in one round trip; raise `RedisError` or `OSError`."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            for at in range(0, len(parts), AT_ONCE):
                some: list[Any] = [it for part in parts[at : at + AT_ONCE] for it in part]
                await self._keep(
                    keys=[_INDEX, _SIZES, _PARTS], args=[*self._bounds, *some], client=pipeline
                )
            await pipeline.execute()

    async def of(self, trace_id: str) -> list[Span]:
        """Return what is kept of a trace, by the start of its spans; raise `broker_unavailable`."""
        try:
            parts: list[Any] = await self._redis.lrange(_PARTS + trace_id, 0, -1)
        except (RedisError, OSError) as error:
            raise broker_unavailable(error) from error
        return in_order(parts)
