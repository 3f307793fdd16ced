"""The breaker's shared store in Redis, and what happens when Redis is away.

One hash per server version, changed only by the ``breaker_*.lua`` scripts next to this file, which
take the time from Redis. Every transition is also published on `CHANNEL`, as a hint.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from registry.definitions import BreakerDefinition
from registry.errors import Code, FleetError
from workers.breaker_state import (
    BY_HAND,
    BreakerSnapshot,
    BreakerState,
    BreakerStore,
    MemoryStore,
    Tally,
    Verdict,
    bucket_ms,
    milliseconds,
)

logger = logging.getLogger("toolfleet.breaker")

CHANNEL: Final = "toolfleet:breaker"
"""Messages: the key of the hash, a space, the new state."""
TIMEOUT_S: Final = 0.05
"""How long a call may wait for Redis before this process decides alone."""
RETRY_S: Final = 1.0
"""How often a Redis that was away is tried again."""


def redis_key(name: str) -> str:
    """Return the key of a breaker's hash; ``name`` is ``<server>:<version id>``."""
    return f"toolfleet:breaker:{{{name}}}"


def connect(url: str, *, timeout_s: float = TIMEOUT_S) -> Redis:
    """Return a client for breakers alone: short timeouts, no retries; connects when first used."""
    return Redis.from_url(
        url,
        protocol=2,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        # A retried script could count verdicts twice; `FallbackStore` decides what is next.
        retry=Retry(NoBackoff(), 0),
    )


class RedisStore:
    """Breakers shared by the fleet.

    ``now`` replaces the clock of Redis (seconds) in tests. Raises `store_unavailable` whenever
    Redis gives no answer, whatever the reason.
    """

    def __init__(self, redis: Redis, now: Callable[[], float] | None = None) -> None:
        self._redis = redis
        self._now = now
        self._read = redis.register_script(_source("read"))
        self._report = redis.register_script(_source("report"))
        self._take_probe = redis.register_script(_source("take_probe"))
        self._settle_probe = redis.register_script(_source("settle_probe"))
        self._force = redis.register_script(_source("force"))

    async def read(self, name: str, definition: BreakerDefinition) -> BreakerSnapshot:
        """Return the state."""
        return await self._run(self._read, name, definition)

    async def report(
        self, name: str, definition: BreakerDefinition, generation: int, tally: Tally
    ) -> BreakerSnapshot:
        """Count verdicts and open if they say so."""
        return await self._run(
            self._report,
            name,
            definition,
            generation,
            tally.calls,
            tally.failures,
            tally.leading,
            tally.longest,
            tally.trailing,
            definition.consecutive_timeouts,
            definition.failure_rate,
            definition.minimum_calls,
            milliseconds(definition.open_for_s),
        )

    async def take_probe(
        self, name: str, definition: BreakerDefinition, token: str
    ) -> BreakerSnapshot:
        """Lease the probe if the breaker is half-open and none is out."""
        lease_ms = milliseconds(definition.probe_lease_s)
        return await self._run(self._take_probe, name, definition, token, lease_ms)

    async def settle_probe(
        self,
        name: str,
        definition: BreakerDefinition,
        generation: int,
        token: str,
        verdict: Verdict,
    ) -> BreakerSnapshot:
        """Take the probe's verdict; a lapsed probe still counts until another one has its lease."""
        open_for_ms = milliseconds(definition.open_for_s)
        return await self._run(
            self._settle_probe, name, definition, generation, token, verdict.value, open_for_ms
        )

    async def force(
        self, name: str, definition: BreakerDefinition, open_for_s: float, why: str = BY_HAND
    ) -> BreakerSnapshot:
        """Open for ``open_for_s`` seconds, or close if that is 0, whatever was counted."""
        return await self._run(self._force, name, definition, milliseconds(open_for_s), why)

    async def read_all(
        self, wanted: Sequence[tuple[str, BreakerDefinition]]
    ) -> list[BreakerSnapshot]:
        """Return the states of many breakers, asked for at once."""
        pipeline = self._redis.pipeline(transaction=False)
        for name, definition in wanted:
            keys, args = [redis_key(name)], [bucket_ms(definition), self._time()]
            await self._read(keys=keys, args=args, client=pipeline)
        try:
            return [_snapshot(reply) for reply in await pipeline.execute()]
        except (RedisError, OSError, TimeoutError) as error:
            raise _away("the shared breakers", error) from error

    async def _run(
        self,
        script: Callable[..., Awaitable[Any]],
        name: str,
        definition: BreakerDefinition,
        *arguments: str | float,
    ) -> BreakerSnapshot:
        try:
            reply = await script(
                keys=[redis_key(name)], args=[bucket_ms(definition), *arguments, self._time()]
            )
        except (RedisError, OSError, TimeoutError) as error:
            raise _away(f"the shared breaker of '{name}'", error) from error
        return _snapshot(reply)

    def _time(self) -> str | int:
        return "" if self._now is None else milliseconds(self._now())


class FallbackStore:
    """Ask the shared store; while it is away, this process's own breakers protect.

    - The first calls to notice wait for the shared store's timeout, later ones for nothing: one
      background read in ``retry_s`` finds out whether it is back.
    - The local store goes on from the last shared answer: an open breaker stays open for the time
      it had left, then this process (as each other) probes for itself.
    - When the shared store is back its state counts; what was counted meanwhile is not replayed.
    - ``away``, ``outages``, ``local_answers`` are for metrics; each change of ``away`` is logged.
    """

    def __init__(
        self,
        shared: BreakerStore,
        local: MemoryStore,
        *,
        retry_s: float = RETRY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.away = False
        self.outages = 0
        self.local_answers = 0
        self._shared = shared
        self._local = local
        self._retry_s = retry_s
        self._clock = clock
        self._retry_at = 0.0
        self._trial: asyncio.Task[None] | None = None

    async def read(self, name: str, definition: BreakerDefinition) -> BreakerSnapshot:
        """Return the state."""
        return await self._ask(name, definition, lambda store: store.read(name, definition))

    async def report(
        self, name: str, definition: BreakerDefinition, generation: int, tally: Tally
    ) -> BreakerSnapshot:
        """Count verdicts and open if they say so."""
        return await self._ask(
            name, definition, lambda store: store.report(name, definition, generation, tally)
        )

    async def take_probe(
        self, name: str, definition: BreakerDefinition, token: str
    ) -> BreakerSnapshot:
        """Lease the probe if the breaker is half-open and none is out."""
        return await self._ask(
            name, definition, lambda store: store.take_probe(name, definition, token)
        )

    async def settle_probe(
        self,
        name: str,
        definition: BreakerDefinition,
        generation: int,
        token: str,
        verdict: Verdict,
    ) -> BreakerSnapshot:
        """Take the probe's verdict; one that the other store leased changes nothing."""
        return await self._ask(
            name,
            definition,
            lambda store: store.settle_probe(name, definition, generation, token, verdict),
        )

    async def force(
        self, name: str, definition: BreakerDefinition, open_for_s: float, why: str = BY_HAND
    ) -> BreakerSnapshot:
        """Open or close by hand; while the shared store is away, for this process only."""
        return await self._ask(
            name, definition, lambda store: store.force(name, definition, open_for_s, why)
        )

    async def close(self) -> None:
        """End the background read, if one runs."""
        if self._trial is not None:
            self._trial.cancel()
            await asyncio.gather(self._trial, return_exceptions=True)

    async def _ask(
        self,
        name: str,
        definition: BreakerDefinition,
        operation: Callable[[BreakerStore], Awaitable[BreakerSnapshot]],
    ) -> BreakerSnapshot:
        if not self.away:
            try:
                answer = await operation(self._shared)
            except FleetError as error:
                self._leave(error)
            else:
                self._local.adopt(name, definition, answer)
                return answer
        elif self._trial is None and self._clock() >= self._retry_at:
            self._trial = asyncio.create_task(self._try_again(name, definition))
        self.local_answers += 1
        return await operation(self._local)

    def _leave(self, error: FleetError) -> None:
        if error.code is not Code.STORE_UNAVAILABLE:
            raise error
        self._retry_at = self._clock() + self._retry_s
        if not self.away:
            self.away = True
            self.outages += 1
            logger.error("%s; this process's own breakers protect", error)

    async def _try_again(self, name: str, definition: BreakerDefinition) -> None:
        try:
            answer = await self._shared.read(name, definition)
        except FleetError as error:
            self._leave(error)
        else:
            self._local.adopt(name, definition, answer)
            self.away = False
            logger.warning("the shared breakers are back in Redis and count again")
        finally:
            self._trial = None


def _source(name: str) -> str:
    folder = Path(__file__).parent
    return "".join((folder / f"breaker_{part}.lua").read_text() for part in ("state", name))


def _snapshot(reply: list[Any]) -> BreakerSnapshot:
    state, generation, run, calls, failures, opened_at_ms, wait_ms, probe, open_ms, why = reply
    return BreakerSnapshot(
        state=BreakerState(_text(state)),
        generation=generation,
        consecutive_timeouts=run,
        calls=calls,
        failures=failures,
        opened_at_s=opened_at_ms / 1000 if opened_at_ms else None,
        retry_after_s=wait_ms / 1000,
        probe=_text(probe) or None,
        open_s=open_ms / 1000,
        why=_text(why),
    )


def _away(what: str, error: BaseException) -> FleetError:
    return FleetError(
        Code.STORE_UNAVAILABLE,
        f"{what} cannot be reached in Redis ({type(error).__name__})",
        hint="check that Redis is up and TOOLFLEET_REDIS_URL is right",
        retry_after_s=RETRY_S,
    )


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
