"""Concurrent runs of several tiers on one server, more at each step, until its pool is exhausted.

``make load-test`` writes build/load-test.html. A whole fleet with a server over stdio; each run
makes calls one after the other as fast as it may, and tries again when it is told when to refused.
Waits and endings are read from the ledger afterwards, and the ledger is held against what callers
were told and what the server noted: no call is lost, and none was run twice.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2

from compose.bench.report import machine
from tests.bench.exhaustion_figures import Step, Tier, audit, measure
from tests.bench.exhaustion_page import Findings, write
from tests.fleet.driver import Fleet, running

SERVER, TOOL = "load", "load_write"
STEPS = (1, 2, 4, 8, 16, 32)
REFUSED = {429, 503}
SETTLES_S = 2.0
"""What is measured of a step begins so long after its first call."""


TIERS = (
    Tier("free", 4, {"concurrent_calls": 4, "calls_per_second": 3}),
    Tier("standard", 5, {"concurrent_calls": 12}),
    Tier("enterprise", 6, {}),
)
STARTED_AT_ONCE = 8


@dataclass
class Told:
    """What callers were told."""

    submitted: set[str] = field(default_factory=set)
    """The ids of the calls that were taken."""
    uncertain: set[str] = field(default_factory=set)
    """Those of calls that may have been taken, as the API said."""
    refused: Counter[tuple[int, str, str]] = field(default_factory=Counter)
    """Submissions that were refused, by step, tier and reason."""
    failures: list[str] = field(default_factory=list)
    """Submissions that were not answered as they have to be."""


@dataclass
class Agent:
    """One run that makes calls one after the other."""

    http: httpx2.AsyncClient
    told: Told
    key: str
    tier: str
    step: int
    options: argparse.Namespace
    run_id: str = ""

    async def start(self, gate: asyncio.Semaphore) -> None:
        """Start the run."""
        async with gate:
            self.run_id = (await self._ask("POST", "/v1/runs", json={}))["id"]

    async def work(self, ended: asyncio.Event) -> None:
        """Make calls until the step has ended, and finish the last of them."""
        while not ended.is_set():
            pause_s = await self._call()
            if pause_s:
                await _sleep(pause_s, ended)
        await self._ask("POST", f"/v1/runs/{self.run_id}/close")

    async def _call(self) -> float:
        """Make one call; return for how long it is to be left alone, if it was refused."""
        token = uuid.uuid4().hex
        arguments = {"token": token, "seconds": self.options.service}
        answer = await self.http.post(
            f"/v1/runs/{self.run_id}/calls",
            json={"tool": TOOL, "arguments": arguments, "timeout_s": self.options.timeout},
            headers={**self.headers, "prefer": "wait=60"},
        )
        said = answer.json()
        if answer.status_code in REFUSED:
            self.told.refused[self.step, self.tier, _reason(said)] += 1
            self.told.uncertain |= {said.get("details", {}).get("call_id")} - {None}
            return max(0.05, said.get("retry_after_s", 0.0))
        if answer.status_code not in {200, 202}:
            self.told.failures.append(f"a submission was answered {said}"[:300])
            return 0.5
        self.told.submitted.add(said["id"])
        while not said["ended_at"]:
            said = await self._ask("GET", f"/v1/calls/{said['id']}", params={"wait": 60})
        return 0.0

    async def _ask(self, method: str, path: str, **rest: Any) -> Any:
        """Ask until it is answered: the API may be busy."""
        while True:
            answer = await self.http.request(method, path, headers=self.headers, **rest)
            if answer.status_code not in REFUSED:
                return answer.raise_for_status().json()
            await asyncio.sleep(max(0.1, answer.json().get("retry_after_s", 0.0)))

    @property
    def headers(self) -> dict[str, str]:
        """Return what says who asks."""
        return {"authorization": f"Bearer {self.key}"}


def _reason(problem: dict[str, Any]) -> str:
    """Return why a submission was refused: the code, and which of a tenant's limits it was."""
    if problem["code"] != "tenant_limited":
        return str(problem["code"])
    return "tenant_limited: rate" if problem.get("details") else "tenant_limited: calls at once"


async def _sleep(seconds: float, ended: asyncio.Event) -> None:
    try:
        await asyncio.wait_for(ended.wait(), seconds)
    except TimeoutError:
        return


async def prepare(fleet: Fleet, options: argparse.Namespace) -> dict[str, list[str]]:
    """Make tiers, tenants and the server; return the tenants' keys by tier."""
    keys: dict[str, list[str]] = {}
    for tier in TIERS:
        body = {"name": tier.name, "priority": tier.priority, "limits": tier.limits}
        (await fleet.http.put(f"/v1/tiers/{tier.name}", json=body)).raise_for_status()
        for number in range(options.tenants):
            tenant = {"name": f"{tier.name}-{number + 1}", "tier": tier.name}
            (await fleet.http.put(f"/v1/tenants/{tenant['name']}", json=tenant)).raise_for_status()
            wish = {"name": "load", "role": "tenant", "tenant": tenant["name"]}
            made = (await fleet.http.post("/v1/keys", json=wish)).raise_for_status().json()
            keys.setdefault(tier.name, []).append(made["key"])
    pool = {
        "min_idle": options.sessions,
        "max_size": options.sessions,
        "max_waiting": options.max_waiting,
        "max_calls": 1_000_000,
    }
    await fleet.serve(fleet.echo(SERVER, pool=pool), within_s=90)
    return keys


async def play(
    fleet: Fleet, http: httpx2.AsyncClient, told: Told, keys: dict[str, list[str]],
    runs: int, number: int, options: argparse.Namespace,
) -> Step:  # fmt: skip
    """Let each tenant have so many runs for as long as a step takes."""
    ended = asyncio.Event()
    agents = [
        Agent(http, told, key, tier, number, options)
        for tier, tenants in keys.items()
        for key in tenants
        for _ in range(runs)
    ]
    gate = asyncio.Semaphore(STARTED_AT_ONCE)
    await asyncio.gather(*(agent.start(gate) for agent in agents))
    working = [asyncio.create_task(agent.work(ended)) for agent in agents]
    await asyncio.sleep(SETTLES_S)
    begins = await _now(fleet)
    await asyncio.sleep(options.seconds)
    ends = await _now(fleet)
    ended.set()
    await asyncio.gather(*working)
    return Step(number, runs, begins, ends, {it.run_id: it.tier for it in agents})


async def _now(fleet: Fleet) -> datetime:
    (row,) = await fleet.database.statement("SELECT clock_timestamp() AS at")
    at: datetime = row["at"]
    return at


async def watch(fleet: Fleet, seen: list[dict[str, float]]) -> None:
    """Note every second how many sessions are in use, and how many calls wait for one."""
    began = asyncio.get_running_loop().time()
    while True:
        answer = await fleet.http.get("/v1/fleet", params={"beats": 1})
        for server in answer.json()["servers"] if answer.is_success else ():
            at_s = asyncio.get_running_loop().time() - began
            sessions = server["sessions"]
            seen.append(
                {
                    "at_s": round(at_s, 1),
                    "in_use": sessions["in_use"] + sessions["reserved"],
                    "waiting": server["waiting"],
                    "queued": server["queued"],
                }
            )
        await asyncio.sleep(1)


async def run(options: argparse.Namespace, folder: Path) -> int:
    """Run the test and write its report; return the exit status."""
    told = Told()
    steps: list[Step] = []
    seen: list[dict[str, float]] = []
    async with running(folder, flower=False, environment={}) as fleet:
        keys = await prepare(fleet, options)
        watching = asyncio.create_task(watch(fleet, seen))
        async with httpx2.AsyncClient(
            base_url=fleet.local.api_url,
            timeout=90,
            limits=httpx2.Limits(max_connections=2_000),
            trust_env=False,
        ) as http:
            for number, runs in enumerate(options.steps):
                steps.append(await play(fleet, http, told, keys, runs, number, options))
                print(f"{runs:>4} runs a tenant: {len(told.submitted)} calls so far", flush=True)
        watching.cancel()
        plays = await measure(fleet.database, steps, told.refused, TIERS, options.tenants)
        audited = await audit(
            fleet.database, steps, told.submitted, told.uncertain, fleet.journal(SERVER)
        )
        plan = (await fleet.http.get("/v1/capacity")).json()["servers"][0]
    audited.problems += told.failures
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    write(options.out, Findings(machine(), settings, TIERS, plays, audited, seen, plan))
    for problem in audited.problems[:10]:
        print(problem)
    ends = ", ".join(f"{count} {state}" for state, count in sorted(audited.states.items()))
    print(f"{audited.calls} calls: {ends}; {len(audited.problems)} problems; {options.out} written")
    return bool(audited.problems)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of a command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--steps", type=_steps, default=STEPS, help="runs of each tenant, step by step: 1,2,4"
    )
    parser.add_argument("--seconds", type=float, default=15.0, help="how long a step is measured")
    parser.add_argument("--tenants", type=int, default=2, help="how many each tier has")
    parser.add_argument("--sessions", type=int, default=8, help="the pool's max_size")
    parser.add_argument("--max-waiting", type=int, default=64, help="the pool's max_waiting")
    parser.add_argument("--service", type=float, default=0.5, help="seconds that a call takes")
    parser.add_argument("--timeout", type=float, default=8.0, help="seconds that a call may take")
    parser.add_argument("--out", type=Path, default=Path("build/load-test.html"))
    return parser.parse_args(arguments)


def main() -> int:
    """Parse the command line and run."""
    options = parse()
    with tempfile.TemporaryDirectory(prefix="toolfleet-load-") as folder:
        return asyncio.run(run(options, Path(folder)))


def _steps(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
