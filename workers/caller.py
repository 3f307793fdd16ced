"""Whoever a call is made for, as far as its server can reach them while it runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from registry.answers import LOG_LEVELS, Answer, NewQuestion
from workers.patience import Patience
from workers.progress import InOrder, OnLog


class Ask(Protocol):
    """Put questions to a caller, and return what it answers to each.

    ``between`` says that nothing runs on the server meanwhile: it has ended its request, and is to
    be sent another. Raises `FleetError` when there is no answer.
    """

    async def __call__(
        self, asked: Sequence[NewQuestion], *, between: bool = False
    ) -> list[Answer]:
        """Ask, and await the answers."""


@dataclass(frozen=True, slots=True)
class Caller:
    """What a caller answers, and what it wants to hear."""

    answers: tuple[str, ...] = ()
    ask: Ask | None = None
    log_level: str | None = None
    on_log: OnLog | None = None
    deadline: float = math.inf
    """When its call is over, on the loop's clock."""

    def wants(self, level: Any) -> bool:
        """Say whether it wants to hear of log messages of a level."""
        if self.log_level not in LOG_LEVELS or level not in LOG_LEVELS:
            return False
        return LOG_LEVELS.index(level) >= LOG_LEVELS.index(self.log_level)


NOBODY: Final = Caller()
"""Who can be asked nothing, and wants to hear nothing."""


@dataclass(frozen=True, slots=True)
class Talk:
    """What there is between a server and the caller of one request while that is under way."""

    caller: Caller
    patience: Patience
    told: InOrder
