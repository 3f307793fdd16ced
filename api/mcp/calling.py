"""``tools/call``: submit and wait, and tell the client meanwhile what happens.

How long it waits, and what it is answered then, is decided once for each request (`Plan`):

- a call that ends in time is answered with its result, as the record has it;
- what its server asks on the way goes to the client: as requests of ours in the revisions that have
  them, else as an answer that asks for input, with which the same call goes on;
- a call that takes longer becomes a task for a client that knows tasks; any other is told that it
  goes on, and by which tools to ask for it (`api.mcp.own_tools`).
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Container, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

from api.following import Followed
from api.mcp import own_tools, request_state, tasks
from api.mcp.asked import Answered, Asked, Revision
from api.mcp.naming import full_name, known_names
from api.mcp.results import complete, result_of, result_of_error
from api.mcp.telling import Teller
from api.mcp.tool_request import ToolRequest
from api.mcp.uris import shown_result
from api.tracing import name_after_mcp, saw
from api.waiting import Row
from registry.calls import CallState
from registry.definitions import TaskUse
from registry.discovery import CALL_TOOL
from registry.errors import Code, FleetError
from registry.question_kinds import kind_of
from registry.questions import Question
from registry.runs import Exposure, Run
from registry.submission import Wish
from registry.tools import SnapshotTool
from registry.trace import trace_of

QUESTION_ID: Final = "toolfleet-{call_id}-{number}"
"""The id of a request of ours by which a client is asked a server's question."""


@dataclass(frozen=True)
class Plan:
    """How one request is answered."""

    wait_s: float
    """How long it waits for the call's end."""
    task: bool = False
    """Whether a call that takes longer becomes a task."""
    at_once: bool = False
    """Whether it becomes one whatever happens."""

    @classmethod
    def of(cls, asked: Asked, use: TaskUse) -> Plan:
        """Return the plan for a tool; raise `RpcError` for a client that it is not for."""
        settings, knows_tasks = asked.operations.settings, tasks.declared(asked)
        if use is TaskUse.REQUIRED and not knows_tasks:
            raise tasks.missing_capability()
        if not knows_tasks or use is TaskUse.NEVER:
            return cls(settings.mcp_wait.total_seconds())
        if use is TaskUse.WHEN_SLOW:
            return cls(settings.task_after.total_seconds(), task=True)
        return cls(0, task=True, at_once=True)


async def call_tool(asked: Asked) -> Answered:
    """Answer ``tools/call``."""
    wanted = ToolRequest.read(asked)
    run = await asked.run()
    taken = known_names(asked, run)
    try:
        if (own := own_tools.meant(wanted.name, taken)) is not None:
            return await _call_own(asked, wanted, own, taken)
        full = full_name(asked, run, wanted.name)
        tool = _tool(run, full, wanted.arguments)
        plan = Plan.of(asked, tool.task if tool is not None else TaskUse.WHEN_SLOW)
        teller = Teller(asked)
        wish = _wish(asked, wanted, full, reports=teller.wanted)
        async with _called(asked, run, wish, reports=teller.wanted) as call:
            answer = await _Conversation(asked, call, teller, wanted.answers).until(plan)
        if answer is not None:
            return answer
        declares = tool is not None and tool.name == full and tool.output_schema is not None
        return complete(own_tools.goes_on(call, taken, declares_output=declares), asked.revision)
    except FleetError as error:
        return result_of_error(error, asked.revision)


async def converse(asked: Asked, wish: Wish) -> tuple[Row, Answered | None]:
    """Make a call that is of no tool, and tell the client meanwhile what happens.

    Return its row as it was seen last, and the answer that asks the client for input if it does.
    """
    given = request_state.responses(asked) if asked.revision.stateless else {}
    run, teller = await asked.run(), Teller(asked)
    plan = Plan(asked.operations.settings.default_deadline.total_seconds())
    wish = replace(
        wish, answers=_askable(asked), log_level=asked.log_level if teller.wanted else None
    )
    async with _called(asked, run, wish, reports=teller.wanted) as call:
        conversation = _Conversation(asked, call, teller, given, answer=lambda _row, _revision: {})
        answer = await conversation.until(plan)
        return call.row, None if call.ended else answer


async def resume(asked: Asked) -> Answered:
    """Answer a request whose stream its client lost, from its call; raise `unknown_call`."""
    assert asked.call_id is not None
    taken = known_names(asked, await asked.run())
    teller = Teller(asked)
    async with asked.operations.follow(asked.actor, asked.call_id, reports=teller.wanted) as call:
        plan = Plan(asked.operations.settings.mcp_wait.total_seconds())
        answer = await _Conversation(asked, call, teller, {}).until(plan)
    if answer is not None:
        return answer
    return complete(own_tools.goes_on(call, taken, declares_output=True), asked.revision)


async def _call_own(
    asked: Asked, wanted: ToolRequest, tool: dict[str, Any], taken: Container[str]
) -> Answered:
    """Answer a call of one of our own tools; it is about another call, and is none itself."""
    call_id = own_tools.call_id_of(tool, wanted.arguments)
    try:
        if tool is own_tools.CALL_STATUS:
            row = await asked.operations.get_call(asked.actor, call_id)
            return complete(own_tools.status(row), asked.revision)
        request_state.unseal(asked)  # a state that is not this request's is refused here too
        teller = Teller(asked)
        async with asked.operations.follow(asked.actor, call_id, reports=teller.wanted) as call:
            plan = Plan.of(asked, TaskUse.NEVER)
            answer = await _Conversation(asked, call, teller, wanted.answers).until(plan)
    except FleetError as error:
        if error.code is Code.UNKNOWN_CALL:
            raise own_tools.no_such_call(call_id) from error
        raise
    if answer is not None:
        return answer
    return complete(own_tools.goes_on(call, taken, declares_output=False), asked.revision)


def _wish(asked: Asked, wanted: ToolRequest, tool: str, *, reports: bool) -> Wish:
    return Wish(
        tool=tool,
        arguments=wanted.arguments,
        actor=asked.actor.label,
        scopes=asked.actor.scopes,
        idempotency_key=wanted.idempotency_key,
        timeout_s=wanted.timeout_s,
        traceparent=asked.traceparent,
        trace=trace_of(asked.meta),
        call_id=asked.call_id,
        answers=_askable(asked),
        log_level=asked.log_level if reports else None,
    )


@asynccontextmanager
async def _called(asked: Asked, run: Run, wish: Wish, *, reports: bool) -> AsyncIterator[Followed]:
    """Yield the call that a request makes, or goes on with."""
    # Since 2026-07-28 to close the stream is to cancel; before, a client says that it does.
    leaving_stops = asked.revision.stateless
    known = request_state.unseal(asked)
    if known is not None:
        following = asked.operations.follow(
            asked.actor, known, reports=reports, leaving_stops=leaving_stops
        )
    else:
        following = asked.operations.begin(
            asked.actor, run.id, wish, reports=reports, leaving_stops=leaving_stops
        )
    try:
        async with following as call:
            yield call
            saw(call.row)
    finally:
        name_after_mcp(asked.method, asked.revision.value, asked.session)


class _Conversation:
    """One client and one call, until the request is answered."""

    def __init__(
        self,
        asked: Asked,
        call: Followed,
        teller: Teller,
        answers: Mapping[str, dict[str, Any]],
        *,
        answer: Callable[[Row, Revision], Answered] | None = None,
    ) -> None:
        self._answer = answer or self._result
        self._asked = asked
        self._call = call
        self._teller = teller
        self._answers = dict(answers)
        self._sent: set[str] = set()

    async def until(self, plan: Plan) -> Answered | None:
        """Return the answer to the request; None when the call goes on and the client has to ask.

        Raises `RpcError` where the call failed.
        """
        call, revision = self._call, self._asked.revision
        ends_at = time.monotonic() + plan.wait_s
        if self._answers and self._asked.params.get("requestState") is not None:
            await self._give(self._answers)  # now: the call may be about to run again
        while not plan.at_once:
            if call.ended:
                return self._answer(call.row, revision)
            if call.asks and (open_ := await self._unanswered()):
                if revision.stateless:
                    return self._input_required(open_)
                await self._ask(open_)
                ends_at = time.monotonic() + plan.wait_s  # it is the client's turn meanwhile
            awaits = call.row["state"] == CallState.AWAITING_APPROVAL
            left_s = ends_at - time.monotonic()
            if left_s <= 0 or not call.worth_waiting or (plan.task and awaits):
                break
            for report in await call.look(left_s):
                await self._teller.tell(report)
        if not plan.task:
            return None
        await call.refresh()
        return tasks.created(call.row, revision)

    def _result(self, row: Row, revision: Revision) -> Answered:
        return shown_result(self._asked, str(row["server_name"]), result_of(row, revision))

    async def _unanswered(self) -> list[Question]:
        """Answer what the client has answered already; return what it has to be asked."""
        operations, actor = self._asked.operations, self._asked.actor
        try:
            open_ = await operations.questions(actor, self._call.id)
        except FleetError as error:
            if error.code is not Code.STORE_UNAVAILABLE:
                raise
            return []  # to say "try again" now would make two calls of one
        known = {it.key: self._answers[it.key] for it in open_ if it.key in self._answers}
        if known:
            await self._give(known)
        return [it for it in open_ if it.key not in known and self._can_answer(it)]

    async def _give(self, answers: Mapping[str, dict[str, Any]]) -> None:
        """Answer questions of the call; what is not asked yet is kept until it is."""
        given = {key: {"result": it} for key, it in answers.items()}
        operations, actor = self._asked.operations, self._asked.actor
        for key in await operations.answer(actor, self._call.id, given):
            del self._answers[key]

    def _can_answer(self, question: Question) -> bool:
        """Say whether this client may be asked; it may be another one than made the call."""
        return kind_of(question.method, question.params) in _askable(self._asked)

    async def _ask(self, questions: list[Question]) -> None:
        """Ask what was not asked yet; the answers come to the record, from whatever process."""
        assert self._asked.ask is not None
        for it in questions:
            if it.key not in self._sent:
                self._sent.add(it.key)
                id_ = QUESTION_ID.format(call_id=self._call.id, number=it.number)
                await self._asked.ask(id_, it.method, it.params)

    def _input_required(self, questions: list[Question]) -> Answered:
        keys = [it.key for it in questions]
        row = self._call.row
        return {
            "resultType": "input_required",
            "inputRequests": tasks.input_requests(questions),
            "requestState": request_state.seal(self._asked, row["id"], row["deadline_at"], keys),
        }


def _tool(run: Run, name: str, arguments: dict[str, Any]) -> SnapshotTool | None:
    """Return the tool that a call is of in the end; None where it has none, or a wrong one."""
    if run.exposure is Exposure.SEARCH and name == CALL_TOOL["name"]:
        name = str(arguments.get("name"))
    return run.tools.get(name)


def _askable(asked: Asked) -> frozenset[str]:
    """Return what a server may ask this client; nothing where no question can reach it."""
    reachable = asked.revision.stateless or asked.ask is not None
    return asked.client.answers if reachable else frozenset()
