"""Who asks: one gate before every route, open for health alone."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Final

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from api.errors import problem
from registry import tenants
from registry.database import Database
from registry.errors import Code, FleetError
from registry.tenants import Actor, Role

OPEN_PATHS: Final = frozenset({"/healthz", "/readyz"})
KEPT_FOR_S: Final = 2.0
_MOST_KEPT: Final = 1024


class Keyring:
    """The keys that were valid a moment ago; a revoked key works for at most `KEPT_FOR_S` more."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._known: dict[bytes, tuple[float, Actor]] = {}

    async def actor(self, plaintext: str) -> Actor:
        """Return who a key stands for; raise what `tenants.authenticate` raises."""
        asked_at = self._clock()
        name = hashlib.sha256(plaintext.encode()).digest()
        kept_until, actor = self._known.get(name, (asked_at, None))
        if actor is not None and kept_until > asked_at:
            return actor
        actor = await tenants.authenticate(self._database, plaintext)
        if len(self._known) >= _MOST_KEPT:
            self._known.clear()
        self._known[name] = (asked_at + KEPT_FOR_S, actor)
        return actor

    def forget(self) -> None:
        """Ask the record again for every key."""
        self._known.clear()


class Gate:
    """ASGI middleware: lets a request through with its actor, or answers 401."""

    def __init__(self, app: ASGIApp, keyring: Keyring) -> None:
        self._app = app
        self._keyring = keyring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what carries a valid key, and what needs none."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            try:
                scope.setdefault("state", {})["actor"] = await self._keyring.actor(_key_of(scope))
            except FleetError as error:
                await problem(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _key_of(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, key = value.decode("latin-1").partition(" ")
            if scheme.lower() == "bearer" and key.strip():
                return str(key.strip())
    raise FleetError(
        Code.UNAUTHENTICATED,
        "the request carries no API key",
        hint="send a valid key as 'Authorization: Bearer KEY'",
    )


def actor_of(request: Request) -> Actor:
    """Return who the gate let in."""
    actor: Actor = request.state.actor
    return actor


def operators_only(request: Request) -> None:
    """Raise `forbidden` unless an operator asks."""
    actor = actor_of(request)
    if actor.role is not Role.OPERATOR:
        raise FleetError(
            Code.FORBIDDEN,
            f"the key {actor.name!r} acts for tenant {actor.tenant!r}; this is for operators",
            hint="ask an operator",
        )
