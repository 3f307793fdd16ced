"""What a client is told while its call runs: progress, and its server's log messages."""

from __future__ import annotations

import math
from typing import Any, TypeGuard

from api.mcp.asked import Asked
from registry.answers import LOG_LEVELS


class Teller:
    """Makes notifications of a call's reports, for one request; progress only ever grows."""

    def __init__(self, asked: Asked) -> None:
        self._notify = asked.notify
        self._token = asked.progress_token
        self._log_level = asked.log_level
        self._furthest = -math.inf

    @property
    def wanted(self) -> bool:
        """Say whether the client wants to be told of anything."""
        heard = self._token is not None or self._log_level is not None
        return heard and self._notify is not None

    async def tell(self, report: Any) -> None:
        """Tell the client of a report, if it wants to hear of it."""
        # Anyone who reaches Redis can publish: what is not a report is left alone.
        if self._notify is None or not isinstance(report, dict):
            return
        told = self._log(report["log"]) if "log" in report else self._progress(report)
        if told is not None:
            await self._notify(*told)

    def _progress(self, report: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
        progress = report.get("progress")
        if self._token is None or not _is_number(progress) or progress <= self._furthest:
            return None
        self._furthest = progress
        params: dict[str, Any] = {"progressToken": self._token, "progress": progress}
        if _is_number(report.get("total")):
            params["total"] = report["total"]
        if isinstance(report.get("message"), str):
            params["message"] = report["message"]
        return "notifications/progress", params

    def _log(self, log: Any) -> tuple[str, dict[str, Any]] | None:
        level = log.get("level") if isinstance(log, dict) else None
        if self._log_level is None or level not in LOG_LEVELS:
            return None
        if LOG_LEVELS.index(level) < LOG_LEVELS.index(self._log_level):
            return None
        params: dict[str, Any] = {"level": level, "data": log.get("data")}
        if isinstance(log.get("logger"), str):
            params["logger"] = log["logger"]
        return "notifications/message", params


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
