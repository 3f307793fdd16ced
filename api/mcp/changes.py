"""Changes of what the fleet offers, told to whoever listens.

One look at the record's generation for all listeners of a process; nothing while there are none.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Protocol

from api.mcp.asked import Asked, Notify
from api.mcp.looking import Looking
from api.operations import Operations
from registry.errors import FleetError

LOOK_EVERY_S: Final = 0.25

logger = logging.getLogger("toolfleet.mcp")


class Subscription(Protocol):
    """What a client asked to be told of, as far as one source tells of it."""

    @property
    def honoured(self) -> dict[str, Any]:
        """Return the part of the filter that is served."""

    async def watch(self, tell: Notify) -> None:
        """Tell of all that has happened since the subscription, until cancelled."""


class Source(Protocol):
    """Something that clients can be told of without having asked for it then and there."""

    async def subscribe(self, asked: Asked, wanted: Mapping[str, Any]) -> Subscription | None:
        """Return the part of a filter that this source serves, if it serves any.

        ``wanted`` is the filter of ``subscriptions/listen``; a session listens to all lists. Raises
        `RpcError` for what is wrong in it.
        """


class Changes:
    """The bells of those who listen for changes of the registry."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._bells: set[asyncio.Event] = set()
        self._looking = Looking(self._look, "mcp-changes")

    @contextmanager
    def listening(self) -> Iterator[asyncio.Event]:
        """Yield a bell that rings when the registry has changed."""
        bell = asyncio.Event()
        self._bells.add(bell)
        try:
            with self._looking.wanted():
                yield bell
        finally:
            self._bells.discard(bell)

    async def close(self) -> None:
        """Stop looking."""
        await self._looking.close()

    async def _look(self) -> None:
        seen = None
        while True:
            try:
                offer = await self._operations.offers.current()
            except FleetError as error:
                logger.debug("whether the registry changed is not known: %s", error)
            else:
                if seen is not None and offer.generation != seen:
                    await self._operations.policies.catch_up()
                    for bell in self._bells:
                        bell.set()
                seen = offer.generation
            await asyncio.sleep(LOOK_EVERY_S)


class ToolChanges:
    """Tells when what a caller is offered is no longer what it was."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes

    async def subscribe(self, asked: Asked, wanted: Mapping[str, Any]) -> Subscription | None:
        """Return a subscription to changes of the tools, if that is wanted."""
        if wanted.get("toolsListChanged") is not True:
            return None
        return Lists(self._changes, asked, _offered, await _offered(asked, now=True))


class Lists:
    """A subscription to changes of lists, by the digests that ``read`` returns of them."""

    def __init__(
        self,
        changes: Changes,
        asked: Asked,
        read: Callable[[Asked], Awaitable[Mapping[str, str]]],
        seen: Mapping[str, str],
    ) -> None:
        self.honoured = {f"{name}ListChanged": True for name in seen}
        self._changes = changes
        self._asked = asked
        self._read = read
        self._seen = dict(seen)

    async def watch(self, tell: Notify) -> None:
        """Tell of each change of the lists."""
        with self._changes.listening() as bell:
            while True:
                try:
                    found = await self._read(self._asked)
                except FleetError as error:
                    logger.debug("what %s may see: %s", self._asked.actor.label, error)
                else:
                    for name, seen in self._seen.items():
                        if found[name] != seen:
                            self._seen[name] = found[name]
                            await tell(f"notifications/{name}/list_changed", {})
                await bell.wait()
                bell.clear()


async def _offered(asked: Asked, *, now: bool = False) -> dict[str, str]:
    run = await asked.run()
    servers = [asked.server] if asked.server is not None else None
    offered = await asked.operations.offered(asked.actor, run.tenant, servers, now=now)
    return {"tools": offered.digest}
