"""The resources of one served version that callers want to hear of, and the sessions that listen.

For each tenant's credential there is one session, kept for this alone and for as long as anything
is wanted through it: what a tenant hears of is what its own credential may see. A session that is
lost is opened again, later and later.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Final

from registry.errors import FleetError
from registry.requests import SUBSCRIBE, UNSUBSCRIBE
from workers.lending import SessionKey
from workers.listening import STEADY_S, pause_s
from workers.session import Session

logger = logging.getLogger("toolfleet.listening")

_ANSWER_LIMIT_S: Final = 10.0
_CLOSE_LIMIT_S: Final = 5.0


class ResourceWatch:
    """Listens for what is wanted; ``on_updated`` is told the key of a session and a wanted URI."""

    def __init__(
        self,
        open_session: Callable[[SessionKey], Awaitable[Session]],
        on_updated: Callable[[SessionKey, str], None],
    ) -> None:
        self._open_session = open_session
        self._on_updated = on_updated
        self._ears: dict[SessionKey, _Ear] = {}
        self._tasks: dict[asyncio.Task[None], SessionKey] = {}

    def want(self, wanted: Mapping[SessionKey, frozenset[str]]) -> None:
        """Listen to these resources from now on, and to no others."""
        for task, key in list(self._tasks.items()):
            if not wanted.get(key):
                self._ears.pop(key, None)
                task.cancel()
        for key, uris in wanted.items():
            if key in self._ears:
                self._ears[key].want(uris)
            elif uris:
                ear = self._ears[key] = _Ear(key, self._open_session, self._on_updated)
                ear.want(uris)
                task = asyncio.create_task(ear.listen())
                self._tasks[task] = key
                task.add_done_callback(self._ended)

    async def close(self) -> None:
        """Listen no more; returns within `_CLOSE_LIMIT_S`."""
        self.want({})
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSE_LIMIT_S)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("listening to resources failed", exc_info=error)


class _Ear:
    """One session after the other, each with what is wanted through it."""

    def __init__(
        self,
        key: SessionKey,
        open_session: Callable[[SessionKey], Awaitable[Session]],
        on_updated: Callable[[SessionKey, str], None],
    ) -> None:
        self._key = key
        self._open_session = open_session
        self._on_updated = on_updated
        self._wanted: frozenset[str] = frozenset()
        self._changed = asyncio.Event()

    def want(self, uris: frozenset[str]) -> None:
        """Listen to these resources from now on."""
        if uris != self._wanted:
            self._wanted = uris
            self._changed.set()

    async def listen(self) -> None:
        """Listen until cancelled."""
        failures = 0
        while True:
            begun_at = time.monotonic()
            try:
                session = await self._open_session(self._key)
                try:
                    session.on_resource_updated = self._updated
                    await (self._stream if session.era == "modern" else self._subscribe)(session)
                finally:
                    await session.close()
            except FleetError as error:
                if not failures:
                    logger.info("changes of resources are not heard: %s", error.message)
            failures = 1 if time.monotonic() - begun_at >= STEADY_S else failures + 1
            await asyncio.sleep(pause_s(failures, refused=False, jitter=random.random()))

    async def _stream(self, session: Session) -> None:
        """Hear by one subscription (2026-07-28), which is made anew when other URIs are wanted."""
        while session.alive:
            self._changed.clear()
            listening = asyncio.create_task(session.listen_to(self._wanted, lambda _hearing: None))
            changed = asyncio.create_task(self._changed.wait())
            try:
                await asyncio.wait({listening, changed}, return_when=asyncio.FIRST_COMPLETED)
                if listening.done():
                    await listening
                    return
            finally:
                listening.cancel()
                changed.cancel()
                await asyncio.wait({listening, changed})

    async def _subscribe(self, session: Session) -> None:
        """Hear by a subscription for each URI (before 2026-07-28)."""
        held: frozenset[str] = frozenset()
        while session.alive:
            self._changed.clear()
            wanted = self._wanted
            for method, uris in ((SUBSCRIBE, wanted - held), (UNSUBSCRIBE, held - wanted)):
                for uri in sorted(uris):
                    await self._ask(session, method, uri)
            held = wanted
            changed = asyncio.create_task(self._changed.wait())
            dead = asyncio.create_task(session.dead.wait())
            try:
                await asyncio.wait({changed, dead}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                changed.cancel()
                dead.cancel()

    @staticmethod
    async def _ask(session: Session, method: str, uri: str) -> None:
        try:
            await session.ask(method, {"uri": uri}, timeout_s=_ANSWER_LIMIT_S)
        except FleetError as error:
            if session.poisoned or not session.alive:
                raise
            logger.info("%s: %s", method, error.message)  # it is not asked again

    def _updated(self, uri: str) -> None:
        """Tell of a wanted resource: what changed may be a part of it."""
        with suppress(ValueError):
            of = max((it for it in self._wanted if uri.startswith(it)), key=len)
            self._on_updated(self._key, of)
