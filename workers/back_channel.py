"""What a server says of its own accord while it runs a call: what it asks, and what it logs.

1. A message belongs to the call whose response stream it came on; where it came on none (stdio, the
   stream of notifications), to the only call under way. What belongs to no call is nobody's.
2. A question that nobody can answer is refused at once, by an error of JSON-RPC that says so.
3. What is asked, logged and answered passes as it is written, unknown members included.
4. What a client can be asked is declared for the server as a whole where sessions have a handshake,
   and for the caller of each call since 2026-07-28.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import anyio
from mcp.shared.dispatcher import DispatchContext, OnNotify, OnNotifyIntercept, OnRequest
from mcp.shared.exceptions import MCPError
from mcp.shared.jsonrpc_dispatcher import JSONRPCDispatcher
from mcp.shared.message import SessionMessage
from mcp.shared.transport_context import TransportContext
from mcp_types import (
    CLIENT_CAPABILITIES_META_KEY,
    INVALID_PARAMS,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    JSONRPCRequest,
)

from registry.answers import NewQuestion
from registry.definitions import ServerDefinition
from registry.errors import Code, FleetError
from registry.question_kinds import ELICITATION_URL, kind_of
from workers.caller import Talk
from workers.exchange import Around, current_exchange
from workers.large_reader import TOO_LARGE_TO_ASK
from workers.rounds import capabilities, unanswerable
from workers.scrub import Scrubber

LOG_MESSAGE: Final = "notifications/message"
NOT_NOW: Final = -32000
"""That a question has no answer although it was put, or could have been."""

Addressee = Callable[[], Talk | None]
"""Return the call that a message belongs to which has just come; None for nobody's."""


class BackChannel(JSONRPCDispatcher[TransportContext]):
    """The SDK's dispatcher, with what servers say of their own accord taken out."""

    def __init__(self, read: Any, write: Any, *, addressee: Addressee, scrubber: Scrubber) -> None:
        super().__init__(read, write)
        self._addressee = addressee
        self._scrubber = scrubber
        self.has_questions = True
        """Whether the revision knows questions outside of results."""

    async def send_raw_request(
        self, method: str, params: Mapping[str, Any] | None, *rest: Any, **options: Any
    ) -> dict[str, Any]:
        """Return the result of a request; since 2026-07-28 one that names no kind is complete."""
        result = await super().send_raw_request(method, params, *rest, **options)
        if self.has_questions or "resultType" in result:
            return result
        return {**result, "resultType": "complete"}

    async def run(
        self,
        on_request: OnRequest,
        on_notify: OnNotify,
        on_notify_intercept: OnNotifyIntercept | None = None,
        *,
        task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Drive the receive loop until the read stream closes."""
        await super().run(
            partial(self._asked, on_request),
            partial(self._told, on_notify),
            on_notify_intercept,
            task_status=task_status,
        )

    async def _told(
        self,
        otherwise: OnNotify,
        context: DispatchContext[TransportContext],
        method: str,
        params: Mapping[str, Any] | None,
    ) -> None:
        if method != LOG_MESSAGE:
            await otherwise(context, method, params)
            return
        call = self._addressee()
        if call is None or params is None or "data" not in params:
            return
        if call.caller.wants(params.get("level")):
            kept = {name: params[name] for name in ("level", "logger", "data") if name in params}
            await call.told.log(kept)

    async def _asked(
        self,
        otherwise: OnRequest,
        context: DispatchContext[TransportContext],
        method: str,
        params: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        if method == TOO_LARGE_TO_ASK:
            raise MCPError(code=INVALID_REQUEST, message="what is asked is too large")
        asked = NewQuestion(method, self._scrubber.json(dict(params or {})))
        if not self.has_questions or kind_of(method, asked.params) is None:
            return await otherwise(context, method, params)
        call = self._addressee()
        if call is None:
            raise MCPError(
                code=INVALID_REQUEST,
                message=f"{method} belongs to no call that is under way: ask on the stream of the "
                "request that it is about",
            )
        return await _answer(call, asked)


async def _answer(call: Talk, asked: NewQuestion) -> dict[str, Any]:
    """Return the result of a question; raise the error that its server is told."""
    if why := unanswerable(asked, call.caller):
        url = kind_of(asked.method, asked.params) == ELICITATION_URL
        raise MCPError(code=INVALID_PARAMS if url else METHOD_NOT_FOUND, message=why)
    assert call.caller.ask is not None
    try:
        with call.patience.stopped():
            (answer,) = await call.caller.ask([asked])
    except FleetError as error:
        if error.code is Code.DEADLINE_EXCEEDED and asked.method == "elicitation/create":
            return {"action": "cancel"}  # it was dismissed without a choice (client/elicitation)
        data = {"code": error.code.code}
        raise MCPError(code=NOT_NOW, message=error.message, data=data) from error
    if "error" in answer:
        told = answer["error"]
        raise MCPError(code=told["code"], message=told["message"], data=told.get("data"))
    result: dict[str, Any] = answer["result"]
    return result


class Declaring(Around):
    """A write stream that says in each request what its caller can be asked."""

    def __init__(self, inner: Any, definition: ServerDefinition) -> None:
        super().__init__(inner)
        self._offered = definition.questions.kinds

    async def send(self, item: SessionMessage) -> None:
        """Send a message."""
        message = item.message
        if isinstance(message, JSONRPCRequest) and message.params:
            params = message.params
            meta = params.get("_meta") or {}
            if message.method == "initialize":
                declared = {**params["capabilities"], **capabilities(self._offered)}
                message.params = {**params, "capabilities": declared}
            elif CLIENT_CAPABILITIES_META_KEY in meta:
                call = current_exchange().talk
                answers = self._offered if call is None else call.caller.answers
                kept = tuple(kind for kind in answers if kind in self._offered)
                declared = {**meta[CLIENT_CAPABILITIES_META_KEY], **capabilities(kept)}
                meta = {**meta, CLIENT_CAPABILITIES_META_KEY: declared}
                message.params = {**params, "_meta": meta}
        await self._inner.send(item)
