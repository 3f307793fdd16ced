"""A fleet whose servers ask, while its processes are killed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.driver import SERVERS, Fleet
from tests.requirements import requirement
from tests.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.long, pytest.mark.timeout(180)]

OSLO = {"result": {"action": "accept", "content": {"city": "Oslo"}}}
ERAS = ("legacy", "modern")


@pytest.fixture(scope="module")
async def fleet(own_fleet: Fleet) -> Fleet:
    await own_fleet.serve(*(asking(own_fleet, era) for era in ERAS))
    return own_fleet


def asking(fleet: Fleet, era: str) -> dict[str, Any]:
    flags = ["--legacy"] if era == "legacy" else []
    return {
        "name": era,
        "transport": "stdio",
        "command": sys.executable,
        "args": [str(SERVERS / "asking.py"), "--journal", str(journal(fleet, era)), *flags],
        "tools": {tool: {"delivery": "read"} for tool in ("ask", "twice")},
        "pool": {"min_idle": 1, "max_size": 2},
    }


def journal(fleet: Fleet, era: str) -> Path:
    return fleet.folder / f"{era}.journal"


async def submit(fleet: Fleet, tool: str) -> str:
    run = await fleet.run()
    answer = await fleet.http.post(
        f"/v1/runs/{run['id']}/calls", json={"tool": tool, "answers": ["elicitation", "roots"]}
    )
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


async def asked(fleet: Fleet, call_id: str) -> str:
    """Return the key of what a call asks, once it does."""

    async def look() -> list[dict[str, Any]]:
        answer = await fleet.http.get(f"/v1/calls/{call_id}", params={"wait": 10})
        found: list[dict[str, Any]] = answer.json()["questions"]
        return found

    (question,) = await until(look, within_s=60)
    return str(question["key"])


async def answer(fleet: Fleet, call_id: str, key: str, said: Any = OSLO) -> list[str]:
    given = await fleet.http.post(f"/v1/calls/{call_id}/answers", json={"answers": {key: said}})
    assert given.status_code == 200, given.text
    taken: list[str] = given.json()["taken"]
    return taken


@requirement("questions:kill-9")
@pytest.mark.parametrize("era", ERAS)
async def test_a_read_call_whose_worker_is_killed_is_answered_what_it_asked_before(
    fleet: Fleet, era: str
) -> None:
    call_id = await submit(fleet, f"{era}_ask")
    key = await asked(fleet, call_id)
    fleet.worker(era).kill()
    assert await answer(fleet, call_id, key) == [key]
    call = await fleet.ended(call_id)
    assert (call["state"], call["attempts"]) == ("succeeded", 2)
    assert json.loads(call["result"]["content"][0]["text"]) == [OSLO["result"]]


@requirement("questions:kill-9", "questions:asked-once")
@pytest.mark.parametrize("era", ERAS)
async def test_nobody_is_asked_again_what_was_answered_before_a_worker_was_killed(
    fleet: Fleet, era: str
) -> None:
    call_id = await submit(fleet, f"{era}_twice")
    first = await asked(fleet, call_id)
    assert await answer(fleet, call_id, first) == [first]

    async def asks_more() -> str | None:
        key = await asked(fleet, call_id)
        return None if key == first else key

    second = await until(asks_more)
    fleet.worker(era).kill()
    home = {"result": {"roots": []}}
    assert await answer(fleet, call_id, second, home) == [second]
    call = await fleet.ended(call_id)
    assert (call["state"], call["attempts"]) == ("succeeded", 2)
    said = json.loads(call["result"]["content"][0]["text"])
    assert said == [OSLO["result"], home["result"]]


@requirement("questions:kill-9", "questions:a-write-stays-one")
@pytest.mark.parametrize("era", ERAS)
async def test_a_write_whose_worker_is_killed_while_it_asks_ends_unknown_and_has_no_effect(
    fleet: Fleet, era: str
) -> None:
    call_id = await submit(fleet, f"{era}_effect")
    key = await asked(fleet, call_id)
    fleet.worker(era).kill()

    async def unknown() -> bool:
        body = (await fleet.http.get(f"/v1/calls/{call_id}")).json()
        return bool(body["state"] == "outcome_unknown")

    await until(unknown)
    assert await answer(fleet, call_id, key) == []
    assert "effect" not in journal(fleet, era).read_text().split()

    async def withdrawn() -> bool:
        async with fleet.database.transaction() as connection:
            found = await connection.exec_driver_sql(
                "SELECT state, params, answer FROM questions WHERE call_id = %s", (call_id,)
            )
            return [tuple(row) for row in found] == [("withdrawn", None, None)]

    await until(withdrawn)


@requirement("questions:durable")
async def test_an_answer_is_taken_though_redis_is_away(fleet: Fleet) -> None:
    call_id = await submit(fleet, "modern_ask")
    key = await asked(fleet, call_id)
    async with fleet.without("redis"):
        assert await answer(fleet, call_id, key) == [key]
        assert (await fleet.ended(call_id))["state"] == "succeeded"
