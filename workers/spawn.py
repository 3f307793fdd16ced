"""How a stdio MCP server is born and put to death (what is said to it is in `workers.stdio`).

`StdioTransport` is a transport in the SDK's sense: an async context manager that yields the pair of
streams a ``ClientSession`` speaks through. It differs from the SDK's own in what a fleet needs:

1. stderr is always drained; its last `STDERR_TAIL_BYTES` are kept for error messages.
2. Leaving takes at most two grace periods and a reap, blocks nothing but the one who leaves, runs
   to its end even if that one is cancelled, and leaves no process behind that the child started,
   in whatever group or session.
3. A killed worker takes the child with it (Linux, where `setpriv` is installed).
4. A child beyond the CPU time of its sandbox is killed within `CPU_LOOK_EVERY_S`.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Literal

import anyio

from workers.launch import Launch, cannot_start
from workers.stdio import DEFAULT_MAX_LINE_BYTES, LineBuffer, ReadStream, WriteStream

STDERR_TAIL_BYTES: Final = 4096
CPU_LOOK_EVERY_S: Final = 1.0
_REAP_LIMIT_S: Final = 2.0  # for the loop to notice a SIGKILL
_EOF_LIMIT_S: Final = 0.5  # for the rest of stdout after the child has exited


Rung = Literal["exited", "sigterm", "sigkill", "cancelled"]


@dataclass(frozen=True)
class StopReport:
    """Which rung of the ladder ended a session, and after how many seconds.

    ``exited``: the child left when its stdin closed (or had left already); ``cancelled``: there was
    no process, the HTTP exchange was ended.
    """

    rung: Rung
    elapsed_s: float


class _Child(asyncio.SubprocessProtocol):
    """One running child: bytes in, lines out, and a death that is certain.

    Callbacks only; nothing here awaits except `stop`.
    """

    def __init__(self, max_line_bytes: int, on_lost: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self.lines = LineBuffer(max_line_bytes, self._set_reading)
        self._on_lost = on_lost
        self.pid = 0
        self.exit_code: int | None = None
        self.exited = asyncio.Event()
        self.writable = True
        self.stopping = False
        self._stderr = bytearray()
        self.stderr_bytes = 0
        self._drained: asyncio.Future[None] | None = None

    # -- callbacks of the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.SubprocessTransport) or hasattr(transport, "get_pid")
        self._transport: asyncio.SubprocessTransport = transport  # type: ignore[assignment]
        self.pid = self._transport.get_pid()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 2:
            self._stderr += data
            self.stderr_bytes += len(data)
            if len(self._stderr) > 2 * STDERR_TAIL_BYTES:
                del self._stderr[:-STDERR_TAIL_BYTES]
        elif not (self.lines.ended or self.stopping) and not self.lines.feed(data):
            self._end()

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if fd == 0:
            self.writable = False
            self.resume_writing()
        if fd in (0, 1):
            self._end()

    def process_exited(self) -> None:
        self.exit_code = self._transport.get_returncode()
        # At once, while the group's number cannot have been given to anyone else.
        self._signal_group(signal.SIGKILL)
        self.exited.set()
        # Its last words may still be in the pipe, which a descendant elsewhere may hold open.
        self._loop.call_later(_EOF_LIMIT_S, self._end)

    def pause_writing(self) -> None:
        if self._drained is None:
            self._drained = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None

    def _end(self) -> None:
        if not self.lines.ended:
            self.lines.end()
            self._on_lost()

    def _set_reading(self, reading: bool) -> None:
        stdout: asyncio.ReadTransport = self._transport.get_pipe_transport(1)  # type: ignore[assignment]
        if reading:
            stdout.resume_reading()
        else:
            stdout.pause_reading()

    def write(self, data: bytes) -> asyncio.Future[None] | None:
        """Hand bytes to stdin; return what to wait for when the child is not reading them."""
        if not self.writable or self.lines.ended or self.stopping:
            raise anyio.BrokenResourceError
        self._transport.get_pipe_transport(0).write(data)  # type: ignore[union-attr]
        return self._drained

    def stderr_tail(self, since: int) -> str:
        """Return the end of what the child wrote to stderr after its first ``since`` bytes."""
        size = min(self.stderr_bytes - since, STDERR_TAIL_BYTES)
        return bytes(self._stderr[-size:] if size else b"").decode("utf-8", "replace").strip()

    # -- death

    async def stop(self, grace_s: float) -> StopReport:
        """Close stdin, wait, SIGTERM the group, wait, SIGKILL the group; nobody of it survives."""
        started = self._loop.time()
        self.stopping = True
        self.writable = False
        self.resume_writing()
        rung: Rung = "exited"
        try:
            if not self.exited.is_set():
                self._close_stdin()
            if not await self._exits_within(grace_s):
                rung = "sigterm"
                self._signal_group(signal.SIGTERM)
                if not await self._exits_within(grace_s):
                    rung = "sigkill"
                    self._signal_group(signal.SIGKILL)
                    await self._exits_within(_REAP_LIMIT_S)
        finally:
            if not self.exited.is_set():
                self._signal_group(signal.SIGKILL)
            self._end()
            with suppress(PermissionError, ProcessLookupError):
                self._transport.close()
        return StopReport(rung, self._loop.time() - started)

    def _close_stdin(self) -> None:
        stdin: asyncio.WriteTransport | None = self._transport.get_pipe_transport(0)  # type: ignore[assignment]
        if stdin is None:
            return
        if stdin.get_write_buffer_size():
            stdin.abort()  # it does not read; a polite close would wait for it
        else:
            stdin.close()
        # A child stuck in a write to stdout cannot see that its stdin has closed.
        self.lines.unpause()

    async def _exits_within(self, limit_s: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self.exited.wait()
        return self.exited.is_set()

    def kill(self) -> None:
        """Kill the child and its group at once."""
        if self.pid and not self.exited.is_set():
            self._signal_group(signal.SIGKILL)

    def _signal_group(self, number: signal.Signals) -> None:
        # The child leads its own session, so its pid is the number of its group.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


class StdioTransport:
    """A child process as an MCP transport; entering starts it, leaving runs the stop ladder.

    ``on_lost`` is called once, from the event loop, when the child can no longer be spoken to.
    ``opening`` is what is said to the child before anything else.
    """

    def __init__(
        self,
        launch: Launch,
        *,
        stop_grace_s: float,
        on_lost: Callable[[], None] = lambda: None,
        max_line_bytes: int = DEFAULT_MAX_LINE_BYTES,
        opening: bytes = b"",
    ) -> None:
        self._launch = launch
        self._opening = opening
        self.stop_grace_s = stop_grace_s
        self._on_lost = on_lost
        self._max_line_bytes = max_line_bytes
        self._child: _Child | None = None
        self._reading: ReadStream | None = None
        self._stopping: asyncio.Task[StopReport] | None = None
        self._cpu_look: asyncio.TimerHandle | None = None
        self.stop_report: StopReport | None = None

    async def __aenter__(self) -> tuple[ReadStream, WriteStream]:
        child = _Child(self._max_line_bytes, self._on_lost)
        try:
            await asyncio.get_running_loop().subprocess_exec(
                lambda: child,
                *self._launch.argv,
                env=dict(self._launch.env),
                cwd=self._launch.cwd,
                start_new_session=True,
            )
        except BaseException as error:
            child.kill()
            await self._bury()
            if not isinstance(error, OSError | ValueError):
                raise
            raise cannot_start(
                self._launch.server, str(error), "check command, cwd and env in its definition"
            ) from error
        self._child = child
        if self._opening:
            child.write(self._opening)
            self._opening = b""
        self._look_at_cpu()
        self._reading = ReadStream(child.lines)
        return self._reading, WriteStream(child)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self.stop()

    async def stop(self) -> StopReport:
        """Run the stop ladder once; a cancelled caller stops waiting, the ladder goes on."""
        assert self._child is not None, "the transport was never entered"
        if self._stopping is None:
            self._stopping = asyncio.create_task(
                self._end(self._child), name=f"stop {self._launch.server}"
            )
            self._stopping.add_done_callback(self._stopped)
        return await asyncio.shield(self._stopping)

    async def _end(self, child: _Child) -> StopReport:
        try:
            return await child.stop(self.stop_grace_s)
        finally:
            if self._cpu_look is not None:
                self._cpu_look.cancel()
            await self._bury()

    async def _bury(self) -> None:
        if self._launch.leaves_traces:
            await asyncio.to_thread(self._launch.bury)

    def _look_at_cpu(self) -> None:
        """Kill a child whose tree has used up its CPU time; look again later."""
        group, child = self._launch.group, self._child
        if child is None or child.exited.is_set() or group is None or "cpu_s" not in group.limits:
            return
        if group.excess() == "cpu_s":
            child.kill()
        self._cpu_look = asyncio.get_running_loop().call_later(CPU_LOOK_EVERY_S, self._look_at_cpu)

    def _stopped(self, task: asyncio.Task[StopReport]) -> None:
        if not task.cancelled() and task.exception() is None:
            self.stop_report = task.result()

    async def settle(self, limit_s: float) -> None:
        """Wait, not longer than ``limit_s``, until a child that has gone silent has exited."""
        if self._child is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(limit_s):
                    await self._child.exited.wait()

    @property
    def pid(self) -> int | None:
        """Return the child's process id, which is also its group's and its session's."""
        return self._child.pid if self._child else None

    @property
    def oversize(self) -> bool:
        """Say whether a line longer than ``max_line_bytes`` ended the transport."""
        return self._child is not None and self._child.lines.oversize

    @property
    def ignored_lines(self) -> int:
        """Return how many lines of stdout were not JSON-RPC."""
        return self._reading.ignored_lines if self._reading else 0

    @property
    def stderr_bytes(self) -> int:
        """Return how much the child has written to stderr."""
        return self._child.stderr_bytes if self._child else 0

    def evidence(self, since: int | None = 0) -> dict[str, object]:
        """Return what the child left behind, for an error's details.

        Of its stderr that is what it wrote after the first ``since`` bytes, with None nothing.
        """
        if self._child is None:
            return {}
        facts: dict[str, object] = {}
        if since is not None and (tail := self._child.stderr_tail(since)):
            facts["stderr"] = tail
        if self._child.exit_code is not None:
            facts["exit_code"] = self._child.exit_code
            if (exceeded := self._launch.excess(self._child.exit_code)) is not None:
                facts["exceeded"] = exceeded
        return facts
