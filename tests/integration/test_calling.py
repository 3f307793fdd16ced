"""What an MCP client is answered to ``tools/call``, in front of a real Postgres and Redis.

The test takes the worker's part in the ledger itself (`tests.asking.Worker`).
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from api.mcp.asked import FLEET_ERROR, INVALID_PARAMS, Revision
from api.mcp.own_tools import CALL
from api.mcp.tool_request import IDEMPOTENCY_KEY
from registry import leases, questions, tokens
from registry.errors import Code, FleetError
from registry.questions import Question
from registry.tenants import Actor, Role
from tests.asking import (
    ELICITS,
    FORM,
    LEGACY,
    NEWEST,
    OSLO,
    Caller,
    Worker,
    caller,
    impatient,
    refused,
    said,
    text_of,
)
from tests.requirements import requirement
from tests.serving import ECHO, Api
from tests.waiting import until
from workers.client import PROGRESS_CHANNEL

pytestmark = pytest.mark.anyio

PLAIN = {"name": "plain", "inputSchema": {"type": "object"}}


@pytest.fixture(scope="module")
async def served(shared_api: Api) -> Api:
    await shared_api.serve("demo", ECHO, PLAIN, tools={"echo": {"delivery": "read"}})
    return shared_api


@pytest.fixture
async def acme(served: Api) -> tuple[Caller, Worker]:
    return await caller(served)


@requirement("mcp:results-as-recorded")
@pytest.mark.parametrize("revision", Revision)
async def test_a_call_is_answered_with_the_result_of_the_record(
    acme: tuple[Caller, Worker], revision: Revision
) -> None:
    client, worker = acme
    result = said("ok", structuredContent={"n": 1.50}, isError=True, _meta={"a": ["é", None]})
    async with client.but(revision=revision).calling() as calling:
        await worker.end(await worker.claim(), result)
        answer = await calling
    assert answer == (result | {"resultType": "complete"} if revision.stateless else result)


# -- errors


@requirement("mcp:errors")
async def test_a_failure_of_the_fleet_is_an_error_with_its_code(
    acme: tuple[Caller, Worker],
) -> None:
    client, worker = acme
    lost = FleetError(Code.SESSION_LOST, "the connection closed").as_dict()
    async with client.calling() as calling:
        await worker.end(await worker.claim(), error=lost)
        with refused(FLEET_ERROR) as errors:
            await calling
    assert errors[0].data == lost


@requirement("mcp:errors")
async def test_arguments_that_do_not_fit_are_shown_to_the_model_by_the_revisions_that_want_it(
    acme: tuple[Caller, Worker],
) -> None:
    client, worker = acme
    for revision in (Revision.NOVEMBER_2025, Revision.JULY_2026):
        answer = await client.but(revision=revision).call(arguments={"text": 1})
        assert answer["isError"]
        assert "$.text" in text_of(answer)
    with refused(INVALID_PARAMS):
        await client.but(revision=Revision.JUNE_2025).call(arguments={"text": 1})
    assert await worker.count() == 0


@requirement("mcp:errors")
@pytest.mark.parametrize(
    "params",
    [
        {"name": "demo_nothing"},
        {"name": 1},
        {"arguments": None},
        {"inputResponses": None},
        {"inputResponses": {"q1": 12345}},
        {"requestState": 1},
        {"_meta": {"toolfleet/timeoutS": "soon"}},
        {"_meta": {IDEMPOTENCY_KEY: ""}},
        {"_meta": {IDEMPOTENCY_KEY: "\ud800"}},
        {"requestState": "\ud800"},
    ],
)
async def test_a_request_that_is_none_is_refused_and_makes_no_call(
    acme: tuple[Caller, Worker], params: dict[str, Any]
) -> None:
    client, worker = acme
    with refused(INVALID_PARAMS):
        await client.call(**params)
    assert await worker.count() == 0


# -- one server


@requirement("mcp:results-as-recorded")
async def test_in_front_of_one_server_its_tools_have_their_own_names(
    acme: tuple[Caller, Worker],
) -> None:
    client, worker = acme
    async with client.but(server="demo").calling("echo") as calling:
        claim = await worker.claim()
        await worker.end(claim)
        assert (claim.tool, text_of(await calling)) == ("demo_echo", "done")
    with refused(INVALID_PARAMS):
        await client.but(server="other").call("demo_echo")


# -- what is told meanwhile


@requirement("mcp:told-meanwhile")
async def test_progress_and_log_messages_come_before_the_result(
    acme: tuple[Caller, Worker],
) -> None:
    client, worker = acme
    client = client.but(log_level="warning")
    async with client.calling(_meta={"progressToken": "t"}) as calling:
        claim = await worker.claim()
        for report in (
            {"progress": 1, "total": 3, "message": "one"},
            {"progress": 1, "total": 3, "message": None},
            {"progress": "much"},
            {"log": {"level": "info", "logger": "db", "data": "quiet"}},
            {"log": {"level": "error", "logger": "db", "data": {"why": "loud"}}},
            {"log": {"level": "no level", "data": 1}},
            [],
            {"progress": 2.5, "total": None, "message": None},
        ):
            await worker.report(claim, report)
        await worker.end(claim)
        await calling
    assert client.told == [
        (
            "notifications/progress",
            {"progressToken": "t", "progress": 1, "total": 3, "message": "one"},
        ),
        ("notifications/message", {"level": "error", "data": {"why": "loud"}, "logger": "db"}),
        ("notifications/progress", {"progressToken": "t", "progress": 2.5}),
    ]


@requirement("mcp:told-meanwhile")
async def test_a_client_that_wants_to_hear_nothing_costs_no_subscription(
    acme: tuple[Caller, Worker],
) -> None:
    client, worker = acme
    async with client.calling() as calling:
        claim = await worker.claim()
        channels = await worker.redis.pubsub_channels("toolfleet:progress:*")
        assert (PROGRESS_CHANNEL + claim.id).encode() not in channels
        await worker.end(claim)
        await calling
    assert client.told == []


# -- questions


@requirement("mcp:questions")
async def test_a_session_is_asked_each_question_once_while_the_call_goes_on(
    acme: tuple[Caller, Worker],
) -> None:
    client, worker = acme
    client = client.but(revision=LEGACY, capabilities=ELICITS)
    async with client.calling() as calling:
        claim = await worker.claim()
        (first,) = await worker.ask(claim)
        await until(lambda: len(client.questions) == 1)
        (second,) = await worker.ask(claim)
        await until(lambda: len(client.questions) == 2)
        for it in (first, second):
            answer = {it.key: {"result": OSLO}}
            assert await client.operations.answer(client.actor, claim.id, answer) == {it.key}
        await worker.end(claim)
        assert text_of(await calling) == "done"
    assert client.questions == [
        (f"toolfleet-{claim.id}-{it.number}", it.method, it.params) for it in (first, second)
    ]


@requirement("mcp:questions", "mcp:request-state")
async def test_a_request_that_comes_back_with_answers_goes_on_with_the_same_call(
    acme: tuple[Caller, Worker],
) -> None:
    client, worker = acme
    client = client.but(capabilities=ELICITS)
    async with client.calling() as calling:
        claim = await worker.claim()
        one, two = await worker.ask(claim, *worker.forms(2))
        first = await calling
    assert first["resultType"] == "input_required"
    assert first["inputRequests"] == {
        it.key: {"method": it.method, "params": it.params} for it in (one, two)
    }
    # What is missing is asked again; what nobody asked for is passed over.
    second = await client.call(
        inputResponses={one.key: OSLO, "nobody": OSLO}, requestState=first["requestState"]
    )
    assert set(second["inputRequests"]) == {two.key}
    assert second["requestState"] != first["requestState"]
    async with client.calling(
        inputResponses={two.key: OSLO}, requestState=second["requestState"]
    ) as calling:
        await until(lambda: worker.answered(claim, one, two))
        await worker.end(claim)
        assert text_of(await calling) == "done"
    assert await worker.count() == 1


@requirement("mcp:questions")
@pytest.mark.parametrize("key", [None, "user name"])
async def test_answers_that_come_with_the_request_need_no_round(
    acme: tuple[Caller, Worker], key: str | None
) -> None:
    client, worker = acme
    answers = {key or "q1": OSLO, "nobody": OSLO}
    async with client.but(capabilities=ELICITS).calling(inputResponses=answers) as calling:
        claim = await worker.claim()
        (it,) = await worker.ask(claim, replace(FORM, key=key))
        await until(lambda: worker.answered(claim, it))
        await worker.end(claim)
        assert text_of(await calling) == "done"


@requirement("mcp:questions", "questions:asked-once")
async def test_an_answer_counts_that_comes_while_the_call_waits_to_run_again(
    acme: tuple[Caller, Worker],
) -> None:
    client, worker = acme
    client = client.but(capabilities=ELICITS)
    asks = replace(FORM, key="city")
    async with client.calling() as calling:
        claim = await worker.claim()
        await worker.ask(claim, asks)
        state = (await calling)["requestState"]
    await leases.close_dead(worker.database, 3)
    async with client.calling(inputResponses={"city": OSLO}, requestState=state) as calling:
        await until(lambda: worker.answered(claim, Question("city", 1, FORM.method, {})))
        again = await worker.claim()
        await worker.ask(again, asks)
        assert await questions.answered(worker.database, again, ["city"]) == {
            "city": {"result": OSLO}
        }
        await worker.end(again)
        assert text_of(await calling) == "done"


@requirement("mcp:questions")
async def test_a_client_is_asked_only_what_it_says_that_it_answers(
    acme: tuple[Caller, Worker],
) -> None:
    client, worker = acme
    async with client.but(capabilities=ELICITS).calling() as calling:
        claim = await worker.claim()
        await worker.ask(claim)
        state = (await calling)["requestState"]
    async with client.calling(requestState=state) as calling:
        await worker.end(claim)
        assert (await calling)["resultType"] == "complete"
    async with client.calling() as calling:
        deaf = await worker.claim()
        assert deaf.answers == ()


@requirement("mcp:request-state")
async def test_a_state_holds_for_its_caller_and_its_request_alone(
    acme: tuple[Caller, Worker],
) -> None:
    client, worker = acme
    client = client.but(capabilities=ELICITS)
    async with client.calling() as calling:
        await worker.ask(await worker.claim())
        state = (await calling)["requestState"]
    key = client.operations.settings.secret_key.get_secret_value()
    somebody = Actor("2", "another agent", Role.TENANT, "acme")
    of_all = Actor("1", "an agent", Role.OPERATOR, None)
    claims = tokens.read(state, audience="toolfleet.request", key=key)
    over = datetime.now(UTC) - timedelta(minutes=10)
    late = tokens.sign(claims, audience="toolfleet.request", expires_at=over, key=key)
    for other, params in (
        (client, {"requestState": state + "-TAMPERED"}),
        (client, {"requestState": "nonsense"}),
        (client, {"requestState": late}),
        (client, {"requestState": state, "arguments": {"text": "something else"}}),
        (client, {"requestState": state, "name": "demo_plain", "arguments": {}}),
        (client.but(actor=somebody), {"requestState": state}),
        (client.but(actor=of_all), {"requestState": state}),
    ):
        with refused(INVALID_PARAMS):
            await other.call(inputResponses={"q1": OSLO}, **params)
    assert await worker.count() == 1


# -- one call, and none


@requirement("mcp:one-call")
async def test_a_known_idempotency_key_is_answered_by_the_call_that_there_is(
    acme: tuple[Caller, Worker],
) -> None:
    client, worker = acme
    meta = {IDEMPOTENCY_KEY: "order-17"}
    async with client.calling(_meta=meta) as one, client.calling(_meta=meta) as two:
        await worker.end(await worker.claim())
        assert await one == await two
    assert await worker.count() == 1


@requirement("mcp:leaving")
async def test_who_leaves_a_request_of_the_newest_revision_stops_its_call(
    acme: tuple[Caller, Worker],
) -> None:
    client, worker = acme
    async with client.calling():
        claim = await worker.claim()
    await until(lambda: worker.stop_requested(claim))


@requirement("mcp:leaving")
async def test_who_leaves_a_request_of_a_session_does_not_stop_its_call(
    acme: tuple[Caller, Worker],
) -> None:
    client, worker = acme
    async with client.but(revision=LEGACY).calling():
        claim = await worker.claim()
    await client.operations.close()  # whatever it does in the background is done
    assert not await worker.stop_requested(claim)
    await worker.end(claim, hint=False)


# -- clients that know no tasks


@pytest.fixture
def hasty(acme: tuple[Caller, Worker]) -> Caller:
    """The same client, of an API that lets nobody wait."""
    return impatient(acme[0], mcp_wait=timedelta(0))


@requirement("mcp:bounded-wait")
@pytest.mark.parametrize("revision", [LEGACY, NEWEST])
async def test_a_call_that_goes_on_is_named_and_its_result_is_to_be_had(
    acme: tuple[Caller, Worker], hasty: Caller, revision: Revision
) -> None:
    client, worker = acme
    client, hasty = client.but(revision=revision), hasty.but(revision=revision)
    told = await hasty.call("demo_plain")
    call_id = told["_meta"][CALL]["id"]
    assert (told["isError"], call_id in text_of(told)) == (False, True)
    about = {"arguments": {"call_id": call_id}}
    claim = await worker.claim()
    status = await client.call("call_status", **about)
    assert status["structuredContent"]["state"] == "running"
    again = await hasty.call("call_result", **about)
    assert (again["_meta"][CALL], claim.id) == ({"id": call_id, "state": "running"}, call_id)
    async with client.calling("call_result", **about) as calling:
        await worker.end(claim)
        assert text_of(await calling) == "done"
    assert (await client.call("call_status", **about))["structuredContent"]["state"] == "succeeded"


@requirement("mcp:bounded-wait")
async def test_a_tool_that_declares_its_output_goes_on_with_an_answer_that_clients_let_through(
    hasty: Caller,
) -> None:
    told = await hasty.call("demo_echo")
    assert (told["isError"], CALL in told["_meta"]) == (True, True)


@requirement("mcp:bounded-wait")
async def test_calls_of_other_tenants_cannot_be_asked_for(served: Api, hasty: Caller) -> None:
    call_id = (await hasty.call())["_meta"][CALL]["id"]
    other, _ = await caller(served, "globex")
    for tool in ("call_status", "call_result"):
        for wrong in ({"call_id": call_id}, {"call_id": "0" * 36}, {"call_id": 1}, {}):
            answer = await other.call(tool, arguments=wrong)
            assert answer["isError"], answer


@requirement("mcp:own-tools-collide-with-none")
async def test_a_servers_tool_keeps_a_name_that_the_fleets_own_has_too(
    served: Api,
) -> None:
    theirs = {"name": "call_status", "inputSchema": {"type": "object"}}
    await served.serve("other", theirs, tool_prefix="", tenants=["umbrella"])
    client, worker = await caller(served, "umbrella")
    async with client.calling("call_status", arguments={}) as calling:
        claim = await worker.claim()
        assert claim.tool == "call_status"
        about = {"arguments": {"call_id": claim.id}}
        answer = await client.call("toolfleet_call_status", **about)
        assert answer["structuredContent"]["state"] == "running"
        await worker.end(claim)
        assert text_of(await calling) == "done"
