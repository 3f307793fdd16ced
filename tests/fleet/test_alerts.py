"""A real Prometheus watches a real fleet in which what the alerts are about happens.

Its rules are the shipped ones; only their times are shorter, so that minutes pass in seconds.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from compose.embedded import free_port
from tests.fleet.driver import SERVERS, Fleet
from tests.process_trees import light
from tests.requirements import requirement
from tests.waiting import until

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.long,
    pytest.mark.timeout(500),
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs the package prometheus"),
]

RULES = Path(__file__).parents[2] / "compose" / "prometheus" / "rules"
SHORTER = (
    (r"\bfor: \d+m", "for: 1s"),
    (r"interval: 15s", "interval: 1s"),
    (r"\[(1|5)m\]", "[10s]"),
    (r"\[15m\]", "[12s]"),
    (r"\[(30m|1h|2h|6h|1d|3d)\]", "[24s]"),
    (r"_seconds\) > (60|3600)\b", "_seconds) > 2"),
)
SCRAPED_EVERY = "2s"  # and it has as long for its answer
WITHIN_S = 90


@dataclass
class Watched:
    """A fleet, and the Prometheus that scrapes it."""

    fleet: Fleet
    http: httpx2.AsyncClient
    tools: Path
    """What the server `changing` lists."""

    async def figure(self, name: str, **labels: str) -> float:
        """Return the largest of these samples; -1 for none."""
        return max((it.value for it in await self.samples(name, **labels)), default=-1.0)

    async def samples(self, name: str, **labels: str) -> list[Sample]:
        """Return the samples of `/metrics` that have these labels."""
        text = (await self.fleet.http.get("/metrics")).text
        return [
            sample
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == f"toolfleet_{name}" and labels.items() <= sample.labels.items()
        ]

    async def crosses(self, above: float, name: str, **labels: str) -> None:
        """Return once a figure is larger than it may be."""

        async def look() -> bool:
            return await self.figure(name, **labels) > above

        await until(look, within_s=WITHIN_S)

    async def fires(self, alert: str, **labels: str) -> dict[str, Any]:
        """Return an alert once it fires."""

        async def look() -> list[dict[str, Any]]:
            answer = (await self.http.get("/api/v1/alerts")).json()
            return [
                it
                for it in answer["data"]["alerts"]
                if it["state"] == "firing"
                and {"alertname": alert, **labels}.items() <= it["labels"].items()
            ]

        fired: dict[str, Any] = (await until(look, within_s=WITHIN_S))[0]
        assert labels.get("server", "") in fired["annotations"]["summary"]
        return fired


def shortened(folder: Path) -> None:
    """Write the shipped rules with shorter times."""
    for file in RULES.glob("*.yml"):
        text = file.read_text()
        for pattern, shorter in SHORTER:
            text = re.sub(pattern, shorter, text)
        (folder / file.name).write_text(text)


def configured(fleet: Fleet, folder: Path) -> Path:
    """Write a configuration like the shipped one, for this fleet."""
    key = folder / "operator.key"
    key.touch(mode=0o600)
    key.write_text(fleet.local.operator_key)
    scrape = {
        "job_name": "toolfleet",
        "authorization": {"type": "Bearer", "credentials_file": str(key)},
        "static_configs": [{"targets": [fleet.local.api_url.removeprefix("http://")]}],
    }
    config = {
        "global": {"scrape_interval": SCRAPED_EVERY, "evaluation_interval": "1s"},
        "rule_files": [str(folder / "*.yml")],
        "scrape_configs": [scrape],
    }
    path = folder / "prometheus.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
async def watched(own_fleet: Fleet, folder: Path) -> AsyncIterator[Watched]:
    """A fleet with one server for each thing that can go wrong, and its Prometheus."""
    tools = folder / "tools.json"
    tools.write_text(json.dumps({"tools": ["one", "two"]}))
    changing = {
        "name": "changing",
        "transport": "stdio",
        "command": sys.executable,
        "args": [str(SERVERS / "changing.py"), str(tools)],
        "pool": {"min_idle": 1},
        "changes": {"removed": "alert", "added": "hold"},
    }
    sleeper = own_fleet.sleeper
    await own_fleet.serve(
        sleeper("small", pool={"min_idle": 1, "max_size": 1}),
        sleeper("failing", timeouts={"call_s": 0.2}),
        sleeper("gated", tools={"write": {"approval": True}}),
        sleeper("left"),
        light(name="leaky", pool={"min_idle": 1, "max_size": 1}),
        changing,
        within_s=4 * WITHIN_S,
    )
    rules = folder / "rules"
    rules.mkdir()
    shortened(rules)
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        "prometheus",
        f"--config.file={configured(own_fleet, rules)}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    )
    try:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as http:
            watched = Watched(own_fleet, http, tools)
            await until(lambda: scraped(http), within_s=WITHIN_S)
            yield watched
    finally:
        process.terminate()
        await process.wait()


async def scraped(http: httpx2.AsyncClient) -> bool:
    """Say whether Prometheus has the fleet's figures."""
    try:
        answer = await http.get("/api/v1/query", params={"query": "toolfleet_workers"})
    except httpx2.TransportError:
        return False
    return answer.status_code == 200 and bool(answer.json()["data"]["result"])


async def meanwhile(busy: Callable[[], Awaitable[Any]], waiting: Awaitable[Any]) -> None:
    """Await something while something else is done over and over."""

    async def again() -> None:
        while True:
            await busy()

    task = asyncio.create_task(again())
    try:
        await waiting
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@requirement("alerts:real-fleet")
async def test_calls_wait_for_the_sessions_of_an_undersized_pool(watched: Watched) -> None:
    run = await watched.fleet.run()

    async def crowd() -> None:
        await asyncio.gather(
            *(watched.fleet.call(run, "small_sleep", seconds=0.3, token="t") for _ in range(9))
        )

    async def alerts() -> None:
        await watched.fires("BorrowWaitHigh", server="small")
        await watched.fires("QueueWaitHigh", server="small")

    await meanwhile(crowd, alerts())
    waits = await watched.samples("borrow_wait_seconds_bucket", server="small")
    up_to = {it.labels["le"]: it.value for it in waits}
    assert up_to["+Inf"] > up_to["0.2"]


@requirement("alerts:real-fleet")
async def test_a_failing_server_burns_its_budget_and_has_its_breaker_opened(
    watched: Watched,
) -> None:
    run = await watched.fleet.run()

    async def fail() -> None:
        await asyncio.gather(
            *(watched.fleet.call(run, "failing_sleep", seconds=9, token="t") for _ in range(4))
        )

    async def alerts() -> None:
        await watched.fires("ServerErrorRateHigh", server="failing")
        await watched.crosses(1, "breaker_state", server="failing")
        await watched.fires("BreakerOpen", server="failing")
        await watched.fires("ErrorBudgetBurnsFast", server="failing")

    await meanwhile(fail, alerts())
    assert await watched.figure("attempts_total", server="failing", verdict="timed_out") >= 10
    assert await watched.figure("call_failures_total", server="failing", code="breaker_open") > 0


@requirement("alerts:real-fleet")
async def test_a_changed_listing_is_drift_and_what_is_held_waits(watched: Watched) -> None:
    watched.tools.write_text(json.dumps({"tools": ["one", "three"]}))
    await watched.crosses(
        0, "listing_changes_total", server="changing", change="removed", reaction="alert"
    )
    await watched.fires("SchemaDrift", server="changing", change="removed")
    await watched.crosses(0, "held_changes", server="changing", change="added")
    await watched.fires("SchemaChangeHeld", server="changing", change="added")


@requirement("alerts:real-fleet")
async def test_zombies_grow_while_no_more_runs_are_active(watched: Watched) -> None:
    run = await watched.fleet.run()

    async def abandon() -> None:
        await watched.fleet.call(run, "leaky_abandon", children=3)
        await asyncio.sleep(1)

    await meanwhile(abandon, watched.fires("ZombiesGrowing", server="leaky"))
    await watched.crosses(2, "zombies", server="leaky")


@requirement("alerts:real-fleet")
async def test_a_call_waits_too_long_for_an_approval(watched: Watched) -> None:
    call_id = await watched.fleet.submit(await watched.fleet.run(), "gated_write", token="t")
    await watched.crosses(2, "oldest_approval_seconds", server="gated")
    await watched.fires("ApprovalWaiting", server="gated")
    await watched.fleet.cancel(call_id)


@requirement("alerts:real-fleet")
async def test_a_queue_without_a_worker_grows_old(watched: Watched) -> None:
    run = await watched.fleet.run()
    async with watched.fleet.without("worker:left"):
        call_id = await watched.fleet.submit(run, "left_echo", text="late")
        await watched.fires("NoWorker", server="left")
        await watched.crosses(2, "oldest_queued_seconds", server="left")
        await watched.fires("OldestQueuedCall", server="left")
        assert await watched.figure("workers", server="left") == 0
        dead = await watched.samples("sessions", server="left")
        assert dead == []
        await watched.fleet.cancel(call_id)


@requirement("alerts:real-fleet")
async def test_nobody_tends_the_fleet_while_the_steward_is_away(watched: Watched) -> None:
    async with watched.fleet.without("steward"):
        await watched.fires("StewardAway")
        assert await watched.figure("steward_alive") == 0
    await watched.crosses(0, "steward_alive")
