"""The one way out of a worker for what servers say: results, errors and progress.

A result passes, in this order, the users' own checks (`workers.guardrails`) and then
`registry.results`: the output schema, the search for hostile text, redaction. Nothing is read by
anybody before, and whatever fails on the way withholds it. Large results take the same way in a
process of their own, which is sent a `Gate` as JSON.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Self

from registry.output_rules import DEFAULT_RULES, OutputRules
from registry.question_text import let_log
from registry.redaction import redactor
from registry.results import Let, let_out, text_out
from workers.guardrails import Guardrails

READ_HERE_BYTES: Final = 8_192
"""Measured: hostile text of this size takes 25 ms, ordinary text 1 ms."""

logger = logging.getLogger("toolfleet.gate")


@dataclass(frozen=True)
class Gate:
    """What the results of one call have to pass."""

    tenant: str
    server: str
    tool: str
    """As the server calls it."""
    rules: OutputRules
    guardrails: Guardrails

    def as_dict(self) -> dict[str, Any]:
        """Return it JSON-ready."""
        return {
            "tenant": self.tenant,
            "server": self.server,
            "tool": self.tool,
            "rules": self.rules.as_dict(),
            "guardrails": self.guardrails.names,
            "limit_s": self.guardrails.limit_s,
        }

    @classmethod
    def from_dict(cls, body: dict[str, Any]) -> Self:
        """Read what `as_dict` wrote, in another process: its checks are imported there."""
        return cls(
            body["tenant"],
            body["server"],
            body["tool"],
            OutputRules.model_validate(body["rules"]),
            _guardrails(tuple(body["guardrails"]), body["limit_s"]),
        )

    async def arguments(self, arguments: dict[str, Any]) -> None:
        """Have the users' own checks see a call; raise `guardrail_refused`, `guardrail_failed`."""
        if self.guardrails.names:
            await self.guardrails.before(self.tenant, self.server, self.tool, arguments)

    async def result(
        self, name: str, schema: dict[str, Any] | None, body: dict[str, Any], size_bytes: int = 0
    ) -> Let:
        """Return a result as it may leave; ``name`` is the tool's in messages.

        What is longer than `READ_HERE_BYTES` is read in a thread, so that the loop goes on.

        Raises `guardrail_refused`, `guardrail_failed`, `result_invalid`, `result_blocked` or
        `redaction_failed`: the call did run, and its result is withheld.
        """
        if self.guardrails.names:
            body = await self.guardrails.after(self.tenant, self.server, self.tool, body)
        if size_bytes <= READ_HERE_BYTES:
            return let_out(name, schema, body, self.rules)
        return await asyncio.to_thread(let_out, name, schema, body, self.rules)


@lru_cache(maxsize=1)
def _guardrails(names: tuple[str, ...], limit_s: float) -> Guardrails:
    """Return the checks of this process: the same for job after job, those that hang included."""
    return Guardrails(names, limit_s=limit_s)


def error_out(body: dict[str, Any], rules: OutputRules = DEFAULT_RULES) -> dict[str, Any]:
    """Return an error's body (`FleetError.as_dict`) as it may leave, or one that only has its code.

    It may quote what the server said.
    """
    try:
        clean = {**body, "message": text_out(body["message"], rules)}
        if "details" in body:
            clean["details"] = redactor(rules).value(body["details"])
    except Exception as error:  # noqa: BLE001 whatever it was, nothing may leave unread
        logger.error("an error could not be redacted: %s", type(error).__name__)  # noqa: TRY400 a traceback may quote it
        kept: dict[str, Any] = {
            name: body[name] for name in ("code", "retryable", "retry_after_s") if name in body
        }
        return {**kept, "message": "what the server said could not be redacted and is withheld"}
    return clean


def log_out(body: dict[str, Any], rules: OutputRules) -> dict[str, Any]:
    """Return a log message as it may leave; without what it says when it cannot be redacted."""
    try:
        return let_log(body, rules)
    except Exception as error:  # noqa: BLE001 whatever it was, nothing may leave unread
        logger.error("a log message could not be redacted: %s", type(error).__name__)  # noqa: TRY400 a traceback may quote it
        return {"level": body["level"], "data": "what the server said is withheld"}


def progress_out(message: str | None, rules: OutputRules) -> str | None:
    """Return the text of a progress report as it may leave; None when it cannot be redacted."""
    if not message:
        return message
    try:
        return text_out(message, rules)
    except Exception as error:  # noqa: BLE001 whatever it was, nothing may leave unread
        logger.error("progress could not be redacted: %s", type(error).__name__)  # noqa: TRY400 a traceback may quote it
        return None
