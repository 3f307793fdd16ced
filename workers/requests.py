"""What servers are asked in calls: each method, and what answers it.

A result stays as its server wrote it; here it is only seen to that it is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Method:
    """One method: the member that answers it, and what that has to be."""

    member: str = ""
    kind: type[list[Any] | dict[str, Any]] = list

    def problem(self, body: dict[str, Any]) -> str:
        """Say what is missing in a result, if anything: the SDK lets some of it pass."""
        if not self.member or isinstance(body.get(self.member), self.kind):
            return ""
        what = "a list" if self.kind is list else "an object"
        return f"{self.member}: not {what}"


METHODS: Final[dict[str, Method]] = {
    "tools/call": Method("content"),
    "resources/read": Method("contents"),
    "prompts/get": Method("messages"),
    "completion/complete": Method("completion", dict),
    "resources/subscribe": Method(),
    "resources/unsubscribe": Method(),
}
