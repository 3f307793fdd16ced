"""Sessions of the console as one API process knows them, and what their forms have to carry."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from api.attempts import Attempts
from api.auth import KEPT_FOR_S, Keyring
from registry import console_sessions
from registry.database import Database
from registry.settings import Settings
from registry.tenants import Actor

COOKIE: Final = "toolfleet_console"
_PURPOSE: Final = b"toolfleet: forms of the console"


class Sessions(Keyring):
    """The sessions that went on a moment ago, and the way to ask about others.

    One that was ended elsewhere, or whose key was revoked, works for at most `KEPT_FOR_S` more.
    """

    def __init__(
        self,
        database: Database,
        settings: Settings,
        *,
        attempts: Attempts | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(database, attempts=attempts, clock=clock)
        self._lifetime = settings.console_session
        self._key = hmac.digest(settings.secret_key.get_secret_value().encode(), _PURPOSE, "sha256")

    async def begin(self, actor: Actor, *, left_s: float | None, source: str) -> tuple[str, float]:
        """Begin a session that lasts no longer than ``left_s``; return its token and its seconds.

        Raises `store_unavailable`.
        """
        lifetime_s = self._lifetime.total_seconds()
        if left_s is not None:
            lifetime_s = max(min(lifetime_s, left_s), 0.0)
        token = await console_sessions.begin(
            self._database, actor, lifetime=timedelta(seconds=lifetime_s), source=source
        )
        return token, lifetime_s

    async def end(self, token: str, actor: Actor) -> None:
        """End a session in the record; raise `store_unavailable`."""
        await console_sessions.end(self._database, token, actor)
        self._known.pop(hashlib.sha256(token.encode()).digest(), None)

    def csrf(self, token: str) -> str:
        """Return what every form of a session carries, and no other page can know."""
        return hmac.digest(self._key, token.encode(), "sha256").hex()

    async def _ask(self, token: str) -> tuple[Actor, float]:
        actor = await console_sessions.read(self._database, token)
        if actor.kind == "key":
            self._note_use(actor.key_id)
        return actor, KEPT_FOR_S
