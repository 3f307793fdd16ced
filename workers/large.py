"""Large messages: read by processes of their own, so that the worker's loop is never held.

1. What is larger than `READ_HERE_BYTES` is never parsed here, apart from lists: those are checked
   elsewhere and read here item by item.
2. The MCP SDK sees a small message in the place of each large one; the large one is kept as it
   came until its call takes it, and then is checked and redacted.
3. Every job is bounded in time and memory. A process that fails takes one job with it
   (`redaction_failed`); the next job starts another. It does not outlive the worker.
4. A message on its way waits for no result that is being checked: the two have a process each.
5. A result is withheld (`redaction_failed`) when its call's time is over before it is checked.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any, Final

from registry.database import to_json
from registry.errors import Code, FleetError
from workers.exchange import Breather
from workers.large_reader import FRAME
from workers.launch import INHERITED
from workers.listing import TOOLS, Listed, Page
from workers.output_gate import Gate

READ_HERE_BYTES: Final = 65_536
"""What the loop reads itself: measured, the worst JSON of this size takes it 20 ms."""
JOB_LIMIT_S: Final = 30.0
GUARDRAIL_VARIABLES: Final = "TOOLFLEET_GUARDRAIL_"
"""How the names of variables begin that the users' own checks find wherever they run."""
MOST_HELD: Final = 8
_MEMORY_PER_BYTE: Final = 120  # measured: 105 for the worst JSON and its redacted copy
_MEMORY_BASE_BYTES: Final = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class LargeResult:
    """A result that was not read here: the message it came in, and its size as compact JSON."""

    raw: bytes = field(repr=False)
    event: bool
    size_bytes: int
    secrets: Sequence[str] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Redacted:
    """A large result that was checked and redacted, as JSON; ``preview`` is how its text begins."""

    encoded: bytes = field(repr=False)
    sha256: str
    is_error: bool
    structured: bool
    preview: str
    findings: list[dict[str, str]]


class ReaderProcess:
    """A process that does jobs, one after the other; it is started by the first one."""

    def __init__(self, memory_bytes: int) -> None:
        self._memory_bytes = memory_bytes
        self._turn = asyncio.Lock()
        self._process: Process | None = None
        self._asking: asyncio.Task[tuple[dict[str, Any], bytes]] | None = None

    @property
    def pid(self) -> int | None:
        """Return the process's id while there is one."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    @property
    def busy(self) -> bool:
        """Say whether a job is being done."""
        return self._turn.locked()

    async def ask(
        self, job: dict[str, Any], raw: bytes, timeout_s: float | None = None
    ) -> tuple[dict[str, Any], bytes]:
        """Have a job done within ``timeout_s``, its wait included; raise its error.

        Raises `redaction_failed` when it is not done in time, or the process fails. A caller that
        is cancelled stops waiting; a job that was begun goes on without it, for a while.
        """
        give_up = math.inf if timeout_s is None else time.monotonic() + timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                await self._turn.acquire()
        except TimeoutError:
            raise _failed(job, "was busy until the call's time was over") from None
        limit_s = min(JOB_LIMIT_S, max(0.0, give_up - time.monotonic()))
        self._asking = asking = asyncio.create_task(self._ask(job, raw, limit_s))
        asking.add_done_callback(self._answered)
        facts, body = await asyncio.shield(asking)
        if "error" in facts:
            raise FleetError.from_dict(facts["error"])
        return facts, body

    async def close(self) -> None:
        """End the process, in the middle of a job too."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
            self._process = None

    def _answered(self, _: object) -> None:
        self._asking = None  # it holds the answer, which may be large
        self._turn.release()

    async def _ask(
        self, job: dict[str, Any], raw: bytes, limit_s: float
    ) -> tuple[dict[str, Any], bytes]:
        header = to_json(job).encode()
        try:
            process = await self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            async with asyncio.timeout(limit_s):
                process.stdin.write(FRAME.pack(len(header), len(raw)) + header)
                process.stdin.write(raw)
                await process.stdin.drain()
                header_size, size = FRAME.unpack(await process.stdout.readexactly(FRAME.size))
                facts = json.loads(await process.stdout.readexactly(header_size))
                return facts, await process.stdout.readexactly(size)
        except TimeoutError:
            await self.close()
            raise _failed(job, f"took longer than {limit_s:.3g} s") from None
        except (OSError, asyncio.IncompleteReadError) as error:
            await self.close()
            raise _failed(job, "ended in the middle of it") from error

    async def _running(self) -> Process:
        if self._process is None or self._process.returncode is not None:
            # -P: the working directory is no place to import from.
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "workers.large_reader",
                str(self._memory_bytes), str(os.getpid()),
                stdin=PIPE, stdout=PIPE, start_new_session=True,
                env={name: it for name, it in os.environ.items() if _reaches(name)},
            )  # fmt: skip
        return self._process


class LargeReader:
    """A worker's two processes for large messages: ``shrinking`` them, and ``finishing`` results.

    Messages longer than ``read_here_bytes`` are for it; ``longest_bytes``, the length of the
    longest there may be, decides the memory of each.
    """

    def __init__(self, *, longest_bytes: int, read_here_bytes: int = READ_HERE_BYTES) -> None:
        self.read_here_bytes = min(read_here_bytes, READ_HERE_BYTES)
        memory_bytes = _MEMORY_BASE_BYTES + _MEMORY_PER_BYTE * longest_bytes
        self.shrinking = ReaderProcess(memory_bytes)
        self.finishing = ReaderProcess(memory_bytes)

    async def finish(
        self,
        large: LargeResult,
        tool: str,
        schema: dict[str, Any] | None,
        *,
        gate: Gate | None = None,
        timeout_s: float | None = None,
    ) -> Redacted:
        """Have a result pass a gate, by default one of the built-in rules; raise as that does.

        Raises `redaction_failed` when that is not done within ``timeout_s``.
        """
        job = {
            "job": "finish",
            "event": large.event,
            "tool": tool,
            "schema": schema,
            "secrets": large.secrets,
            "gate": gate.as_dict() if gate is not None else None,
        }
        facts, encoded = await self.finishing.ask(job, large.raw, timeout_s)
        return Redacted(encoded, **facts)

    async def read_page(self, large: LargeResult, server: str, of: Listed = TOOLS) -> Page:
        """Read a page of a list, scrubbed; raise as `workers.listing.read_page` does."""
        job = {
            "job": "page",
            "event": large.event,
            "tool": of.method,
            "server": server,
            "secrets": large.secrets,
        }
        facts, encoded = await self.finishing.ask(job, large.raw)
        breather = Breather()
        page, start = Page([], [], facts["cursor"]), 0
        for size in facts["sizes"]:
            page.encoded.append(encoded[start : start + size])
            page.items.append(json.loads(page.encoded[-1]))
            start += size
            await breather.breathe()
        return page

    async def close(self) -> None:
        """End both processes, in the middle of a job too."""
        await asyncio.gather(self.shrinking.close(), self.finishing.close())


class LargeMessages:
    """The large messages of one session: what is shrunk on its way to the SDK, and kept until then.

    ``failure`` is why one could not be shrunk: its session has to be given up.
    """

    def __init__(self, reader: LargeReader, secrets: Sequence[str]) -> None:
        self._reader = reader
        self._secrets = secrets
        # No server can know this name, so none can pass off a result of its own as a kept one.
        self._member = f"toolfleet/{token_hex(16)}"
        self._serial = 0
        self._held: dict[int, LargeResult] = {}
        self.failure: FleetError | None = None

    def is_large(self, raw: bytes) -> bool:
        """Say whether a message is to be shrunk."""
        return len(raw) > self._reader.read_here_bytes

    async def shrink(self, raw: bytes, *, event: bool = False) -> bytes:
        """Return a small message in the place of ``raw``, or nothing if that is no response.

        ``raw`` is JSON, or a server-sent event with its lines ended by newlines; so is the answer.
        Raises `FleetError` when it could not be read; see `failure`.
        """
        self._serial = serial = self._serial + 1
        job = {"job": "shrink", "event": event, "placeholder": {self._member: serial}}
        try:
            facts, small = await self._reader.shrinking.ask(job, raw)
        except FleetError as error:
            self.failure = error
            raise
        if facts["result"]:
            self._held[serial] = LargeResult(raw, event, facts["size"], self._secrets)
            if len(self._held) > MOST_HELD:
                del self._held[next(iter(self._held))]
        return small

    async def read_page(self, large: LargeResult, server: str, of: Listed = TOOLS) -> Page:
        """See `LargeReader.read_page`."""
        return await self._reader.read_page(large, server, of)

    def take(self, body: dict[str, Any]) -> LargeResult | None:
        """Return the large result that a small one stands for; None for a result of its own."""
        serial = body.get(self._member)
        if serial is None:
            return None
        if serial not in self._held:
            raise FleetError(
                Code.PROTOCOL_ERROR,
                "the server sent many large responses at once that nobody had asked for",
                hint="report it to the server's maintainer",
            )
        return self._held.pop(serial)


def _reaches(variable: str) -> bool:
    """Say whether a variable of the worker reaches its reader: what guardrails need too."""
    return (
        variable in INHERITED
        or variable == "PYTHONPATH"
        or variable.startswith(GUARDRAIL_VARIABLES)
    )


def _failed(job: dict[str, Any], how: str) -> FleetError:
    what = f"the result of {job['tool']}" if "tool" in job else "the result"
    return FleetError(
        Code.REDACTION_FAILED,
        f"the process that reads large results {how}; {what} is withheld",
        hint="the call itself did run; look at the tool's output at its source, or ask for less",
    )
