"""Killed at any instant, a process leaves no change without its entry, and its chains whole."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
from pathlib import Path

import pytest

from registry.checkpoint_file import CheckpointFile
from registry.database import Database
from registry.export import Wanted, verify
from registry.findings import Verdict
from registry.settings import Settings
from registry.signing import make_key, public_file, read_public_keys
from tests.audit_writer import work
from tests.ledger import Ledger
from tests.requirements import requirement
from tests.waiting import until
from workers.notary import Notary

pytestmark = pytest.mark.anyio

KILLS = int(os.environ.get("TOOLFLEET_KILLS", "300"))

# What the entries about each call tell: how often it was queued and claimed, and where it is.
STORIES = """
    SELECT c.id FROM calls c LEFT JOIN LATERAL (
        SELECT count(*) FILTER (WHERE event = 'call.running') AS claims,
            count(*) FILTER (WHERE event = 'call.queued') AS queued,
            count(*) FILTER (WHERE event IN ('call.succeeded', 'call.failed', 'call.stopped'))
                AS ends,
            (array_agg(event ORDER BY a.id DESC) FILTER (WHERE event <> 'call.stop_requested'))[1]
                AS last
        FROM audit a WHERE a.call_id = c.id) t ON true
    WHERE t.claims IS DISTINCT FROM c.fence OR t.last IS DISTINCT FROM 'call.' || c.state
        OR t.ends <> (c.ended_at IS NOT NULL)::int
        OR t.queued <> 1 + c.fence - (c.state <> 'queued' AND c.fence > 0)::int
"""
STRAYS = """
    SELECT a.id FROM audit a LEFT JOIN calls c ON c.id = a.call_id
    WHERE a.call_id IS NOT NULL AND c.id IS NULL
"""


async def kill_in_a_loop(database: Database, url: str, folder: Path, times: int) -> int:
    """Start and kill a writer; return how many entries there are at last."""
    ledger = await Ledger.open(database)
    make_key(folder / "audit.key")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.audit_writer"])
    draw = random.Random(times)
    for seed in range(times):
        (folder / "working").unlink(missing_ok=True)
        writer = context.Process(target=work, args=(url, str(folder), seed), daemon=True)
        writer.start()
        await until((folder / "working").exists, every_s=0.005)
        await asyncio.sleep(draw.random() * 0.15)  # the instant of the kill is what is varied
        writer.kill()
        await asyncio.to_thread(writer.join)
    assert await ledger.sql(STORIES) == []
    assert await ledger.sql(STRAYS) == []
    settings = Settings(
        audit_key_file=folder / "audit.key", audit_checkpoints=folder / "checkpoints.jsonl"
    )
    notary = Notary(settings, database)
    for _ in range(2):  # that a key signs for the first time is an entry, too
        await notary.seal_audit()
        await notary.sign_audit()
    outside = CheckpointFile(settings.audit_checkpoints_path).lines()
    keys = read_public_keys(public_file(settings.audit_key_path))
    (*_, verdict) = [news async for news in verify(database, Wanted(), keys, outside)]
    assert isinstance(verdict, Verdict)
    assert (verdict.problems, verdict.unsealed) == ([], 0)
    return verdict.entries


@requirement("audit:kill-9")
async def test_a_killed_process_leaves_neither_a_change_nor_an_entry_alone(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    assert await kill_in_a_loop(database, database_url, tmp_path, 4) > 20


@requirement("audit:kill-9")
@pytest.mark.long
@pytest.mark.timeout(3600)
async def test_hundreds_of_killed_processes_leave_neither(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    assert await kill_in_a_loop(database, database_url, tmp_path, KILLS) > KILLS * 10
