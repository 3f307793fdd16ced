"""A session: one open, negotiated MCP client, whatever the transport and the revision.

1. One keeper task enters and leaves the SDK's contexts (anyio insists on that); everyone else calls
   through the session. No call starts a task or takes a lock.
2. Every wait is bounded: opening, calling, listing, probing, closing.
3. A call that was cancelled, timed out, or answered with nonsense poisons the session: it must not
   be used again. A session whose transport died is dead: `dead` is set, once.
4. Results are passed on as the server wrote them; schemas are somebody else's business.
5. ``CallError.dispatched`` is False only where provably no byte of the request left.

Cancelling the coroutine that awaits `call_tool` cancels the call at the server: the SDK sends
``notifications/cancelled``, or closes the response stream where that is the signal (HTTP of
2026-07-28).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NoReturn, cast

import anyio
import httpx2
from mcp.client.session import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.dispatcher import ProgressFnT
from mcp.shared.exceptions import MCPError
from mcp_types import (
    CONNECTION_CLOSED,
    INTERNAL_ERROR,
    INVALID_PARAMS,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    PARSE_ERROR,
    UNSUPPORTED_PROTOCOL_VERSION,
    URL_ELICITATION_REQUIRED,
    CallToolRequest,
    CallToolRequestParams,
    Implementation,
    ListToolsRequest,
    PaginatedRequestParams,
    RequestParamsMeta,
    ToolListChangedNotification,
)
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import to_json

from registry.definitions import ServerDefinition
from registry.errors import Code, FleetError
from workers.launch import plan_launch
from workers.spawn import StdioTransport, StopReport
from workers.upstream import Wire, open_client

MAX_PAGES: Final = 200
MAX_TOOLS: Final = 10_000
_ENVELOPE_BYTES: Final = 64 * 1024  # what JSON-RPC and escapes may add to a result
_HURRIED_GRACE_S: Final = 0.25  # for a child that never finished its handshake
_LAST_WORDS_S: Final = 0.25  # for a dying child's exit code and stderr
_CLOSE_SLACK_S: Final = 4.0
_CLIENT_INFO: Final = Implementation(name="toolfleet", version="0.1.0")
# The SDK parses results into models and drops what it does not know; this keeps them as they came.
_AS_IT_CAME: Final = cast("TypeAdapter[BaseModel]", TypeAdapter(dict[str, Any]))
_EVENT_TOO_LARGE: Final = "Server-sent event exceeded the"
_SYNTHETIC: Final = {
    (INTERNAL_ERROR, "Server returned an error response"),
    (METHOD_NOT_FOUND, "Not Found"),
    (INVALID_REQUEST, "Session terminated"),
}

OnProgress = Callable[[float, float | None, str | None], Awaitable[None]]


@dataclass(frozen=True)
class Credential:
    """A secret and where it belongs; it enters the session when the session is opened."""

    inject: Literal["env", "header", "meta"]
    name: str
    secret: str = field(repr=False)

    def into(self, place: Literal["env", "header", "meta"]) -> dict[str, str]:
        """Return the one name and value to add at a place; nothing where it does not belong."""
        return {self.name: self.secret} if self.inject == place else {}


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool answered: the MCP result as JSON-ready fields, its flag, its size as JSON."""

    body: dict[str, Any]
    is_error: bool
    size_bytes: int


class CallError(FleetError):
    """A call that has no result; ``dispatched`` says whether the server may have seen it."""

    def __init__(self, code: Code, message: str, *, dispatched: bool, **rest: Any) -> None:
        super().__init__(code, message, **rest)
        self.dispatched = dispatched


class Session:
    """An open MCP session with one server; make one with `open`, end it with `close`."""

    def __init__(
        self,
        definition: ServerDefinition,
        credential: Credential | None,
        connect_timeout_s: float,
        stop_grace_s: float,
        max_result_bytes: int,
    ) -> None:
        self.server = definition.name
        self.alive = False
        self.poisoned = False
        self.dead = asyncio.Event()
        self.protocol_version = ""
        self.era: Literal["legacy", "modern"] = "legacy"
        self.opened_at = 0.0
        self.calls = 0
        self.listing_changed = False
        self.on_listing_changed: Callable[[], None] | None = None
        self._definition = definition
        self._credential = credential
        self._connect_timeout_s = connect_timeout_s
        self._stop_grace_s = stop_grace_s
        self._max_result_bytes = max_result_bytes
        self._meta = credential.into("meta") if credential else {}
        self._stdio: StdioTransport | None = None
        self._http: Wire | None = None
        self._client: ClientSession | None = None
        self._cause: BaseException | None = None
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._leave = asyncio.Event()
        self._report: StopReport | None = None
        self._keeper: asyncio.Task[None]

    # -- opening

    @classmethod
    async def open(
        cls,
        definition: ServerDefinition,
        *,
        credential: Credential | None = None,
        connect_timeout_s: float,
        stop_grace_s: float,
        max_result_bytes: int,
    ) -> Session:
        """Start or reach the server and negotiate; raise `server_unavailable` with its last words.

        Fails ``connect_timeout_s`` after the start at the latest, plus at most a second to put a
        child to death that did not answer.
        """
        session = cls(definition, credential, connect_timeout_s, stop_grace_s, max_result_bytes)
        session._keeper = asyncio.create_task(session._keep(), name=f"session of {definition.name}")
        try:
            async with asyncio.timeout(connect_timeout_s):
                await asyncio.shield(session._ready)
        except TimeoutError:
            await session.close()
            raise session._not_open(
                f"did not complete the MCP handshake within {connect_timeout_s:g} s"
            ) from None
        except asyncio.CancelledError:
            await session.close()
            raise
        return session

    async def _keep(self) -> None:
        """Hold the SDK's contexts open until someone says leave (the keeper task)."""
        try:
            async with AsyncExitStack() as stack:
                client = await self._connect(stack)
                await _negotiate(client)
                self._opened(client)
                await self._leave.wait()
        except BaseException as error:  # noqa: BLE001 the task ends here, whatever the reason
            self._cause = _leaf(error)
        finally:
            self._lost()
            if not self._ready.done():
                self._ready.set_exception(self._why_not_open())
                self._ready.exception()  # nobody may be waiting any more

    async def _connect(self, stack: AsyncExitStack) -> ClientSession:
        secret = self._credential
        read: Any
        write: Any
        if self._definition.transport == "stdio":
            launch = await plan_launch(self._definition, secret.into("env") if secret else {})
            self._stdio = StdioTransport(
                launch,
                stop_grace_s=min(_HURRIED_GRACE_S, self._stop_grace_s),
                on_lost=self._lost,
                max_line_bytes=self._max_result_bytes + _ENVELOPE_BYTES,
            )
            read, write = await stack.enter_async_context(self._stdio)
        else:
            headers = {**self._definition.headers, **(secret.into("header") if secret else {})}
            limit = self._max_result_bytes + _ENVELOPE_BYTES
            self._http = Wire(limit)
            http = await stack.enter_async_context(
                open_client(self._http, headers, connect_timeout_s=self._connect_timeout_s)
            )
            read, write = await stack.enter_async_context(
                streamable_http_client(
                    str(self._definition.url), http_client=http, max_sse_event_size=limit
                )
            )
        return await stack.enter_async_context(
            ClientSession(read, write, message_handler=self._on_message, client_info=_CLIENT_INFO)
        )

    def _opened(self, client: ClientSession) -> None:
        self._client = client
        self.protocol_version = client.protocol_version or ""
        self.era = "modern" if client.discover_result is not None else "legacy"
        self.opened_at = time.monotonic()
        if self._stdio is not None:
            self._stdio.stop_grace_s = self._stop_grace_s
        if not self._leave.is_set():
            self.alive = True
        if not self._ready.done():
            self._ready.set_result(None)

    def _why_not_open(self) -> FleetError:
        cause = self._cause
        if isinstance(cause, FleetError):
            return cause
        status = self._http.status if self._http else None
        if status is not None:
            return self._not_open(f"answered the MCP handshake with HTTP {status}")
        if self._stdio is not None:
            if isinstance(cause, MCPError) and cause.code != CONNECTION_CLOSED:
                return self._not_open(f"refused the MCP handshake: {cause}")
            if (code := self._stdio.evidence().get("exit_code")) is not None:
                return self._not_open(f"ended during the MCP handshake with exit code {code}")
        return self._not_open(f"could not be reached: {_describe(cause)}")

    def _not_open(self, problem: str) -> FleetError:
        details = self._evidence()
        if said := str(details.get("stderr", "")):
            problem += f"; its last words: {said.splitlines()[-1][:300]}"
        return FleetError(
            Code.SERVER_UNAVAILABLE,
            f"server {self.server} {problem}",
            hint="check the definition and what the server says on stderr"
            if self._stdio
            else "check the url, the credentials and whether the server is up",
            retry_after_s=self._http.retry_after_s if self._http else None,
            details=details,
        )

    # -- calling

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
        if not self.alive or self._client is None:
            raise self._call_lost(name, dispatched=False)
        wire: StdioTransport | Wire = self._stdio or self._http  # type: ignore[assignment]
        if self._http is not None:
            self._http.begin()
        sent = wire.sent
        self.calls += 1
        full_meta = cast(RequestParamsMeta, {**(meta or {}), **self._meta}) or None
        request = CallToolRequest(
            params=CallToolRequestParams(name=name, arguments=arguments, _meta=full_meta)
        )
        try:
            async with asyncio.timeout(timeout_s):
                body: Any = await self._client.send_request(
                    request, _AS_IT_CAME, progress_callback=cast("ProgressFnT | None", on_progress)
                )
        except TimeoutError:
            self.poisoned = True
            raise CallError(
                Code.CALL_TIMEOUT,
                f"tool {name} of server {self.server} did not answer within {timeout_s:g} s",
                hint="raise the tool's timeout_s, or ask for less",
                dispatched=wire.sent > sent,
            ) from None
        except asyncio.CancelledError:
            self.poisoned = True
            raise
        except Exception as error:  # noqa: BLE001 whatever the SDK raises is told as ours
            await self._raise_call_error(name, error, dispatched=wire.sent > sent)
        return self._accept(name, body)

    def _accept(self, name: str, body: dict[str, Any]) -> ToolResult:
        size_bytes = len(to_json(body))
        if size_bytes > self._max_result_bytes:
            raise self._too_large(name)
        if body.get("resultType") == "input_required":
            raise self._input_required(name, sorted(body.get("inputRequests") or ()))
        return ToolResult(body, bool(body.get("isError")), size_bytes)

    async def _raise_call_error(self, name: str, error: Exception, *, dispatched: bool) -> NoReturn:
        wire = self._stdio or self._http
        if (wire is not None and wire.oversize) or (
            isinstance(error, MCPError) and _EVENT_TOO_LARGE in error.message
        ):
            self.poisoned = True
            raise self._too_large(name) from error
        if isinstance(error, MCPError):
            if (lost := await self._lost_by(error)) is not None:
                self.poisoned = True
                raise self._call_lost(name, dispatched, lost) from error
            raise self._refusal(name, error, dispatched) from error
        self.poisoned = True
        if isinstance(error, ValidationError):
            raise CallError(
                Code.PROTOCOL_ERROR,
                f"tool {name} of server {self.server} answered with a result that is not MCP "
                f"{self.protocol_version}: {error.error_count()} problem(s)",
                hint="report it to the server's maintainer",
                dispatched=True,
                details={"problem": _first_problem(error)},
            ) from error
        await self._last_words()
        raise self._call_lost(name, dispatched, _describe(error)) from error

    async def _lost_by(self, error: MCPError) -> str | None:
        """Say how the session was lost, or None when the error is the server's own answer."""
        if self._http is not None and self._http.status == 404 and self.era == "legacy":
            return "the server no longer knows the session"
        if error.code != CONNECTION_CLOSED:
            return None
        if error.message == "Connection closed":
            await self._last_words()
            return "the connection closed"
        return error.message if error.message.startswith("SSE stream") else None

    def _refusal(self, name: str, error: MCPError, dispatched: bool) -> CallError:
        status = self._http.status if self._http else None
        details: dict[str, Any] = {"jsonrpc_code": error.code}
        if status is not None:
            details["status"] = status
            if (error.code, error.message) in _SYNTHETIC:
                return self._http_refusal(name, status, details, dispatched)
        if error.code == URL_ELICITATION_REQUIRED:
            return self._input_required(name, ["elicitation/url"])
        if self._http is not None and error.code == PARSE_ERROR:
            self.poisoned = True
            code = Code.PROTOCOL_ERROR
        else:
            code = Code.INVALID_ARGUMENTS if error.code == INVALID_PARAMS else Code.TOOL_REFUSED
        return CallError(
            code,
            f"server {self.server} refused the call of tool {name}: {error.message[:500]}",
            dispatched=dispatched,
            details=details,
        )

    def _http_refusal(
        self, name: str, status: int, details: dict[str, Any], dispatched: bool
    ) -> CallError:
        hints = {
            401: "check the credential of this server",
            403: "check what the credential of this server may do",
            429: "slow down",
        }
        passing = status == 429 or status >= 500
        self.poisoned = status != 429
        return CallError(
            Code.SERVER_UNAVAILABLE if passing else Code.TOOL_REFUSED,
            f"server {self.server} answered the call of tool {name} with HTTP {status}",
            hint=hints.get(status, ""),
            retry_after_s=self._http.retry_after_s if self._http else None,
            dispatched=dispatched,
            details=details,
        )

    def _call_lost(self, name: str, dispatched: bool, how: str = "") -> CallError:
        how = how or (_describe(self._cause) if self._cause else "the session had ended before")
        return CallError(
            Code.SESSION_LOST,
            f"the session with server {self.server} was lost in a call of tool {name}: {how}",
            hint="" if dispatched else "the call never reached the server: submit it again",
            dispatched=dispatched,
            details=self._evidence(),
        )

    def _too_large(self, name: str) -> CallError:
        return CallError(
            Code.RESULT_TOO_LARGE,
            f"the result of tool {name} of server {self.server} is larger than "
            f"{self._max_result_bytes} bytes",
            hint="ask for less, or raise TOOLFLEET_MAX_RESULT_BYTES",
            dispatched=True,
        )

    def _input_required(self, name: str, requests: list[str]) -> CallError:
        return CallError(
            Code.INPUT_REQUIRED,
            f"tool {name} of server {self.server} asks its user for input, and there is none here",
            hint="give what it asks for in the arguments, or use a tool that needs no dialogue",
            dispatched=True,
            details={"requests": requests},
        )

    # -- other requests

    async def list_tools(self) -> list[dict[str, Any]]:
        """Return every page of ``tools/list`` as the server wrote it; bounded like opening."""
        tools: list[dict[str, Any]] = []
        seen: set[str] = set()
        cursor: str | None = None
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                for _ in range(MAX_PAGES):
                    page = await self._list_page(cursor)
                    tools += page["tools"]
                    cursor = page.get("nextCursor")
                    if cursor is None:
                        return tools
                    if cursor in seen or len(tools) > MAX_TOOLS:
                        break
                    seen.add(cursor)
        except Exception as error:  # noqa: BLE001
            await self._raise_request_error("tools/list", error)
        raise self._bad_listing(len(tools), repeated=cursor in seen)

    async def _list_page(self, cursor: str | None) -> dict[str, Any]:
        if not self.alive or self._client is None:
            raise self._call_lost("tools/list", dispatched=False)
        params = PaginatedRequestParams(cursor=cursor)
        page: Any = await self._client.send_request(ListToolsRequest(params=params), _AS_IT_CAME)
        return cast("dict[str, Any]", page)

    async def probe(self, timeout_s: float) -> None:
        """Prove that the server still answers; raise `FleetError` when it does not in time."""
        if not self.alive or self._client is None:
            raise self._call_lost("ping", dispatched=False)
        try:
            async with asyncio.timeout(timeout_s):
                if self.era == "legacy":
                    await self._client.send_ping()
                else:
                    await self._client.send_discover(self.protocol_version)
        except Exception as error:  # noqa: BLE001
            await self._raise_request_error("a probe", error)

    async def _raise_request_error(self, what: str, error: Exception) -> NoReturn:
        if isinstance(error, FleetError):
            raise error
        if isinstance(error, TimeoutError):
            self.poisoned = True
            raise FleetError(
                Code.CALL_TIMEOUT, f"server {self.server} did not answer {what} in time"
            ) from error
        await self._raise_call_error(what, error, dispatched=True)

    def _bad_listing(self, count: int, *, repeated: bool) -> FleetError:
        problem = (
            "repeats a cursor"
            if repeated
            else f"goes beyond {MAX_PAGES} pages or {MAX_TOOLS} tools"
        )
        return FleetError(
            Code.PROTOCOL_ERROR,
            f"tools/list of server {self.server} {problem} (after {count} tools)",
            hint="report it to the server's maintainer",
        )

    async def _on_message(self, message: object) -> None:
        if isinstance(message, ToolListChangedNotification):
            self.listing_changed = True
            if self.on_listing_changed is not None:
                self.on_listing_changed()

    # -- ending

    async def close(self) -> StopReport:
        """End the session and what belongs to it; say which rung of the ladder it took.

        Returns after two grace periods and a few seconds at the latest; may be called again.
        """
        started = time.monotonic()
        self.alive = False
        self._leave.set()
        if not self._ready.done():
            self._keeper.cancel()
        await asyncio.wait({self._keeper}, timeout=2 * self._stop_grace_s + _CLOSE_SLACK_S)
        if not self._keeper.done():
            self._keeper.cancel()
            await asyncio.wait({self._keeper}, timeout=_CLOSE_SLACK_S)
        if self._report is None:
            if self._stdio is not None and self._stdio.pid is not None:
                self._report = await self._stdio.stop()
            else:
                self._report = StopReport("cancelled", time.monotonic() - started)
        return self._report

    def _lost(self) -> None:
        self.alive = False
        self._leave.set()
        self.dead.set()

    async def _last_words(self) -> None:
        """Give a dying child or connection a moment to leave its exit code, stderr or error."""
        if self._stdio is not None:
            await self._stdio.settle(_LAST_WORDS_S)
        else:
            await asyncio.wait({self._keeper}, timeout=_LAST_WORDS_S)

    def _evidence(self) -> dict[str, Any]:
        if self._stdio is not None:
            return dict(self._stdio.evidence())
        if self._http is not None and self._http.status is not None:
            return {"status": self._http.status}
        return {}

    @property
    def pid(self) -> int | None:
        """Return the stdio child's process id."""
        return self._stdio.pid if self._stdio else None

    @property
    def ignored_lines(self) -> int:
        """Return how many lines on stdout were noise."""
        return self._stdio.ignored_lines if self._stdio else 0


async def _negotiate(client: ClientSession) -> None:
    """Speak the newest revision that both know: ask (2026-07-28), else initialize (before it)."""
    with suppress(MCPError, RuntimeError, ValidationError):
        await client.discover()
        return
    try:
        await client.initialize()
    except MCPError as error:
        # A slow starter that understood the question after all says so in this way.
        if error.code != UNSUPPORTED_PROTOCOL_VERSION:
            raise
        await client.discover()


def _leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _describe(error: BaseException | None) -> str:
    if error is None:
        return "unknown"
    if isinstance(error, httpx2.HTTPError | MCPError | OSError):
        return str(error) or type(error).__name__
    if isinstance(error, anyio.BrokenResourceError | anyio.ClosedResourceError):
        return "the connection closed"
    if isinstance(error, asyncio.CancelledError):
        return "it was cancelled"
    return f"{type(error).__name__}: {error}"


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    return f"{'/'.join(str(part) for part in first['loc'])}: {first['msg']}"
