"""Replies far over the limit, by their hundreds of megabytes: refused without being kept.

``make soak``.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from registry.errors import Code
from tests.faulty import FACES, MAX_RESULT_BYTES, PATIENCE_S, Face, faulty
from tests.requirements import requirement
from workers.session import CallError, Session

pytestmark = [pytest.mark.anyio, pytest.mark.soak]

SOAK_S = 55.0
CALLS_AT_ONCE = 20


def resident_bytes(name: str) -> int:
    """Return a figure of this process's memory: VmRSS is now, VmHWM the most since it was reset."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[name].split()[0]) * 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


async def refused(session: Session, mode: str) -> None:
    with pytest.raises(CallError) as caught:
        await session.call_tool(mode, {}, timeout_s=SOAK_S)
    assert caught.value.code is Code.RESULT_TOO_LARGE


@requirement("session:bounds-results")
@pytest.mark.parametrize("face", FACES)
async def test_a_reply_of_300_mb_takes_less_than_twice_the_limit(
    face: Face, tmp_path: Path
) -> None:
    async with faulty(face, tmp_path / "journal") as server:
        await refused(await server.open(), "size_300mb")  # so that what is needed is imported
        session = await server.open()
        await session.call_tool("behave", {}, timeout_s=PATIENCE_S)
        forget_peak()
        before = resident_bytes("VmRSS")
        await refused(session, "size_300mb")
        assert resident_bytes("VmHWM") - before < 2 * MAX_RESULT_BYTES


@requirement("session:bounds-results", "session:multiplexes")
async def test_replies_of_300_mb_at_once_take_less_than_twice_the_limit_each(
    tmp_path: Path,
) -> None:
    async with faulty("http", tmp_path / "journal") as server:
        session = await server.open()
        await refused(session, "size_300mb")
        forget_peak()
        before = resident_bytes("VmRSS")
        await asyncio.gather(*(refused(session, "size_300mb") for _ in range(CALLS_AT_ONCE)))
        assert resident_bytes("VmHWM") - before < 2 * MAX_RESULT_BYTES * CALLS_AT_ONCE


@requirement("session:survives-noise")
@pytest.mark.parametrize("face", FACES)
async def test_100_000_reports_of_progress_are_told_and_the_answer_comes(
    face: Face, tmp_path: Path
) -> None:
    told: list[float] = []

    async def on_progress(done: float, total: float | None, message: str | None) -> None:
        told.append(done)

    async with faulty(face, tmp_path / "journal") as server:
        session = await server.open()
        forget_peak()
        before, started = resident_bytes("VmRSS"), time.monotonic()
        for _ in range(10):
            result = await session.call_tool(
                "progress_flood", {}, timeout_s=SOAK_S, on_progress=on_progress
            )
            assert result.body["content"][0]["text"] == "here"
        assert time.monotonic() - started < SOAK_S
        assert resident_bytes("VmHWM") - before < 2 * MAX_RESULT_BYTES
    assert told[-1] > 0
