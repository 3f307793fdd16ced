"""What servers ask and log reaches a call's caller, over each transport and era."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from registry.answers import Answer, NewQuestion
from registry.errors import Code, FleetError
from registry.question_kinds import KINDS
from tests.contract.test_sessions import SERVERS, http, open_session, stdio
from tests.requirements import requirement
from workers.caller import NOBODY, Caller
from workers.large import LargeReader
from workers.session import CallError, Session, ToolResult

pytestmark = pytest.mark.anyio

UPSTREAMS = (
    "stdio-legacy",
    *(pytest.param(kind, marks=pytest.mark.long) for kind in ("stdio", "http", "http-legacy")),
)
METHODS = {
    "form": "elicitation/create",
    "url": "elicitation/create",
    "sample": "sampling/createMessage",
    "roots": "roots/list",
}
FORM = {
    "type": "object",
    "properties": {"city": {"type": "string", "minLength": 2}},
    "required": ["city"],
}
OSLO = {"action": "accept", "content": {"city": "Oslo"}}
SAID = {"role": "assistant", "content": {"type": "text", "text": "Oslo"}, "model": "m"}
HOME = {"roots": [{"uri": "file:///home", "name": "home"}]}
LIMIT_S = 20.0
LONGEST = 10_000_000


@dataclass
class Person:
    """Answers what it is asked, in the order in which it is asked."""

    answers: list[Answer] = field(default_factory=list)
    asked: list[NewQuestion] = field(default_factory=list)
    between: list[bool] = field(default_factory=list)
    logs: list[Any] = field(default_factory=list)
    ready: asyncio.Event = field(default_factory=asyncio.Event)

    async def ask(self, asked: Sequence[NewQuestion], *, between: bool = False) -> list[Answer]:
        self.asked += asked
        self.between.append(between)
        self.ready.set()
        return [self.answers.pop(0) for _ in asked]

    async def log(self, body: dict[str, Any]) -> None:
        self.logs.append(body)

    def caller(self, kinds: Sequence[str] = KINDS, level: str | None = None) -> Caller:
        return Caller(tuple(kinds), self.ask, level, self.log)


@asynccontextmanager
async def http_server(*flags: str) -> AsyncIterator[int]:
    """Run the server over HTTP on a free port."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(SERVERS / "asking.py"), "--http", "0", *flags, stdout=PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(LIMIT_S):
            port = int(await process.stdout.readline())
        yield port
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.fixture(scope="module")
async def opened(anyio_backend: str) -> AsyncIterator[Callable[[str], Awaitable[Session]]]:
    """A session with a server of each kind; each is opened for the first test that asks for it."""
    ports: dict[str, int] = {}
    reader = LargeReader(longest_bytes=LONGEST)
    options: dict[str, Any] = {"max_result_bytes": LONGEST, "large": reader}
    sessions: dict[str, Session] = {}
    async with AsyncExitStack() as stack:

        async def open_one(kind: str) -> Session:
            flags = ["--legacy"] if kind.endswith("legacy") else []
            if kind.startswith("stdio"):
                return await open_session(stdio("asking.py", *flags), **options)
            if kind not in ports:
                ports[kind] = await stack.enter_async_context(http_server(*flags))
            return await open_session(http(ports[kind]), **options)

        async def session_with(kind: str) -> Session:
            if kind not in sessions or sessions[kind].poisoned:
                sessions[kind] = await open_one(kind)
                stack.push_async_callback(sessions[kind].close)
            return sessions[kind]

        stack.push_async_callback(reader.close)
        yield session_with


@pytest.fixture(params=UPSTREAMS)
async def session(
    request: pytest.FixtureRequest, opened: Callable[[str], Awaitable[Session]]
) -> Session:
    session = await opened(request.param)
    assert session.era == ("legacy" if request.param.endswith("legacy") else "modern")
    return session


async def call(session: Session, tool: str, caller: Caller = NOBODY, **rest: Any) -> ToolResult:
    arguments = rest.pop("arguments", {})
    return await session.call_tool(
        tool, arguments, **{"timeout_s": LIMIT_S, "caller": caller, **rest}
    )


def said(result: ToolResult) -> Any:
    return json.loads(result.body["content"][0]["text"])


@requirement("questions:reach-the-caller")
async def test_each_kind_of_question_reaches_the_caller_and_its_answer_the_server(
    session: Session,
) -> None:
    person = Person([{"result": it} for it in (OSLO, {"action": "accept"}, SAID, HOME)])
    result = await call(session, "ask", person.caller(), arguments={"ways": list(METHODS)})
    assert sorted(said(result), key=str) == sorted(
        [OSLO, {"action": "accept"}, SAID, HOME], key=str
    )
    assert {it.method for it in person.asked} == set(METHODS.values())
    assert FORM in [it.params.get("requestedSchema") for it in person.asked]
    assert set(person.between) == {session.era == "modern"}
    assert not session.poisoned


@requirement("questions:reach-the-caller")
async def test_a_server_asks_one_thing_after_the_other(session: Session) -> None:
    person = Person([{"result": OSLO}, {"result": HOME}])
    assert said(await call(session, "twice", person.caller())) == [OSLO, HOME]
    assert len(person.between) == 2


@requirement("questions:only-what-is-answered")
async def test_what_nobody_answers_is_refused_and_the_call_ends_cleanly(session: Session) -> None:
    if session.era == "legacy":
        (told,) = said(await call(session, "ask"))
        assert told == {"error": "nobody answers elicitation/create here", "code": -32601}
        assert not session.poisoned
    else:
        with pytest.raises(CallError) as refused:
            await call(session, "ask")
        assert refused.value.code is Code.INPUT_REQUIRED
        assert refused.value.details == {"requests": ["key/0"]}


@requirement("questions:only-what-is-answered")
async def test_a_server_is_told_what_the_caller_can_be_asked(session: Session) -> None:
    declared = said(await call(session, "capable", Person().caller(["elicitation", "roots"])))
    everything = {"elicitation": {"form": {}, "url": {}}, "sampling": {}, "roots": {}}
    expected = {"elicitation": {"form": {}}, "roots": {}}
    assert declared == (everything if session.era == "legacy" else expected)


@requirement("questions:only-what-is-answered")
async def test_an_error_in_place_of_an_answer_is_told_the_server_or_ends_the_call(
    session: Session,
) -> None:
    person = Person([{"error": {"code": -1, "message": "the user is away"}}])
    if session.era == "legacy":
        (told,) = said(await call(session, "ask", person.caller()))
        assert told == {"error": "the user is away", "code": -1}
    else:
        with pytest.raises(FleetError, match="the user is away") as refused:
            await call(session, "ask", person.caller())
        assert refused.value.code is Code.INPUT_REQUIRED


@requirement("questions:reach-the-caller")
async def test_questions_and_answers_may_be_long(session: Session) -> None:
    city = "x" * 300_000
    person = Person([{"result": {"action": "accept", "content": {"city": city}}}])
    result = await call(session, "large", person.caller(), arguments={"size": 200_000})
    assert said(result) == len(city)
    assert len(person.asked[0].params["message"]) > 190_000


@requirement("questions:bounded")
async def test_a_question_of_more_than_a_megabyte_is_refused(session: Session) -> None:
    person = Person([])
    arguments = {"size": 1_100_000}
    if session.era == "legacy":
        told = said(await call(session, "large", person.caller(), arguments=arguments))
        assert told == {"error": "what is asked is too large", "code": -32600}
    else:
        with pytest.raises(CallError) as refused:
            await call(session, "large", person.caller(), arguments=arguments)
        assert refused.value.code is Code.RESULT_TOO_LARGE
    assert person.asked == []


@requirement("questions:bounded")
async def test_a_server_that_asks_without_end_is_refused_in_the_end(session: Session) -> None:
    person = Person([{"result": HOME}] * 10 + [{"error": {"code": -1, "message": "enough"}}])
    if session.era == "legacy":
        assert said(await call(session, "endless", person.caller()))["error"] == "enough"
    else:
        with pytest.raises(CallError, match="asked for input 10 times"):
            await call(session, "endless", person.caller())
    assert len(person.asked) == (11 if session.era == "legacy" else 10)


@requirement("questions:reach-the-caller")
async def test_what_a_server_asks_at_once_is_answered_to_the_last_question(
    session: Session,
) -> None:
    if session.era == "modern":
        pytest.skip("there they are all in one result")
    person = Person([{"result": HOME}] * 60)
    result = await call(session, "ask", person.caller(), arguments={"ways": ["roots"] * 60})
    assert said(result) == [HOME] * 60


@requirement("questions:under-the-claim")
async def test_a_question_that_its_server_takes_back_is_asked_no_more(session: Session) -> None:
    if session.era == "modern":
        pytest.skip("a question is a result there: nobody takes it back")
    cancelled = asyncio.Event()

    async def ask(asked: Sequence[NewQuestion], *, between: bool = False) -> list[Answer]:
        try:
            return await asyncio.Future()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    assert said(await call(session, "impatient", Caller(KINDS, ask))) == "took it back"
    assert cancelled.is_set()


@requirement("questions:their-own-call")
async def test_calls_that_ask_at_once_are_answered_each_for_itself_or_not_at_all(
    session: Session,
) -> None:
    people = [
        Person([{"result": {"action": "accept", "content": {"city": f"city {n}"}}}])
        for n in range(2)
    ]
    both = asyncio.Barrier(2)

    async def one(person: Person) -> Any:
        async def together(asked: Sequence[NewQuestion], *, between: bool = False) -> Any:
            await both.wait()
            return await person.ask(asked, between=between)

        return said(await call(session, "ask", Caller(KINDS, together)))[0]

    told = await asyncio.gather(*map(one, people))
    if session.era == "legacy" and not session.over_http:
        assert [it["code"] for it in told] == [-32600, -32600]
        assert all("belongs to no call" in it["error"] for it in told)
    else:
        assert [it["content"]["city"] for it in told] == ["city 0", "city 1"]


@requirement("questions:time-stands-still")
async def test_the_time_of_an_answer_is_not_the_servers(session: Session) -> None:
    person = Person([{"result": OSLO}])

    async def slowly(asked: Sequence[NewQuestion], *, between: bool = False) -> list[Answer]:
        await asyncio.sleep(0.5)
        return await person.ask(asked, between=between)

    result = await call(session, "wait", Caller(KINDS, slowly), timeout_s=0.4)
    assert said(result) == [OSLO]


@requirement("questions:time-stands-still")
async def test_after_an_answer_the_server_has_what_was_left_of_its_time(session: Session) -> None:
    person = Person([{"result": OSLO}])
    with pytest.raises(CallError) as late:
        await call(session, "wait", person.caller(), arguments={"after": LIMIT_S}, timeout_s=0.5)
    assert late.value.code is Code.CALL_TIMEOUT


@requirement("questions:reach-the-caller")
async def test_a_state_alone_has_the_request_made_again(session: Session) -> None:
    if session.era == "legacy":
        pytest.skip("there are no rounds before 2026-07-28")
    assert said(await call(session, "stateful", arguments={"times": 3})) == 3


@requirement("logs:on-demand")
async def test_log_messages_reach_who_asked_for_them_in_their_order(session: Session) -> None:
    person, heard = Person(), []

    async def on_progress(done: float, _total: float | None, _message: str | None) -> None:
        heard.append(done)

    async def on_log(body: dict[str, Any]) -> None:
        heard.append(body["level"])
        person.logs.append(body)

    caller = Caller(log_level="info", on_log=on_log)
    result = await call(session, "log", caller, on_progress=on_progress)
    assert said(result) == ["info"]
    in_order = [it for it in heard if it in ("info", 3.0, "error")]
    assert in_order == ["info", 3.0, "error"]
    assert person.logs[-1]["logger"] == "asking"
    assert "debug" not in heard


@requirement("logs:on-demand")
async def test_nobody_is_told_of_log_messages_who_did_not_ask(session: Session) -> None:
    person = Person()
    await call(session, "log", person.caller(level=None))
    assert person.logs == []


@requirement("trace:reaches-the-server")
async def test_trace_context_is_in_the_servers_request(session: Session) -> None:
    trace = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "v=1", "baggage": "k=v"}
    meta = said(await call(session, "meta", meta=trace))
    assert {name: meta[name] for name in trace} == trace
