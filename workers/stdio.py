"""What is said to and by a stdio server: bytes to lines, lines to messages, and back.

1. A line longer than ``max_line_bytes`` ends the reading instead of filling the memory.
2. Invalid UTF-8, banners and other noise cost that line only, and are counted. An answer that is
   none ends its request.
3. Unread lines are bounded: beyond `QUEUE_BYTES` the pipe is not read until they are taken. Taking
   them lets others run in between, however many there are.
4. Only our requests, and what a caller answers to its questions, wait for a child that does not
   read; what we answer ourselves is dropped then.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Final, Protocol, Self

import anyio
from mcp.shared.message import SessionMessage
from mcp_types import (
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCRequest,
    JSONRPCResponse,
    jsonrpc_message_adapter,
)
from pydantic import ValidationError

from registry.errors import FleetError
from workers.exchange import Breather, current_exchange
from workers.large import LargeMessages
from workers.large_reader import instead_of, message_of

DEFAULT_MAX_LINE_BYTES: Final = 10_000_000
QUEUE_BYTES: Final = 1 << 20
_LINE_COST: Final = 50  # bytes that a line takes besides its own


class Pipe(Protocol):
    """The child's ends that the streams use."""

    writable: bool

    def write(self, data: bytes) -> asyncio.Future[None] | None:
        """Hand bytes to stdin; return what to wait for when the child is not reading them."""


class LineBuffer:
    """Bytes in, lines out; ``set_reading`` is told when to stop reading and when to go on."""

    def __init__(self, max_line_bytes: int, set_reading: Callable[[bool], None]) -> None:
        self._max_line_bytes = max_line_bytes
        self._set_reading = set_reading
        self.oversize = False
        self.ended = False
        self._partial: list[bytes] = []
        self._partial_bytes = 0
        self._lines: deque[bytes] = deque()
        self._queued_bytes = 0
        self._paused = False
        self._reader: asyncio.Future[None] | None = None
        self._breather = Breather()

    def feed(self, data: bytes) -> bool:
        """Take what was read; return False when a line is too long (there will be no more)."""
        head, *rest = data.split(b"\n")
        self._partial.append(head)
        self._partial_bytes += len(head)
        if self._partial_bytes > self._max_line_bytes:
            self.oversize = True
            self._partial.clear()
            return False
        if not rest:
            return True
        self._queue(b"".join(self._partial))
        for line in rest[:-1]:
            self._queue(line)
        self._partial = [rest[-1]]
        self._partial_bytes = len(rest[-1])
        if self._queued_bytes > QUEUE_BYTES and not self._paused:
            self._paused = True
            self._set_reading(False)
        self._wake()
        return True

    def end(self) -> None:
        """Say that no more will come."""
        self.ended = True
        self._wake()

    def unpause(self) -> None:
        """Have the pipe read again, whether or not the lines are taken."""
        if self._paused:
            self._paused = False
            self._set_reading(True)

    async def next_line(self) -> bytes | None:
        """Return the next line, or None when there will be no more."""
        if self._lines:
            await self._breather.breathe()
        while not self._lines:
            if self.ended:
                return None
            self.unpause()
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
            self._breather.rested()
        line = self._lines.popleft()
        self._queued_bytes -= len(line) + _LINE_COST
        return line

    def _queue(self, line: bytes) -> None:
        if line:
            self._lines.append(line)
            self._queued_bytes += len(line) + _LINE_COST

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


class ReadStream:
    """The read stream: stdout's lines as messages; a line that is none is counted and skipped.

    A large one is shrunk by ``large``, if there is one; where that fails, the stream ends.
    """

    def __init__(self, lines: LineBuffer) -> None:
        self._lines = lines
        self.ignored_lines = 0
        self.large: LargeMessages | None = None

    def __aiter__(self) -> ReadStream:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        while (line := await self._lines.next_line()) is not None:
            if self.large is not None and self.large.is_large(line):
                try:
                    line = await self.large.shrink(line)
                except FleetError:
                    break
            if (message := _parse(line)) is not None:
                return SessionMessage(message)
            self.ignored_lines += 1
        raise StopAsyncIteration

    async def receive(self) -> SessionMessage | Exception:
        """Return the next message; raise `anyio.EndOfStream` when there is none."""
        try:
            return await self.__anext__()
        except StopAsyncIteration:
            raise anyio.EndOfStream from None

    async def aclose(self) -> None:
        """Do nothing: the transport ends its streams."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> bool | None:
        return None


def _parse(line: bytes) -> JSONRPCMessage | None:
    text = line.strip()
    if not text.startswith(b"{"):
        text = text.removeprefix(b"\xef\xbb\xbf")
        if not text.startswith(b"{"):
            return None
    try:
        return jsonrpc_message_adapter.validate_json(text, by_name=False)
    except ValidationError:
        pass
    try:
        return jsonrpc_message_adapter.validate_json(text.decode("utf-8", "replace"), by_name=False)
    except ValidationError:
        instead = instead_of(message_of(text, event=False) or {})
        return JSONRPCError.model_validate(instead) if instead else None


class WriteStream:
    """The write stream: one line per message, with the child's own back-pressure."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._full: asyncio.Future[None] | None = None

    async def send(self, item: SessionMessage, /) -> None:
        """Write a message; a request waits while the child does not read."""
        message = item.message
        if isinstance(message, JSONRPCResponse | JSONRPCError) and self._full is not None:
            if isinstance(message, JSONRPCError) or not message.result:
                if self._is_full():
                    return  # a child may ask without end and never read what it is told
            else:
                await asyncio.shield(self._full)
        data = message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n"
        self._full = self._pipe.write(data)
        # A notification, above all a cancellation, never waits for a child that stopped reading.
        if isinstance(message, JSONRPCRequest):
            current_exchange().sent = True
            if self._full is not None:
                await asyncio.shield(self._full)
                if not self._pipe.writable:
                    raise anyio.BrokenResourceError

    def _is_full(self) -> bool:
        return self._full is not None and not self._full.done()

    async def aclose(self) -> None:
        """Do nothing: the transport ends its streams."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> bool | None:
        return None
