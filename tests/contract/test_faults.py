"""What a caller sees of a server that misbehaves; `tests.servers.fault` does, in every known way.

Each misbehaviour ends in the expected code, or in the answer, by its own deadline; it never holds
the event loop, and a session with another server feels nothing of it.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from registry.errors import Code, FleetError
from tests.faulty import FACES, MAX_RESULT_BYTES, PATIENCE_S, Face, Faulty, faulty, over_stdio
from tests.loop_time import attempts
from tests.requirements import requirement
from tests.servers.fault import MODES
from tests.waiting import until
from workers.large import LargeReader, LargeResult
from workers.large_reader import message_of
from workers.session import CallError, Session

pytestmark = pytest.mark.anyio

LATE_S = 1.0  # the deadline of what never answers
DEADLINE_S = 5.0
LONGER_S = 20.0  # for what has a lot to say before its answer
SLACK_S = 10.0  # more than a busy machine adds, and less than what another deadline would
# How long a callback may take, in readings of the yardstick. Measured: 1, and 10 for a large tool;
# without the guards 30 (a flood in one go), and 150 (a page in one go).
STALL = 5.0
TOOL_STALL = 40.0


@dataclass(frozen=True)
class Ends:
    """How a call has to end: in an answer, or in a code."""

    code: Code | None = None
    dispatched: bool = True
    says: str | None = "here"
    effects: int = 0
    details: dict[str, Any] = field(default_factory=dict)
    retry_after_s: float | None = None
    deadline_s: float = DEADLINE_S


OK = Ends()
LATE = Ends(Code.CALL_TIMEOUT, deadline_s=LATE_S)
LOST = Ends(Code.SESSION_LOST)
NONSENSE = Ends(Code.PROTOCOL_ERROR)
TOO_LARGE = Ends(Code.RESULT_TOO_LARGE, deadline_s=LONGER_S)
TOO_MUCH = Ends(Code.LIMIT_EXCEEDED)
TALKATIVE = Ends(deadline_s=LONGER_S)
GONE = Ends(Code.SESSION_LOST, dispatched=False)


def refused(code: Code, status: int, retry_after_s: float | None = None) -> Ends:
    dispatched = code in {Code.UPSTREAM_FAILED, Code.TOOL_REFUSED}
    details = {"status": status}
    return Ends(code, dispatched=dispatched, details=details, retry_after_s=retry_after_s)


CALLS: dict[str, Ends | dict[Face, Ends]] = {
    "behave": OK,
    "die_before_effect": LOST,
    "die_after_effect": replace(LOST, effects=1),
    "exit_0": {"stdio": replace(LOST, details={"exit_code": 0}), "http": LOST, "http-legacy": LOST},
    "reset": LOST,
    "short_body": LOST,
    "close_stdout": LOST,
    "hang": LATE,
    "keep_alives": LATE,
    "half_line": LATE,
    "chunked_stall": LATE,
    "refusal_stall": refused(Code.UPSTREAM_FAILED, 502),
    "stop_reading": OK,
    "wrong_id": LATE,
    "ask_for_ever": LATE,
    "garbage": {"stdio": OK, "http": LOST, "http-legacy": LOST},
    "banner": OK,
    "bom": {"stdio": OK, "http": NONSENSE, "http-legacy": NONSENSE},
    "nul": {"stdio": OK, "http": NONSENSE, "http-legacy": NONSENSE},
    "invalid_utf8": {
        "stdio": replace(OK, says="he\ufffdre"),
        "http": NONSENSE,
        "http-legacy": NONSENSE,
    },
    "invalid_utf8_event": replace(OK, says="he\ufffdre"),
    "line_separator": replace(OK, says="he\u2028re"),
    "crlf": OK,
    "deep_json": {"stdio": LATE, "http": NONSENSE, "http-legacy": NONSENSE},
    "not_a_result": NONSENSE,
    "result_is_list": NONSENSE,
    "error_is_text": NONSENSE,
    "duplicate_id": OK,
    "future_id": OK,
    "string_id": OK,
    "progress_flood": TALKATIVE,
    "listing_flood": TALKATIVE,
    "question_flood": TALKATIVE,
    "stderr_flood": TALKATIVE,
    "empty_lines": TALKATIVE,
    "size_1mb": replace(TALKATIVE, says=None),
    "size_10mb": TOO_LARGE,
    "size_100mb": TOO_LARGE,
    "size_300mb": TOO_LARGE,
    "event_10mb": TOO_LARGE,
    "endless_line": TOO_LARGE,
    "endless_event": TOO_LARGE,
    "endless_comments": TOO_LARGE,
    "endless_events": LATE,
    "tiny_chunks": replace(TALKATIVE, says="x" * 50_000),
    "gzip_bomb": NONSENSE,
    "gzip_event": NONSENSE,
    "status_400": refused(Code.TOOL_REFUSED, 400),
    "status_401": refused(Code.CREDENTIAL_REJECTED, 401),
    "status_403": refused(Code.UPSTREAM_FORBIDDEN, 403),
    "status_404": {"http": refused(Code.UPSTREAM_NOT_FOUND, 404), "http-legacy": GONE},
    "status_409": refused(Code.UPSTREAM_CONFLICT, 409),
    "status_418": refused(Code.TOOL_REFUSED, 418),
    "status_429": refused(Code.RATE_LIMITED, 429, 7.0),
    "status_500": refused(Code.UPSTREAM_FAILED, 500),
    "status_502": refused(Code.UPSTREAM_FAILED, 502),
    "status_503": refused(Code.UPSTREAM_FAILED, 503, 2.0),
    "status_504": refused(Code.UPSTREAM_FAILED, 504),
    "redirect": replace(NONSENSE, dispatched=False, details={"status": 307}),
    "redirect_here": replace(NONSENSE, dispatched=False, details={"status": 307}),
    "accepted": replace(NONSENSE, details={"status": 202}),
    "html": NONSENSE,
    "forget_404": {"http": refused(Code.UPSTREAM_NOT_FOUND, 404), "http-legacy": GONE},
    "forget_400": {"http": refused(Code.TOOL_REFUSED, 400), "http-legacy": GONE},
    "forget_200": {"http": Ends(Code.TOOL_REFUSED), "http-legacy": GONE},
    "drop_events": LOST,
    "drop_then_answer": OK,
    "expire_token": LOST,
    "leak_fds": OK,
    "leak_memory": OK,
    "deaf": OK,
    "fork": replace(OK, says=None),
    "setsid": replace(OK, says=None),
}
UNAVAILABLE = Ends(Code.SERVER_UNAVAILABLE)
STARTS: dict[str, Ends] = {
    "slow_start": UNAVAILABLE,
    "initialize_error": UNAVAILABLE,
    "initialize_garbage": UNAVAILABLE,
    "version_mismatch": UNAVAILABLE,
    "start_banner": OK,
    "start_flood": UNAVAILABLE,
    "start_exit": UNAVAILABLE,
    "start_401": Ends(Code.CREDENTIAL_REJECTED),
    "start_403": Ends(Code.UPSTREAM_FORBIDDEN),
    "start_404": Ends(Code.UPSTREAM_NOT_FOUND),
    "start_429": Ends(Code.RATE_LIMITED, retry_after_s=7.0),
    "start_503": Ends(Code.SERVER_UNAVAILABLE, retry_after_s=2.0),
    "start_html": UNAVAILABLE,
    "half_open": UNAVAILABLE,
    "tls_reset": UNAVAILABLE,
    "tls_garbage": UNAVAILABLE,
    "endless_paging": NONSENSE,
    "repeated_cursor": NONSENSE,
    "fat_pages": TOO_MUCH,
    "endless_page": TOO_LARGE,
    "no_page": LATE,
    "many_tools": TOO_MUCH,
    "many_pages": TOO_MUCH,
    "many_bytes": NONSENSE,
    "hostile_page": OK,
    "page_is_list": NONSENSE,
    "large_page_is_list": NONSENSE,
    "tools_are_text": NONSENSE,
    "tools_are_texts": NONSENSE,
    "large_tools_are_texts": NONSENSE,
    "cursor_is_number": NONSENSE,
    "long_cursor": NONSENSE,
    "tools_change": Ends(Code.INVALID_ARGUMENTS),
    "streams_end": OK,
    "streams_flood": OK,
    "tells_early": OK,
    **{mode: OK for mode in MODES if mode.startswith("listen_")},
}
# What a refusal of a list of tools says: where it is wrong, or how much too large it is.
IN_LISTING = {
    "endless_paging": "has more than 200 pages (200 tools so far)",
    "repeated_cursor": "repeats a cursor (after 2 tools)",
    "fat_pages": "defines tool 'tool_0' in 1000066 bytes; 262144 are allowed",
    "endless_page": "larger than 10000000 bytes",
    "no_page": "did not answer tools/list in time",
    "many_tools": "lists 10000 tools or more; 2000 are allowed",
    "many_pages": "lists 2100 tools or more; 2000 are allowed",
    "many_bytes": "is larger than 10000000 bytes (100 tools so far)",
    "page_is_list": "result: Input should be an object",
    "large_page_is_list": "result: Input should be an object",
    "tools_are_text": "tools: Input should be a valid list",
    "tools_are_texts": "tools/0: Input should be a valid dictionary",
    "large_tools_are_texts": "result/tools/0: Input should be a valid dictionary",
    "cursor_is_number": "nextCursor: Input should be a valid string",
    "long_cursor": "result/nextCursor: String should have at most 10000 characters",
}
AFTERWARDS = {
    *IN_LISTING,
    "hostile_page",
    "tools_change",
    "streams_end",
    "streams_flood",
    "tells_early",
}
AT_HANDSHAKE = [
    mode for mode in STARTS if mode not in AFTERWARDS and not mode.startswith("listen_")
]
SOAK = {"size_300mb"}  # tests/soak
DEADLY = {"die_before_effect", "die_after_effect", "exit_0"}


def faces_of(mode: str) -> list[Face]:
    return [face for face in FACES if face.partition("-")[0] in MODES[mode].faces]


def alike(mode: str) -> bool:
    """Say whether a call of a mode ends the same over both revisions of HTTP."""
    ends = CALLS.get(mode)
    return not isinstance(ends, dict) or ends.get("http") == ends.get("http-legacy")


def cases(modes: list[str]) -> list[Any]:
    """Return each mode over each face; what ends alike over HTTP comes twice in the long run."""
    return [
        pytest.param(
            mode,
            face,
            marks=pytest.mark.long
            if face == "http-legacy" and "http" in faces_of(mode) and alike(mode)
            else (),
        )
        for mode in modes
        for face in faces_of(mode)
    ]


def expected(mode: str, face: Face) -> Ends:
    ends = CALLS[mode]
    return ends[face] if isinstance(ends, dict) else ends


# -- the servers


@pytest.fixture(scope="module")
async def reader(anyio_backend: str) -> AsyncIterator[LargeReader]:
    """What reads large results for a worker; it is warm, as a worker's is after the first one."""
    reader = LargeReader(longest_bytes=MAX_RESULT_BYTES)
    await reader.shrinking.ask({"job": "shrink", "event": False, "placeholder": {}}, b"{}")
    yield reader
    await reader.close()


@pytest.fixture(scope="module")
async def standing(
    anyio_backend: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[dict[Face, Faulty]]:
    """One HTTP server of each era for all modes that it survives."""
    folder = tmp_path_factory.mktemp("journals")
    async with AsyncExitStack() as stack:
        eras: tuple[Face, ...] = ("http", "http-legacy")
        yield {face: await stack.enter_async_context(faulty(face, folder / face)) for face in eras}


@asynccontextmanager
async def server_for(
    mode: str, face: Face, journal: Path, standing: dict[Face, Faulty], reader: LargeReader
) -> AsyncIterator[Faulty]:
    if face == "stdio" or mode in DEADLY:
        async with faulty(face, journal) as server:
            server.reader = reader
            yield server
    else:
        server = Faulty(standing[face].definition, standing[face].journal, reader)
        yield server
        await asyncio.gather(*(session.close() for session in server.sessions))


# -- the witnesses


class Neighbour:
    """A session with a healthy server that is used all along."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @asynccontextmanager
    async def in_use(self) -> AsyncIterator[None]:
        """Call all along; fail if one call failed, or none was made."""
        made = 0
        first = asyncio.Event()

        async def call() -> None:
            nonlocal made
            while True:
                result = await self._session.call_tool(
                    "echo", {"text": str(made)}, timeout_s=PATIENCE_S
                )
                assert result.body["content"][0]["text"] == str(made)
                made += 1
                first.set()
                await asyncio.sleep(0.02)

        calling = asyncio.create_task(call())
        try:
            yield
            async with asyncio.timeout(PATIENCE_S):
                await first.wait()
        finally:
            calling.cancel()
            with suppress(asyncio.CancelledError):
                await calling


@pytest.fixture(scope="module")
async def neighbour(anyio_backend: str) -> AsyncIterator[Neighbour]:
    session = await Session.open(
        over_stdio("sleeper.py", "--journal", os.devnull),
        connect_timeout_s=PATIENCE_S,
        stop_grace_s=2.0,
        max_result_bytes=MAX_RESULT_BYTES,
    )
    yield Neighbour(session)
    await session.close()


@pytest.fixture(scope="module", autouse=True)
def quiet_collector() -> Iterator[None]:
    """Keep what the tests themselves hold out of the collector's pauses, as a worker does."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


async def call(session: Session, mode: str, deadline_s: float = DEADLINE_S) -> Any:
    async def on_progress(done: float, total: float | None, message: str | None) -> None:
        await asyncio.sleep(0)

    return await session.call_tool(mode, {}, timeout_s=deadline_s, on_progress=on_progress)


def read(large: LargeResult) -> dict[str, Any]:
    message = message_of(large.raw, event=large.event)
    assert message is not None
    return message["result"]  # type: ignore[no-any-return]


async def ends_as(ends: Ends, session: Session, mode: str) -> None:
    """Make a call; it has to end as expected, in time."""
    started = time.monotonic()
    if ends.code is None:
        result = await call(session, mode, ends.deadline_s)
        if ends.says is not None:
            text = read(result.large) if result.large else result.body
            assert text["content"][0]["text"] == ends.says
    else:
        with pytest.raises(CallError) as caught:
            await call(session, mode, ends.deadline_s)
        error = caught.value
        assert (error.code, error.dispatched) == (ends.code, ends.dispatched), error.message
        assert ends.details.items() <= error.details.items()
        assert error.retry_after_s == ends.retry_after_s
        assert "faulty" in error.message
    assert time.monotonic() - started < ends.deadline_s + SLACK_S


# -- the tests


@requirement("faults:all-modes")
def test_every_misbehaviour_has_an_expected_end() -> None:
    at_start = {name for name, mode in MODES.items() if mode.at == "start"}
    assert (set(CALLS), set(STARTS)) == (set(MODES) - at_start, at_start)
    for mode, ends in CALLS.items():
        assert not isinstance(ends, dict) or list(ends) == faces_of(mode)


@requirement(
    "faults:typed-in-time", "faults:loop-runs-on", "faults:neighbours", "session:http-status"
)
@pytest.mark.parametrize(("mode", "face"), cases([mode for mode in CALLS if mode not in SOAK]))
async def test_a_misbehaving_server_costs_its_own_call_only(
    mode: str,
    face: Face,
    tmp_path: Path,
    standing: dict[Face, Faulty],
    reader: LargeReader,
    neighbour: Neighbour,
) -> None:
    ends = expected(mode, face)
    for attempt in attempts(most=STALL):
        async with server_for(mode, face, tmp_path / "journal", standing, reader) as server:
            session = await server.open()
            await call(session, "behave", PATIENCE_S)
            effects = server.count("effect")
            async with neighbour.in_use():
                with attempt:
                    await ends_as(ends, session, mode)
            assert server.count("effect") - effects == ends.effects
            if ends.code is None and mode != "stop_reading":
                assert not session.poisoned
                await ends_as(OK, session, "behave")


@requirement("metrics:server-time")
async def test_the_time_that_a_server_reports_comes_with_its_result(
    standing: dict[Face, Faulty], tmp_path: Path, reader: LargeReader
) -> None:
    async with server_for("timed", "http", tmp_path / "journal", standing, reader) as server:
        session = await server.open()
        timed, untimed = await call(session, "timed"), await call(session, "behave")
    assert timed.server_s == 0.00025
    assert untimed.server_s is None


@requirement("faults:typed-in-time", "session:http-status")
@pytest.mark.parametrize(("mode", "face"), cases(AT_HANDSHAKE))
async def test_a_server_that_cannot_be_opened_says_why_in_time(
    mode: str, face: Face, tmp_path: Path, neighbour: Neighbour
) -> None:
    ends = STARTS[mode]
    scheme = "https" if mode.startswith("tls_") else "http"
    async with faulty(face, tmp_path / "journal", "--start", mode, scheme=scheme) as server:
        limit_s = LATE_S if mode in {"slow_start", "half_open"} else PATIENCE_S
        async with neighbour.in_use():
            started = time.monotonic()
            if ends.code is None:
                await call(await server.open(), "behave", PATIENCE_S)
            else:
                with pytest.raises(FleetError, match="server faulty") as caught:
                    await server.open(connect_timeout_s=limit_s)
                error = caught.value
                assert (error.code, error.retry_after_s) == (ends.code, ends.retry_after_s)
                if mode[-3:].isdigit():
                    assert f"HTTP {mode[-3:]}" in error.message
            assert time.monotonic() - started < limit_s + SLACK_S


@requirement("listing:bounded", "faults:loop-runs-on", "faults:neighbours")
@pytest.mark.parametrize(("mode", "face"), cases(list(IN_LISTING)))
async def test_a_list_of_tools_that_cannot_be_taken_says_what_is_wrong_with_it(
    mode: str,
    face: Face,
    tmp_path: Path,
    reader: LargeReader,
    neighbour: Neighbour,
) -> None:
    limit_s = LATE_S if mode == "no_page" else PATIENCE_S
    for attempt in attempts(most=STALL):
        async with faulty(face, tmp_path / "journal", "--start", mode) as server:
            server.reader = reader
            session = await server.open(connect_timeout_s=limit_s)
            async with neighbour.in_use():
                with attempt, pytest.raises(FleetError) as caught:
                    await session.list_tools()
    assert caught.value.code is STARTS[mode].code, caught.value.message
    assert IN_LISTING[mode] in caught.value.message
    assert "server faulty" in caught.value.message


@requirement("listing:bounded", "faults:loop-runs-on")
@pytest.mark.parametrize(("mode", "face"), cases(["hostile_page"]))
async def test_a_large_page_of_the_worst_json_is_taken_without_holding_the_loop(
    mode: str, face: Face, tmp_path: Path, reader: LargeReader
) -> None:
    async with faulty(face, tmp_path / "journal", "--start", mode) as server:
        server.reader = reader
        session = await server.open()
        for attempt in attempts(most=TOOL_STALL):
            with attempt:
                tools = await session.list_tools()
    assert [tool["name"] for tool in tools] == [f"tool_{n}" for n in range(24)]
    assert all(len(tool["inputSchema"]["x-worst"]) == 60_000 for tool in tools)


@requirement("faults:typed-in-time")
@pytest.mark.parametrize(("mode", "face"), cases(["tools_change"]))
async def test_a_tool_that_is_gone_since_it_was_listed_is_refused(
    mode: str, face: Face, tmp_path: Path
) -> None:
    async with faulty(face, tmp_path / "journal", "--start", mode) as server:
        session = await server.open()
        assert "behave" in {tool["name"] for tool in await session.list_tools()}
        with pytest.raises(CallError) as caught:
            await call(session, "behave")
    assert caught.value.code is STARTS[mode].code


@requirement("faults:reconnects")
@pytest.mark.parametrize("face", ["http", "http-legacy"])
async def test_no_call_opens_more_than_five_event_streams(face: Face, tmp_path: Path) -> None:
    async with faulty(face, tmp_path / "journal") as server:
        session = await server.open()
        await ends_as(LOST, session, "drop_events")
        assert server.count("get again") == 5


@requirement("faults:reconnects")
async def test_no_session_opens_more_than_five_streams_of_notifications(tmp_path: Path) -> None:
    async with faulty("http-legacy", tmp_path / "journal", "--start", "streams_end") as server:
        session = await server.open()
        await until(lambda: server.count("get") + server.count("get again") >= 5)
        for _ in range(20):  # each is a chance for one GET too many: they come every 10 ms
            await ends_as(OK, session, "behave")
            await asyncio.sleep(0.01)
        assert server.count("get") + server.count("get again") == 5


@requirement("session:times-out")
async def test_a_call_to_a_server_that_stopped_reading_ends_in_time(tmp_path: Path) -> None:
    async with faulty("stdio", tmp_path / "journal") as server:
        session = await server.open()
        await ends_as(OK, session, "stop_reading")
        started = time.monotonic()
        with pytest.raises(CallError) as caught:
            # More than any pipe holds, so that writing it has to wait.
            await session.call_tool("behave", {"text": "x" * 5_000_000}, timeout_s=LATE_S)
        assert time.monotonic() - started < LATE_S + SLACK_S
        assert (caught.value.code, caught.value.dispatched) == (Code.CALL_TIMEOUT, True)


@requirement("session:lost-or-refused")
@pytest.mark.parametrize(
    ("mode", "ends"),
    [
        ("forget_404", refused(Code.UPSTREAM_NOT_FOUND, 404)),
        ("forget_400", refused(Code.TOOL_REFUSED, 400)),
        ("forget_200", Ends(Code.TOOL_REFUSED)),
    ],
)
async def test_a_session_that_never_worked_is_refused_not_lost(
    mode: str, ends: Ends, standing: dict[Face, Faulty]
) -> None:
    server = Faulty(standing["http-legacy"].definition, standing["http-legacy"].journal)
    session = await server.open()
    await ends_as(ends, session, mode)
    await session.close()


@requirement("session:tells-the-listing-changed")
async def test_however_often_a_listing_changes_every_time_is_heard_at_once(
    standing: dict[Face, Faulty],
) -> None:
    server = Faulty(standing["http"].definition, standing["http"].journal)
    session = await server.open()
    told = 0

    def tell() -> None:
        nonlocal told
        told += 1

    session.on_listing_changed = tell
    await ends_as(TALKATIVE, session, "listing_flood")
    assert told == 10_000
    await session.close()
