"""JSON-RPC messages on their way through: the text as it came, and as much as has to be known.

Pure. What a message means is the fleet's affair; here it is only told to whom it belongs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from api.mcp.asked import META

Id = str | int
VERSION: Final = META + "protocolVersion"


class NoMessageError(ValueError):
    """A line is no message of the protocol."""


@dataclass(frozen=True)
class Message:
    """A message: a request, a notification, or the response to a request."""

    text: str
    said: dict[str, Any]

    @property
    def id(self) -> Id | None:
        """Return the id of a request or response."""
        return _id(self.said.get("id"))

    @property
    def about(self) -> Id | None:
        """Return the id of the request that a notification is about."""
        return _id(self.params.get("requestId"))

    @property
    def method(self) -> str:
        """Return the method; empty for a response."""
        found = self.said.get("method")
        return found if isinstance(found, str) else ""

    @property
    def params(self) -> dict[str, Any]:
        """Return the parameters."""
        found = self.said.get("params")
        return found if isinstance(found, dict) else {}

    @property
    def asks(self) -> bool:
        """Say whether it is a request, which has to be answered."""
        return "method" in self.said and "id" in self.said

    @property
    def answers(self) -> bool:
        """Say whether it is the response to a request."""
        return "method" not in self.said

    @property
    def stateless(self) -> bool:
        """Say whether it stands for itself: it says in which revision it is (since 2026-07-28)."""
        meta = self.params.get("_meta")
        return isinstance(meta, dict) and VERSION in meta


def read(text: str) -> list[Message]:
    """Return the message that a text is, or those of a batch; raise `NoMessageError`."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NoMessageError(f"it is not valid JSON: {error}") from error
    if not isinstance(said, list):
        return [_message(text, said)]
    return [_message(json.dumps(one), one) for one in said]


def written(said: dict[str, Any]) -> Message:
    """Return a message of our own."""
    body = {"jsonrpc": "2.0", **said}
    return Message(json.dumps(body, separators=(",", ":")), body)


def failure(id_: Id | None, error: dict[str, Any]) -> Message:
    """Return the response that is an error; without an id where none could be read."""
    named = {} if id_ is None else {"id": id_}
    return written({**named, "error": error})


def line(*messages: Message, batch: bool = False) -> bytes:
    """Return messages as a line of their own."""
    text = f"[{','.join(it.text for it in messages)}]" if batch else messages[0].text
    # Within JSON's strings there is no line's end; between its values it means nothing.
    return text.replace("\r", " ").replace("\n", " ").encode() + b"\n"


def _id(value: Any) -> Id | None:
    return value if isinstance(value, str | int) and not isinstance(value, bool) else None


def _message(text: str, said: Any) -> Message:
    if not isinstance(said, dict):
        raise NoMessageError("a message is an object")
    return Message(text, said)
