"""A session: what is done through one connection with a server, call by call.

1. No call starts a task or takes a lock; every wait is bounded: calling, listing, probing.
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
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, Concatenate, Final, Literal, ParamSpec, TypeVar, cast

from mcp.client.session import ClientSession
from mcp_types import (
    CallToolRequest,
    CallToolRequestParams,
    ListToolsRequest,
    PaginatedRequestParams,
    RequestParamsMeta,
)
from pydantic import BaseModel, TypeAdapter
from pydantic_core import to_json

from registry.definitions import ServerDefinition
from registry.errors import Code, FleetError
from workers.connection import Connection, Credential, Limits
from workers.exchange import Exchange, exchange
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
from workers.listing import Page, read_page, read_pages
from workers.progress import Latest, OnProgress
from workers.spawn import StopReport
from workers.subscription import subscribe

# The SDK parses results into models and drops what it does not know; this keeps them as they came.
_AS_IT_CAME: Final = cast("TypeAdapter[BaseModel]", TypeAdapter(dict[str, Any]))
# A session that was never answered and is younger than this cannot have been forgotten.
_FRESH_S: Final = 5.0

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool answered: the MCP result as JSON-ready fields, its flag, its size as JSON.

    Of a large result that was not read here, ``body`` is hollow; `LargeReader.finish` reads it.
    """

    body: dict[str, Any]
    is_error: bool
    size_bytes: int
    large: LargeResult | None = None


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
        self._connection = Connection(
            definition,
            credential,
            limits,
            large,
            on_listing_changed=self._listing_changed,
            on_stream=self._hears,
        )
        self.dead = self._connection.dead
        self._in_flight: set[Exchange] = set()
        self._answered = False

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
        if session.era == "legacy" and session.announces and not session.over_http:
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
    def announces(self) -> bool:
        """Say whether the server said that it tells when its tools change."""
        return self._connection.announces

    @property
    def over_http(self) -> bool:
        """Say whether the server is reached by HTTP; else it is a child of this process."""
        return self._connection.over_http

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

    @_scrubbed
    async def call_tool(
        self,
        name: str,
        arguments: dict[str, Any],
        *,
        timeout_s: float,
        meta: dict[str, Any] | None = None,
        on_progress: OnProgress | None = None,
    ) -> ToolResult:
        """Call a tool; raise `CallError` when it has no result within ``timeout_s``."""
        client = self._client(name)
        progress = Latest(on_progress, self._connection.scrubber.text) if on_progress else None
        request = CallToolRequest(
            params=CallToolRequestParams(
                name=name, arguments=arguments, _meta=cast(RequestParamsMeta, meta)
            )
        )
        self.calls += 1
        with exchange() as mine:
            self._begin(mine)
            try:
                async with asyncio.timeout(timeout_s):
                    body: Any = await client.send_request(
                        request, _AS_IT_CAME, progress_callback=progress
                    )
                self._answered = True
            except TimeoutError:
                self.poisoned = True
                raise timed_out(self._facts(name, mine), timeout_s) from None
            except asyncio.CancelledError:
                self.poisoned = True
                raise
            except Exception as error:
                raise await self._judged(name, error, mine) from error
            finally:
                self._in_flight.discard(mine)
        return self._accept(body, name, mine)

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

    def _accept(self, body: dict[str, Any], name: str, mine: Exchange) -> ToolResult:
        connection = self._connection
        large = connection.large.take(body) if connection.large else None
        encoded = to_json(body)
        size_bytes = large.size_bytes if large else len(encoded)
        if size_bytes > connection.limits.max_result_bytes:
            raise too_large(self._facts(name, mine))
        body = connection.scrubber.json(body, encoded)
        if body.get("resultType") == "input_required":
            requests = sorted(body.get("inputRequests") or ())
            raise input_required(self._facts(name, mine), requests=requests)
        if not isinstance(body.get("content"), list):  # the SDK lets it pass in 2026-07-28
            self.poisoned = True
            raise not_mcp(self._facts(name, mine), problem="content: not a list")
        return ToolResult(body, bool(body.get("isError")), size_bytes, large)

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

    @_scrubbed
    async def list_tools(self) -> list[dict[str, Any]]:
        """Return every page of ``tools/list`` as the server wrote it; bounded like opening."""
        limits = self._connection.limits
        with exchange() as mine:
            try:
                async with asyncio.timeout(limits.connect_timeout_s):
                    tools = await read_pages(
                        self._ask_for_page, self.server, max_bytes=limits.max_result_bytes
                    )
            except FleetError:
                raise
            except Exception as error:
                raise await self._judged_request("tools/list", error, mine) from error
        return tools

    async def _ask_for_page(self, cursor: str | None) -> Page:
        client, connection = self._client("tools/list"), self._connection
        params = PaginatedRequestParams(cursor=cursor)
        result: Any = await client.send_request(ListToolsRequest(params=params), _AS_IT_CAME)
        self._answered = True
        if connection.large and (large := connection.large.take(result)):
            return await connection.large.read_page(large, self.server)
        return read_page(result, self.server, connection.scrubber)

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

    @_scrubbed
    async def listen(self) -> None:
        """Hear of changes of the tools (2026-07-28); return when the server ends the subscription.

        Raises `FleetError` when it is refused, not confirmed in time, or lost. It is no call: the
        session goes on as if there were none.
        """
        what = "subscriptions/listen"
        client = self._client(what)
        with exchange(endless=True) as mine:
            try:
                await subscribe(client, self.server, on_hearing=self._hears)
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

    def _listing_changed(self) -> None:
        if self.on_listing_changed is None:
            self.listing_changed = True
        else:
            self.on_listing_changed()
