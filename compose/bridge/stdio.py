"""Lines from stdin and to stdout, whatever these are: pipes, files, a terminal.

Threads read and write, so that neither a client that says nothing nor one that does not read keeps
the loop from anything. They end with the process.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from queue import SimpleQueue
from typing import Final

_STDIN: Final = 0
_STDOUT: Final = 1
_CHUNK: Final = 1 << 16


class Stdio:
    """This process's stdin and stdout, on the loop that runs."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._read: asyncio.Queue[str | None] = asyncio.Queue()
        self._unwritten: SimpleQueue[tuple[bytes, asyncio.Future[None]]] = SimpleQueue()
        for work in (self._reading, self._writing):
            threading.Thread(target=work, name=work.__name__, daemon=True).start()

    async def lines(self) -> AsyncIterator[str]:
        """Yield lines that say something until stdin ends, or `stop` is called."""
        while (line := await self._read.get()) is not None:
            if line.strip():
                yield line

    def stop(self) -> None:
        """Read no more."""
        self._read.put_nowait(None)

    async def write(self, line: bytes) -> None:
        """Write a line as a whole, after those before it; raise `OSError` where nobody reads."""
        written: asyncio.Future[None] = self._loop.create_future()
        self._unwritten.put((line, written))
        await written

    def _reading(self) -> None:
        parts: list[bytes] = []
        with suppress(RuntimeError):  # the loop is closed
            while chunk := _chunk():
                first, *others = chunk.split(b"\n")
                parts.append(first)
                for other in others:
                    self._take(b"".join(parts))
                    parts = [other]
            self._take(b"".join(parts))
            self._loop.call_soon_threadsafe(self.stop)

    def _take(self, line: bytes) -> None:
        text = line.decode(errors="replace")
        self._loop.call_soon_threadsafe(self._read.put_nowait, text)

    def _writing(self) -> None:
        with suppress(RuntimeError):  # the loop is closed
            while True:
                line, written = self._unwritten.get()
                failed: OSError | None = None
                rest = memoryview(line)
                try:
                    while rest:
                        rest = rest[os.write(_STDOUT, rest) :]
                except OSError as error:
                    failed = error
                self._loop.call_soon_threadsafe(_settle, written, failed)


def _chunk() -> bytes:
    try:
        return os.read(_STDIN, _CHUNK)
    except OSError:
        return b""


def _settle(written: asyncio.Future[None], failed: OSError | None) -> None:
    if written.done():
        return  # nobody waits for it any more
    if failed is None:
        written.set_result(None)
    else:
        written.set_exception(failed)
