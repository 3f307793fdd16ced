"""Who asks, and what for: one gate before every route, open for health alone.

Invariants:
 1. Nothing but `OPEN_PATHS` answers without a credential that is valid. What is under `CONSOLE`
    has a door of its own (`api.console.door`), which takes its sessions as well; nothing else does.
 2. A route that does not say whom it is for (`only`) is for operators and tenants.
 3. A key is refused what its scopes leave out before the request's body is read.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from api.attempts import Attempts, Refusals, source_of
from api.errors import problem
from api.oidc import Issuer
from registry import tenants
from registry.database import Database
from registry.errors import Code, FleetError
from registry.tenants import Actor, Role

OPEN_PATHS: Final = frozenset({"/healthz", "/readyz"})
CONSOLE: Final = "/console"
KEPT_FOR_S: Final = 2.0
NOTED_EVERY_S: Final = 60.0
LONGEST_CREDENTIAL: Final = 16_384
_MOST_KEPT: Final = 4096
REFUSED: Final = frozenset(
    {Code.UNAUTHENTICATED, Code.KEY_EXPIRED, Code.TOKEN_EXPIRED, Code.FORBIDDEN}
)

logger = logging.getLogger("toolfleet.api")


class Keyring:
    """The credentials that were valid a moment ago, and the way to ask about others.

    A revoked key works for at most `KEPT_FOR_S` more. Who was let in lately is never kept out by
    the failed attempts of others at the same address.
    """

    def __init__(
        self,
        database: Database,
        *,
        issuer: Issuer | None = None,
        attempts: Attempts | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._issuer = issuer
        self._attempts = attempts or Attempts(clock=clock)
        self._refusals = Refusals(database)
        self._clock = clock
        self._known: dict[bytes, tuple[float, Actor]] = {}
        self._noted_at: dict[str, float] = {}
        self._noting: set[asyncio.Task[None]] = set()
        self._asking: dict[bytes, asyncio.Task[Actor]] = {}

    async def actor(self, credential: str, source: str) -> Actor:
        """Return who holds a key or token; ``source`` is the address that it came from.

        Raises `too_many_attempts`, and what `tenants.authenticate` and `Issuer.actor` raise.
        """
        name = hashlib.sha256(credential.encode()).digest()
        kept_until, actor = self._known.get(name, (0.0, None))
        if actor is not None and kept_until > self._clock():
            return actor
        asking = self._asking.get(name)
        if asking is None:
            # Those who come together with one credential are one attempt, and one question.
            asking = asyncio.create_task(self._find(credential, name, source_of(source)))
            self._asking[name] = asking
            asking.add_done_callback(partial(self._found, name))
        try:
            return await asyncio.shield(asking)
        except FleetError as error:
            if error.code in REFUSED:
                self._refusals.note(source_of(source), error.code)
            raise

    async def _find(self, credential: str, name: bytes, source: str) -> Actor:
        asked_at = self._clock()
        if name not in self._known:
            self._attempts.take(source)
        try:
            actor, kept_for_s = await self._ask(credential)
        except FleetError as error:
            self._known.pop(name, None)
            if error.code not in REFUSED:
                self._attempts.give_back(source)
            raise
        if name not in self._known:
            self._attempts.give_back(source)
            if len(self._known) >= _MOST_KEPT:
                self._known.clear()
        self._known[name] = (asked_at + kept_for_s, actor)
        return actor

    def _found(self, name: bytes, asking: asyncio.Task[Actor]) -> None:
        del self._asking[name]
        if not asking.cancelled():
            asking.exception()  # whoever asked has it, or has left

    async def left_s(self, credential: str) -> float | None:
        """Return for how many seconds a credential that was let in says it is good; None: no end.

        A key has none of its own: whether it still is one is asked anew each time.
        """
        if self._issuer is not None and self._issuer.may_have_issued(credential):
            return await self._issuer.left_s(credential)
        return None

    async def close(self) -> None:
        """Finish what is being written."""
        if self._issuer is not None:
            await self._issuer.close()
        if self._noting:
            await asyncio.wait(self._noting, timeout=KEPT_FOR_S)
        await self._refusals.close()

    def forget(self) -> None:
        """Ask the record or the issuer again for everyone, who was let in all the same."""
        self._known = {name: (0.0, actor) for name, (_, actor) in self._known.items()}

    async def _ask(self, credential: str) -> tuple[Actor, float]:
        if self._issuer is not None and self._issuer.may_have_issued(credential):
            return await self._issuer.actor(credential)
        actor = await tenants.authenticate(self._database, credential)
        self._note_use(actor.key_id)
        return actor, KEPT_FOR_S

    def _note_use(self, key_id: str) -> None:
        now = self._clock()
        if now - self._noted_at.get(key_id, float("-inf")) < NOTED_EVERY_S:
            return
        if len(self._noted_at) >= _MOST_KEPT:
            self._noted_at.clear()
        self._noted_at[key_id] = now
        task = asyncio.create_task(tenants.note_use(self._database, key_id))
        self._noting.add(task)
        task.add_done_callback(self._noted)

    def _noted(self, task: asyncio.Task[None]) -> None:
        self._noting.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("the use of a key was not noted: %s", error)


async def still_let_in(keyring: Keyring, scope: Scope) -> bool:
    """Say whether a request that was let in would be now, for answers that take long."""
    try:
        await keyring.actor(credential_of(scope), (scope.get("client") or ("",))[0])
    except FleetError as error:
        return error.code not in REFUSED
    return True


class Gate:
    """ASGI middleware: lets a request through with its actor, or answers why not.

    ``door`` makes what stands before the console.
    """

    def __init__(self, app: ASGIApp, keyring: Keyring, door: Callable[[ASGIApp], ASGIApp]) -> None:
        self._app = app
        self._keyring = keyring
        self._console = door(app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what carries a valid credential, and what needs none."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] == "http" and is_console(scope["path"]):
            await self._console(scope, receive, send)
            return
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            source = (scope.get("client") or ("",))[0]
            try:
                actor = await self._keyring.actor(credential_of(scope), source)
            except FleetError as error:
                await problem(error)(scope, receive, send)
                return
            scope.setdefault("state", {})["actor"] = actor
        await self._app(scope, receive, send)


def is_console(path: str) -> bool:
    """Say whether a path is the console's."""
    return path == CONSOLE or path.startswith(f"{CONSOLE}/")


def credential_of(scope: Scope) -> str:
    """Return what a request shows to be let in; raise `unauthenticated` where it shows nothing."""
    found = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(found) > 1:
        raise FleetError(
            Code.UNAUTHENTICATED,
            "the request carries more than one Authorization header",
            hint="send one",
        )
    scheme, _, credential = (found[0] if found else b"").decode("latin-1").partition(" ")
    credential = credential.strip()
    if scheme.lower() != "bearer" or not credential or len(credential) > LONGEST_CREDENTIAL:
        raise FleetError(
            Code.UNAUTHENTICATED,
            "the request carries no API key",
            hint="send a valid key as 'Authorization: Bearer KEY'",
        )
    return credential


def actor_of(request: Request) -> Actor:
    """Return who the gate let in."""
    actor: Actor = request.state.actor
    return actor


class Only:
    """A dependency of a route: the roles that it is for."""

    def __init__(self, roles: Iterable[Role]) -> None:
        self.roles = tuple(roles)

    async def __call__(self, request: Request) -> None:
        """Raise `forbidden` unless one of these roles asks."""
        self.refuse(actor_of(request))

    def refuse(self, actor: Actor) -> None:
        """Raise `forbidden` unless an actor has one of these roles."""
        if actor.role not in self.roles:
            raise FleetError(
                Code.FORBIDDEN,
                f"{actor.name!r} has the role {actor.role.value}; this is for "
                + " and ".join(f"{role.value}s" for role in self.roles),
                hint="ask an operator",
            )


def only(*roles: Role) -> Only:
    """Return a dependency that raises `forbidden` unless one of these roles asks."""
    return Only(roles)


operators_only: Final = only(Role.OPERATOR)
CALLERS: Final = only(Role.OPERATOR, Role.TENANT)

_SUBJECTS: Final = {"rollouts": "servers", "changes": "servers", "registry": "servers"}


def verb_of(tag: str, methods: Iterable[str], path: str) -> str:
    """Return the verb (`registry.scopes`) that a route of an OpenAPI tag needs."""
    subject = _SUBJECTS.get(tag, tag)
    if set(methods) <= {"GET", "HEAD"}:
        return f"{subject}:read"
    if subject == "calls" and path.endswith("/cancel"):
        return "calls:cancel"
    return f"{subject}:write"
