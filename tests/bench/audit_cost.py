"""What the audit costs: a call, the sealing of entries, and the verification of a million.

``make audit-bench`` prints it. Everything real: a durable Postgres, the statements of the ledger.
"""

from __future__ import annotations

import asyncio
import re
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from compose.embedded import EmbeddedPostgres
from compose.migrate import upgrade_database
from registry import calls, chain, sealing
from registry.calls import CallState, Ending
from registry.database import Database, to_json
from registry.export import Wanted, json_lines
from registry.signing import make_key, public_file, read_public_keys
from registry.verification import Verifier
from tests.ledger import WORKER, Ledger

CALLS = 2_000
ENTRIES = 100_000
MILLION = 1_000_000
LOGGED = re.compile(r", logged AS \(.*?\n    \)\n", re.DOTALL)
STATEMENTS = ("_SUBMIT", "_CLAIM", "_FINISH")


@contextmanager
def without_audit() -> Iterator[None]:
    """Run the ledger's statements without the part that writes entries."""
    whole = {name: getattr(calls, name) for name in STATEMENTS}
    for name, statement in whole.items():
        bare, count = LOGGED.subn("\n", statement)
        assert count == 1, name
        setattr(calls, name, bare)
    try:
        yield
    finally:
        for name, statement in whole.items():
            setattr(calls, name, statement)


async def one_call(ledger: Ledger) -> float:
    """Submit, claim and finish a call; return the milliseconds that it took."""
    call = ledger.new(arguments={"query": "what a call usually asks for", "limit": 10})
    begun = time.perf_counter()
    await calls.submit(ledger.database, [call])
    (claim,) = await calls.claim(ledger.database, WORKER, [call.id])
    assert claim is not None
    result = {"content": [{"type": "text", "text": "what it usually gives"}]}
    timings = {"borrow_s": 0.00012, "call_s": 0.0234, "queue_s": 0.0021}
    ending = Ending(claim.id, claim.fence, CallState.SUCCEEDED, result, False, timings=timings)
    await calls.finish(ledger.database, WORKER, [ending])
    return (time.perf_counter() - begun) * 1000


async def cost_of_a_call(ledger: Ledger) -> None:
    for _ in range(100):
        await one_call(ledger)
    with_it, without = [], []
    for _ in range(CALLS):  # by turns: whatever else goes on meets both alike
        with_it.append(await one_call(ledger))
        with without_audit():
            without.append(await one_call(ledger))
    p50, bare = statistics.median(with_it), statistics.median(without)
    p95, bare95 = (sorted(it)[int(len(it) * 0.95)] for it in (with_it, without))
    print(f"submit, claim and finish, p50  {p50:.2f} ms, without the audit {bare:.2f} ms")
    print(f"submit, claim and finish, p95  {p95:.2f} ms, without the audit {bare95:.2f} ms")
    print(f"what the audit costs a call    {p50 - bare:.2f} ms p50  (goal: at most 1)")


async def sealing_rate(ledger: Ledger, postgres: psutil.Process) -> None:
    await ledger.sql(
        "INSERT INTO audit (tenant_id, actor, event, run_id, call_id, details)"
        " SELECT 'tenant-' || n % 20, a.actor, a.event, a.run_id, a.call_id, a.details"
        " FROM generate_series(1, CAST(:count AS int)) n JOIN LATERAL (SELECT * FROM audit"
        "  WHERE event = 'call.succeeded' LIMIT 1) a ON true",
        count=ENTRIES,
    )
    cpu, servers, begun = own_cpu_s(), cpu_of(postgres), time.perf_counter()
    sealed = 0
    while count := await sealing.seal(ledger.database):
        sealed += count
    took, own = time.perf_counter() - begun, own_cpu_s() - cpu
    theirs = cpu_of(postgres) - servers
    print(f"sealing                        {sealed / took:,.0f} entries/s  (goal: over 2,000)")
    print(
        f"CPU of 2,000 entries/s         {own / sealed * 2e5:.1f} % of a core in the steward, "
        f"{theirs / sealed * 2e5:.1f} % in Postgres"
    )


def cpu_of(server: psutil.Process) -> float:
    """Return the CPU seconds of a server and its children."""
    spent = 0.0
    for process in (server, *server.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        spent += times.user + times.system
    return spent


def own_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def write_million(lines: list[bytes], path: Path) -> None:
    """Write an export of a million entries of one tenant, made like those of ``lines``."""
    header, *_, last = lines
    entry = chain.read(next(it for it in lines if b'"call.succeeded"' in it))["entry"]
    name, before = "acme", chain.genesis("acme")
    with path.open("wb") as file:
        file.write(header)
        for seq in range(1, MILLION + 1):
            entry |= {"id": seq, "tenant_id": name, "call_id": f"call-{seq}"}
            before = chain.link(before, entry)
            body = {"kind": "entry", "chain": name, "seq": seq, "hash": before.hex()}
            file.write(to_json({**body, "entry": entry}).encode() + b"\n")
        end = chain.read(last)
        file.write(to_json({**end, "lines": MILLION + 2}).encode() + b"\n")


def verify_million(path: Path, key: Path) -> None:
    verifier = Verifier(read_public_keys(public_file(key)))
    cpu, begun = own_cpu_s(), time.perf_counter()
    with path.open("rb") as file:
        verifier.feed(file)
    verdict = verifier.finish()
    took = time.perf_counter() - begun
    kinds = {it.kind for it in verdict.problems}
    assert (verdict.entries, kinds <= {"unsigned"}) == (MILLION, True), verdict.problems[:3]
    size = path.stat().st_size / 1e6
    print(
        f"a million entries verified in  {took:.1f} s, CPU {own_cpu_s() - cpu:.1f} s"
        f"  (goal: under 60; {size:,.0f} MB)"
    )


async def measure(folder: Path, postgres: EmbeddedPostgres, url: str) -> None:
    database = Database(url)
    try:
        ledger = await Ledger.open(database)
        await cost_of_a_call(ledger)
        while await sealing.seal(database):
            pass
        assert postgres.pid is not None
        await sealing_rate(ledger, psutil.Process(postgres.pid))
        key = folder / "audit.key"
        await sealing.sign_checkpoint(database, make_key(key))
        begun = time.perf_counter()
        lines = [line async for page in json_lines(database, Wanted()) for line in page]
        took = time.perf_counter() - begun
        print(f"export                         {len(lines) / took:,.0f} entries/s")
        write_million(lines, folder / "million.jsonl")
        verify_million(folder / "million.jsonl", key)
    finally:
        await database.close()


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="toolfleet-bench-") as folder:
        postgres = EmbeddedPostgres(Path(folder), durable=True)
        url = await postgres.start()
        try:
            await asyncio.to_thread(upgrade_database, url)
            await measure(Path(folder), postgres, url)
        finally:
            await postgres.stop()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
