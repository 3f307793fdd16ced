"""A connection: one open, negotiated MCP client, whatever the transport and the revision.

1. One keeper task enters and leaves the SDK's contexts (anyio insists on that); everyone else
   speaks through ``client``.
2. Opening, closing and waiting for last words are bounded.
3. A connection that is lost is dead: `dead` is set, once.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import httpx2
from mcp.client.session import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp_types import UNSUPPORTED_PROTOCOL_VERSION, Implementation
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from registry.definitions import ServerDefinition
from registry.discretion import declared_secrets
from workers.back_channel import Addressee, BackChannel, Declaring
from workers.exchange import Exchange, Sieve, Stamped, exchange
from workers.judge import WANT_A_TOKEN, Facts, not_open, why_not_open
from workers.large import LargeMessages, LargeReader
from workers.launch import plan_launch
from workers.openapi_wire import Brief
from workers.scrub import Scrubber
from workers.spawn import StdioTransport, StopReport
from workers.upstream import Wire, open_client

_ENVELOPE_BYTES: Final = 64 * 1024  # what JSON-RPC and escapes may add to a result
_HURRIED_GRACE_S: Final = 0.25  # for a child that never finished its handshake
_LAST_WORDS_S: Final = 0.25  # for a dying child's exit code and stderr
_CLOSE_SLACK_S: Final = 4.0
_CLIENT_INFO: Final = Implementation(name="toolfleet", version="0.1.0")


@dataclass(frozen=True)
class Credential:
    """A secret and where it belongs; it enters the connection when that is opened."""

    inject: Literal["env", "header", "meta"]
    name: str
    secret: str = field(repr=False)

    def into(self, place: Literal["env", "header", "meta"]) -> dict[str, str]:
        """Return the one name and value to add at a place; nothing where it does not belong."""
        return {self.name: self.secret} if self.inject == place else {}


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a connection: its opening, its end, and the results that come through it."""

    connect_timeout_s: float
    stop_grace_s: float
    max_result_bytes: int


class Connection:
    """A connection with one server: `open` it, speak through ``client``, end it with `close`.

    ``heard`` has who is told of notifications, by their methods; ``on_stream`` is told when a
    stream that they may come on, outside of any request of ours, begins or ends (HTTP);
    ``addressee`` says whose call it is that a message of the server's own accord belongs to.
    """

    def __init__(
        self,
        definition: ServerDefinition,
        credential: Credential | None,
        limits: Limits,
        large: LargeReader | None,
        *,
        heard: Mapping[str, Callable[[dict[str, Any]], None]],
        on_stream: Callable[[bool], None],
        addressee: Addressee,
    ) -> None:
        query = dict(definition.url.query_params()) if definition.url else {}
        own = declared_secrets(definition.env, definition.headers, query)
        secrets = [*([credential.secret] if credential else []), *own]
        self.client: ClientSession | None = None
        self.alive = False
        self.dead = asyncio.Event()
        self.protocol_version = ""
        self.era: Literal["legacy", "modern"] = "legacy"
        self.introduction = ""
        self.announces: frozenset[str] = frozenset()
        self.about: dict[str, Any] = {}
        self.logs = False
        """Whether the server said that it logs to its clients."""
        self.opened_at = 0.0
        self.over_http = definition.transport == "http"
        self.limits = limits
        self.scrubber = Scrubber(*secrets)
        self.large = LargeMessages(large, secrets) if large else None
        self.cause: BaseException | None = None
        self._definition = definition
        self._credential = credential
        self._heard = heard
        self._on_stream = on_stream
        self._addressee = addressee
        self._stdio: StdioTransport | None = None
        self._wire: Wire | None = None
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._leave = asyncio.Event()
        self._report: StopReport | None = None
        self._keeper: asyncio.Task[None]
        self._back: BackChannel
        self._handshake = Exchange()

    # -- opening

    async def open(self) -> None:
        """Start or reach the server and negotiate; see `Session.open`."""
        name = f"session of {self._definition.name}"
        self._keeper = asyncio.create_task(self._keep(), name=name)
        limit_s = self.limits.connect_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                await asyncio.shield(self._ready)
        except TimeoutError:
            await self.close()
            problem = f"did not complete the MCP handshake within {limit_s:g} s"
            raise self.scrubber.error(not_open(self._handshake_facts(), problem)) from None
        except asyncio.CancelledError:
            await self.close()
            raise

    async def _keep(self) -> None:
        """Hold the SDK's contexts open until someone says leave (the keeper task)."""
        try:
            with exchange() as self._handshake:
                self._handshake.on_stream = self._on_stream
                async with AsyncExitStack() as stack:
                    client = await self._connect(stack)
                    await self._negotiate(client)
                    self._opened(client)
                    await self._leave.wait()
        except BaseException as error:  # noqa: BLE001 the task ends here, whatever the reason
            self.cause = _leaf(error)
        finally:
            self._lost()
            if not self._ready.done():
                why = why_not_open(self.cause, self._handshake_facts())
                self._ready.set_exception(self.scrubber.error(why))
                self._ready.exception()  # nobody may be waiting any more

    async def _connect(self, stack: AsyncExitStack) -> ClientSession:
        read, write = await (self._over_http(stack) if self.over_http else self._over_stdio(stack))
        if self._credential is not None and (meta := self._credential.into("meta")):
            write = Stamped(write, meta)
        self._back = BackChannel(
            Sieve(read, self._heard),
            Declaring(write, self._definition),
            addressee=self._addressee,
            scrubber=self.scrubber,
        )
        return await stack.enter_async_context(
            ClientSession(dispatcher=self._back, client_info=_CLIENT_INFO)
        )

    async def _over_stdio(self, stack: AsyncExitStack) -> tuple[Any, Any]:
        secret = self._credential
        launch = await plan_launch(self._definition, secret.into("env") if secret else {})
        self._stdio = StdioTransport(
            launch,
            stop_grace_s=min(_HURRIED_GRACE_S, self.limits.stop_grace_s),
            on_lost=self._lost,
            max_line_bytes=self.limits.max_result_bytes + _ENVELOPE_BYTES,
            opening=self._opening(),
        )
        read, write = await stack.enter_async_context(self._stdio)
        read.large = self.large
        return read, write

    def _opening(self) -> bytes:
        """Return what the server of an API has to be told before MCP begins."""
        definition = self._definition
        if definition.openapi is None:
            return b""
        credential = definition.credentials
        names = [*definition.headers, *([credential.name] if credential.name else [])]
        return Brief(
            definition.name,
            str(definition.url),
            definition.networks,
            definition.openapi,
            dict(self._headers()),
            frozenset(name.lower() for name in names),
            self.limits.connect_timeout_s,
            self.limits.max_result_bytes,
        ).encode()

    def _headers(self) -> httpx2.Headers:
        headers = httpx2.Headers(self._definition.headers)  # names without regard to case
        headers.update(self._credential.into("header") if self._credential else {})
        return headers

    async def _over_http(self, stack: AsyncExitStack) -> tuple[Any, Any]:
        headers = self._headers()
        limit = self.limits.max_result_bytes + _ENVELOPE_BYTES
        wire = self._wire = Wire(limit, self.large, self._definition.reachable)
        http = await stack.enter_async_context(
            open_client(wire, headers, connect_timeout_s=self.limits.connect_timeout_s)
        )
        return await stack.enter_async_context(
            streamable_http_client(
                str(self._definition.url), http_client=http, max_sse_event_size=limit
            )
        )

    async def _negotiate(self, client: ClientSession) -> None:
        """Speak the newest revision that both know: ask (2026-07-28), else initialize."""
        with suppress(MCPError, RuntimeError, ValidationError):
            await client.discover()
            return
        seen = self._handshake
        if seen.failure is not None:
            raise seen.failure
        refusal = seen.status, seen.challenge
        try:
            await client.initialize()
        except MCPError as error:
            # A slow starter that understood the question after all says so in this way.
            if error.code != UNSUPPORTED_PROTOCOL_VERSION:
                if refusal[0] in WANT_A_TOKEN:  # it knows no `initialize`, whoever comes
                    seen.status, seen.challenge = refusal
                raise
            await client.discover()

    def _opened(self, client: ClientSession) -> None:
        self.client = client
        self.protocol_version = client.protocol_version or ""
        self.era = "modern" if client.discover_result is not None else "legacy"
        self.introduction = _introduction(client)
        self.about = _about(client)
        self.announces = _announced(self.about["capabilities"])
        self.logs = "logging" in self.about["capabilities"]
        self._back.has_questions = self.era == "legacy"
        self._handshake.endless = True  # from here on it is the stream of notifications
        self.opened_at = time.monotonic()
        if self._stdio is not None:
            self._stdio.stop_grace_s = self.limits.stop_grace_s
        if not self._leave.is_set():
            self.alive = True
        if not self._ready.done():
            self._ready.set_result(None)

    # -- what is known when something failed

    def facts(self, what: str, seen: Exchange) -> Facts:
        """Return what is known, as of now, of an exchange that failed."""
        stdio = self._stdio
        return Facts(
            server=self._definition.name,
            what=what,
            seen=seen,
            stdio=stdio is not None,
            api=self._definition.openapi is not None,
            era=self.era,
            protocol_version=self.protocol_version,
            max_result_bytes=self.limits.max_result_bytes,
            endless_line=stdio is not None and stdio.oversize,
            unread=self.large.failure if self.large and stdio else None,
            evidence=self.evidence(seen.stderr_from),
            scrub=self.scrubber.text,
        )

    def _handshake_facts(self) -> Facts:
        return self.facts("the MCP handshake", self._handshake)

    @property
    def stderr_bytes(self) -> int:
        """Return how much a stdio server has said on stderr."""
        return self._stdio.stderr_bytes if self._stdio else 0

    def evidence(self, since: int | None = 0) -> dict[str, Any]:
        """Return what a stdio server left behind so far; see `StdioTransport.evidence`."""
        if self._stdio is None:
            return {}
        evidence = dict(self._stdio.evidence(since))
        if "stderr" in evidence:
            evidence["stderr"] = self.scrubber.excerpt(str(evidence["stderr"]))
        return evidence

    async def last_words(self) -> None:
        """Give a dying child or connection a moment to leave its exit code, stderr or error."""
        if self._stdio is not None:
            await self._stdio.settle(_LAST_WORDS_S)
        else:
            await asyncio.wait({self._keeper}, timeout=_LAST_WORDS_S)

    @property
    def session_id(self) -> str:
        """Return what the server calls the session over HTTP, if it does; never a secret."""
        return self.scrubber.text(self._wire.session_id) if self._wire else ""

    @property
    def pid(self) -> int | None:
        """Return the stdio child's process id."""
        return self._stdio.pid if self._stdio else None

    @property
    def ignored_lines(self) -> int:
        """Return how many lines on stdout were noise."""
        return self._stdio.ignored_lines if self._stdio else 0

    # -- ending

    async def close(self) -> StopReport:
        """End the connection and what belongs to it; see `Session.close`."""
        started = time.monotonic()
        self.alive = False
        self._leave.set()
        if not self._ready.done():
            self._keeper.cancel()
        await asyncio.wait({self._keeper}, timeout=2 * self.limits.stop_grace_s + _CLOSE_SLACK_S)
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


def _introduction(client: ClientSession) -> str:
    """Return a digest of what a server said of itself in the handshake."""
    said = (
        client.protocol_version,
        client.server_info,
        client.server_capabilities,
        client.instructions,
    )
    return hashlib.sha256(to_json(said)).hexdigest()


def _about(client: ClientSession) -> dict[str, Any]:
    """Return what a server said of itself in the handshake (JSON-ready)."""
    able, info = client.server_capabilities, client.server_info
    about: dict[str, Any] = {"capabilities": _written(able) if able else {}}
    if info:
        about["serverInfo"] = _written(info)
    if client.instructions:
        about["instructions"] = client.instructions
    return about


def _written(model: BaseModel) -> dict[str, Any]:
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


def _announced(capabilities: Mapping[str, Any]) -> frozenset[str]:
    """Return of which lists a server says that it tells when they change."""
    lists = ("tools", "prompts", "resources")
    return frozenset(it for it in lists if (capabilities.get(it) or {}).get("listChanged"))


def _leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
