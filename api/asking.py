"""Questions over HTTP: a call's body shows those that are open, and a route takes the answers."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from api import shown
from api.auth import actor_of
from api.rest import PROBLEMS, operations_of
from api.wire import AnswerQuestions, StrictRoute, answer, call_body

router: Final = APIRouter(prefix="/v1", route_class=StrictRoute, responses=PROBLEMS)


@router.post(
    "/calls/{call_id}/answers", tags=["calls"], responses={200: {"model": shown.AnsweredCall}}
)
async def answer_questions(request: Request, call_id: str, body: AnswerQuestions) -> Response:
    """Answer what a call's server asks, by the keys of its `questions`; the first answer counts."""
    operations, actor = operations_of(request), actor_of(request)
    taken = await operations.answer(
        actor, call_id, {key: given.model_dump() for key, given in body.answers.items()}
    )
    row = await operations.with_questions(actor, await operations.get_call(actor, call_id))
    return answer({"taken": sorted(taken), "call": call_body(row)})
