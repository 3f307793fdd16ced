"""Between a client's lines and the fleet's endpoint: requests at once, and each answered once.

Invariants:
 1. Every request is answered under its id, by the fleet or by what kept it from being asked, unless
    its client has cancelled it.
 2. A line is written as a whole, and nothing but messages is.
 3. When the client is gone, so is all that it asked for: streams are closed, its session ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from api.mcp.asked import HEADER_MISMATCH, INVALID_REQUEST, PARSE_ERROR
from compose.api_client import AskError
from compose.bridge.endpoint import Endpoint, Hear, LostError, Place, RefusedError, error_of
from compose.bridge.messages import Id, Message, NoMessageError, failure, line, read, written
from compose.bridge.repeated import Marks, headers_of, marks_in
from compose.bridge.session import Session

GRACE_S: Final = 0.5
"""How long what is under way may still be answered once stdin has ended."""
CANCEL_EVERY_S: Final = 1.0
MOST_CANCELS: Final = 10
LISTEN: Final = "subscriptions/listen"

Write = Callable[[bytes], Awaitable[None]]


@dataclass
class _UnderWay:
    request: Message
    asking: asyncio.Task[None]
    unheard: bool = False
    """Whether the client has cancelled it, and is to hear no more of it."""


class Bridge:
    """One client over stdio."""

    def __init__(self, endpoint: Endpoint, write: Write) -> None:
        self._endpoint = endpoint
        self._write = write
        self._session = Session(endpoint, self._hear)
        self._marks: Marks = {}
        self._under_way: dict[Id, _UnderWay] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._broken = asyncio.Event()
        self._leaving = False

    async def run(self, lines: AsyncIterator[str]) -> None:
        """Serve a client until its lines end, or nobody reads what it is told."""
        reading = asyncio.create_task(self._take_all(lines))
        gone = asyncio.create_task(self._broken.wait())
        try:
            await asyncio.wait({reading, gone}, return_when=asyncio.FIRST_COMPLETED)
            self._leaving = True
            ending = [it.asking for it in self._under_way.values() if it.request.method != LISTEN]
            if ending and not self._broken.is_set():
                await asyncio.wait(ending, timeout=GRACE_S)
        finally:
            left = {reading, gone, *self._tasks}
            for task in left:
                task.cancel()
            await asyncio.wait(left)
            await self._session.end()

    async def _take_all(self, lines: AsyncIterator[str]) -> None:
        async for text in lines:
            try:
                messages = read(text)
            except NoMessageError as error:
                await self._hear(failure(None, {"code": PARSE_ERROR, "message": str(error)}))
                continue
            if text.lstrip().startswith("["):
                self._start(self._take_batch(messages))
            else:
                self._take(messages[0], self._hear)

    async def _take_batch(self, messages: list[Message]) -> None:
        """Answer a batch (2025-03-26) with one line, when all of it is answered."""
        answers: list[Message] = []

        async def hear(message: Message) -> None:
            if message.answers:
                answers.append(message)
            else:
                await self._hear(message)

        asking = [task for it in messages if (task := self._take(it, hear)) is not None]
        if asking:
            await asyncio.wait(asking)
        if answers:
            await self._put(line(*answers, batch=True))

    def _take(self, message: Message, hear: Hear) -> asyncio.Task[None] | None:
        """Begin with a message; return what will have been answered, if it is a request."""
        id_ = message.id
        if message.asks and (id_ is None or id_ in self._under_way):
            what = "no id" if id_ is None else "the id of another one under way"
            error = {"code": INVALID_REQUEST, "message": f"a request has {what}"}
            return self._start(hear(failure(id_, error)))
        if message.asks:
            assert id_ is not None
            asking = self._start(self._answer(message, id_, hear))
            self._under_way[id_] = _UnderWay(message, asking)
            return asking
        if message.method == "notifications/cancelled":
            self._start(self._cancel(message))
        else:
            self._start(self._session.tell(message))
        return None

    async def _answer(self, request: Message, id_: Id, hear: Hear) -> None:
        answered = False

        async def pass_on(message: Message) -> None:
            nonlocal answered
            if not self._under_way[id_].unheard:
                answered = answered or message.answers
                await hear(message)

        try:
            if request.stateless:
                await self._ask(request, pass_on)
            else:
                await self._session.ask(request, pass_on)
            error = None if answered else error_of(_lost("the stream ended without it"))
        except RefusedError as refused:
            error = refused.error
        except AskError as problem:
            error = error_of(problem)
        except LostError as lost:
            error = error_of(_lost(str(lost)))
        finally:
            heard = self._under_way.pop(id_)
        if error is not None and not answered and not heard.unheard:
            await hear(failure(id_, error))

    async def _ask(self, request: Message, hear: Hear) -> None:
        """Ask what stands for itself (2026-07-28)."""

        async def learn(message: Message) -> None:
            self._learn(message)
            await hear(message)

        heard = learn if request.method == "tools/list" else hear
        try:
            await self._post(request, heard)
        except RefusedError as refused:
            wrong_headers = refused.error.get("code") == HEADER_MISMATCH
            if not wrong_headers or request.method != "tools/call":
                raise
            await self._list_tools(request)
            await self._post(request, heard)

    async def _post(self, request: Message, hear: Hear) -> None:
        headers = headers_of(request, self._marks)
        await self._endpoint.exchange("POST", headers, request.text, hear, Place())

    async def _list_tools(self, request: Message) -> None:
        """Learn which parameters of tools headers repeat."""
        params, cursor = {"_meta": request.params["_meta"]}, None

        async def learn(message: Message) -> None:
            nonlocal cursor
            cursor = self._learn(message)

        while True:
            more = {} if cursor is None else {"cursor": cursor}
            listing = written({"id": 0, "method": "tools/list", "params": {**params, **more}})
            await self._post(listing, learn)
            if cursor is None:
                return

    def _learn(self, message: Message) -> str | None:
        result = message.said.get("result")
        if not isinstance(result, dict):
            return None
        self._marks |= marks_in(result.get("tools"))
        cursor = result.get("nextCursor")
        return cursor if isinstance(cursor, str) else None

    async def _cancel(self, told: Message) -> None:
        """Stop a request: close its stream, or tell the fleet that its client wants no answer."""
        under_way = None if told.about is None else self._under_way.get(told.about)
        if under_way is None:
            return
        under_way.unheard = True
        if under_way.request.stateless:
            under_way.asking.cancel()
            return
        # It may overtake the request on its way, and then finds nothing to stop.
        for _ in range(MOST_CANCELS):
            await self._session.tell(told)
            done, _pending = await asyncio.wait({under_way.asking}, timeout=CANCEL_EVERY_S)
            if done:
                return
        under_way.asking.cancel()

    async def _hear(self, message: Message) -> None:
        # Who has no more to say may wait for answers, and has no use for anything else.
        if message.answers or not self._leaving:
            await self._put(line(message))

    async def _put(self, text: bytes) -> None:
        try:
            await self._write(text)
        except OSError:
            self._broken.set()  # nobody reads any more

    def _start(self, work: Awaitable[None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _lost(why: str) -> AskError:
    return AskError(
        "connection_lost",
        f"the connection to the fleet ended before the answer ({why})",
        "what was asked for may have been done: look before it is asked for again",
    )
