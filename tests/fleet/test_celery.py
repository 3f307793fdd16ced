"""The fleet as Celery sees it: a raw client's submissions, Flower, inspect."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import Counter
from functools import partial
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import psutil
import pytest
from celery import Celery
from redis.asyncio import Redis

from registry import tenants
from registry.tenants import Role
from tests.fleet.driver import MAX_RESULT_BYTES, Fleet, script
from tests.odd_messages import ODD_ARGUMENTS, odd_messages
from tests.requirements import requirement
from tests.waiting import until

pytestmark = pytest.mark.anyio

GATED = {"write": {"approval": True}, "echo": {"delivery": "read"}}
QUEUE = "mcp.other"
PLACES = 8
"""Calls that its worker takes at once."""
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
        empty_fleet.sleeper("local", pool={"min_idle": 1, "max_size": 3}),
        empty_fleet.sleeper("other", tools=GATED),
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
    answer = await submit(
        fleet, run["run_token"], "local_big", {"size": MAX_RESULT_BYTES + 1}, task="t-failed"
    )
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


# -- what whoever reaches Redis can do


async def boss(fleet: Fleet) -> dict[str, str]:
    """Return the header of somebody who approves."""
    body = {"name": "boss", "role": "approver"}
    key = (await fleet.http.post("/v1/keys", json=body)).json()["key"]
    return {"authorization": f"Bearer {key}"}


async def decide(fleet: Fleet, call_id: str, how: str) -> str:
    headers = await boss(fleet)
    shown = (await fleet.http.get(f"/v1/approvals/{call_id}", headers=headers)).json()
    body = {"binding": shown["binding"]}
    answer = await fleet.http.post(f"/v1/approvals/{call_id}/{how}", json=body, headers=headers)
    assert answer.is_success, answer.text
    return str(answer.json()["state"])


def send(fleet: Fleet, *args: Any, task: str = "toolfleet.call", **kwargs: Any) -> None:
    """Put a message into the server's queue, as a Celery client would."""
    with Celery(broker=fleet.local.redis_url) as celery:
        celery.send_task(task, args=args, kwargs=kwargs, queue=QUEUE)


async def events(fleet: Fleet, call_id: str) -> list[str]:
    answer = await fleet.http.get("/v1/audit", params={"call": call_id})
    return [entry["event"] for entry in answer.json()["entries"]]


async def works(fleet: Fleet) -> None:
    """Return once the worker has come to what is behind all that was sent before."""
    run = await fleet.run()
    assert (await fleet.call(run, "other_echo", text="x"))["state"] == "succeeded"


@requirement("approval:no-bypass", "celery:forged")
async def test_a_raw_clients_call_waits_and_a_forged_message_does_not_run_it(fleet: Fleet) -> None:
    run, task_id = await fleet.run(), str(uuid.uuid4())
    wish = json.dumps([run["run_token"], "other_write", {"token": "raw"}, None])
    asking = asyncio.create_task(script(RAW_CLIENT, fleet.local.redis_url, "1", task_id, wish))

    async def waits() -> bool:
        answer = await fleet.http.get(f"/v1/approvals/{task_id}")
        return answer.is_success

    await until(waits)
    for _ in range(3):
        send(fleet, task_id)
    await until(lambda: _refused(fleet, task_id, 3))
    await works(fleet)
    assert fleet.journal("other").entries("raw") == []
    assert await decide(fleet, task_id, "approve") in {"queued", "running"}
    answer = json.loads(await asking)
    assert answer["state"] == "SUCCESS"
    assert fleet.journal("other").events("raw").count("effect") == 1


async def _refused(fleet: Fleet, call_id: str, times: int) -> bool:
    return (await events(fleet, call_id)).count("call.message_refused") == times


@requirement("approval:no-bypass", "celery:forged")
@pytest.mark.parametrize("how", ["denied", "stopped", "done"])
async def test_a_message_about_a_call_that_has_ended_runs_nothing(fleet: Fleet, how: str) -> None:
    call_id = await fleet.submit(await fleet.run(), "other_write", token=how)
    if how == "denied":
        await decide(fleet, call_id, "deny")
    elif how == "stopped":
        await fleet.cancel(call_id)
    else:
        await decide(fleet, call_id, "approve")
        await fleet.ended(call_id)
    for _ in range(3):
        send(fleet, call_id)
    if how != "done":
        await until(lambda: _refused(fleet, call_id, 3))
    await works(fleet)
    assert fleet.journal("other").events(how).count("effect") == (how == "done")


@requirement("celery:forged")
async def test_messages_that_make_no_sense_leave_the_worker_working(fleet: Fleet) -> None:
    """Each kind comes more often than the worker has places: none may keep one."""
    pid = fleet.worker("other").pid
    for args, kwargs in ODD_ARGUMENTS * (PLACES + 1):
        send(fleet, *args, **kwargs)
    async with Redis.from_url(fleet.local.redis_url) as redis:
        for message in odd_messages(QUEUE):
            await redis.lpush(QUEUE, *[message] * (PLACES + 1))
        await until(partial(_is_empty, redis))
    await works(fleet)
    assert fleet.worker("other").pid == pid, "the worker died of a message"


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


async def _is_empty(redis: Redis) -> bool:
    return int(await redis.llen(QUEUE)) == 0


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
async def test_flower_shows_how_long_a_call_took(fleet: Fleet) -> None:
    call = await fleet.call(await fleet.run(), "other_sleep", seconds=0.3, token="timed")

    async def shown() -> dict[str, Any] | None:
        answer = await fleet.flower.get(f"/api/task/info/{call['id']}")
        return answer.json() if answer.is_success and answer.json()["succeeded"] else None

    info = await until(shown)
    assert info is not None
    assert info["runtime"] >= 0.3


@requirement("celery:flower")
async def test_flower_shows_how_a_call_ended(fleet: Fleet) -> None:
    call = await fleet.call(await fleet.run(), "local_big", size=MAX_RESULT_BYTES + 1)

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


@requirement("celery:flower-sign-in")
async def test_flower_opens_to_operators_who_are_signed_in_to_the_console(fleet: Fleet) -> None:
    url, page = fleet.local.flower_url, {"accept": "text/html"}
    async with httpx2.AsyncClient(trust_env=False, timeout=20) as browser:
        for path in ("/tasks?state=FAILURE", "/metrics", "/api/workers", "/"):
            sent = await browser.get(url + path, headers=page)
            assert sent.status_code == 302
            back = urlsplit(sent.headers["location"])
            assert back.netloc == urlsplit(fleet.local.api_url).netloc
            assert parse_qs(back.query) == {"next": [url + path]}
            assert (await browser.get(url + path)).status_code == 401
        form = {"credential": fleet.local.operator_key, "next": f"{url}/tasks"}
        signed_in = await browser.post(f"{fleet.local.api_url}/console/sign-in", data=form)
        assert signed_in.headers["location"] == f"{url}/tasks"
        assert "Tasks" in (await browser.get(f"{url}/tasks", headers=page)).text
        shown = await browser.get(f"{fleet.local.api_url}/console/none", headers=page)
        assert f'href="{url}/"' in shown.text


@requirement("celery:flower-sign-in")
async def test_flower_opens_to_no_other_role(fleet: Fleet) -> None:
    _, key = await tenants.create_key(fleet.database, name="Ada", role=Role.AUDITOR)
    auth = httpx2.BasicAuth("Ada", key)
    answer = await fleet.flower.get("/api/workers", auth=auth)
    assert (answer.status_code, answer.text) == (403, "Flower is for operators, and Ada is none")


@requirement("celery:flower-sign-in")
async def test_a_session_stops_calls_in_flower_from_its_own_pages_alone(fleet: Fleet) -> None:
    run = await fleet.run()
    call_id = await fleet.submit(run, "local_sleep", seconds=60, token="by-a-session")
    await fleet.journal("local").saw("started", "by-a-session")
    revoke = f"{fleet.local.flower_url}/api/task/revoke/{call_id}"
    async with httpx2.AsyncClient(trust_env=False, timeout=20) as browser:
        form = {"credential": fleet.local.operator_key}
        await browser.post(f"{fleet.local.api_url}/console/sign-in", data=form)
        await browser.get(f"{fleet.local.flower_url}/tasks")
        ours = {"x-xsrftoken": browser.cookies["_xsrf"]}
        for headers in (
            {},
            {**ours, "origin": "https://evil.example"},
            {**ours, "sec-fetch-site": "same-site"},
        ):
            assert (await browser.post(revoke, headers=headers)).status_code == 403
        assert (await fleet.http.get(f"/v1/calls/{call_id}")).json()["stop_requested_at"] is None
        told = await browser.post(revoke, headers=ours)
    assert told.json() == {"message": f"Call {call_id}: stop requested"}
    assert (await fleet.ended(call_id))["state"] == "stopped"
    query = {"call": call_id, "event": "call.stop_requested"}
    (entry,) = (await fleet.http.get("/v1/audit", params=query)).json()["entries"]
    assert entry["actor"].startswith("key:")


@requirement("celery:flower-sign-in")
async def test_flower_has_no_secret_of_the_fleet(fleet: Fleet) -> None:
    flower = psutil.Process(fleet.local.children["flower"].program.pid)
    assert fleet.local.operator_key not in str(flower.environ())
    assert not {"TOOLFLEET_SECRET_KEY", "TOOLFLEET_DATABASE_URL"} & set(flower.environ())


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
    sessions = pool["sessions"][f"local@{fleet.folder.name}"]
    assert (sessions["in_use"], sessions["max_size"]) == (2, 3)
