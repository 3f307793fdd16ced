"""Measure tool search: what it finds among real tools, and how long it takes among 10,000.

``make search-eval``, or ``python -m tests.bench.search_recall [SPLIT]`` to see the misses of
another split than ``tune``: whoever looks at them has used that split up.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import text

from compose.embedded import EmbeddedPostgres
from compose.migrate import upgrade_database
from registry.database import Database
from registry.selection import rank
from tests.tool_search import (
    Answer,
    answers,
    hits,
    intents,
    listings,
    load,
    mean_reciprocal_rank,
    names,
    recall,
)

SHOWN = 20
MANY = 10_000
QUERIES = 200

# Copies of the real tools, each a little different, in some 200 servers.
VARY = """
    INSERT INTO tool_versions (server_name, name, digest, definition)
    SELECT server_name || '-' || copy / 5, name || '_' || copy, digest || copy,
        jsonb_set(definition, '{description}',
            to_jsonb(concat(definition->>'description', ' Edition ', copy, '.')))
    FROM tool_versions, generate_series(0, 12) AS copy ORDER BY copy, id LIMIT :many
"""
SHARED = """
    SELECT EXISTS (
        SELECT FROM tool_terms JOIN tool_versions ON id = tool_version_id
        WHERE lexeme = ANY (tsvector_to_array(to_tsvector('english', :intent)))
            AND server_name || '/' || name = ANY (:tools))
"""
VARIED_SERVERS = """
    INSERT INTO servers (name)
    SELECT name || '-' || copy FROM servers, generate_series(0, 2) AS copy
"""


async def measure(url: str, shown: str) -> None:
    database = Database(url, application="toolfleet search-eval")
    try:
        named = await load(database)
        print(f"{len(named)} tools of {len(listings())} servers")
        for split in sorted({intent.split for intent in intents()}):
            given = await answers(_searcher(database, list(named), 100), named, intents(split))
            report(split, given)
            await report_shared(database, given)
            if split == shown:
                print_misses(given)
        await measure_speed(database, list(named))
    finally:
        await database.close()


def _searcher(database: Database, ids: Sequence[int], limit: int):
    async def search(intent: str) -> list[int]:
        async with database.transaction() as connection:
            return await rank(connection, ids, intent, limit)

    return search


def report(split: str, given: Sequence[Answer]) -> None:
    recalls = "  ".join(f"recall@{k} {recall(given, k):.3f}" for k in (1, 5, 10))
    found = f"one of them in 10 {hits(given, 10):.3f}  MRR {mean_reciprocal_rank(given):.3f}"
    print(f"{split:9} {len(given)} intents  {recalls}  {found}")


async def report_shared(database: Database, given: Sequence[Answer]) -> None:
    """Tell the intents that share a word with a right tool from those that share none."""
    shared, strange = [], []
    async with database.transaction() as connection:
        for answer in given:
            asked = {"intent": answer.intent.text, "tools": list(answer.intent.tools)}
            known = (await connection.execute(text(SHARED), asked)).scalar_one()
            (shared if known else strange).append(answer)
    print(
        f"          a word in common: {len(shared)} intents, recall@10 {recall(shared, 10):.3f};"
        f" none: {len(strange)}, {recall(strange, 10):.3f}"
    )


def print_misses(given: Sequence[Answer]) -> None:
    for answer in sorted(given, key=lambda it: (it.recall(10), it.recall(50)))[:SHOWN]:
        wanted = ", ".join(sorted(answer.intent.tools))
        print(f"  {answer.intent.text!r}: {wanted} at {answer.places or 'no place'}")
        print(f"      first: {', '.join(answer.found[:3])}")


async def measure_speed(database: Database, real: Sequence[int]) -> None:
    async with database.transaction() as connection:
        await connection.execute(text(VARIED_SERVERS))
        await connection.execute(text(VARY), {"many": MANY})
    async with database.engine.connect() as connection:
        settled = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await settled.execute(text("VACUUM ANALYZE tool_terms"))
    ids = sorted((await names(database)).keys() - set(real))
    assert len(ids) == MANY
    took_ms = []
    asked = [intent.text for intent in intents()][:QUERIES]
    async with database.transaction() as connection:
        for intent in (*asked[:10], *asked):  # the first ones warm the connection
            begun = time.perf_counter()
            await rank(connection, ids, intent, 10)
            took_ms.append((time.perf_counter() - begun) * 1e3)
    took_ms = sorted(took_ms[10:])
    p50, p95 = took_ms[QUERIES // 2], took_ms[QUERIES * 95 // 100]
    print(f"{MANY} tools: p50 {p50:.1f} ms, p95 {p95:.1f} ms over {QUERIES} intents", end="")
    print(f" (load average {os.getloadavg()[0]:.1f})")


async def main() -> None:
    shown = sys.argv[1] if sys.argv[1:] else "tune"
    with tempfile.TemporaryDirectory(prefix="toolfleet-search-") as folder:
        postgres = EmbeddedPostgres(Path(folder))
        url = await postgres.start()
        try:
            await asyncio.to_thread(upgrade_database, url)
            await measure(url, shown)
        finally:
            await postgres.stop()


if __name__ == "__main__":
    asyncio.run(main())
