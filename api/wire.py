"""What goes over HTTP: request bodies, JSON strict on the way in, and rows as callers see them."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Callable, Coroutine, Mapping
from datetime import timedelta
from typing import Annotated, Any, Final, Literal

from fastapi import Request
from fastapi.routing import APIRoute
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints
from starlette.datastructures import Headers
from starlette.responses import Response

from api.auth import CALLERS, Only, actor_of, verb_of
from api.encoding import encode
from registry.calls import CallState
from registry.discovery import LARGEST_LIMIT, LONGEST_INTENT
from registry.errors import Code, FleetError
from registry.question_kinds import KINDS
from registry.questions import MOST_QUESTIONS
from registry.runs import Run
from registry.scopes import Scopes
from registry.tiers import Name
from registry.trace import traceparent_of

_WAIT: Final = re.compile(r'wait\s*=\s*"?(\d{1,9})"?')
_LONGEST_KEY: Final = 255
_LONGEST_LIFE_S: Final = timedelta(days=3650).total_seconds()
_DEEPEST: Final = 64
_DATED: Final = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]", re.ASCII)

Label = Annotated[
    str, StringConstraints(min_length=1, max_length=_LONGEST_KEY, pattern=r"^[^\x00-\x1f\x7f]*$")
]

Reason = Annotated[str, StringConstraints(max_length=1000, pattern=r"^[^\x00]*$")]


def _no_number(value: Any) -> Any:
    # Pydantic takes seconds since 1970 as well, in any way that a float is written.
    if not (isinstance(value, str) and _DATED.match(value)):
        raise ValueError("is no date and time with its offset, as RFC 3339 writes them")
    return value


Instant = Annotated[AwareDatetime, BeforeValidator(_no_number)]
"""An instant in a query, written as text."""


class StrictBody(BaseModel):
    """A request's body: nothing that it does not know, and no type in the place of another."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Failure(BaseModel):
    """Why there is no result: an error of JSON-RPC, or of the client."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    code: int
    message: str


class Answered(StrictBody):
    """An answer: what MCP has as the result of the question's method."""

    result: dict[str, Any]


class Refused(StrictBody):
    """An error in the place of an answer."""

    error: Failure


class StartRun(StrictBody):
    """A run to start: the tenant (an operator may name any) and what it may see (all).

    An ``intent`` leaves it the ``limit`` tools that fit best; exposure ``search`` shows its model
    two tools, to find the others and to call them.
    """

    tenant: Name | None = None
    servers: list[str] | None = None
    intent: str | None = Field(
        default=None, min_length=1, max_length=LONGEST_INTENT, pattern=r"^[^\x00]*$"
    )
    limit: int | None = Field(default=None, ge=1, le=LARGEST_LIMIT)
    exposure: Literal["all", "search"] = "all"


class SubmitCall(StrictBody):
    """A call to submit: a tool of the run by its model-facing name, and its arguments.

    ``answers`` says what the tool's server may ask while the call runs (`questions` of the call);
    ``log_level`` from which level on its events tell what the server logs.
    """

    tool: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    idempotency_key: Label | None = None
    timeout_s: float | None = Field(default=None, gt=0)
    answers: list[Literal["elicitation", "elicitation.url", "sampling", "roots"]] = Field(
        default_factory=list, max_length=len(KINDS)
    )
    log_level: (
        Literal["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"]
        | None
    ) = None


class AnswerQuestions(StrictBody):
    """Answers to what a call's server asks: the key of each question, and its result or error."""

    answers: dict[str, Answered | Refused] = Field(min_length=1, max_length=MOST_QUESTIONS)


class CreateKey(StrictBody):
    """An API key to create; one that names a tenant acts for that tenant alone.

    ``scopes`` narrows it within its role (`registry.scopes`).
    """

    name: Label
    role: Literal["operator", "tenant", "approver", "auditor"]
    tenant: Name | None = None
    lifetime_s: float | None = Field(default=None, gt=0, le=_LONGEST_LIFE_S)
    scopes: Scopes | None = None


class RotateKey(StrictBody):
    """A key to replace: for how long the old one still works, and how long the new one does."""

    overlap_s: float = Field(default=86_400, ge=0, le=_LONGEST_LIFE_S)
    lifetime_s: float | None = Field(default=None, gt=0, le=_LONGEST_LIFE_S)


class Decide(StrictBody):
    """A decision about a call that waits for its approval, as ``binding`` says it was shown."""

    binding: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    reason: Reason | None = None


class DecideOne(Decide):
    """One of many decisions."""

    id: Label
    approve: bool


class DecideMany(StrictBody):
    """Decisions about several calls, each of which stands for itself."""

    decisions: list[DecideOne] = Field(min_length=1, max_length=100)


def answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a JSON response."""
    return Response(encode(value), status, headers, "application/json")


def strict_json(body: bytes) -> Any:
    """Return what a body says; raise `JSONDecodeError` for whatever is wrong with it."""
    try:
        value = json.loads(
            body,
            object_pairs_hook=_object,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
        # What opens no more than that is not deeper: most bodies need no closer look.
        if body.count(b"[") + body.count(b"{") > _DEEPEST:
            _not_too_deep(value)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        what = str(error) if type(error) is ValueError else "too deep, or not UTF-8"
        raise json.JSONDecodeError(what, "", 0) from error
    return value


class StrictRequest(Request):
    """A request whose JSON body may not say one thing twice, nor NaN, nor nest without end."""

    async def json(self) -> Any:
        """Return the body; raise `JSONDecodeError` for whatever is wrong with it."""
        return strict_json(await self.body())


class StrictRoute(APIRoute):
    """A route for those who may ask it, that reads its body as a `StrictRequest`.

    It is for the roles of its `only` dependency, for operators and tenants where it has none. Its
    first tag is the subject that a key may be narrowed to.
    """

    @property
    def admits(self) -> Only:
        """Return whom it is for."""
        found = (it.dependency for it in self.dependencies)
        return next((it for it in found if isinstance(it, Only)), CALLERS)

    @property
    def verb(self) -> str:
        """Return what a narrowed key has to have for it."""
        return verb_of(str(self.tags[0]), self.methods or (), self.path)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler that sees the strict request, of those alone who may ask."""
        handle = super().get_route_handler()
        admits, verb = self.admits, self.verb

        async def strict(request: Request) -> Response:
            actor = actor_of(request)
            admits.refuse(actor)
            if actor.scopes is not None:
                actor.scopes.refuse_verb(verb)
            return await handle(StrictRequest(request.scope, request.receive))

        return strict


def _not_too_deep(value: Any) -> None:
    level, depth = [value], 0
    while level := [it for it in level if isinstance(it, (dict, list))]:
        depth += 1
        if depth > _DEEPEST:
            raise ValueError(f"too deep: it nests more than {_DEEPEST} levels")
        level = [inner for it in level for inner in (it.values() if isinstance(it, dict) else it)]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} occurs twice in one object")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:30]} is too large a number")
    return number


def preferred_wait(headers: Headers, longest: timedelta) -> int | None:
    """Return the seconds of ``Prefer: wait=N`` (RFC 7240), at most ``longest``; None without it.

    As the RFC has it, a preference that is not understood is ignored, and the first one counts.
    """
    for value in headers.getlist("prefer"):
        for preference in value.split(","):
            found = _WAIT.fullmatch(preference.split(";")[0].strip().lower())
            if found:
                return min(int(found[1]), int(longest.total_seconds()))
    return None


def applied(wait_s: int | None) -> dict[str, str]:
    """Return the header that says which preference was honoured."""
    return {} if wait_s is None else {"preference-applied": f"wait={wait_s}"}


def traceparent(headers: Headers) -> str | None:
    """Return the caller's W3C trace context; one that is not valid counts as none."""
    return traceparent_of(headers)


def idempotency_key(headers: Headers, in_body: str | None) -> str | None:
    """Return the idempotency key of header or body; raise `invalid_request` where they differ."""
    in_header = headers.get("idempotency-key")
    if in_header is None:
        return in_body
    key = in_header.strip()
    if len(key) > 1 and key[0] == key[-1] == '"':
        key = key[1:-1]  # the header's draft makes it a quoted string; many clients send it bare
    if not 0 < len(key) <= _LONGEST_KEY or in_body not in (None, key):
        raise FleetError(
            Code.INVALID_REQUEST,
            "the Idempotency-Key header is empty, too long, or not the body's idempotency_key",
            hint=f"send one key of at most {_LONGEST_KEY} characters, in either place",
        )
    return key


def call_body(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a call as callers see it."""
    return {
        "id": row["id"],
        "run_id": row["run_id"],
        "tool": row["tool"],
        "server": row["server_name"],
        "state": row["state"],
        "is_error": row.get("is_error"),
        "result": row.get("result"),
        "error": row.get("error"),
        "delivery": row["delivery"],
        "attempts": row["attempts"],
        "created_at": row.get("created_at"),
        "started_at": row.get("started_at"),
        "ended_at": row.get("ended_at"),
        "deadline_at": row["deadline_at"],
        "stop_requested_at": row.get("stop_requested_at"),
        "timings": row.get("timings"),
        "questions": row.get("questions", []),
    }


def call_answer(row: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    """Return 200 with a call that has ended, else 202 with where to ask for it."""
    sent = dict(headers or {})
    if CallState(row["state"]).final:
        return answer(call_body(row), 200, sent)
    return answer(call_body(row), 202, {**sent, "location": f"/v1/calls/{row['id']}"})


async def run_answer(
    run: Run, status: int = 200, headers: Mapping[str, str] | None = None, **more: Any
) -> Response:
    """Return a run as callers see it, its tools as a model sees them."""
    body = encode(
        {
            "id": run.id,
            "tenant": run.tenant,
            "state": "expired" if run.state == "open" and run.expired else run.state,
            "snapshot": run.snapshot,
            "exposure": run.exposure.value,
            "created_at": run.created_at,
            "expires_at": run.expires_at,
            "ended_at": run.ended_at,
            **more,
        }
    )
    # Thousands of tools are written once for their snapshot, not for each of its runs.
    tools = await asyncio.to_thread(getattr, run, "shown")
    return Response(body[:-1] + b',"tools":' + tools + b"}", status, headers, "application/json")
