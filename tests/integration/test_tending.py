"""What operators observe when they tend a fleet over HTTP: breakers by hand, workers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import jsonschema_rs
import pytest
from typer.testing import CliRunner

from compose.cli import app
from compose.embedded import free_port
from registry import catalog, leases
from registry.database import Database
from registry.settings import Settings
from tests.requirements import requirement
from tests.serving import Api, problem_of, serving
from tests.waiting import until
from workers.runtime import WorkerRuntime
from workers.signals import Signals

pytestmark = pytest.mark.anyio

LEASE = timedelta(seconds=60)
POOL = """
toolfleet_sessions{server="demo",state="idle",version="1"} 2.0
toolfleet_sessions{server="demo",state="in_use",version="1"} 3.0
toolfleet_pool_max_size{server="demo",version="1"} 8.0
"""


async def audited(api: Api, event: str) -> list[dict[str, Any]]:
    answer = await api.http.get("/v1/audit", params={"event": event})
    return [it["details"] for it in answer.json()["entries"]]


async def force(api: Api, **body: Any) -> dict[str, Any]:
    answer = await api.http.post("/v1/servers/demo/breaker", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


# -- breakers


@requirement("tending:breaker", "breaker:by-hand")
async def test_a_breaker_is_forced_open_for_a_time_and_closed_again_and_both_are_audited(
    api: Api,
) -> None:
    await api.serve()
    opened = await force(api, state="open", for_s=90, reason="the vendor asked for it")
    assert (opened["server"], opened["version"], opened["state"]) == ("demo", "1", "open")
    assert 80 < opened["retry_after_s"] <= 90
    assert opened["why"].endswith("the vendor asked for it")
    shown = (await api.http.get("/v1/servers/demo/breaker")).json()
    assert (shown["state"], shown["why"]) == ("open", opened["why"])
    closed = await force(api, state="closed")
    assert (closed["state"], closed["retry_after_s"]) == ("closed", 0)
    assert await audited(api, "breaker.*") == [
        {"server": "demo", "version": "1", "for_s": None, "reason": None},
        {"server": "demo", "version": "1", "for_s": 90, "reason": "the vendor asked for it"},
    ]


@requirement("tending:breaker")
async def test_the_breaker_of_a_named_version_is_its_own(api: Api) -> None:
    await api.serve()
    definition = (await api.http.get("/v1/servers/demo")).json()["definition"]
    await api.http.post("/v1/servers/demo/versions", json={**definition, "version": "2"})
    old = await force(api, state="open", version="1")
    assert (old["version"], old["state"]) == ("1", "open")
    served = (await api.http.get("/v1/servers/demo/breaker")).json()
    assert (served["version"], served["state"]) == ("2", "closed")
    named = await api.http.get("/v1/servers/demo/breaker", params={"version": "1"})
    assert named.json()["state"] == "open"


@requirement("tending:breaker")
async def test_what_cannot_be_forced_is_refused_by_what_is_wrong(api: Api) -> None:
    await api.serve()
    bad: list[tuple[str, dict[str, Any], str]] = [
        ("demo", {"state": "half_open"}, "body.state"),
        ("demo", {"state": "open", "for_s": 0}, "body.for_s"),
        ("demo", {"state": "closed", "for_s": 5}, "body"),
        ("demo", {"state": "open", "for_s": "5"}, "body.for_s"),
        ("demo", {"state": "open", "version": "9"}, "unknown_version"),
        ("nobody", {"state": "open"}, "unknown_server"),
    ]
    for server, body, wrong in bad:
        problem = problem_of(await api.http.post(f"/v1/servers/{server}/breaker", json=body))
        paths = [it["path"] for it in problem.get("details", {}).get("problems", ())]
        assert wrong in (problem["code"], *paths), body


@requirement("contract:kept")
@pytest.mark.parametrize(
    "body",
    [
        {"state": "open"}, {"state": "open", "for_s": None}, {"state": "open", "for_s": 5},
        {"state": "closed"}, {"state": "closed", "for_s": None}, {"state": "closed", "for_s": 5},
    ],
)  # fmt: skip
async def test_the_document_takes_what_is_taken_a_time_for_an_opened_breaker_alone(
    api: Api, body: dict[str, Any]
) -> None:
    await api.serve()
    document = (await api.http.get("/openapi.json")).json()
    schema = document["components"]["schemas"]["ForceBreaker"]
    answer = await api.http.post("/v1/servers/demo/breaker", json=body)
    assert jsonschema_rs.is_valid(schema, body) == (answer.status_code == 200)


@requirement("tending:nothing-pretended")
async def test_while_redis_is_away_nothing_is_forced_and_nothing_is_audited(
    database: Database,
) -> None:
    nowhere = f"redis://127.0.0.1:{free_port()}/0"
    async with serving(database, nowhere) as api:
        await api.serve()
        answer = await api.http.post("/v1/servers/demo/breaker", json={"state": "open"})
        problem = problem_of(answer)
        assert (problem["status"], problem["code"]) == (503, "store_unavailable")
        assert await audited(api, "breaker.*") == []
        listed = (await api.http.get("/v1/workers")).json()
    assert listed == {"workers": [], "away": ["broker"]}


# -- workers


async def at_work(api: Api, worker: str = "demo-host-7") -> str:
    await leases.open_worker(api.database, worker, "demo", "host", 7, LEASE)
    return worker


@requirement("tending:workers")
async def test_workers_are_listed_with_the_sessions_that_they_hold(api: Api) -> None:
    await api.serve()
    await Signals(api.redis).figures(await at_work(api), POOL)
    (worker,) = (await api.http.get("/v1/workers")).json()["workers"]
    assert (worker["id"], worker["server"], worker["pid"]) == ("demo-host-7", "demo", 7)
    assert worker["drain_requested_at"] is None
    (pool,) = worker["pools"]
    assert (pool["version"], pool["max_size"], pool["sessions"]["in_use"]) == ("1", 8, 3)


@requirement("tending:drain")
async def test_a_worker_is_asked_to_drain_once_and_that_is_audited(api: Api) -> None:
    await api.serve()
    worker = await at_work(api)
    first, second = [await api.http.post(f"/v1/workers/{worker}/drain") for _ in range(2)]
    assert (first.status_code, first.json()["server"]) == (202, "demo")
    assert second.json() == first.json()
    assert await audited(api, "worker.drain_requested") == [{"worker": worker, "server": "demo"}]
    (listed,) = (await api.http.get("/v1/workers")).json()["workers"]
    assert listed["drain_requested_at"] == first.json()["drain_requested_at"]


@requirement("tending:drain")
async def test_a_worker_that_is_not_at_work_cannot_be_drained(api: Api) -> None:
    await api.serve()
    await leases.close_worker(api.database, await at_work(api))
    for worker in ("nobody", "demo-host-7", "a%00b"):
        problem = problem_of(await api.http.post(f"/v1/workers/{worker}/drain"))
        assert (problem["status"], problem["code"]) == (404, "unknown_worker"), worker


@asynccontextmanager
async def working(api: Api, redis_url: str, **rest: Any) -> AsyncIterator[WorkerRuntime]:
    """Run what a worker process holds, in this process."""
    url = api.database.engine.url.render_as_string(hide_password=False)
    worker = WorkerRuntime("demo", Settings(database_url=url, redis_url=redis_url), **rest)
    await worker.open()
    try:
        yield worker
    finally:
        await worker.close()


@requirement("tending:drain")
async def test_a_worker_process_ends_when_its_drain_is_asked_for(api: Api, redis_url: str) -> None:
    await api.serve()
    ended: list[str] = []
    async with working(api, redis_url, end=lambda: ended.append("once")) as worker:
        await leases.ask_to_drain(api.database, worker.id, actor="test")
        await until(lambda: ended)
        await worker.drain()
    assert ended == ["once"]


@requirement("tending:breaker", "breaker:shared")
async def test_a_worker_without_calls_notices_a_breaker_that_is_forced(
    api: Api, redis_url: str
) -> None:
    await api.serve()
    async with working(api, redis_url) as worker:
        version = await catalog.get_server(api.database, "demo")
        served = await worker.served(version.id)
        await force(api, state="open")
        await until(lambda: served.breaker.known.state == "open")


# -- commands


@requirement("tending:breaker", "tending:workers", "tending:drain")
async def test_the_commands_ask_what_the_routes_answer(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    await api.serve()
    worker = await at_work(api)
    monkeypatch.setenv("TOOLFLEET_URL", api.url)
    monkeypatch.setenv("TOOLFLEET_KEY", await api.key("operator", None))

    async def types(line: str) -> dict[str, Any]:
        done = await asyncio.to_thread(CliRunner().invoke, app, [*line.split(), "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.output)

    opened = await types("servers breaker demo open --for 60 --reason rehearsal")
    assert (opened["state"], opened["why"].endswith(": rehearsal")) == ("open", True)
    assert (await types("servers breaker demo"))["state"] == "open"
    assert (await types("servers breaker demo closed"))["state"] == "closed"
    assert (await types("workers list"))["workers"][0]["id"] == worker
    assert (await types(f"workers drain {worker}"))["drain_requested_at"]
    table = await asyncio.to_thread(CliRunner().invoke, app, ["workers", "list"])
    assert worker in table.output
    assert "draining" in table.output
