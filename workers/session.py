"""A session: what is done through one connection with a server, call by call.

1. No call starts a task or takes a lock; every wait is bounded: calling, listing, probing. A call
   is of a tool, or another request that a caller makes of a server (`workers.requests`).
2. A call that was cancelled, timed out, or answered with nonsense poisons the session: it must
   not be used again. A session whose connection died is dead: `dead` is set, once.
3. Results are passed on as the server wrote them; schemas are somebody else's business.
4. Calls of one session may run concurrently; each is judged by what happened to it alone.
5. Sessions are shared by tenants: of what a server says on stderr, a call is told what was said
   while no other call of the session was under way since it began.

How the connection is made and ended is in `workers.connection`, what a failure means in
`workers.judge`.

Cancelling the coroutine that awaits `call_tool` cancels the call at the server: the SDK sends
``notifications/cancelled``, or closes the response stream where that is the signal (HTTP of
2026-07-28).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, Concatenate, Final, Literal, ParamSpec, TypeVar, cast

from mcp.client.session import ClientSession
from mcp.shared.inbound import mcp_param_headers
from mcp_types import (
    LOG_LEVEL_META_KEY,
    ClientRequest,
    EmptyResult,
    ListPromptsRequest,
    ListResourcesRequest,
    ListResourceTemplatesRequest,
    ListToolsRequest,
    PaginatedRequestParams,
    Request,
    SetLevelRequest,
    SetLevelRequestParams,
)
from pydantic import BaseModel, TypeAdapter
from pydantic_core import to_json

from registry.answers import LARGEST_BYTES, LOG_LEVELS
from registry.calls import TOOLS_CALL
from registry.definitions import ServerDefinition
from registry.errors import Code, FleetError
from registry.server_time import reported_s
from workers.caller import NOBODY, Caller, Talk
from workers.connection import Connection, Credential, Limits
from workers.exchange import (
    LISTING_CHANGED,
    OFFERINGS_CHANGED,
    RESOURCE_UPDATED,
    Exchange,
    current_exchange,
    exchange,
)
from workers.judge import (
    CallError,
    Facts,
    ended_before,
    input_required,
    judge,
    not_mcp,
    timed_out,
    too_large,
)
from workers.large import LargeReader, LargeResult
from workers.large_reader import message_of
from workers.listing import (
    TOOLS,
    AskForPage,
    Listed,
    Page,
    callable_over_http,
    read_page,
    read_pages,
)
from workers.patience import Patience
from workers.progress import InOrder, OnProgress
from workers.requests import METHODS
from workers.rounds import INPUT_REQUIRED, NotMcp, Rounds, Unasked
from workers.spawn import StopReport
from workers.subscription import subscribe

# The SDK parses results into models and drops what it does not know; this keeps them as they came.
_AS_IT_CAME: Final = cast("TypeAdapter[BaseModel]", TypeAdapter(dict[str, Any]))
_LISTS: Final[dict[str, Callable[..., ClientRequest]]] = {
    "tools/list": ListToolsRequest,
    "prompts/list": ListPromptsRequest,
    "resources/list": ListResourcesRequest,
    "resources/templates/list": ListResourceTemplatesRequest,
}
_Request = Request[dict[str, Any], str]
# A session that was never answered and is younger than this cannot have been forgotten.
_FRESH_S: Final = 5.0
_SET_LEVEL_S: Final = 2.0

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a call was answered: the MCP result as JSON-ready fields, its flag, its size as JSON.

    Of a large result that was not read here, ``body`` is hollow; `LargeReader.finish` reads it.
    """

    body: dict[str, Any]
    is_error: bool
    size_bytes: int
    large: LargeResult | None = None
    server_s: float | None = None
    """What the server says that it took; see `registry.server_time`."""


def _scrubbed(
    method: Callable[Concatenate[Session, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[Session, P], Coroutine[Any, Any, R]]:
    """Keep the session's secret out of the errors that a method raises."""

    @wraps(method)
    async def scrubbed(session: Session, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await method(session, *args, **kwargs)
        except FleetError as error:
            session._connection.scrubber.error(error)
            raise

    return scrubbed


class Session:
    """An open MCP session with one server; make one with `open`, end it with `close`."""

    def __init__(
        self,
        definition: ServerDefinition,
        credential: Credential | None,
        limits: Limits,
        large: LargeReader | None,
    ) -> None:
        self.server = definition.name
        self.poisoned = False
        self.calls = 0
        self.closed = False
        """Whether it was ended from here, and not by its server."""
        self.hearing = False
        """Whether it would be heard here if the server said that its tools changed."""
        self.listing_changed = False
        """Whether the server said so before anybody asked to be told."""
        self.on_hearing: Callable[[bool], None] | None = None
        self.on_listing_changed: Callable[[], None] | None = None
        self.on_offerings_changed: Callable[[], None] | None = None
        """Is told each time the server says that its prompts or its resources changed."""
        self.on_resource_updated: Callable[[str], None] | None = None
        """Is told the URI of a resource that the session has subscribed to, when it changes."""
        self._connection = Connection(
            definition,
            credential,
            limits,
            large,
            heard={
                LISTING_CHANGED: self._listing_changed,
                RESOURCE_UPDATED: self._resource_updated,
                **dict.fromkeys(OFFERINGS_CHANGED, self._offerings_changed),
            },
            on_stream=self._hears,
            addressee=self._addressee,
        )
        self.dead = self._connection.dead
        self._in_flight: set[Exchange] = set()
        self._answered = False
        self._log_level: str | None = None

    @classmethod
    async def open(
        cls,
        definition: ServerDefinition,
        *,
        credential: Credential | None = None,
        connect_timeout_s: float,
        stop_grace_s: float,
        max_result_bytes: int,
        large: LargeReader | None = None,
    ) -> Session:
        """Start or reach the server and negotiate; raise `server_unavailable` with its last words.

        Large results are read by ``large``; without it they are read here, and hold up the loop.
        Fails ``connect_timeout_s`` after the start at the latest, plus at most a second to put a
        child to death that did not answer.
        """
        limits = Limits(connect_timeout_s, stop_grace_s, max_result_bytes)
        session = cls(definition, credential, limits, large)
        await session._connection.open()
        if session.era == "legacy" and "tools" in session.announces and not session.over_http:
            session.hearing = True  # nobody has to ask it
        return session

    async def close(self) -> StopReport:
        """End the session and what belongs to it; say which rung of the ladder it took.

        Returns after two grace periods and a few seconds at the latest; may be called again.
        """
        self.closed = self.closed or self.alive
        return await self._connection.close()

    # -- what it is

    @property
    def alive(self) -> bool:
        """Say whether the server can be spoken to, as far as is known."""
        return self._connection.alive

    @property
    def era(self) -> Literal["legacy", "modern"]:
        """Say which handshake the server knew: that of 2026-07-28, or the one before."""
        return self._connection.era

    @property
    def protocol_version(self) -> str:
        """Return the revision that both speak."""
        return self._connection.protocol_version

    @property
    def introduction(self) -> str:
        """Return a digest of what the server said of itself when the session was opened."""
        return self._connection.introduction

    @property
    def announces(self) -> frozenset[str]:
        """Return of which lists (tools, prompts, resources) it tells when they change."""
        return self._connection.announces

    @property
    def about(self) -> dict[str, Any]:
        """Return what the server said of itself: capabilities, serverInfo, instructions."""
        return self._connection.about

    @property
    def over_http(self) -> bool:
        """Say whether the server is reached by HTTP; else it is a child of this process."""
        return self._connection.over_http

    @property
    def id(self) -> str:
        """Return what the server calls the session over HTTP, if it does."""
        return self._connection.session_id

    @property
    def _mirrors(self) -> bool:
        return self.era == "modern" and self.over_http

    @property
    def shares_fate(self) -> bool:
        """Say whether this session's end says the same of the server's other sessions."""
        return self.over_http

    @property
    def pid(self) -> int | None:
        """Return the stdio child's process id."""
        return self._connection.pid

    @property
    def ignored_lines(self) -> int:
        """Return how many lines on stdout were noise."""
        return self._connection.ignored_lines

    # -- calling

    async def call_tool(
        self,
        name: str,
        arguments: dict[str, Any],
        *,
        timeout_s: float,
        meta: dict[str, Any] | None = None,
        on_progress: OnProgress | None = None,
        caller: Caller = NOBODY,
        mirrored: Mapping[tuple[str, ...], str] | None = None,
    ) -> ToolResult:
        """Call a tool; see `ask`."""
        params = {"name": name, "arguments": arguments}
        return await self.ask(
            TOOLS_CALL,
            params,
            timeout_s=timeout_s,
            meta=meta,
            on_progress=on_progress,
            caller=caller,
            mirrored=mirrored,
        )

    @_scrubbed
    async def ask(
        self,
        method: str,
        params: dict[str, Any],
        *,
        timeout_s: float,
        meta: dict[str, Any] | None = None,
        on_progress: OnProgress | None = None,
        caller: Caller = NOBODY,
        mirrored: Mapping[tuple[str, ...], str] | None = None,
    ) -> ToolResult:
        """Make a call, of any of `METHODS`; raise `CallError` when it has no result in time.

        Whatever the server asks meanwhile is put to ``caller``, as often as it asks; the time that
        its answers take is not the server's, of which it has ``timeout_s``. ``mirrored`` names the
        arguments that travel as headers too, where that is the custom.
        """
        what = str(params["name"]) if method == TOOLS_CALL else method
        told = InOrder(on_progress, caller.on_log, self._connection.scrubber)
        talk = Talk(caller, Patience(timeout_s, caller.deadline), told)
        if caller.log_level is not None:
            meta = await self._have_it_log(what, caller.log_level, meta)
        if meta:
            params = {**params, "_meta": meta}
        progress = told.progress if on_progress else None
        rounds = Rounds(caller, self._connection.scrubber)
        headers: dict[str, str] = {}
        if mirrored and self._mirrors:
            headers = mcp_param_headers(mirrored, params["arguments"])
        self.calls += 1
        while True:
            body, mine = await self._ask(
                what, _Request(method=method, params=params), talk, progress, headers
            )
            if body.get("resultType") != INPUT_REQUIRED or self.era == "legacy":
                return self._accept(method, body, what, mine)
            params = params | await self._input_for(body, rounds, what, mine)

    async def _ask(
        self,
        what: str,
        request: _Request,
        talk: Talk,
        progress: Any,
        headers: Mapping[str, str],
    ) -> tuple[dict[str, Any], Exchange]:
        """Make one request for a caller; return its result as it came, and what was seen of it."""
        client = self._client(what)
        with exchange(talk=talk) as mine:
            mine.headers = headers
            self._begin(mine)
            try:
                async with talk.patience.held():
                    body: Any = await client.send_request(
                        request, _AS_IT_CAME, progress_callback=progress
                    )
                self._answered = True
                await talk.told.settled()
            except TimeoutError:
                self.poisoned = True
                raise timed_out(self._facts(what, mine), talk.patience.limit_s) from None
            except asyncio.CancelledError:
                self.poisoned = True
                raise
            except Exception as error:
                raise await self._judged(what, error, mine) from error
            finally:
                self._in_flight.discard(mine)
        return body, mine

    async def _input_for(
        self, body: dict[str, Any], rounds: Rounds, what: str, mine: Exchange
    ) -> dict[str, Any]:
        """Return what a request is made with again whose server asks for input."""
        try:
            return await rounds.next(await self._whole(body, what, mine))
        except Unasked as error:
            facts = self._facts(what, mine)
            raise input_required(facts, requests=error.requests, why=str(error)) from error
        except NotMcp as error:
            self.poisoned = True
            raise not_mcp(self._facts(what, mine), problem=str(error)) from error

    async def _whole(self, body: dict[str, Any], what: str, mine: Exchange) -> dict[str, Any]:
        """Return what a server asks for where the answer is large, and so not read yet."""
        large = self._connection.large.take(body) if self._connection.large else None
        if large is None:
            return body
        if large.size_bytes > LARGEST_BYTES:
            raise too_large(self._facts(what, mine))
        message = await asyncio.to_thread(message_of, large.raw, event=large.event)
        result = (message or {}).get("result")
        return result if isinstance(result, dict) else {}

    def _addressee(self) -> Talk | None:
        """Return whose call a message belongs to: its stream's, else the only one there is."""
        mine = current_exchange()
        if mine in self._in_flight:
            return mine.talk
        if mine.talk is not None or len(self._in_flight) != 1:
            return None  # late news of another call is not this one's
        (only,) = self._in_flight
        return only.talk

    async def _have_it_log(
        self, what: str, level: str, meta: dict[str, Any] | None
    ) -> dict[str, Any] | None:
        """Have the server log from a level on: for one request, or for its session (before 2026).

        A server that does not do it is called all the same. What it says too much is left out.
        """
        if self.era == "modern":
            return {**(meta or {}), LOG_LEVEL_META_KEY: level}
        others = [it.talk.caller.log_level for it in self._in_flight if it.talk]
        wanted = min([level, *filter(None, others)], key=LOG_LEVELS.index)
        if self._connection.logs and wanted != self._log_level:
            self._log_level = wanted
            request = SetLevelRequest(params=SetLevelRequestParams(level=cast(Any, wanted)))
            with exchange(), suppress(Exception):  # what is wrong the call itself will tell
                async with asyncio.timeout(_SET_LEVEL_S):
                    await self._client(what).send_request(request, EmptyResult)
        return meta

    def _client(self, what: str) -> ClientSession:
        connection = self._connection
        if not connection.alive or connection.client is None:
            seen = Exchange(stderr_from=None)
            raise ended_before(self._facts(what, seen), connection.cause)
        return connection.client

    def _begin(self, mine: Exchange) -> None:
        """Count a call as under way; see to it that none is told what others made a server say."""
        mine.stderr_from = None if self._in_flight else self._connection.stderr_bytes
        for other in self._in_flight:
            other.stderr_from = None
        self._in_flight.add(mine)

    def _accept(self, method: str, body: dict[str, Any], name: str, mine: Exchange) -> ToolResult:
        connection = self._connection
        large = connection.large.take(body) if connection.large else None
        encoded = to_json(body)
        size_bytes = large.size_bytes if large else len(encoded)
        if size_bytes > connection.limits.max_result_bytes:
            raise too_large(self._facts(name, mine))
        body = connection.scrubber.json(body, encoded)
        if problem := METHODS[method].problem(body):
            self.poisoned = True
            raise not_mcp(self._facts(name, mine), problem=problem)
        server_s = reported_s(mine.server_timing, body)
        return ToolResult(body, bool(body.get("isError")), size_bytes, large, server_s)

    # -- judging

    def _facts(self, what: str, mine: Exchange) -> Facts:
        age_s = time.monotonic() - self._connection.opened_at
        return replace(
            self._connection.facts(what, mine),
            alone=len(self._in_flight) <= 1,
            fresh=not self._answered and age_s < _FRESH_S,
        )

    async def _judged(self, what: str, error: Exception, mine: Exchange) -> CallError:
        """Return what the SDK raised as an error of ours; poison the session unless it is fit."""
        facts = self._facts(what, mine)
        ending = judge(error, facts)
        if ending.poisons:
            self.poisoned = True
        if ending.abrupt:
            await self._connection.last_words()
            facts = replace(facts, evidence=self._connection.evidence(mine.stderr_from))
        return ending.tell(facts)

    async def _judged_request(self, what: str, error: Exception, mine: Exchange) -> FleetError:
        if isinstance(error, TimeoutError):
            self.poisoned = True
            return FleetError(
                Code.CALL_TIMEOUT, f"server {self.server} did not answer {what} in time"
            )
        return await self._judged(what, error, mine)

    # -- other requests

    async def list_tools(self) -> list[dict[str, Any]]:
        """Return every page of ``tools/list`` as the server wrote it; bounded like opening.

        Tools whose schema asks for headers that cannot be are left out, where headers count.
        """
        tools = await self.list_all(TOOLS)
        if not self._mirrors:
            return tools
        return await asyncio.to_thread(callable_over_http, tools, self.server)

    @_scrubbed
    async def list_all(self, of: Listed, max_bytes: int | None = None) -> list[dict[str, Any]]:
        """Return every page of a list as the server wrote it; bounded like opening.

        ``max_bytes`` is the most that all of it may be; by default, the largest result there is.
        """
        limits = self._connection.limits
        most = limits.max_result_bytes if max_bytes is None else max_bytes
        with exchange() as mine:
            try:
                async with asyncio.timeout(limits.connect_timeout_s):
                    items = await read_pages(self._pages_of(of), self.server, max_bytes=most, of=of)
            except FleetError:
                raise
            except Exception as error:
                raise await self._judged_request(of.method, error, mine) from error
        return items

    def _pages_of(self, of: Listed) -> AskForPage:
        async def ask_for_page(cursor: str | None) -> Page:
            client, connection = self._client(of.method), self._connection
            params = PaginatedRequestParams(cursor=cursor)
            result: Any = await client.send_request(_LISTS[of.method](params=params), _AS_IT_CAME)
            self._answered = True
            if connection.large and (large := connection.large.take(result)):
                return await connection.large.read_page(large, self.server, of)
            return read_page(result, self.server, connection.scrubber, of)

        return ask_for_page

    @_scrubbed
    async def probe(self, timeout_s: float) -> None:
        """Prove that the server still answers; raise `FleetError` when it does not in time.

        Any answer is proof, a refusal too. A modern HTTP server keeps no session that could be
        dead, so it is not asked.
        """
        client = self._client("ping")
        if self.era == "modern" and self.over_http:
            return
        with exchange() as mine:
            try:
                async with asyncio.timeout(timeout_s):
                    if self.era == "legacy":
                        await client.send_ping()
                    else:
                        await client.send_discover(self.protocol_version)
            except asyncio.CancelledError:
                self.poisoned = True
                raise
            except Exception as error:
                judged = await self._judged_request("a probe", error, mine)
                if judged.code not in {Code.TOOL_REFUSED, Code.INVALID_ARGUMENTS}:
                    self.poisoned = True
                    raise judged from error
            self._answered = True

    async def reset(self, tool: str, timeout_s: float) -> None:
        """Have the server forget what the session's user left, by the operator's reset tool.

        Raises `CallError`, and poisons the session, unless the tool says that it succeeded.
        """
        try:
            result = await self.call_tool(tool, {}, timeout_s=timeout_s)
        except CallError:
            self.poisoned = True
            raise
        if result.is_error:
            self.poisoned = True
            raise CallError(
                Code.TOOL_REFUSED,
                f"tool {tool} of server {self.server}, which resets its sessions, failed",
                hint="see why it fails, or take reset_tool out of the server's definition",
                dispatched=True,
            )

    # -- hearing

    async def listen(self) -> None:
        """Hear of changes of the lists (2026-07-28); return when the server ends the subscription.

        Raises `FleetError` when it is refused, not confirmed in time, or lost. It is no call: the
        session goes on as if there were none.
        """
        await self._listen(lists=sorted(self.announces), on_hearing=self._hears)

    async def listen_to(
        self, resources: Collection[str], on_hearing: Callable[[bool], None]
    ) -> None:
        """Hear of changes of some resources (2026-07-28); otherwise as `listen`."""
        await self._listen(lists=(), resources=resources, on_hearing=on_hearing)

    @_scrubbed
    async def _listen(self, /, **wanted: Any) -> None:
        what = "subscriptions/listen"
        client = self._client(what)
        with exchange(endless=True) as mine:
            try:
                await subscribe(client, self.server, **wanted)
            except FleetError:
                raise
            except Exception as error:
                facts = self._facts(what, mine)
                raise judge(error, facts).tell(facts) from error

    def _hears(self, hearing: bool) -> None:
        if hearing is not self.hearing:
            self.hearing = hearing
            if self.on_hearing is not None:
                self.on_hearing(hearing)

    def _listing_changed(self, _params: dict[str, Any]) -> None:
        if self.on_listing_changed is None:
            self.listing_changed = True
        else:
            self.on_listing_changed()

    def _offerings_changed(self, _params: dict[str, Any]) -> None:
        # Before anybody asked to be told: they are listed anew whenever somebody begins to listen.
        if self.on_offerings_changed is not None:
            self.on_offerings_changed()

    def _resource_updated(self, params: dict[str, Any]) -> None:
        uri = params.get("uri")
        if self.on_resource_updated is not None and isinstance(uri, str):
            self.on_resource_updated(uri)
