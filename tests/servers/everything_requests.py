"""What a handler of the everything-server gets: one request, and whoever sent it can be asked.

Asking is the same for a handler in every revision. Before 2026-07-28 the client is sent requests
while its own is open. Since then the handler ends with the questions, and the client calls again
with the answers: the handler then runs again from its start, and what was answered in earlier
rounds is in the request state, which `RequestStateBoundary` seals.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import anyio
import mcp_types as types
from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

Questions = dict[str, types.InputRequest]
ANSWERS: dict[str, type[types.Result]] = {
    "elicitation/create": types.ElicitResult,
    "sampling/createMessage": types.CreateMessageResult,
    "roots/list": types.ListRootsResult,
}
CAPABILITIES = {
    "elicitation/create": "elicitation",
    "sampling/createMessage": "sampling",
    "roots/list": "roots",
}
LEVELS = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")


class InputNeededError(Exception):
    """A request cannot be answered before its client has answered something."""

    def __init__(self, result: types.InputRequiredResult) -> None:
        super().__init__("input needed")
        self.result = result


def form(message: str, **properties: dict[str, Any]) -> types.ElicitRequest:
    """Return the question for a form of such fields, all of them required."""
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    asked = types.ElicitRequestFormParams(message=message, requested_schema=schema)
    return types.ElicitRequest(params=asked)


def completion(prompt: str, max_tokens: int = 100) -> types.CreateMessageRequest:
    """Return the question for what a model says to a prompt."""
    said = types.SamplingMessage(role="user", content=types.TextContent(type="text", text=prompt))
    asked = types.CreateMessageRequestParams(messages=[said], max_tokens=max_tokens)
    return types.CreateMessageRequest(params=asked)


def answered(question: types.InputRequest, answer: Any) -> bool:
    """Tell whether an answer is one: of the right kind, and with what a form requires."""
    try:
        said = ANSWERS[question.method].model_validate(answer)
    except ValueError:
        return False
    if not isinstance(said, types.ElicitResult) or said.action != "accept":
        return True
    schema: dict[str, Any] = getattr(question.params, "requested_schema", {})
    return set(schema.get("required", ())) <= set(said.content or {})


@dataclass
class Received:
    """One request of a client to a tool or a prompt."""

    ctx: Any
    params: Any
    level: str = "debug"  # the least that the client wants to have logged
    said_before: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if state := getattr(self.params, "request_state", None):
            self.said_before = json.loads(state)

    @property
    def arguments(self) -> dict[str, Any]:
        """Return the arguments."""
        return self.params.arguments or {}

    @property
    def modern(self) -> bool:
        """Tell whether the client asks again instead of being asked."""
        return self.ctx.protocol_version in MODERN_PROTOCOL_VERSIONS

    @property
    def answers_came(self) -> bool:
        """Tell whether this is the second round, or a later one."""
        return bool(self.said_before or (self.ctx.params or {}).get("inputResponses"))

    def able(self, method: str) -> bool:
        """Tell whether the client said that it answers such requests."""
        declared = self.ctx.session.client_capabilities
        return declared is not None and getattr(declared, CAPABILITIES[method]) is not None

    async def log(self, text: str) -> None:
        """Send a log message at level info, if the client wants it."""
        if LEVELS.index("info") >= LEVELS.index(self.level):
            await self.ctx.session.send_log_message(
                "info", text, related_request_id=self.ctx.request_id
            )

    async def progress(self, done: float, total: float) -> None:
        """Report progress, if the client gave a token for it."""
        await self.ctx.session.report_progress(done, total)

    async def ask(self, questions: Questions, *, with_state: bool = False) -> dict[str, Any]:
        """Return the client's answers by key.

        Raises `InputNeededError` when they come with another request, which carries state if that
        is wished or something was answered before; MCPError for what the client cannot answer.
        """
        for question in questions.values():
            if not self.able(question.method):
                raise MCPError(
                    code=types.MISSING_REQUIRED_CLIENT_CAPABILITY,
                    message=f"This needs a client that answers {question.method}",
                    data={"requiredCapabilities": {CAPABILITIES[question.method]: {}}},
                )
        if not self.modern:
            return await self._asked_now(questions)
        said = self.said_before | ((self.ctx.params or {}).get("inputResponses") or {})
        answers = {
            key: said[key]
            for key, question in questions.items()
            if key in said and answered(question, said[key])
        }
        self.said_before |= answers
        if still := {key: asked for key, asked in questions.items() if key not in answers}:
            state = json.dumps(self.said_before) if with_state or self.said_before else None
            asked_again = types.InputRequiredResult(input_requests=still, request_state=state)
            raise InputNeededError(asked_again)
        return answers

    async def _asked_now(self, questions: Questions) -> dict[str, Any]:
        """Send all the questions at once; return the answers by key."""
        answers: dict[str, Any] = {}
        related = ServerMessageMetadata(related_request_id=self.ctx.request_id)

        async def send(key: str, question: types.InputRequest) -> None:
            answer = await self.ctx.session.send_request(
                question, ANSWERS[question.method], metadata=related
            )
            answers[key] = answer.model_dump(by_alias=True, mode="json", exclude_none=True)

        async with anyio.create_task_group() as tasks:
            for key, question in questions.items():
                tasks.start_soon(send, key, question)
        return answers
