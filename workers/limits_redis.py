"""The fleet's limiter: token buckets, pauses and leases in Redis, and what happens without it.

Invariants, cited by number in the tests:

1. A call is taken from all of its buckets or from none, in one round trip.
2. No process's clock decides anything: instants are Redis', what travels is a duration.
3. Over any time T a bucket grants at most ``burst`` calls more than T fills in, whoever asks.
4. What is taken for a while (a lease) comes back by itself when its holder dies.
5. While Redis is away nothing is unlimited. Whoever may not go on by a share is refused
   (`limiter_unavailable`), the others get this process's share: the limit divided by the number of
   processes that asked lately, or a set fraction where that was never known.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from registry.errors import Code, FleetError
from registry.rates import Bucket
from workers.background import Background
from workers.limits_state import Answer, LocalBuckets, Reason, microseconds

logger = logging.getLogger("toolfleet.limits")

CHANNEL: Final = "toolfleet:pauses:"
"""Before a server's name: a message says that its pauses have changed."""
HEAR_QUIET_S: Final = 5.0
HEAR_AGAIN_S: Final = 1.0
TIMEOUT_S: Final = 0.25
"""How long a call may wait for Redis before this process decides alone: a pause of a busy process
or of Redis itself is shorter."""
RETRY_S: Final = 1.0
"""How often a Redis that was away is tried again."""
LOCAL_SHARE: Final = 0.1
"""This process's share of a limit when it never knew how many others there are."""
ASKER_MS: Final = 60_000
FIRST_PAUSE_S: Final = 1.0
"""For a server that says 429 and not for how long; doubled each time that it says so again."""
LONGEST_PAUSE_S: Final = 3600.0

# One hash tag for all: a script may only use keys of one cluster slot, and a call's buckets belong
# to a tenant, its tier and a server at once.
_KEY: Final = "toolfleet:{limits}:"
_REASONS: Final = {0: None, -1: Reason.PAUSED, -2: Reason.FULL}


@dataclass(frozen=True, slots=True)
class Lease:
    """One of the calls that may be under way at once."""

    scope: str
    most: int
    lasts_s: float
    token: str


@dataclass(frozen=True, slots=True)
class Ask:
    """What one call needs: from which buckets, and of which server."""

    buckets: tuple[Bucket, ...]
    askers: str
    """Whose processes share the buckets."""
    server: str = ""
    """Which server is to be called, whose pauses count; none for what is only submitted."""
    identity: str = ""
    lease: Lease | None = None


def connect(url: str, *, timeout_s: float = TIMEOUT_S) -> Redis:
    """Return a client for limits alone: short timeouts; connects when first used."""
    return Redis.from_url(
        url,
        protocol=2,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        # A connection that was cut while nobody used it is opened anew. What took too long is not
        # asked again, as it may have been done: `Limiter` decides what is next.
        retry=Retry(NoBackoff(), 1, supported_errors=(exceptions.ConnectionError,)),
    )


class RedisLimits:
    """The shared buckets, pauses and leases.

    ``now`` replaces the clock of Redis (seconds) in tests. Raises `store_unavailable` whenever
    Redis gives no answer, whatever the reason.
    """

    def __init__(self, redis: Redis, now: Callable[[], float] | None = None) -> None:
        self._redis = redis
        self._now = now
        self._me = secrets.token_hex(8)
        self._take = redis.register_script(_source("take"))
        self._give_back = redis.register_script(_source("give_back"))
        self._pause = redis.register_script(_source("pause"))
        self._pauses = redis.register_script(_source("pauses"))

    async def take(self, ask: Ask) -> Answer:
        """Take a call from every bucket, and its lease, unless something is in the way."""
        lease = ask.lease
        keys = [
            f"{_KEY}askers:{ask.askers}",
            _pauses_key(ask.server),
            _leases_key("" if lease is None else lease.scope),
            *(_KEY + bucket.name for bucket in ask.buckets),
        ]
        why, wait_us, peers, *left = await self._run(
            self._take,
            keys,
            self._me,
            ASKER_MS,
            f"={ask.identity}",
            0 if lease is None else lease.most,
            "" if lease is None else lease.token,
            0 if lease is None else round(lease.lasts_s * 1000),
            *_sizes(ask.buckets),
        )
        short = why - 1 if why > 0 else None
        reason = Reason.SHORT if why > 0 else _REASONS[why]
        return Answer(tuple(left), reason, wait_us / 1e6, short, peers)

    async def give_back(self, buckets: Sequence[Bucket]) -> None:
        """Put one call back into each bucket."""
        keys = [_KEY + bucket.name for bucket in buckets]
        await self._run(self._give_back, keys, *_sizes(buckets))

    async def end(self, lease: Lease) -> None:
        """Give a lease back."""
        await self._reached(self._redis.zrem(_leases_key(lease.scope), lease.token))

    async def pause(
        self, server: str, identity: str, for_s: float | None, buckets: Sequence[Bucket]
    ) -> float:
        """Pause a server for an identity; return for how many seconds it is paused.

        None for a server that did not say how long. Its ``buckets`` are empty at the end.
        """
        wait_us: int = await self._run(
            self._pause,
            [_pauses_key(server), *(_KEY + bucket.name for bucket in buckets)],
            server,
            identity,
            "" if for_s is None else microseconds(for_s),
            microseconds(FIRST_PAUSE_S),
            microseconds(LONGEST_PAUSE_S),
            *_sizes(buckets),
        )
        return wait_us / 1e6

    async def pauses(self, server: str) -> dict[str, float]:
        """Return the identities that a server is paused for, and the seconds that are left."""
        reply = await self._run(self._pauses, [_pauses_key(server)])
        return {_text(reply[i]): reply[i + 1] / 1e6 for i in range(0, len(reply), 2)}

    async def _run(
        self, script: Callable[..., Awaitable[Any]], keys: list[str], *arguments: str | float
    ) -> Any:
        now = "" if self._now is None else microseconds(self._now())
        return await self._reached(script(keys=keys, args=[*arguments, now]))

    async def _reached(self, asking: Awaitable[Any]) -> Any:
        try:
            return await asking
        except (RedisError, OSError, TimeoutError) as error:
            raise FleetError(
                Code.STORE_UNAVAILABLE,
                f"the shared limits cannot be reached in Redis ({type(error).__name__})",
                hint="check that Redis is up and TOOLFLEET_REDIS_URL is right",
                retry_after_s=RETRY_S,
            ) from error


class Limiter:
    """Ask the shared limits; while they are away, give out this process's share, or nothing.

    - The first calls to notice wait for Redis' timeout, later ones for nothing: one background
      question in ``retry_s`` finds out whether it is back.
    - ``away``, ``outages`` and ``counts`` are for metrics; each change of ``away`` is logged.
    """

    def __init__(
        self,
        shared: RedisLimits,
        *,
        local_share: float = LOCAL_SHARE,
        retry_s: float = RETRY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.away = False
        self.outages = 0
        self.counts: Counter[tuple[str, str]] = Counter()
        """How often each kind of limit granted, refused, or was asked in vain."""
        self._shared = shared
        self._local = LocalBuckets(clock)
        self._local_share = local_share
        self._peers: dict[str, int] = {}
        self._retry_s = retry_s
        self._clock = clock
        self._retry_at = 0.0
        self._trial: asyncio.Task[None] | None = None
        self._background = Background()

    async def take(self, ask: Ask, *, by_share: bool) -> Answer:
        """Ask for a call; raise `limiter_unavailable` if Redis is away and it may have no share."""
        if not self.away:
            try:
                answer = await self._shared.take(ask)
            except FleetError as error:
                self._leave(error)
            else:
                self._peers[ask.askers] = answer.peers
                return answer
        self._try_again()
        if not by_share:
            raise FleetError(
                Code.LIMITER_UNAVAILABLE,
                "whether this call is within its limits cannot be found out: Redis is away",
                hint="send it again after retry_after_s; calls that only read go on meanwhile",
                retry_after_s=self._retry_s,
            )
        return self._local.take(ask.buckets, self._share(ask.askers))

    def give_back(self, buckets: Sequence[Bucket], askers: str) -> None:
        """Put a call back into its buckets, soon; while Redis is away, into this process's."""
        if self.away:
            self._local.give_back(buckets, self._share(askers))
        else:
            self._background.start(self._quietly(partial(self._shared.give_back, buckets)))

    def end(self, lease: Lease) -> None:
        """Give a lease back, soon; one that is lost ends by itself."""
        if not self.away:
            self._background.start(self._quietly(partial(self._shared.end, lease)))

    async def pause(
        self, server: str, identity: str, for_s: float | None, buckets: Sequence[Bucket]
    ) -> float:
        """Pause a server fleet-wide; return for how long. While Redis is away: as it said."""
        if not self.away:
            try:
                return await self._shared.pause(server, identity, for_s, buckets)
            except FleetError as error:
                self._leave(error)
        return FIRST_PAUSE_S if for_s is None else min(for_s, LONGEST_PAUSE_S)

    async def pauses(self, server: str) -> Mapping[str, float] | None:
        """Return a server's pauses by identity, in seconds; None while Redis is away."""
        if self.away:
            self._try_again()
            return None
        try:
            return await self._shared.pauses(server)
        except FleetError:
            return None  # a call that needs an answer decides whether Redis is away

    async def close(self) -> None:
        """Put back what is being put back, within a moment."""
        await self._background.end()

    def _share(self, askers: str) -> float:
        peers = self._peers.get(askers)
        return self._local_share if peers is None else 1 / peers

    def _leave(self, error: FleetError) -> None:
        if error.code is not Code.STORE_UNAVAILABLE:
            raise error
        # It is looked for at once: the first failure may have been a connection's own.
        self._retry_at = self._clock() + (self._retry_s if self.away else 0.0)
        if not self.away:
            self.away = True
            self.outages += 1
            logger.error("%s; reads go on by this process's share, writes are refused", error)

    def _try_again(self) -> None:
        if self._trial is None and self._clock() >= self._retry_at:
            self._trial = self._background.start(self._find_out())

    async def _find_out(self) -> None:
        try:
            await self._shared.pauses("")
        except FleetError as error:
            self._leave(error)
        else:
            self.away = False
            logger.warning("the shared limits are back in Redis and count again")
        finally:
            self._trial = None

    async def _quietly(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except FleetError as error:
            logger.warning("%s; what was taken comes back by itself", error)


async def hear_pauses(redis: Redis, server: str, heard: Callable[[], Awaitable[None]]) -> None:
    """Call ``heard`` whenever a server's pauses have changed, until cancelled; it is a hint."""
    while True:
        with suppress(RedisError, OSError):
            async with redis.pubsub(ignore_subscribe_messages=True) as pubsub:
                await pubsub.subscribe(CHANNEL + server)
                while True:
                    if await pubsub.get_message(timeout=HEAR_QUIET_S) is not None:
                        await heard()
        await asyncio.sleep(HEAR_AGAIN_S)


def _sizes(buckets: Sequence[Bucket]) -> list[float]:
    return [size for it in buckets for size in (microseconds(it.interval_s), it.burst)]


def _pauses_key(server: str) -> str:
    return f"{_KEY}pauses:{server}"


def _leases_key(scope: str) -> str:
    return f"{_KEY}leases:{scope}"


def _source(name: str) -> str:
    folder = Path(__file__).parent
    return "".join((folder / f"limit_{part}.lua").read_text() for part in ("clock", name))


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
