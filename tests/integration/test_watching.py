"""What the API says of the fleet's state and of what it needs, read from the ledger."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from typer.testing import CliRunner

from compose.cli import app
from registry.database import Database
from tests.requirements import requirement
from tests.serving import Api, problem_of

pytestmark = pytest.mark.anyio


async def called(api: Api, run: dict[str, Any], count: int, **row: float) -> None:
    """Have the ledger say that calls were made in even distances within the minutes before."""
    call = await api.submit(run)
    await api.work(call["id"])
    await api.database.statement(
        """
        WITH columns AS (
            SELECT jsonb_populate_record(c, jsonb_build_object(
                'id', gen_random_uuid()::text,
                'created_at', clock_timestamp() - number * CAST(%(every)s AS interval),
                'timings', jsonb_build_object('call_s', CAST(%(call_s)s AS float),
                    'queue_wait_s', 0.02, 'borrow_wait_s', 0.01))) AS made
            FROM calls c, generate_series(1, %(count)s) AS number WHERE c.id = %(id)s
        ) INSERT INTO calls SELECT (made).* FROM columns RETURNING id
        """,
        id=call["id"],
        count=count,
        every=f"{row['every_s']} s",
        call_s=row["call_s"],
    )


async def types(api: Api, *arguments: str, status: int = 0, **rest: str) -> str:
    """Run a command as an operator; return what it printed."""
    environment = {"TOOLFLEET_URL": api.url, "TOOLFLEET_KEY": await api.key("operator", None)}
    runner = CliRunner(env={**environment, **rest})
    result = await asyncio.to_thread(runner.invoke, app, list(arguments))
    assert result.exit_code == status, result.output
    return result.output


@requirement("fleet:state")
async def test_the_fleets_state_holds_servers_queues_workers_and_beats(api: Api) -> None:
    await api.serve()
    await api.serve("idle")
    run = await api.run()
    await api.work((await api.submit(run))["id"])
    await api.submit(run)
    state = (await api.http.get("/v1/fleet", params={"beats": 3, "beat_s": 3600})).json()
    by_name = {it["name"]: it for it in state["servers"]}
    demo = by_name["demo"]
    assert (demo["breaker"], demo["queued"], demo["workers"]) == ("closed", 1, [])
    assert demo["oldest_queued_s"] > 0
    assert demo["sessions"]["in_use"] == 0
    assert len(demo["beats"]) == 3
    assert sum(beat["submitted"] for beat in demo["beats"]) == 2
    assert sum(beat["ended"] for beat in demo["beats"]) == 1
    assert by_name["idle"]["beats"] == []
    assert state["unfinished"] == {"queued": 1}
    assert state["away"] == []


@requirement("capacity:from-the-ledger", "capacity:advice")
async def test_a_plan_is_made_from_the_calls_of_the_window(api: Api, database: Database) -> None:
    await api.serve()
    await api.serve("idle")
    await called(api, await api.run(), 600, every_s=0.5, call_s=2.0)  # five minutes, two a second
    said = (await api.http.get("/v1/capacity", params={"window_s": 600})).json()
    demo, idle = said["servers"]
    assert (demo["server"], demo["calls"], demo["served"]) == ("demo", 601, 601)
    assert demo["peak_per_minute"] in {120, 121}
    assert demo["mean_per_minute"] == pytest.approx(60.1)
    assert demo["burstiness"] == pytest.approx(0, abs=0.1), "they came like clockwork"
    assert demo["service_s"] == pytest.approx(2.0, rel=0.01)
    assert demo["p95_wait_s"] == pytest.approx(0.03)
    assert demo["workers"] == 0
    assert demo["needed_sessions"] >= 5
    assert demo["advice"] == "add_workers"
    assert idle["advice"] == "look_again"
    twice = {"window_s": 600, "headroom": 2, "server": "demo"}
    (more,) = (await api.http.get("/v1/capacity", params=twice)).json()["servers"]
    assert more["needed_sessions"] > demo["needed_sessions"]
    unknown = await api.http.get("/v1/capacity", params={"server": "nobody"})
    assert problem_of(unknown)["code"] == "unknown_server"

    answer = json.loads(await types(api, "plan", "--window", "600", "--growth", "2", "--json"))
    assert answer["headroom"] == 2
    printed = await types(api, "plan", "demo", "--p95", "0.5", "--window", "600")
    assert "no worker serves it: run" in printed
    assert "idle" not in printed
    assert "unknown_server" in await types(api, "plan", "nobody", status=1)


@requirement("top:live")
async def test_top_prints_one_frame_of_the_fleet(api: Api) -> None:
    await api.serve()
    run = await api.run()
    await api.work((await api.submit(run))["id"])
    await api.submit(run)
    printed = await types(api, "top", "--once", COLUMNS="130")
    assert "demo" in printed
    assert "closed" in printed
    assert "1 server" in printed
