"""What the demo shows, one act after the other; each says what it promised and whether it held."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from compose.demo.checks import Checks
from compose.demo.crm import SLOW_WRITE, reports
from compose.demo.servers import CRM_WORKERS, TENANTS, Stage, everyday_calls, slow_read
from compose.demo.tenant import Caller, Made, Tenant, Wanted
from compose.local import LocalFleet
from registry import calls, leases
from registry.database import Database

RAW_CLIENT = Path(__file__).with_name("raw_client.py")
ROUNDS = 2
FEWEST_READS, MOST_READS = 4, 8
SLOW_THIRD = 4
RAW_WITHIN_S = 30.0


@dataclass
class Play:
    """What every act has at hand."""

    fleet: LocalFleet
    stage: Stage
    checks: Checks
    operator: Caller
    tenants: list[Tenant]

    @property
    def acme(self) -> Tenant:
        """Return the first tenant."""
        return self.tenants[0]

    @property
    def globex(self) -> Tenant:
        """Return the second tenant."""
        return self.tenants[1]


async def register_servers(play: Play) -> None:
    """Register every server, wait until it is ready, open a run for each tenant."""
    names = [definition["name"] for definition in play.stage.definitions]
    for definition in play.stage.definitions:
        await play.operator.get("POST", "servers", definition)
    await play.fleet.wait_ready(names)
    listed = {}
    for name in names:
        server = await play.operator.get("GET", f"servers/{name}")
        listed[name] = len(server["tools"])
    shown = ", ".join(f"{name} {count}" for name, count in listed.items())
    play.checks.check("every server's tools are listed", all(listed.values()), shown)
    for tenant in play.tenants:
        await tenant.open_run()
    first = await play.acme.call(Wanted("time_get_current_time", {"timezone": "UTC"}))
    warm = first.state == "succeeded" and first.timings.get("spawned") is False
    play.checks.check("the first call finds a warm session and spawns nothing", warm)


async def call_everything(play: Play) -> None:
    """Make the everyday calls of both tenants, all at the same time."""
    wanted = everyday_calls(play.stage) * ROUNDS
    made = await asyncio.gather(*(tenant.call(one) for tenant in play.tenants for one in wanted))
    good = [it for it in made if it.state == "succeeded" and not it.body["is_error"]]
    play.checks.check(
        f"{len(made)} concurrent calls of {len(play.tenants)} tenants over stdio and HTTP succeed",
        len(good) == len(made),
        f"{len(good)} succeeded",
    )
    rows = [it.text for it in made if it.title == "crm_read_query"]
    leaked = [text for text in rows if re.search(r"@\w", text)]
    play.checks.check(
        "e-mail addresses of customers come back as [email]",
        bool(rows) and not leaked and all("[email]" in text for text in rows),
        rows[0] if rows else "",
    )
    status, answer = await play.globex.ask("GET", f"calls/{made[0].body['id']}")
    hidden = status == 404 and answer["code"] == "unknown_call"
    play.checks.check("a tenant does not see another tenant's call", hidden, f"HTTP {status}")


async def cancel_one(play: Play) -> None:
    """Stop a query that would run for minutes, while its neighbours go on."""
    wanted = slow_read("crm_read_query, cancelled")
    started = time.perf_counter()
    call_id = await play.acme.submit(wanted)
    await play.acme.until_running(call_id)
    answer = await play.acme.get("POST", f"calls/{call_id}/cancel")
    short = Wanted("crm_read_query", {"query": "SELECT count(*) FROM customers"})
    neighbours = await asyncio.gather(*(play.globex.call(short) for _ in range(4)))
    ended = await play.acme.end_of(wanted, call_id, started)
    play.checks.check(
        "a running call is told to stop, and ends stopped",
        answer["answer"] == "stop_requested" and ended.state == "stopped",
        f"{answer['answer']}, then {ended.state}",
    )
    stop = ended.timings.get("stop", {})
    play.checks.check(
        "the record says what it took to stop it",
        stop.get("rung") in {"exited", "sigterm", "sigkill"},
        f"{stop.get('rung')} after {stop.get('elapsed_s')} s",
    )
    play.checks.check(
        "calls of the same server go on meanwhile",
        all(it.state == "succeeded" for it in neighbours),
        f"{len(neighbours)} succeeded",
    )


async def submit_with_celery(play: Play) -> None:
    """Submit a call with plain Celery, from a process that knows nothing of ours."""
    wanted = Wanted(
        "crm_read_query",
        {"query": "SELECT name, email FROM customers WHERE id = 7"},
        "crm_read_query, by send_task",
    )
    started = time.perf_counter()
    result = await _raw_celery(play, wanted)
    waited_s = time.perf_counter() - started
    listed = await play.acme.get("GET", f"runs/{play.acme.run_id}/calls")
    # The newest call of the run is the raw client's: nobody else of this tenant calls now.
    newest = await play.acme.see(listed["calls"][0]["id"])
    play.acme.keep(wanted, newest, waited_s)
    text = "".join(part.get("text", "") for part in result.get("content", ()))
    play.checks.check(
        "plain Celery gets the redacted result from AsyncResult.get()",
        "[email]" in text and newest["result"] == result,
        text,
    )


async def _raw_celery(play: Play, wanted: Wanted) -> Any:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", str(RAW_CLIENT), play.fleet.redis_url),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    wish = {"run_token": play.acme.run_token, "tool": wanted.tool, "arguments": wanted.arguments}
    try:
        async with asyncio.timeout(RAW_WITHIN_S):
            said, complained = await process.communicate(json.dumps(wish).encode())
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode:
        raise RuntimeError(f"the raw client failed: {complained.decode()[-500:]}")
    return json.loads(said)


async def kill_a_worker(play: Play) -> None:
    """Kill a worker of two, in the middle of a write and of reads; nothing may be lost."""
    database = Database(play.fleet.database_url, pool_size=1, application="toolfleet demo")
    try:
        await _kill_a_worker(play, database)
    finally:
        await database.close()


async def _kill_a_worker(play: Play, database: Database) -> None:
    write = Wanted("crm_write_query", {"query": SLOW_WRITE}, "crm_write_query, worker killed")
    read = slow_read("crm_read_query, worker killed", SLOW_THIRD)
    started = time.perf_counter()
    write_id = await play.acme.submit(write)
    await play.acme.until_running(write_id)
    victim = (await calls.read(database, [write_id]))[write_id]["worker_id"]
    reads: list[str] = []
    beside: list[str] = []
    while len(reads) < FEWEST_READS or (not beside and len(reads) < MOST_READS):
        reads.append(await play.globex.submit(read))
        await play.globex.until_running(reads[-1])
        rows = await calls.read(database, reads)
        beside = [
            it for it in reads if rows[it]["worker_id"] == victim and rows[it]["state"] == "running"
        ]
    pids = {it["id"]: it["pid"] for it in await leases.live_workers(database, "crm")}
    process = psutil.Process(pids[victim])
    family = process.children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)

    _, orphans = await asyncio.to_thread(psutil.wait_procs, family, 5)
    play.checks.check(
        "a worker killed with SIGKILL takes its servers with it",
        bool(family) and not orphans,
        f"worker {process.pid} and {len(family)} processes are gone",
    )
    ended = await asyncio.gather(*(play.globex.end_of(read, it, started) for it in reads))
    again = [it for it in ended if it.body["attempts"] > 1]
    play.checks.check(
        "the reads that it ran are run again, and none is lost",
        all(it.state == "succeeded" for it in ended) and len(again) >= len(beside) > 0,
        f"{len(ended)} of {len(reads)} succeeded, {len(again)} of them in a second attempt",
    )
    lost = await play.acme.end_of(write, write_id, started)
    written = reports(play.stage.crm)
    play.checks.check(
        "the write that it ran ends outcome_unknown and is never sent twice",
        lost.state == "outcome_unknown" and lost.body["attempts"] == 1 and written <= 1,
        f"{lost.state}, {written} rows written",
    )
    await play.fleet.wait_ready(["crm"])
    play.checks.check("the killed worker is back", len(play.fleet.workers()["crm"]) == CRM_WORKERS)


async def account_for_all(play: Play) -> None:
    """Ask the record for every call of both runs: each one has ended, as its caller was told."""
    recorded: Counter[str] = Counter()
    contradicted = 0
    for tenant in play.tenants:
        for made in tenant.made:
            now = await tenant.see(made.body["id"])
            recorded[now["state"]] += 1
            contradicted += now["ended_at"] is None or now["state"] != made.state
    play.checks.check(
        "every call of the demo has one end, and it is the one that its caller was told",
        not contradicted,
        ", ".join(f"{count} {state}" for state, count in recorded.most_common()),
    )


ACTS: tuple[tuple[str, Callable[[Play], Awaitable[None]]], ...] = (
    ("Real servers, two transports, warm before the first call", register_servers),
    ("Two tenants call everything at once", call_everything),
    ("One running call is cancelled", cancel_one),
    ("A call through plain Celery", submit_with_celery),
    ("A worker is killed in the middle", kill_a_worker),
    ("The record", account_for_all),
)


async def invite(fleet: LocalFleet, operator: Caller) -> list[Tenant]:
    """Return the tenants, each with a key of its own."""
    tenants = []
    for name in TENANTS:
        wish = {"name": f"demo of {name}", "role": "tenant", "tenant": name}
        key = await operator.get("POST", "keys", wish)
        tenants.append(Tenant(fleet.api_url, name, key["key"]))
    return tenants


def all_made(play: Play) -> list[Made]:
    """Return every call of both tenants."""
    return [made for tenant in play.tenants for made in tenant.made]
