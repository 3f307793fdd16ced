"""JSON-RPC as it is written: from a body to messages, and from answers to bytes.

A body is strict JSON (`api.wire.strict_json`). What is wrong with it is `Malformed`, under the
request's id wherever that can be read.
"""

from __future__ import annotations

from dataclasses import dataclass
from json import JSONDecodeError
from typing import Any, Final

from api.encoding import encode
from api.mcp.asked import INVALID_PARAMS, INVALID_REQUEST, PARSE_ERROR, Answered, RpcError
from api.wire import strict_json

LONGEST_ID: Final = 256
MOST_IN_BATCH: Final = 100

Id = str | int


@dataclass(frozen=True, slots=True)
class Request:
    """What has to be answered."""

    id: Id
    method: str
    params: dict[str, Any]

    @property
    def meta(self) -> dict[str, Any]:
        """Return its ``_meta``."""
        meta = self.params.get("_meta")
        return meta if isinstance(meta, dict) else {}


@dataclass(frozen=True, slots=True)
class Notification:
    """What is told, and has no answer."""

    method: str
    params: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Response:
    """The client's answer to a question of ours: its ``result`` or its ``error``."""

    id: Id
    body: dict[str, Any]


Message = Request | Notification | Response


class Refusal(RpcError):
    """An error that HTTP has a status for, under the request's id where that is known."""

    def __init__(
        self, status: int, code: int, message: str, id_: Id | None = None, data: Any = None
    ) -> None:
        super().__init__(code, message, data)
        self.status = status
        self.id = id_


class Malformed(Refusal):
    """What was sent is no message of the protocol."""

    def __init__(self, code: int, message: str, id_: Id | None = None) -> None:
        super().__init__(400, code, message, id_)


def read(body: bytes) -> Message | list[Message]:
    """Return the message that a body is, or the batch of them; raise `Malformed`."""
    try:
        value = strict_json(body)
    except JSONDecodeError as error:
        raise Malformed(PARSE_ERROR, f"the body is not valid JSON: {error}") from error
    if not isinstance(value, list):
        return _message(value)
    if not 0 < len(value) <= MOST_IN_BATCH:
        raise Malformed(INVALID_REQUEST, f"a batch has 1 to {MOST_IN_BATCH} messages")
    return [_message(item) for item in value]


def _message(value: Any) -> Message:
    if not isinstance(value, dict):
        raise Malformed(INVALID_REQUEST, "a message is an object")
    id_ = value.get("id")
    if not _is_id(id_):
        if "id" in value:
            raise Malformed(
                INVALID_REQUEST, f"an id is an integer, or a text of at most {LONGEST_ID} letters"
            )
        id_ = None
    if value.get("jsonrpc") != "2.0":
        raise Malformed(INVALID_REQUEST, 'a message has "jsonrpc": "2.0"', id_)
    if "method" not in value:
        return _response(id_, value)
    method, params = value["method"], value.get("params", {})
    if not isinstance(method, str):
        raise Malformed(INVALID_REQUEST, "a method is a text", id_)
    if not isinstance(params, dict):
        raise Malformed(INVALID_PARAMS, "params is an object", id_)
    return Notification(method, params) if id_ is None else Request(id_, method, params)


def _response(id_: Id | None, value: dict[str, Any]) -> Response:
    body: dict[str, Any] = {name: value[name] for name in ("result", "error") if name in value}
    if id_ is None or len(body) != 1 or not isinstance(next(iter(body.values())), dict):
        raise Malformed(
            INVALID_REQUEST, "a message has a method, or an id and a result or an error", id_
        )
    return Response(id_, body)


def _is_id(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= LONGEST_ID
    return isinstance(value, int) and not isinstance(value, bool)


def result(id_: Id, answered: Answered) -> bytes:
    """Return the response with a result."""
    body = answered if isinstance(answered, bytes) else encode(answered)
    return b'{"jsonrpc":"2.0","id":' + encode(id_) + b',"result":' + body + b"}"


def failure(id_: Id | None, error: RpcError) -> bytes:
    """Return the response with an error; without an id where none could be read."""
    named = b"" if id_ is None else b'"id":' + encode(id_) + b","
    return b'{"jsonrpc":"2.0",' + named + b'"error":' + encode(error.as_dict()) + b"}"


def notification(method: str, params: dict[str, Any]) -> bytes:
    """Return a notification of ours."""
    return encode({"jsonrpc": "2.0", "method": method, "params": params})


def question(id_: str, method: str, params: dict[str, Any]) -> bytes:
    """Return a request of ours."""
    return encode({"jsonrpc": "2.0", "id": id_, "method": method, "params": params})
