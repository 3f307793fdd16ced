"""Calls whose servers ask: from the worker through the record to whoever called, and back."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from registry import calls, catalog, ingest, questions
from registry.calls import CallState
from registry.definitions import parse_definition
from registry.settings import Settings
from registry.telemetry import Span
from registry.trace import parent_of
from tests.integration.test_worker import ended
from tests.jobs import make_job
from tests.ledger import listed
from tests.requirements import requirement
from tests.serving import Api
from tests.waiting import until
from workers.aio_pool import DRAIN, USER, Job
from workers.guardrails import Guardrails
from workers.invoke import invoke
from workers.runtime import WorkerRuntime

pytestmark = pytest.mark.anyio

PROGRAM = str(Path(__file__).parent.parent / "servers" / "asking.py")
TOOLS = ("ask", "twice", "log", "meta", "effect", "hidden")
OSLO = {"action": "accept", "content": {"city": "Oslo"}}
EVERYTHING = ["elicitation", "elicitation.url", "sampling", "roots"]
TRACE = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "v=1", "baggage": "k=v"}


@dataclass
class Asking:
    """A server that asks, its worker, and the API through which it is called."""

    api: Api
    worker: WorkerRuntime
    era: str
    journal: Path

    async def call(self, tool: str = "ask", **body: Any) -> tuple[str, Job]:
        """Submit a call and let the worker have its message; return its id and its job."""
        run = await self.api.run()
        answer = await self.api.http.post(
            f"/v1/runs/{run['id']}/calls",
            json={"tool": f"{self.era}_{tool}", "answers": EVERYTHING, **body},
            headers=TRACE,
        )
        assert answer.status_code == 202, answer.text
        call_id: str = answer.json()["id"]
        return call_id, self.deliver(call_id)

    def deliver(self, call_id: str) -> Job:
        """Let the worker have a call's message."""
        job = make_job()
        job.task = asyncio.create_task(invoke(self.worker, call_id, job))
        return job

    async def body(self, call_id: str, **query: Any) -> dict[str, Any]:
        """Return a call as its caller sees it."""
        answer = await self.api.http.get(f"/v1/calls/{call_id}", params=query)
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body

    async def asked(self, call_id: str) -> list[dict[str, Any]]:
        """Return what a call's server asks, once it does."""
        found: list[dict[str, Any]] = (await self.body(call_id, wait=20))["questions"]
        assert found
        return found

    async def answer(self, call_id: str, **answers: Any) -> list[str]:
        """Answer questions; return which answers were taken."""
        given = {key: {"result": it} for key, it in answers.items()}
        answer = await self.api.http.post(f"/v1/calls/{call_id}/answers", json={"answers": given})
        assert answer.status_code == 200, answer.text
        taken: list[str] = answer.json()["taken"]
        return taken

    async def states(self, call_id: str) -> list[str]:
        """Return where the questions of a call are."""
        async with self.api.database.transaction() as connection:
            found = await connection.exec_driver_sql(
                "SELECT state FROM questions WHERE call_id = %s ORDER BY number", (call_id,)
            )
            return [row.state for row in found]

    async def remembered(self, call_id: str) -> list[Any]:
        """Return what is known of what a call has asked and was answered."""
        async with self.api.database.transaction() as connection:
            found = await connection.exec_driver_sql(
                "SELECT key, params, answer FROM questions WHERE call_id = %s"
                " AND num_nonnulls(key, params, answer) > 0",
                (call_id,),
            )
            return list(found)

    def key(self, number: int) -> str:
        """Return the key of what a server asks together, by its place."""
        return f"q{number}" if self.era == "legacy" else f"key/{number - 1}"

    async def row(self, call_id: str) -> dict[str, Any]:
        """Return a call as the record has it."""
        return (await calls.read(self.api.database, [call_id]))[call_id]

    def noted(self) -> list[str]:
        """Return what the server has noted."""
        return self.journal.read_text().split() if self.journal.exists() else []


@asynccontextmanager
async def serving(api: Api, redis_url: str, era: str, folder: Path) -> AsyncIterator[Asking]:
    journal = folder / era
    server = parse_definition(
        {
            "name": era,
            "transport": "stdio",
            "command": sys.executable,
            "args": [PROGRAM, "--journal", str(journal), *["--legacy"] * (era == "legacy")],
            "pool": {"min_idle": 1, "max_size": 2},
            "tools": {tool: {"delivery": "read"} for tool in TOOLS if tool != "effect"},
        }
    )
    version = await catalog.add_server(api.database, server, actor="test")
    await ingest.ingest(api.database, version, server, [listed(tool) for tool in TOOLS])
    settings = Settings(
        database_url=api.database.engine.url.render_as_string(hide_password=False),
        redis_url=redis_url,
        secret_key=SecretStr("a secret of at least thirty-two bytes"),
        drain_grace=timedelta(0),
    )
    worker = WorkerRuntime(era, settings)
    await worker.open()
    try:
        yield Asking(api, worker, era, journal)
    finally:
        await worker.close()


@pytest.fixture(scope="module")
async def served(
    shared_api: Api, _redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Callable[[str], Awaitable[Asking]]]:
    """A server of each era; each is started for the first test that asks for it."""
    folder = tmp_path_factory.mktemp("asking")
    found: dict[str, Asking] = {}
    async with AsyncExitStack() as stack:

        async def of(era: str) -> Asking:
            if era not in found:
                one = serving(shared_api, _redis_url, era, folder)
                found[era] = await stack.enter_async_context(one)
            return found[era]

        yield of


@pytest.fixture(params=["modern", pytest.param("legacy", marks=pytest.mark.long)])
async def asking(
    request: pytest.FixtureRequest, served: Callable[[str], Awaitable[Asking]]
) -> Asking:
    asking = await served(request.param)
    asking.journal.unlink(missing_ok=True)
    return asking


def said(row: dict[str, Any]) -> Any:
    return json.loads(row["result"]["content"][0]["text"])


@requirement("questions:reach-the-caller", "questions:forgotten")
async def test_a_caller_answers_what_a_running_call_asks(asking: Asking) -> None:
    call_id, job = await asking.call(arguments={"ways": ["form", "roots"]})
    # Over the era before 2026-07-28 they come one by one.
    asked = await until(lambda: _two(asking, call_id))
    keys = {it["method"]: it["key"] for it in asked}
    form, roots = keys["elicitation/create"], keys["roots/list"]
    assert await asking.answer(call_id, **{form: OSLO, roots: {"roots": []}}) == sorted(
        keys.values()
    )
    assert await ended(job) is CallState.SUCCEEDED
    assert said(await asking.row(call_id)) == [OSLO, {"roots": []}]
    assert await asking.states(call_id) == ["answered", "answered"]
    assert await asking.remembered(call_id) == []
    assert (await asking.body(call_id))["questions"] == []


async def _two(asking: Asking, call_id: str) -> list[dict[str, Any]] | None:
    found: list[dict[str, Any]] = (await asking.body(call_id))["questions"]
    return found if len(found) == 2 else None


@requirement("questions:reach-the-caller")
async def test_a_call_that_asks_one_thing_after_the_other_is_answered_each_time(
    asking: Asking,
) -> None:
    call_id, job = await asking.call("twice")
    keys = ("q1", "q2") if asking.era == "legacy" else ("one", "two")
    for key, result in zip(keys, (OSLO, {"roots": []}), strict=True):
        assert [it["key"] for it in await asking.asked(call_id)] == [key]
        assert await asking.answer(call_id, **{key: result}) == [key]
    assert await ended(job) is CallState.SUCCEEDED
    assert said(await asking.row(call_id)) == [OSLO, {"roots": []}]


@requirement("questions:durable")
async def test_an_answer_without_a_hint_is_found_in_the_record(asking: Asking) -> None:
    call_id, job = await asking.call()
    await asking.asked(call_id)
    answers = {asking.key(1): {"result": OSLO}}
    taken = await questions.answer(asking.api.database, call_id, answers, actor="another process")
    assert taken == set(answers)
    assert await ended(job) is CallState.SUCCEEDED


@requirement("questions:only-what-is-answered")
async def test_where_nobody_answers_a_call_ends_at_once_and_cleanly(asking: Asking) -> None:
    call_id, job = await asking.call(answers=[])
    state, row = await ended(job), await asking.row(call_id)
    if asking.era == "legacy":
        assert state is CallState.SUCCEEDED
        assert said(row)[0]["error"] == "nobody answers elicitation/create here"
    else:
        assert (state, row["error"]["code"]) == (CallState.FAILED, "input_required")
    assert await asking.states(call_id) == []


@pytest.mark.long
@requirement("questions:only-what-is-answered")
async def test_where_nobody_answers_in_time_a_call_ends_before_its_deadline(asking: Asking) -> None:
    call_id, job = await asking.call(timeout_s=5)
    state, row = await ended(job), await asking.row(call_id)
    if asking.era == "legacy":
        assert (state, said(row)) == (CallState.SUCCEEDED, [{"action": "cancel"}])
    else:
        assert (state, row["error"]["code"]) == (CallState.FAILED, "input_required")
        assert "nobody answered in time" in row["error"]["message"]
    assert await asking.states(call_id) == ["withdrawn"]


@requirement("questions:under-the-claim")
async def test_the_question_of_a_call_that_is_stopped_is_withdrawn(asking: Asking) -> None:
    call_id, job = await asking.call("effect")
    await asking.asked(call_id)
    await asking.api.http.post(f"/v1/calls/{call_id}/cancel")
    job.cancel(USER)
    await ended(job)
    assert (await asking.body(call_id))["state"] == "stopped"
    assert await asking.states(call_id) == ["withdrawn"]
    assert await asking.answer(call_id, **{asking.key(1): OSLO}) == []
    assert asking.noted() == ["called"]


@requirement("questions:a-write-stays-one")
async def test_a_write_that_only_asked_is_given_back_and_one_that_runs_is_not(
    asking: Asking,
) -> None:
    call_id, job = await asking.call("effect")
    (asked,) = await asking.asked(call_id)
    job.cancel(DRAIN)
    await ended(job)
    state = (await asking.body(call_id))["state"]
    if asking.era == "legacy":
        assert state == "outcome_unknown"
        return
    assert state == "queued"
    # Asked it was, and the answer holds whoever asks: nobody is asked twice.
    assert await asking.answer(call_id, **{asked["key"]: OSLO}) == [asked["key"]]
    assert await ended(asking.deliver(call_id)) is CallState.SUCCEEDED
    assert asking.noted().count("effect") == 1


@requirement("questions:let-out")
async def test_what_is_asked_is_redacted_and_without_hidden_characters(asking: Asking) -> None:
    call_id, job = await asking.call("hidden")
    (asked,) = await asking.asked(call_id)
    assert asked["params"]["message"] == "Write to [email]?"
    await asking.answer(call_id, **{asked["key"]: {"action": "decline"}})
    assert await ended(job) is CallState.SUCCEEDED


@requirement("questions:checked")
async def test_what_is_no_answer_is_refused_and_the_question_stays_open(asking: Asking) -> None:
    call_id, job = await asking.call()
    await asking.asked(call_id)
    key = asking.key(1)
    wrong = {key: {"result": {"action": "accept", "content": {"city": "x"}}}}
    refused = await asking.api.http.post(f"/v1/calls/{call_id}/answers", json={"answers": wrong})
    assert refused.status_code == 422
    assert refused.json()["details"]["problems"][0]["path"] == f"/{key}/result/content ($.city)"
    assert await asking.answer(call_id, **{key: OSLO}) == [key]
    assert await ended(job) is CallState.SUCCEEDED


@requirement("questions:checked")
async def test_the_users_own_checks_see_what_a_server_is_to_be_told(
    asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    guardrails = Guardrails(["tests.guardrail_checks:no_bombs"])
    monkeypatch.setattr(asking.worker, "guardrails", guardrails)
    call_id, job = await asking.call()
    await asking.asked(call_id)
    answer = {"action": "accept", "content": {"city": "a bomb"}}
    await asking.answer(call_id, **{asking.key(1): answer})
    assert await ended(job) is CallState.FAILED
    assert (await asking.row(call_id))["error"]["code"] == "guardrail_refused"


@requirement("logs:on-demand")
async def test_what_a_server_logs_is_told_in_the_calls_events(asking: Asking) -> None:
    run = await asking.api.run()
    url = f"/v1/runs/{run['id']}/calls"
    submitted = await asking.api.http.post(
        url, json={"tool": f"{asking.era}_log", "log_level": "info"}
    )
    call_id = submitted.json()["id"]
    told: list[tuple[str, Any]] = []
    async with asking.api.http.stream("GET", f"/v1/calls/{call_id}/events") as events:
        job, name = None, ""
        async for line in events.aiter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                told.append((name, json.loads(line.removeprefix("data: "))))
            if job is None and told:
                await until(lambda: _listened_to(asking.api, call_id))
                job = asking.deliver(call_id)
    assert job is not None
    assert await ended(job) is CallState.SUCCEEDED
    logs = [body for name, body in told if name == "log"]
    assert [it["level"] for it in logs] == ["info", "error"]
    assert logs[0]["data"] == {"step": 2, "mail": "[email]"}


async def _listened_to(api: Api, call_id: str) -> bool:
    ((_, listeners),) = await api.redis.pubsub_numsub(f"toolfleet:progress:{call_id}")
    return bool(listeners)


@requirement("trace:reaches-the-server")
async def test_a_callers_trace_context_reaches_the_server(asking: Asking) -> None:
    call_id, job = await asking.call("meta")
    assert await ended(job) is CallState.SUCCEEDED
    meta = said(await asking.row(call_id))
    assert (meta["tracestate"], meta["baggage"]) == (TRACE["tracestate"], TRACE["baggage"])
    told = parent_of(meta["traceparent"])
    assert told is not None
    assert (told.trace_id, told.sampled) == (TRACE["traceparent"][3:35], True)

    async def kept() -> list[Span]:
        spans = await asking.worker.client.trace_of(told.trace_id)
        return [span for span in spans if span.span_id == told.span_id]

    (span,) = await until(kept)
    assert (span.name, span.kind) == ("tools/call meta", "client")
