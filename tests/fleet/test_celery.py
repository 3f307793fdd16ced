"""The fleet as Celery sees it: a raw client's submissions, Flower, inspect."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from functools import partial
from typing import Any

import pytest
from celery import Celery
from redis.asyncio import Redis

from tests.fleet.driver import Fleet, script
from tests.requirements import requirement
from tests.waiting import until

pytestmark = pytest.mark.anyio

RAW_CLIENT = """
import json, sys
from celery import Celery

url, times, task_id, arguments = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
app = Celery(broker=url, backend=url)
for _ in range(times):
    result = app.send_task(
        "toolfleet.submit", args=json.loads(arguments), task_id=task_id, queue="toolfleet"
    )
try:
    answer = {"result": result.get(timeout=20)}
except Exception as error:
    answer = {"error": str(error), "kind": type(error).__name__}
print(json.dumps({**answer, "state": result.state}))
"""


@pytest.fixture(scope="module")
async def fleet(empty_fleet: Fleet) -> Fleet:
    await empty_fleet.serve(
        empty_fleet.echo("local", pool={"min_idle": 2, "max_size": 3}), empty_fleet.echo("other")
    )
    return empty_fleet


async def submit(
    fleet: Fleet,
    token: str,
    tool: str,
    arguments: dict[str, Any],
    *,
    task: str,
    times: int = 1,
    key: str | None = None,
) -> dict[str, Any]:
    """Return what a client that knows only Celery gets."""
    wish = json.dumps([token, tool, arguments, key])
    answer = await script(RAW_CLIENT, fleet.local.redis_url, str(times), task, wish)
    return json.loads(answer)  # type: ignore[no-any-return]


# -- a raw client


@requirement("celery:submit")
async def test_a_plain_celery_client_gets_its_calls_redacted_result(fleet: Fleet) -> None:
    run = await fleet.run()
    answer = await submit(
        fleet, run["run_token"], "local_echo", {"text": "ask jane@example.com"}, task="t-redacted"
    )
    assert answer["state"] == "SUCCESS"
    assert answer["result"]["content"][0]["text"] == "ask [email]"


@requirement("celery:submit")
@pytest.mark.parametrize(
    ("tool", "arguments", "code"),
    [
        ("local_nothing", {}, "unknown_tool"),
        ("local_echo", {"text": 1}, "invalid_arguments"),
    ],
)
async def test_a_refused_submission_raises_with_its_code(
    fleet: Fleet, tool: str, arguments: dict[str, Any], code: str
) -> None:
    run = await fleet.run()
    answer = await submit(fleet, run["run_token"], tool, arguments, task=f"t-{code}")
    assert (answer["state"], answer["kind"]) == ("FAILURE", "SubmissionRefused")
    assert code in answer["error"]


@requirement("celery:submit")
async def test_a_forged_run_token_is_refused(fleet: Fleet) -> None:
    token = (await fleet.run())["run_token"]
    answer = await submit(fleet, token[:-4] + "AAAA", "local_echo", {"text": "x"}, task="t-forged")
    assert answer["state"] == "FAILURE"
    assert "unauthenticated" in answer["error"]


@requirement("celery:submit")
async def test_a_call_that_fails_gives_its_client_the_error(fleet: Fleet) -> None:
    run = await fleet.run()
    answer = await submit(fleet, run["run_token"], "local_big", {"size": 200_000}, task="t-failed")
    assert answer["state"] == "FAILURE"
    assert "result_too_large" in answer["error"]


@requirement("celery:submit")
async def test_a_stopped_call_is_told_as_revoked(fleet: Fleet) -> None:
    run, journal = await fleet.run(), fleet.journal("local")
    arguments = {"seconds": 60, "token": "raw-stop"}
    waiting = asyncio.create_task(
        submit(fleet, run["run_token"], "local_sleep", arguments, task="t-stopped")
    )
    await journal.saw("started", "raw-stop")
    (call,) = (await fleet.http.get(f"/v1/runs/{run['id']}/calls")).json()["calls"]
    await fleet.cancel(call["id"])
    answer = await waiting
    assert answer["state"] == "REVOKED"
    assert "'stopped'" in answer["error"]


@requirement("celery:submit")
async def test_a_message_delivered_twice_is_one_call(fleet: Fleet) -> None:
    run = await fleet.run()
    answer = await submit(
        fleet, run["run_token"], "local_write", {"token": "twice"}, task="t-twice", times=5
    )
    assert answer["state"] == "SUCCESS"
    calls = (await fleet.http.get(f"/v1/runs/{run['id']}/calls")).json()["calls"]
    assert len(calls) == 1
    assert Counter(fleet.journal("local").events("twice"))["effect"] == 1


@requirement("celery:submit")
async def test_tasks_with_one_idempotency_key_get_the_same_result(fleet: Fleet) -> None:
    run = await fleet.run()
    answers = await asyncio.gather(
        *(
            submit(fleet, run["run_token"], "local_write", {"token": "both"}, task=task, key="both")
            for task in ("t-one", "t-other")
        )
    )
    assert [answer["state"] for answer in answers] == ["SUCCESS"] * 2
    assert answers[0]["result"] == answers[1]["result"]
    assert Counter(fleet.journal("local").events("both"))["effect"] == 1


# -- what lies in Redis


@requirement("celery:nothing-private")
async def test_neither_arguments_nor_results_lie_in_redis(fleet: Fleet) -> None:
    run = await fleet.run()
    async with fleet.without("worker:other"):
        queued = [
            await fleet.submit(run, "other_echo", text="a-private-argument") for _ in range(2)
        ]
        await fleet.call(run, "local_echo", text="a-private-result")
        async with Redis.from_url(fleet.local.redis_url) as redis:
            await until(partial(_waits, redis, queued))
            contents = [await _content(redis, key) async for key in redis.scan_iter()]
    assert all(call_id in "".join(contents) for call_id in queued)
    assert "a-private" not in "".join(contents)
    for call_id in queued:
        await fleet.ended(call_id)


async def _waits(redis: Redis, queued: list[str]) -> bool:
    return int(await redis.llen("mcp.other")) == len(queued)


async def _content(redis: Redis, key: bytes) -> str:
    kind = await redis.type(key)
    if kind == b"list":
        return str(await redis.lrange(key, 0, -1))
    if kind == b"string":
        return str(await redis.get(key))
    if kind == b"zset":
        return str(await redis.zrange(key, 0, -1))
    if kind == b"hash":
        return str(await redis.hgetall(key))
    return ""


# -- Flower and inspect


@requirement("celery:flower")
async def test_flower_shows_a_call_under_its_tools_name_without_arguments_and_result(
    fleet: Fleet,
) -> None:
    call = await fleet.call(await fleet.run(), "local_echo", text="a-private-text")

    async def shown() -> Any:
        answer = await fleet.flower.get(f"/api/task/info/{call['id']}")
        found = answer.json() if answer.is_success else {}
        return found.get("state") == "SUCCESS" and found

    task = await until(shown)
    assert (task["name"], task["args"], task["kwargs"]) == ("local_echo", "()", "{}")
    assert "private" not in json.dumps(task)


@requirement("celery:flower")
async def test_flower_shows_how_a_call_ended(fleet: Fleet) -> None:
    call = await fleet.call(await fleet.run(), "local_big", size=200_000)

    async def state() -> Any:
        answer = await fleet.flower.get(f"/api/task/info/{call['id']}")
        return answer.is_success and answer.json()["state"] == "FAILURE"

    await until(state)


@requirement("celery:flower")
async def test_flower_shows_a_queue_for_each_server(fleet: Fleet) -> None:
    async def queues() -> set[str]:
        await fleet.flower.get("/api/workers", params={"refresh": 1})
        answer = await fleet.flower.get("/api/queues/length")
        return {queue["name"] for queue in answer.json()["active_queues"]}

    async def all_there() -> bool:
        return {"mcp.local", "mcp.other", "toolfleet"} <= await queues()

    await until(all_there)


@requirement("celery:flower")
async def test_flower_answers_nobody_without_the_operators_key(fleet: Fleet) -> None:
    url = f"{fleet.local.flower_url}/api/workers"
    answer = await fleet.http.get(url, headers={"authorization": "Basic b3BlcmF0b3I6eA=="})
    assert answer.status_code == 401


@requirement("celery:inspect")
async def test_inspect_tells_exactly_which_calls_run_and_how_many_sessions_there_are(
    fleet: Fleet,
) -> None:
    run, journal = await fleet.run(), fleet.journal("local")
    tokens = ["seen-0", "seen-1"]
    ids = [await fleet.submit(run, "local_sleep", seconds=60, token=it) for it in tokens]
    await journal.saw("started", *tokens)
    with Celery(broker=fleet.local.redis_url) as celery:
        inspect = celery.control.inspect(timeout=1.5)
        active = await asyncio.to_thread(inspect.active)
        stats = await asyncio.to_thread(inspect.stats)
    for call_id in ids:
        await fleet.cancel(call_id)
    local = f"local-{fleet.worker('local').pid}@"
    (name,) = [name for name in active if name.startswith(local)]
    assert {task["id"] for tasks in active.values() for task in tasks} == set(ids)
    assert {task["id"] for task in active[name]} == set(ids)
    pool = stats[name]["pool"]
    assert (pool["server"], pool["running"]) == ("local", 2)
    sessions = pool["sessions"]["local@1"]
    assert (sessions["in_use"], sessions["max_size"]) == (2, 3)
