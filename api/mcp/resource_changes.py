"""Subscriptions to resources: noted by session or stream, and told of on whatever process it is.

What is wanted is in the record (`registry.interests`) for as long as somebody listens: a worker of
the server hears of a change, and every process is told a key that means something to whom it
concerns. A subscription may be made at one process and listened to at another.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Final

from api.mcp.asked import INVALID_PARAMS, INVALID_REQUEST, Answered, Asked, Notify, RpcError
from api.mcp.changes import Changes, Lists, Subscription
from api.mcp.lists import digests
from api.mcp.looking import Looking
from api.mcp.passage import named, resource, text_of
from api.mcp.uris import shown
from api.operations import Operations
from registry import interests
from registry.errors import FleetError
from registry.interests import Interest
from registry.requests import CLASS, SUBSCRIBE, may_ask
from workers.client import RESOURCES_CHANNEL

LASTS: Final = timedelta(seconds=30)
"""How long something is wanted after whoever listens was seen last."""
LOOK_EVERY_S: Final = 1.0
RENEW_EVERY: Final = 10  # looks
MOST_REMEMBERED: Final = 1000

logger = logging.getLogger("toolfleet.mcp")


# -- the requests of sessions


async def subscribe(asked: Asked) -> Answered:
    """Answer ``resources/subscribe``: from now on the session's stream tells of the resource."""
    interest, run = await _interest(asked), await asked.run()
    await interests.put(
        asked.operations.database,
        _session(asked),
        [interest],
        lasts=LASTS,
        actor=asked.actor.label,
        run=run.id,
    )
    return {}


async def unsubscribe(asked: Asked) -> Answered:
    """Answer ``resources/unsubscribe``."""
    run = await asked.run()
    server, own = named(asked, text_of(asked.params, "uri"))
    await interests.drop(
        asked.operations.database,
        _session(asked),
        Interest(server, 0, run.tenant, own),
        actor=asked.actor.label,
        run=run.id,
    )
    return {}


async def _interest(asked: Asked) -> Interest:
    uri = text_of(asked.params, "uri")
    found = await _interest_in(asked, uri)
    if found is None:
        raise RpcError(INVALID_PARAMS, "its server does not tell when it changes", {"uri": uri})
    return found


async def _interest_in(asked: Asked, uri: str) -> Interest | None:
    """Return the interest in a resource; None where its server tells nothing of its changes.

    Raises `RpcError` for a resource that the caller may not read.
    """
    found, own = await resource(asked, uri)
    run, version = await asked.run(), found.version
    policy = await asked.operations.policies.of(run.tenant)
    able = found.offered.capabilities["resources"] or {}
    if not able.get("subscribe"):
        return None
    if not may_ask(policy, version.definition, SUBSCRIBE, asked.actor.scopes):
        raise policy.denied(found.server, SUBSCRIBE, CLASS)
    return Interest(found.server, version.id, run.tenant, own)


def _session(asked: Asked) -> str:
    if asked.session is None:
        raise RpcError(INVALID_REQUEST, "subscriptions/listen has taken the place of this request")
    return asked.session


# -- who listens


class ResourceChanges:
    """Tells when resources change that a stream, or a session, has subscribed to."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._listeners: dict[str, _Listener] = {}
        self._looking = Looking(self._look, "mcp-interests")

    async def subscribe(self, asked: Asked, wanted: Mapping[str, Any]) -> Subscription | None:
        """Return a subscription to the resources of a filter, or to those of a session."""
        if asked.session is not None:
            return _Resources(self, asked, asked.session, {})
        uris = wanted.get("resourceSubscriptions")
        if uris is None:
            return None
        if not isinstance(uris, list) or not all(isinstance(it, str) for it in uris):
            raise RpcError(INVALID_PARAMS, "resourceSubscriptions: has to be a list of strings")
        found = {uri: it for uri in uris if (it := await self._wanted(asked, uri)) is not None}
        if not found:
            return None
        holder, run = f"listen-{uuid.uuid4()}", await asked.run()
        await interests.put(
            self._operations.database,
            holder,
            list(found.values()),
            lasts=LASTS,
            actor=asked.actor.label,
            run=run.id,
        )
        return _Resources(self, asked, holder, {"resourceSubscriptions": list(found)})

    @staticmethod
    async def _wanted(asked: Asked, uri: str) -> Interest | None:
        try:
            return await _interest_in(asked, uri)
        except (RpcError, FleetError):
            return None  # what is not honoured is left out of the acknowledgement

    @asynccontextmanager
    async def listening(
        self, holder: str, name: Callable[[Interest], str]
    ) -> AsyncIterator[_Listener]:
        """Yield a listener for a holder's resources, by the names that ``name`` gives them."""
        listener = self._listeners[holder] = _Listener(name)
        try:
            with self._looking.wanted():
                async with self._operations.room.hears(RESOURCES_CHANNEL, listener.hear):
                    yield listener
        finally:
            if self._listeners.get(holder) is listener:
                del self._listeners[holder]

    async def close(self) -> None:
        """Stop looking."""
        await self._looking.close()

    async def _look(self) -> None:
        """Learn what listeners want, wherever they said so, and put off until when."""
        database, looks = self._operations.database, 0
        while True:
            holders = list(self._listeners)
            try:
                for holder, wanted in (await interests.held(database, holders)).items():
                    if holder in self._listeners:
                        self._listeners[holder].want(wanted)
                if looks % RENEW_EVERY == 0:
                    await interests.renew(database, holders, lasts=LASTS)
            except FleetError as error:
                logger.debug("what clients listen to is not known: %s", error)
            looks += 1
            await asyncio.sleep(LOOK_EVERY_S)


class _Listener:
    """What one holder wants to hear of, and what it has not been told yet.

    What it wants is learnt a look later than its worker may hear of a change: what was heard of
    others is remembered for two looks.
    """

    def __init__(self, name: Callable[[Interest], str]) -> None:
        self._name = name
        self._wanted: dict[str, str] = {}
        self._changed: dict[str, None] = {}
        self._others: dict[str, None] = {}
        self._older_others: dict[str, None] = {}
        self._bell = asyncio.Event()

    def want(self, wanted: list[Interest]) -> None:
        """Want to hear of these from now on."""
        self._wanted = {it.key: self._name(it) for it in wanted}
        late = (self._older_others.keys() | self._others.keys()) & self._wanted.keys()
        self._older_others = {key: None for key in self._others if key not in late}
        self._others = {}
        self.hear(late)

    def hear(self, keys: Any) -> None:
        """Note which of the wanted resources changed."""
        for key in keys:
            if key in self._wanted:
                self._changed[self._wanted[key]] = None
                self._bell.set()
            elif len(self._others) < MOST_REMEMBERED:
                self._others[key] = None

    async def next(self) -> list[str]:
        """Return the names of resources that changed, each once, when some have."""
        await self._bell.wait()
        self._bell.clear()
        changed, self._changed = self._changed, {}
        return list(changed)


class _Resources:
    def __init__(
        self, changes: ResourceChanges, asked: Asked, holder: str, honoured: dict[str, Any]
    ) -> None:
        self.honoured = honoured
        self._changes = changes
        self._asked = asked
        self._holder = holder

    async def watch(self, tell: Notify) -> None:
        """Tell of each resource that changes."""
        async with self._changes.listening(self._holder, self._name) as listener:
            while True:
                for uri in await listener.next():
                    await tell("notifications/resources/updated", {"uri": uri})

    def _name(self, interest: Interest) -> str:
        return interest.uri if self._asked.server else shown(interest.server, interest.uri)


# -- lists


class ListChanges:
    """Tells when the prompts, or the resources, that a caller may see are other ones."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes

    async def subscribe(self, asked: Asked, wanted: Mapping[str, Any]) -> Subscription | None:
        """Return a subscription to changes of these lists, as far as they are wanted."""
        lists = [it for it in ("prompts", "resources") if wanted.get(f"{it}ListChanged") is True]
        if not lists:
            return None
        seen = await digests(asked, now=True)
        return Lists(self._changes, asked, digests, {name: seen[name] for name in lists})
