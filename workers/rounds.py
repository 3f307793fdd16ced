"""The rounds of a request that its server ends by asking for input (2026-07-28, patterns/mrtr).

The server's answer names what it needs, or a state of its own, or both. What it needs is asked; the
same request is then made again, with the answers and with the state exactly as it was given.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Final

from registry.answers import Answer, NewQuestion
from registry.errors import Code, FleetError
from registry.question_kinds import ELICITATION, ELICITATION_URL, ROOTS, SAMPLING, kind_of
from workers.caller import Caller
from workers.scrub import Scrubber

INPUT_REQUIRED: Final = "input_required"
MOST_ROUNDS: Final = 10
MOST_REQUESTS: Final = 20
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 0.25


class Unasked(Exception):
    """Nobody can be asked; the text says why, ``requests`` what was to be asked."""

    def __init__(self, why: str, requests: list[str]) -> None:
        super().__init__(why)
        self.requests = requests


class NotMcp(Exception):
    """What the server answered asks for input in a way that the protocol does not know."""


@dataclass
class Rounds:
    """What one request has been through."""

    caller: Caller
    scrubber: Scrubber
    count: int = 0
    _pause_s: float = field(default=_FIRST_PAUSE_S)

    async def next(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the params that the request is made with again.

        Raises `Unasked`, `NotMcp`, and `FleetError` as the caller's `Ask` does.
        """
        wanted, state = _requests(body), body.get("requestState")
        if state is not None and not isinstance(state, str):
            raise NotMcp("requestState: not a string")
        if not wanted and state is None:
            raise NotMcp("neither inputRequests nor requestState")
        self.count += 1
        if self.count > MOST_ROUNDS:
            raise Unasked(f"it has asked for input {MOST_ROUNDS} times", sorted(wanted))
        again: dict[str, Any] = {} if state is None else {"requestState": state}
        if wanted:
            self._pause_s = _FIRST_PAUSE_S
            return {**again, "inputResponses": await self._ask(wanted)}
        await asyncio.sleep(self._pause_s)
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        return again

    async def _ask(self, wanted: dict[str, NewQuestion]) -> dict[str, Any]:
        for asked in wanted.values():
            if why := unanswerable(asked, self.caller):
                raise Unasked(why, sorted(wanted))
        assert self.caller.ask is not None
        clean = [
            NewQuestion(it.method, self.scrubber.json(it.params), self.scrubber.text(key))
            for key, it in wanted.items()
        ]
        try:
            answers = await self.caller.ask(clean, between=True)
        except FleetError as error:
            if error.code is not Code.DEADLINE_EXCEEDED:
                raise
            raise Unasked(error.message, sorted(wanted)) from error
        return {
            key: _result(asked, answer)
            for (key, asked), answer in zip(wanted.items(), answers, strict=True)
        }


def unanswerable(asked: NewQuestion, caller: Caller) -> str:
    """Say why a caller cannot be asked this; an empty string if it can."""
    kind = kind_of(asked.method, asked.params)
    if caller.ask is not None and kind in caller.answers:
        return ""
    return f"nobody answers {asked.method[:80]} here" + " in url mode" * (kind == ELICITATION_URL)


def capabilities(answers: tuple[str, ...]) -> dict[str, Any]:
    """Return what is declared as a client's capabilities for a caller who answers this."""
    declared: dict[str, Any] = {name: {} for name in (SAMPLING, ROOTS) if name in answers}
    modes = {"form": ELICITATION, "url": ELICITATION_URL}
    if any(kind in answers for kind in modes.values()):
        declared["elicitation"] = {mode: {} for mode, kind in modes.items() if kind in answers}
    return declared


def _requests(body: dict[str, Any]) -> dict[str, NewQuestion]:
    wanted = body.get("inputRequests") or {}
    if not isinstance(wanted, dict) or len(wanted) > MOST_REQUESTS:
        raise NotMcp(f"inputRequests: not an object of at most {MOST_REQUESTS} requests")
    found: dict[str, NewQuestion] = {}
    for key, request in wanted.items():
        params = request.get("params") if isinstance(request, dict) else None
        if not isinstance(request, dict) or not isinstance(request.get("method"), str):
            raise NotMcp("inputRequests: not requests with a method")
        if params is not None and not isinstance(params, dict):
            raise NotMcp("inputRequests: params that are not an object")
        found[key] = NewQuestion(request["method"], params or {})
    return found


def _result(asked: NewQuestion, answer: Answer) -> dict[str, Any]:
    """Return what a server is told, which knows no errors here."""
    if "error" in answer:
        raise FleetError(
            Code.INPUT_REQUIRED,
            f"whoever was asked for input ({asked.method}) answered with an error: "
            f"{str(answer['error']['message'])[:300]}",
            details={"jsonrpc_code": answer["error"]["code"]},
        )
    result: dict[str, Any] = answer["result"]
    return result
