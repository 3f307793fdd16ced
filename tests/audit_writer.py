"""A process that moves calls along and seals their audit until somebody kills it."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from registry import calls
from registry.calls import CallState, Ending, Submitted
from registry.database import Database
from registry.settings import Settings
from tests.ledger import Ledger, start
from workers.notary import Notary

ENDS = (CallState.SUCCEEDED, CallState.FAILED, CallState.STOPPED, CallState.QUEUED)


def work(url: str, folder: str, seed: int) -> None:
    """Submit, claim, end and stop calls, and seal and sign, for ever."""
    asyncio.run(_work(url, Path(folder), random.Random(seed)))


async def _work(url: str, folder: Path, draw: random.Random) -> None:
    settings = Settings(
        audit_key_file=folder / "audit.key", audit_checkpoints=folder / "checkpoints.jsonl"
    )
    database = Database(url)
    ledger = Ledger(database, await start(database), Settings())
    notary = Notary(settings, database)
    at_work = folder / "working"
    await asyncio.gather(*(_move(ledger, draw, at_work) for _ in range(3)), _attest(notary))


async def _move(ledger: Ledger, draw: random.Random, at_work: Path) -> None:
    worker = f"worker-{draw.random()}"
    while True:
        wanted = [ledger.new(draw.choice(["look", "put"])) for _ in range(draw.randrange(1, 5))]
        answers = await calls.submit(ledger.database, wanted)
        ids = [it.id for it in answers if isinstance(it, Submitted)]
        await calls.stop(ledger.database, ids[:1], actor="key:1")
        claims = [it for it in await calls.claim(ledger.database, worker, ids) if it]
        endings = [Ending(it.id, it.fence, draw.choice(ENDS)) for it in claims]
        await calls.finish(ledger.database, worker, endings)
        at_work.touch()


async def _attest(notary: Notary) -> None:
    while True:
        await notary.seal_audit()
        await notary.sign_audit()
