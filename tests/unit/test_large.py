"""Large messages are read by a process of their own, whatever is in them or befalls it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from registry.errors import Code, FleetError
from tests.requirements import requirement
from tests.waiting import until
from workers import large
from workers.large import LargeMessages, LargeReader, LargeResult
from workers.large_http import EventBuffer
from workers.listing import RESOURCES

pytestmark = pytest.mark.anyio

HOLDER = Path(__file__).parents[1] / "servers" / "large_holder.py"
MAIL = "jane.doe@example.com"


@pytest.fixture(scope="module")
async def reader(anyio_backend: str) -> AsyncIterator[LargeReader]:
    reader = LargeReader(longest_bytes=10_000_000)
    yield reader
    await reader.close()


def message(result: Any, **rest: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 7, "result": result, **rest}).encode()


def said(text: str, **rest: Any) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": text}], **rest}


def large_result(result: Any, secret: str | None = None) -> LargeResult:
    raw = message(result)
    return LargeResult(raw, event=False, size_bytes=len(raw), secrets=(secret,) if secret else ())


# -- what the SDK gets in its place


@requirement("large:never-read-here")
async def test_a_small_message_stands_for_a_large_one(reader: LargeReader) -> None:
    messages = LargeMessages(reader, ())
    raw = message(said("x" * 300_000, isError=True, resultType="complete"))
    small = json.loads(await messages.shrink(raw))
    assert (small["jsonrpc"], small["id"]) == ("2.0", 7)
    assert (small["result"]["content"], small["result"]["isError"]) == ([], True)
    assert small["result"]["resultType"] == "complete"
    taken = messages.take(small["result"])
    assert taken is not None
    compact = raw.replace(b": ", b":").replace(b", ", b",").partition(b'"result":')[2]
    assert (taken.raw, taken.size_bytes) == (raw, len(compact) - 1)


@requirement("large:never-read-here")
async def test_no_result_of_a_server_passes_for_a_kept_one(reader: LargeReader) -> None:
    mine, others = LargeMessages(reader, ()), LargeMessages(reader, ())
    small = json.loads(await mine.shrink(message(said("x" * 300_000))))["result"]
    assert others.take(small) is None
    assert mine.take(said("hello")) is None


@requirement("large:never-read-here")
async def test_unasked_results_are_not_kept_without_end(reader: LargeReader) -> None:
    messages = LargeMessages(reader, ())
    first = json.loads(await messages.shrink(message(said("first"))))["result"]
    for _ in range(large.MOST_HELD):
        await messages.shrink(message(said("unasked")))
    with pytest.raises(FleetError) as refused:
        messages.take(first)
    assert refused.value.code is Code.PROTOCOL_ERROR


@requirement("large:never-read-here")
@pytest.mark.parametrize(
    "raw",
    [
        b'{"jsonrpc": "2.0", "method": "notifications/x", "params": {"x": "y"}}',
        b'{"jsonrpc": "2.0", "id": null, "result": [1, 2]}',
        b'{"jsonrpc": "2.0", "id": true, "result": [1, 2]}',
        b'{"jsonrpc": "2.0", "id": 1}',
        b"[" * 100_000,
        b"a banner",
        b"",
    ],
)
async def test_what_is_no_response_is_dropped(reader: LargeReader, raw: bytes) -> None:
    assert await LargeMessages(reader, ()).shrink(raw) == b""


@requirement("listing:bounded")
@pytest.mark.parametrize("member", ["result", "error"])
async def test_a_large_answer_that_is_none_ends_its_request(
    reader: LargeReader, member: str
) -> None:
    raw = json.dumps({"jsonrpc": "2.0", "id": 7, member: ["x"] * 100_000}).encode()
    instead = json.loads(await LargeMessages(reader, ()).shrink(raw))
    assert (instead["id"], instead["error"]["code"]) == ("7", -32700)
    assert instead["error"]["message"].endswith(f"{member}: Input should be an object")


@requirement("large:never-read-here")
async def test_a_large_error_is_cut_short(reader: LargeReader) -> None:
    error = {"code": -32000, "message": "no " * 100_000, "data": ["x"] * 100_000}
    raw = json.dumps({"jsonrpc": "2.0", "id": "a", "error": error}).encode()
    small = json.loads(await LargeMessages(reader, ()).shrink(raw))
    assert (small["id"], small["error"]["code"], small["error"]["data"]) == ("a", -32000, [])
    assert len(small["error"]["message"]) == 1000


@requirement("large:never-read-here")
async def test_an_event_keeps_its_type_and_id(reader: LargeReader) -> None:
    messages = LargeMessages(reader, ())
    lines = json.dumps(json.loads(message(said("x" * 300_000))), indent=1).encode().split(b"\n")
    event = b"event: message\nid: 41\n" + b"".join(b"data: %b\n" % line for line in lines) + b"\n"
    small = await messages.shrink(event, event=True)
    assert small.startswith(b"event: message\nid: 41\ndata: {")
    assert small.endswith(b"}\n\n")
    taken = messages.take(json.loads(small.partition(b"data: ")[2])["result"])
    assert taken is not None
    assert b"x" * 300_000 in (await reader.finish(taken, "big", None)).encoded


@requirement("large:never-read-here")
@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_come_out_whole_however_they_are_cut(newline: bytes, size: int) -> None:
    lines = [b": ping", b"", b"id: 1", b"data: a", b"", b"", b"data: b", b"data: c", b"", b"data"]
    stream = b"".join(line + newline for line in lines)
    events = EventBuffer()
    wholes = [
        whole
        for start in range(0, len(stream), size)
        for whole in events.feed(stream[start : start + size])
    ]
    found = [text.strip(b"\n") for whole in wholes for text in whole.split(b"\n\n")]
    assert [text for text in found if text] == [b": ping", b"id: 1\ndata: a", b"data: b\ndata: c"]


# -- what its caller gets


@requirement("large:checked-and-redacted")
async def test_a_large_result_is_redacted_from_end_to_end(reader: LargeReader) -> None:
    filler = "so many words " * 30_000
    clean = await reader.finish(large_result(said(f"{filler}{MAIL} {filler}")), "find", None)
    assert json.loads(clean.encoded) == said(f"{filler}[email] {filler}")
    assert clean.sha256 == hashlib.sha256(clean.encoded).hexdigest()
    assert (clean.is_error, clean.structured) == (False, False)
    assert clean.preview == filler[:1000]


@requirement("large:checked-and-redacted")
async def test_the_sessions_secret_is_scrubbed(reader: LargeReader) -> None:
    secret = "s3cret-of-acme"
    clean = await reader.finish(large_result(said(f"it is {secret}"), secret), "t", None)
    assert json.loads(clean.encoded) == said("it is [credential]")


@requirement("large:checked-and-redacted")
async def test_a_large_result_is_held_to_its_schema(reader: LargeReader) -> None:
    schema = {"type": "object", "properties": {"rows": {"items": {"type": "integer"}}}}
    rows: list[Any] = list(range(50_000))
    good = large_result(said("", structuredContent={"rows": rows}))
    assert (await reader.finish(good, "rows", schema)).structured
    bad = large_result(said("", structuredContent={"rows": [*rows, MAIL]}))
    with pytest.raises(FleetError) as refused:
        await reader.finish(bad, "rows", schema)
    assert refused.value.code is Code.RESULT_INVALID
    assert refused.value.details == {"paths": ["$.rows[50000]"]}
    assert MAIL not in str(refused.value.as_dict())


@requirement("large:checked-and-redacted")
@pytest.mark.parametrize(
    ("content", "code"),
    [("NaN", Code.RESULT_INVALID), ("[" * 100 + "]" * 100, Code.REDACTION_FAILED)],
)
async def test_a_result_that_cannot_be_kept_is_refused(
    reader: LargeReader, content: str, code: Code
) -> None:
    raw = b'{"jsonrpc": "2.0", "id": 1, "result": {"content": %b}}' % content.encode()
    with pytest.raises(FleetError) as refused:
        await reader.finish(LargeResult(raw, event=False, size_bytes=9), "t", None)
    assert refused.value.code is code
    assert (await reader.finish(large_result(said("next")), "t", None)).preview == "next"


@requirement("large:lists-of-tools")
async def test_a_large_page_of_tools_is_read_as_it_came(reader: LargeReader) -> None:
    page = {"tools": [{"name": "ä" * 1000, "x": n} for n in range(900)], "nextCursor": "n"}
    read = await reader.read_page(large_result(page), "crm")
    assert (read.items, read.cursor) == (page["tools"], "n")


@requirement("large:lists-of-tools")
async def test_so_is_a_large_page_of_another_list(reader: LargeReader) -> None:
    page = {"resources": [{"uri": "test://x", "name": "x" * 1000}] * 100}
    read = await reader.read_page(large_result(page), "crm", RESOURCES)
    assert read.items == page["resources"]


@requirement("large:lists-of-tools", "large:checked-and-redacted")
async def test_a_large_page_of_tools_betrays_no_secret(reader: LargeReader) -> None:
    page = {"tools": [{"name": "x" * 1000, "description": "with s3cret"}] * 100}
    large = large_result(page, "s3cret")
    read = await reader.read_page(large, "crm")
    assert {tool["description"] for tool in read.items} == {"with [credential]"}


# -- when its process fails


async def stopped_in_a_job(reader: LargeReader) -> asyncio.Task[Any]:
    """Begin a job that its process, which is stopped, cannot end."""
    await reader.finish(large_result(said("first")), "t", None)
    assert reader.finishing.pid is not None
    os.kill(reader.finishing.pid, signal.SIGSTOP)
    job = asyncio.create_task(reader.finish(large_result(said("x" * 300_000)), "hold", None))
    await until(lambda: reader.finishing.busy)
    return job


@requirement("large:fails-alone")
async def test_a_process_killed_in_a_job_costs_that_job_alone(reader: LargeReader) -> None:
    job = await stopped_in_a_job(reader)
    following = asyncio.create_task(reader.finish(large_result(said("after")), "t", None))
    assert reader.finishing.pid is not None
    os.kill(reader.finishing.pid, signal.SIGKILL)
    with pytest.raises(FleetError, match="of hold is withheld") as refused:
        await job
    assert refused.value.code is Code.REDACTION_FAILED
    assert (await following).preview == "after"


@requirement("large:fails-alone")
async def test_a_job_that_takes_too_long_is_given_up(
    reader: LargeReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    await reader.finish(large_result(said("first")), "t", None)
    assert reader.finishing.pid is not None
    os.kill(reader.finishing.pid, signal.SIGSTOP)
    with monkeypatch.context() as patch:
        patch.setattr(large, "JOB_LIMIT_S", 0.2)
        with pytest.raises(FleetError, match=r"took longer than 0.2 s; the result of hold"):
            await reader.finish(large_result(said("x" * 300_000)), "hold", None)
    assert (await reader.finish(large_result(said("after")), "t", None)).preview == "after"


@requirement("large:fails-alone")
async def test_a_cancelled_caller_takes_nothing_along(reader: LargeReader) -> None:
    job = await stopped_in_a_job(reader)
    pid = reader.finishing.pid
    assert pid is not None
    job.cancel()
    os.kill(pid, signal.SIGCONT)
    assert (await reader.finish(large_result(said("after")), "t", None)).preview == "after"
    assert reader.finishing.pid == pid


@requirement("large:fails-alone")
async def test_a_result_that_needs_too_much_memory_is_refused() -> None:
    reader = LargeReader(longest_bytes=1)
    raw = b'{"jsonrpc": "2.0", "id": 1, "result": {"x": [%b0]}}' % (b"[[[[]]]]," * 1_000_000)
    try:
        with pytest.raises(FleetError) as refused:
            await LargeMessages(reader, ()).shrink(raw)
        assert refused.value.code is Code.RESULT_TOO_LARGE
        assert (await reader.finish(large_result(said("after")), "t", None)).preview == "after"
    finally:
        await reader.close()


# -- when time is short


@requirement("large:in-time")
async def test_a_result_does_not_wait_beyond_its_calls_time(reader: LargeReader) -> None:
    job = await stopped_in_a_job(reader)
    assert reader.finishing.pid is not None
    with pytest.raises(FleetError, match="of late is withheld") as refused:
        await reader.finish(large_result(said("x")), "late", None, timeout_s=0.1)
    assert refused.value.code is Code.REDACTION_FAILED
    os.kill(reader.finishing.pid, signal.SIGCONT)
    await job


@requirement("large:in-time")
async def test_a_result_is_not_read_beyond_its_calls_time(reader: LargeReader) -> None:
    await reader.finish(large_result(said("first")), "t", None)
    assert reader.finishing.pid is not None
    os.kill(reader.finishing.pid, signal.SIGSTOP)
    with pytest.raises(FleetError, match=r"took longer than 0\.\d+ s; the result of late"):
        await reader.finish(large_result(said("x")), "late", None, timeout_s=0.2)
    assert (await reader.finish(large_result(said("after")), "t", None)).preview == "after"


@requirement("large:in-time")
async def test_a_message_on_its_way_does_not_wait_for_results_that_are_checked(
    reader: LargeReader,
) -> None:
    job = await stopped_in_a_job(reader)
    assert reader.finishing.pid is not None
    async with asyncio.timeout(20):
        assert await LargeMessages(reader, ()).shrink(message(said("x" * 300_000)))
    assert not job.done()
    os.kill(reader.finishing.pid, signal.SIGCONT)
    await job


@requirement("large:in-time")
async def test_nothing_of_a_message_is_kept_once_it_was_read(reader: LargeReader) -> None:
    raw = message(said("x" * 300_000))
    before = sys.getrefcount(raw)
    await reader.finish(LargeResult(raw, event=False, size_bytes=9), "t", None)
    await until(lambda: not reader.finishing.busy)
    assert sys.getrefcount(raw) == before
    assert reader.finishing._asking is None


@requirement("large:dies-with-its-worker")
@pytest.mark.parametrize("busy", ["idle", "busy"])
async def test_a_killed_worker_takes_the_process_along(busy: str) -> None:
    worker = await asyncio.create_subprocess_exec(
        sys.executable, str(HOLDER), busy, stdout=subprocess.PIPE
    )
    assert worker.stdout is not None
    pid = int(await worker.stdout.readline())
    worker.kill()
    await worker.wait()

    def gone() -> bool:
        with suppress(FileNotFoundError):
            stat = Path(f"/proc/{pid}/stat").read_text()
            return stat.rpartition(")")[2].split()[0] in "ZX"
        return True

    await until(gone, within_s=3)
