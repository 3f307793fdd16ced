"""What a client asks for by ``tools/call``, checked before anything is done for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from api.mcp import request_state
from api.mcp.asked import INVALID_PARAMS, Asked, RpcError

IDEMPOTENCY_KEY: Final = "toolfleet/idempotencyKey"
TIMEOUT_S: Final = "toolfleet/timeoutS"
"""What ``_meta`` may say of the call: the key under which it is made once, and its deadline."""
_LONGEST_KEY: Final = 255


@dataclass(frozen=True)
class ToolRequest:
    """Which tool is called with what."""

    name: str
    arguments: dict[str, Any]
    answers: dict[str, dict[str, Any]]
    """What the client answers to questions, by their keys."""
    idempotency_key: str | None
    timeout_s: float | None

    @classmethod
    def read(cls, asked: Asked) -> ToolRequest:
        """Return what a request says; raise `RpcError` for what is no call."""
        name, arguments = asked.params.get("name"), asked.params.get("arguments", {})
        if not isinstance(name, str):
            raise RpcError(INVALID_PARAMS, "name: has to be a string")
        if not isinstance(arguments, dict):
            raise RpcError(INVALID_PARAMS, "arguments: has to be an object")
        return cls(
            name,
            arguments,
            # In the revisions before, answers are responses to requests of ours.
            request_state.responses(asked) if asked.revision.stateless else {},
            _idempotency_key(asked.meta.get(IDEMPOTENCY_KEY)),
            _timeout_s(asked.meta.get(TIMEOUT_S)),
        )


def _idempotency_key(key: Any) -> str | None:
    if key is None:
        return None
    if not isinstance(key, str) or not 0 < len(key) <= _LONGEST_KEY or not key.isprintable():
        raise RpcError(
            INVALID_PARAMS,
            f"_meta/{IDEMPOTENCY_KEY}: has to be at most {_LONGEST_KEY} printable characters",
        )
    return key


def _timeout_s(timeout_s: Any) -> float | None:
    if timeout_s is None:
        return None
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or timeout_s <= 0:
        raise RpcError(INVALID_PARAMS, f"_meta/{TIMEOUT_S}: has to be a number of seconds above 0")
    return float(timeout_s)
