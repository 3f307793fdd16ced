"""Who hears that the tools of a served version changed: some session, for as long as it is served.

How it is heard depends on the server:

- Before 2026-07-28 it tells every session, by itself.
- Since then it tells whoever has subscribed. Over stdio every session of the pool subscribes for
  itself: its child has nobody else, and it costs nothing. Over HTTP one session does so that is
  kept for this alone; it is none of the pool's, so that no borrower and no recycling meets it.

A subscription that ends is renewed: soon at first, then later and later; one that the server
refuses, after minutes at last. When somebody listens again after nobody did, that is news: a change
may have been missed.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, Final
from weakref import WeakSet

from registry.errors import Code, FleetError
from workers.keyring import Keyring
from workers.lending import SessionKey
from workers.session import Session
from workers.watching import ListingWatch

logger = logging.getLogger("toolfleet.listening")

STEADY_S: Final = 10.0
"""A subscription that lasted for so long counts as a success."""
_LOST: Final = (0.5, 30.0)
_REFUSED: Final = (10.0, 300.0)
_UNREACHED: Final = (Code.SESSION_LOST, Code.SERVER_UNAVAILABLE, Code.UPSTREAM_FAILED)
_CLOSE_LIMIT_S: Final = 5.0


def pause_s(failures: int, *, refused: bool, jitter: float) -> float:
    """Return the seconds until the next attempt, after so many in a row that came to nothing.

    ``jitter``, from 0 to 1, spreads the attempts of many workers.
    """
    shortest_s, longest_s = _REFUSED if refused else _LOST
    return min(longest_s, shortest_s * 2.0 ** min(failures - 1, 20)) * (0.5 + 0.5 * jitter)


class Listening:
    """The sessions of one served version as ears; its news goes to ``watch``.

    ``open_session`` opens a session of a key.
    """

    def __init__(
        self,
        watch: ListingWatch,
        keyring: Keyring,
        open_session: Callable[[SessionKey], Awaitable[Session]],
        *,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.watch = watch
        self.offerings = ListingWatch(_nobody, clock=clock)
        """Whether prompts, resources and the like may differ from those on record."""
        self._keyring = keyring
        self._open_session = open_session
        self._clock = clock
        self._jitter = jitter
        self._ears: WeakSet[Session] = WeakSet()
        self._failures = 0
        self._not_before = 0.0
        self._wanted = False
        self._subscribable = False  # over HTTP
        self._apart: asyncio.Task[None] | None = None
        self._apart_session: tuple[SessionKey, Session] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # -- life

    async def open(self, key: SessionKey) -> Session:
        """Open a session for the pool, and listen in it."""
        session = await self._open_session(key)
        self._met(session, key)
        if session.era == "modern" and session.announces:
            if session.over_http:
                self._subscribable = True
                if self._wanted:
                    self.start()
            else:
                self._start(self._attend(session))
        return session

    def start(self) -> None:
        """Listen from now on, over HTTP too."""
        self._wanted = True
        if self._subscribable and (self._apart is None or self._apart.done()):
            self._apart = self._start(self._attend_apart())

    def stop(self) -> None:
        """Keep no session any more for listening alone."""
        self._wanted = False
        if self._apart is not None:
            self._apart.cancel()

    def rotate(self, key: SessionKey) -> None:
        """Listen with another credential, if it is with an older one of the same holder."""
        if self._apart_session is None:
            return
        old, session = self._apart_session
        if old.holder == key.holder and old.generation < key.generation:
            self._start(self._close(session))

    async def close(self) -> None:
        """Listen no more, and tell nobody; returns within `_CLOSE_LIMIT_S`."""
        self.watch.close()
        self.stop()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSE_LIMIT_S)

    @property
    def ears(self) -> int:
        """Return how many sessions would hear of a change."""
        return sum(session.alive and session.hearing for session in self._ears)

    @property
    def waits_s(self) -> float:
        """Return the seconds until the next attempt to subscribe may be made."""
        return max(0.0, self._not_before - self._clock())

    # -- sessions

    def _met(self, session: Session, key: SessionKey) -> None:
        self.watch.met(session.introduction, key)
        session.on_listing_changed = self.watch.heard
        session.on_offerings_changed = self.offerings.heard
        if session.listing_changed:
            self.watch.heard()
        session.on_hearing = partial(self._hearing, session)
        if session.hearing:
            self._hearing(session, True)

    def _hearing(self, session: Session, hearing: bool) -> None:
        if hearing:
            if not any(it.alive and it.hearing for it in self._ears if it is not session):
                self.watch.heard()
                self.offerings.heard()
            self._ears.add(session)
        elif session.alive and session.era == "legacy":
            # The server closed its stream: it may be another one by now, which nobody would notice
            # before the next call. A listing does.
            self.watch.heard()

    async def _attend(self, session: Session) -> None:
        """Listen in a session of the pool for as long as it lives."""
        while session.alive:
            if not (wait_s := self.waits_s):
                await self._subscribe(session)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await session.dead.wait()

    async def _attend_apart(self) -> None:
        """Listen in sessions of our own, one after the other."""
        while True:
            await asyncio.sleep(self.waits_s)
            try:
                key = await self._keyring.listing_key()
                session = await self._open_session(key)
            except FleetError as error:
                self._failed(error, refused=False)
                continue
            try:
                self._met(session, key)
                if session.era == "legacy" or not session.announces:
                    self._subscribable = False  # until a session of the pool says otherwise
                    return
                self._apart_session = key, session
                await self._subscribe(session)
            finally:
                self._apart_session = None
                await session.close()

    async def _subscribe(self, session: Session) -> None:
        """Listen in a session until that ends; decide when the next attempt may be made."""
        begun_at = self._clock()
        error: FleetError | None = None
        try:
            await session.listen()
        except FleetError as why:
            error = why
        if session.closed:
            return
        confirmed = session in self._ears
        if confirmed and self._clock() - begun_at >= STEADY_S:
            self._failures = 0
        # A child that ends instead of an answer does not know the request, or worse.
        unreached = error is None or (session.over_http and error.code in _UNREACHED)
        self._failed(error, refused=not (confirmed or unreached))

    def _failed(self, error: FleetError | None, *, refused: bool) -> None:
        self._failures += 1
        wait_s = pause_s(self._failures, refused=refused, jitter=self._jitter())
        if error is not None:
            wait_s = max(wait_s, min(error.retry_after_s or 0.0, _REFUSED[1]))
            if refused or self._failures == 1:
                logger.info("changes of tools are not heard: %s", error.message)
        self._not_before = self._clock() + wait_s

    # -- tasks

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("listening to a server failed", exc_info=error)

    @staticmethod
    async def _close(session: Session) -> None:
        await session.close()


def _nobody() -> None:
    """Is told what is looked for at intervals."""
