"""What a server allows the fleet, and when it asked to be left alone: a worker's side of it.

Invariants:
 1. A call of a server with a quota takes from the fleet's buckets before it has a session, and
    what asked to be left alone is sent nothing until then, by no worker.
 2. Who has to wait holds neither a session nor a permit of the breaker: everything is asked anew
    afterwards. A short wait is waited out, a longer one in the queue (`calls.Ending.not_before_s`).
 3. While all calls of the server have to wait, its worker claims no more: they stay queued, in
    their turns, and a stop finds them there.
 4. A server without a quota costs its calls nothing; its pauses are heard of as hints, and read
    once a second.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from registry.definitions import Delivery, ServerDefinition
from registry.errors import Code, FleetError
from registry.rates import Bucket, buckets
from workers.limits_redis import LONGEST_PAUSE_S, Ask, Lease, Limiter
from workers.limits_state import Answer, Reason

IN_PLACE_S: Final = 5.0
"""The longest wait that a claimed call waits out where it is, if all have to wait."""
APART_S: Final = 0.5
"""As `IN_PLACE_S`, where others need not wait: they need the place."""
AHEAD_S: Final = 0.5
"""How far ahead of its turn a call is claimed while all have to wait."""
FULL_POLL_S: Final = 0.1
"""How often a call asks again while as many as may be are under way."""
CROWD_POLL_S: Final = 0.02
"""How often it is seen whether one of them has ended here."""
BURST_S: Final = 1
LEASE_SLACK_S: Final = 5.0
_READS: Final = frozenset({Delivery.READ, Delivery.IDEMPOTENT})


class MustWait(Exception):
    """A call may not be dispatched yet; ``refusal`` is what to say if it cannot wait that long."""

    def __init__(
        self, wait_s: float, scope: str, refusal: FleetError, *, full: bool = False
    ) -> None:
        super().__init__(refusal.message)
        self.wait_s = wait_s
        self.full = full
        """Whether it is the end of another call that is waited for."""
        self.refusal = refusal
        self.in_place = wait_s < (IN_PLACE_S if scope == WHOLE else APART_S)
        """Whether the wait is to be waited out where the call is."""


class Quotas:
    """One process's view of what its server allows; belongs to one event loop."""

    def __init__(
        self,
        server: str,
        limiter: Limiter,
        claimed: Callable[[], int],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``claimed`` says how many calls the process has claimed and not ended."""
        self._server = server
        self._limiter = limiter
        self._claimed = claimed
        self._clock = clock
        self._most: int | None = None  # calls of the server that may be under way at once
        self._paused: dict[str, float] = {}  # until when, by identity
        self._turns: dict[str, float] = {}  # the last turn that somebody waits for, by identity
        self._opens_at = 0.0
        self._pace_s = 0.0  # between two calls that are claimed while all have to wait
        self._door = asyncio.Lock()
        self._ended = asyncio.Event()  # set when a call of this process ends, and then another
        self.counts: dict[str, int] = dict.fromkeys(("granted", "waited", "refused", "pauses"), 0)

    # -- before a call is claimed -----------------------------------------------------------

    @property
    def shut(self) -> bool:
        """Say whether all calls of the server have to wait, so that none is to be claimed."""
        return self._crowded or self._opens_at > self._clock()

    async def opened(self) -> None:
        """Return when a call that is claimed has its turn soon; one caller after the other."""
        async with self._door:
            while self.shut:
                wait_s = self._opens_at - self._clock()
                await asyncio.sleep(min(max(wait_s, CROWD_POLL_S), IN_PLACE_S))
            # Until this one has asked, the next would find the door open and have to turn back.
            self._opens_at = self._clock() + self._pace_s

    @property
    def _crowded(self) -> bool:
        """Say whether this process has more calls claimed than the fleet may have under way."""
        return self._most is not None and self._claimed() > self._most

    # -- before a call is dispatched --------------------------------------------------------

    def concerns(self, definition: ServerDefinition) -> bool:
        """Say whether a call of a version has to ask at all, as the version is defined now."""
        quota = definition.quota
        whole = quota is not None and scope_of(definition, "") == WHOLE
        self._most = quota.concurrent_calls if quota is not None and whole else None
        return quota is not None or bool(self._paused)

    async def take(
        self,
        definition: ServerDefinition,
        identity: str,
        delivery: Delivery,
        *,
        holds_s: float,
        again: bool,
    ) -> Lease | None:
        """Take a call from the server's quota; return its lease on being under way, if it has one.

        Who asks for the first time takes its turn behind those who wait; ``again`` says that a
        call has waited for its turn.

        Raises `MustWait`, and `limiter_unavailable` for a call that may change something while
        Redis is away.
        """
        scope = scope_of(definition, identity)
        self.refuse_paused(definition, identity)
        quota = definition.quota
        if quota is None:
            return None
        lease = None
        if quota.concurrent_calls is not None:
            name = _name(self._server, scope)
            lasts_s = holds_s + LEASE_SLACK_S
            lease = Lease(name, quota.concurrent_calls, lasts_s, secrets.token_hex(8))
        own = _buckets(definition, self._server, scope)
        if own and not again and self._turns.get(scope, 0.0) > self._clock():
            raise self._must_wait(scope, own, Answer((), Reason.SHORT, 0.0, 0), again=False)
        ask = Ask(own, f"server:{self._server}", self._server, scope, lease)
        try:
            answer = await self._limiter.take(ask, by_share=delivery in _READS)
        except asyncio.CancelledError:
            self.end(lease)  # it may have been granted in this instant
            raise
        if not answer.granted:
            raise self._must_wait(scope, own, answer, again=again)
        self.counts["granted"] += 1
        return lease

    def refuse_paused(self, definition: ServerDefinition, identity: str) -> None:
        """Raise `MustWait` while the server is known to have asked to be left alone."""
        if not self._paused:
            return
        scope = scope_of(definition, identity)
        if (wait_s := self._paused.get(scope, 0.0) - self._clock()) > 0:
            raise MustWait(wait_s, scope, self._refusal(Reason.PAUSED, wait_s))

    def refuse_opening(self, definition: ServerDefinition, identity: str) -> None:
        """Raise `rate_limited` where a session would be opened with what is left alone."""
        try:
            self.refuse_paused(definition, identity)
        except MustWait as wait:
            raise wait.refusal from None

    def end(self, lease: Lease | None) -> None:
        """Give a lease back: its call is over, and another may ask."""
        if lease is not None:
            self._limiter.end(lease)
            self._ended.set()
            self._ended = asyncio.Event()

    async def wait(self, wait: MustWait) -> None:
        """Return when a call that waits where it is may ask again."""
        if wait.full:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait.wait_s):
                    await self._ended.wait()
        else:
            await asyncio.sleep(wait.wait_s)

    # -- pauses -----------------------------------------------------------------------------

    async def pause(self, definition: ServerDefinition, identity: str, for_s: float | None) -> None:
        """Leave the server alone, fleet-wide, for as long as it asked; None: it did not say."""
        scope = scope_of(definition, identity)
        self.counts["pauses"] += 1
        # At once in this process, however long Redis takes.
        self._note(scope, min(for_s or 0.0, LONGEST_PAUSE_S))
        own = _buckets(definition, self._server, scope)
        self._pace_s = max((it.interval_s for it in own), default=0.0)
        # "At once" would be a promise that the next call is answered: nobody can make it.
        wanted_s = for_s if for_s is not None and 0 < for_s < math.inf else None
        self._note(scope, await self._limiter.pause(self._server, scope, wanted_s, own))

    async def read_pauses(self) -> None:
        """Learn which pauses there are; while Redis is away, those that are known go on."""
        found = await self._limiter.pauses(self._server)
        now = self._clock()
        self._paused = {scope: until for scope, until in self._paused.items() if until > now}
        self._turns = {scope: turn for scope, turn in self._turns.items() if turn > now}
        for scope, wait_s in (found or {}).items():
            self._note(scope, wait_s)

    def paused_for(self) -> float:
        """Return for how many seconds anything of the server is paused; 0 if nothing is."""
        return max(0.0, max(self._paused.values(), default=0.0) - self._clock())

    def _note(self, scope: str, wait_s: float) -> None:
        until = max(self._paused.get(scope, 0.0), self._clock() + wait_s)
        self._paused[scope] = until
        if scope == WHOLE:
            self._opens_at = max(self._opens_at, until - AHEAD_S)

    # -- waiting ----------------------------------------------------------------------------

    def _must_wait(
        self, scope: str, own: tuple[Bucket, ...], answer: Answer, *, again: bool
    ) -> MustWait:
        """Say how long a call has to wait, behind those of this process that wait already."""
        wait_s, whole = answer.wait_s, scope == WHOLE
        assert answer.reason is not None
        if answer.reason is Reason.PAUSED:
            self._note(scope, wait_s)
        elif answer.reason is Reason.FULL:
            # Nobody knows when a call ends. Where all have to wait, few are claimed (`_crowded`).
            wait_s = FULL_POLL_S if whole else self._turn(scope, FULL_POLL_S, FULL_POLL_S)
        else:
            assert answer.short is not None
            interval_s = own[answer.short].interval_s
            if not again:  # whoever had a turn, and was too late, stays in front
                wait_s = self._turn(scope, wait_s, interval_s)
            if whole:
                self._pace_s = interval_s
                self._opens_at = max(self._opens_at, self._clock() + wait_s - AHEAD_S)
        full = answer.reason is Reason.FULL
        return MustWait(wait_s, scope, self._refusal(answer.reason, wait_s), full=full)

    def _turn(self, scope: str, wait_s: float, interval_s: float) -> float:
        """Return how long it takes until a call's turn, one interval after the one before it."""
        now = self._clock()
        turn = max(now + wait_s, self._turns.get(scope, 0.0) + interval_s)
        self._turns[scope] = turn
        return turn - now

    def _refusal(self, reason: Reason, wait_s: float) -> FleetError:
        self.counts["waited"] += 1
        said = {
            Reason.PAUSED: f"server {self._server} asked to be sent nothing for {wait_s:.1f} s",
            Reason.SHORT: f"the quota of server {self._server} is used up for {wait_s:.1f} s",
            Reason.FULL: f"the calls of server {self._server} under way are all its quota allows",
        }
        return FleetError(
            Code.RATE_LIMITED,
            f"{said[reason]}, and the call's deadline is before that",
            hint="send it again after retry_after_s, or with a longer timeout_s",
            retry_after_s=wait_s,
            details={"server": self._server, "reason": reason.value},
        )


WHOLE: Final = ""
"""The identity that stands for all calls of a server."""
_UNAVAILABLE: Final = 503


def asks_for_a_pause(error: FleetError) -> bool:
    """Say whether a server asked to be left alone: by 429, or by 503 and for how long."""
    if error.code is not Code.UPSTREAM_FAILED:
        return error.code is Code.RATE_LIMITED
    return error.details.get("status") == _UNAVAILABLE and error.retry_after_s is not None


def scope_of(definition: ServerDefinition, identity: str) -> str:
    """Return whose calls count, and pause, together with those of a credential's identity."""
    if definition.credentials.inject == "none":
        return WHOLE
    if definition.quota is not None and definition.quota.per == "server":
        return WHOLE
    # A call without a credential, where there may be one, stands for itself.
    return identity or "-"


def _name(server: str, scope: str) -> str:
    return f"server:{server}:{scope}" if scope else f"server:{server}"


def _buckets(definition: ServerDefinition, server: str, scope: str) -> tuple[Bucket, ...]:
    quota = definition.quota
    return () if quota is None else buckets(quota, _name(server, scope), burst_s=BURST_S)
