"""The questions of a server to the caller of a call, from the worker's side: put and awaited.

The record has them (`registry.questions`); Redis only says when to look. A lost hint costs
`LOOK_EVERY_S`, and what Postgres being away costs is as much time as it is away.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Final

from registry import questions
from registry.answers import Answer, NewQuestion
from registry.calls import Claim
from registry.database import Database
from registry.errors import Code, FleetError
from registry.question_text import let_ask
from registry.questions import Question
from workers.background import Background
from workers.output_gate import Gate
from workers.signals import ANSWERED_CHANNEL, Signals

LOOK_EVERY_S: Final = 1.0
CLOSE_LIMIT_S: Final = 5.0
NEWS_S: Final = 5.0
LAST_WORD_S: Final = 2.0
"""How long before a call's deadline nobody is waited for any more: its server may end it."""

logger = logging.getLogger("toolfleet.questions")


class Desk:
    """One worker process's place for questions: it hears of the answers to all of them."""

    def __init__(self, database: Database, signals: Signals) -> None:
        self.database = database
        self.signals = signals
        self._bells: dict[str, set[asyncio.Event]] = {}
        self._background = Background()
        self._listens = False

    @contextmanager
    def expect(self, call_id: str) -> Iterator[asyncio.Event]:
        """Yield an event that is set when a call has an answer."""
        if not self._listens:  # most workers never ask anything
            self._listens = True
            self._background.start(self.signals.hear(ANSWERED_CHANNEL, self._ring))
        bell = asyncio.Event()
        bells = self._bells.setdefault(call_id, set())
        bells.add(bell)
        try:
            yield bell
        finally:
            bells.discard(bell)
            if not bells and self._bells.get(call_id) is bells:
                del self._bells[call_id]

    async def close(self) -> None:
        """Hear no more; what is not withdrawn by then the steward withdraws."""
        await self._background.end()

    def withdraw(self, claim: Claim, keys: Sequence[str]) -> asyncio.Task[None]:
        """Take questions back in the background, whatever becomes of who asked them."""
        return self._background.start(self._withdraw(claim, keys))

    async def _withdraw(self, claim: Claim, keys: Sequence[str]) -> None:
        try:
            await questions.withdraw(self.database, claim, keys)
        except FleetError as error:
            logger.warning("questions of call %s not withdrawn: %s", claim.id, error.message)

    def _ring(self, data: bytes) -> None:
        # Anyone who reaches Redis can publish; what names no call of ours rings nothing.
        with suppress(ValueError, TypeError):
            for bell in self._bells.get(json.loads(data), ()):
                bell.set()


class Interview:
    """What one attempt of a call asks its caller, until the attempt is over.

    ``until`` is the instant, on the loop's clock, after which no answer is awaited any more;
    ``dispatch`` says which attempt of the claim it is.
    """

    def __init__(
        self, desk: Desk, claim: Claim, gate: Gate, until: float, *, dispatch: int = 1
    ) -> None:
        self._desk = desk
        self._claim = claim
        self._gate = gate
        self._until = until
        self._dispatch = dispatch
        self._stays_open = False
        self._over = asyncio.Event()
        self._under_way: set[asyncio.Task[Any]] = set()

    @property
    def tool(self) -> str:
        """Return the tool that is called, as its server names it."""
        return self._gate.tool

    async def ask(self, asked: Sequence[NewQuestion], *, between: bool = False) -> list[Answer]:
        """Put questions to the caller; return its answers, in order.

        Those ``between`` two requests their server cannot take back: they stay open until they are
        answered, or the call has ended. Raises `input_required` for what is not to be asked,
        `deadline_exceeded` when there is no answer in time, `stopped` when the attempt is over, and
        what the gate says to an answer.
        """
        answers: list[Answer] = await self._begun(asyncio.create_task(self._ask(asked, between)))
        return answers

    def leave_open(self) -> None:
        """Let what is being asked stay open: it is withdrawn only if the call ends."""
        self._stays_open = True

    async def close(self) -> None:
        """Give up what is being asked; return when it is withdrawn."""
        self._over.set()
        while self._under_way:  # what is over is then withdrawn
            if not (await asyncio.wait(self._under_way, timeout=CLOSE_LIMIT_S))[0]:
                break

    async def _ask(self, asked: Sequence[NewQuestion], between: bool) -> list[Answer]:
        clean = [self._let_out(it) for it in asked]
        claim = self._claim
        with self._desk.expect(claim.id) as bell:
            put = await self._put(clean)
            keys = [question.key for question in put]
            answers: dict[str, Answer] = {}
            try:
                await self._desk.signals.asked(claim.id)
                await self._collect(keys, answers, bell)
            finally:
                left = [key for key in keys if key not in answers]
                if left and not between and not self._stays_open:
                    self._begun(self._desk.withdraw(claim, left))
        given = [answers[key] for key in keys]
        for question, answer in zip(put, given, strict=True):
            await self._look_at(question.method, answer)
        return given

    async def _put(self, asked: Sequence[NewQuestion]) -> list[Question]:
        try:
            return await questions.ask(
                self._desk.database, self._claim, asked, dispatch=self._dispatch
            )
        except FleetError as error:
            if error.code is Code.STOPPED:  # the news of it is on its way here
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._over.wait(), NEWS_S)
            raise

    def _begun(self, task: asyncio.Task[Any]) -> asyncio.Task[Any]:
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return task

    async def _collect(
        self, keys: Sequence[str], answers: dict[str, Answer], bell: asyncio.Event
    ) -> None:
        now = asyncio.get_running_loop().time
        while True:
            missing = [key for key in keys if key not in answers]
            bell.clear()
            with suppress(FleetError):  # Postgres away: the answer is there when it is back
                answers |= await questions.answered(self._desk.database, self._claim, missing)
            if len(answers) == len(keys):
                return
            left_s = self._until - now()
            if left_s <= 0:
                raise _unanswered(self._claim)
            if await _either(bell, self._over, min(left_s, LOOK_EVERY_S)):
                raise FleetError(Code.STOPPED, f"the call of {self._claim.tool} is over")

    def _let_out(self, asked: NewQuestion) -> NewQuestion:
        try:
            return replace(asked, params=let_ask(asked.params, self._gate.rules))
        except FleetError as error:
            raise FleetError(Code.INPUT_REQUIRED, error.message, hint=error.hint) from error

    async def _look_at(self, method: str, answer: Answer) -> None:
        """Have the users' own checks see what a server is to be told, as they see arguments."""
        told = answer.get("result")
        if told is not None and method == "elicitation/create":
            told = told.get("content")  # what was filled in, if anything was
        if told:
            await self._gate.arguments(told)


async def _either(bell: asyncio.Event, over: asyncio.Event, timeout_s: float) -> bool:
    """Wait for one of two events, or for so long; say whether the second has come."""
    waits = [asyncio.ensure_future(event.wait()) for event in (bell, over)]
    try:
        await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    return over.is_set()


def _unanswered(claim: Claim) -> FleetError:
    return FleetError(
        Code.DEADLINE_EXCEEDED,
        f"nobody answered in time what {claim.tool} asks for",
        hint="answer sooner, or give a longer timeout_s",
    )
