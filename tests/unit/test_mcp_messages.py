"""JSON-RPC messages and the headers that repeat them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from api.mcp import headers, messages
from api.mcp.asked import HEADER_MISMATCH, INVALID_PARAMS, INVALID_REQUEST, PARSE_ERROR, RpcError
from api.mcp.headers import Headers
from api.mcp.messages import Malformed, Notification, Request, Response
from api.mcp.sessions import asked_by, call_id_of, event_name, request_of
from tests.requirements import requirement

SCHEMA = {
    "type": "object",
    "properties": {
        "region": {"type": "string", "x-mcp-header": "Region"},
        "at": {
            "type": "object",
            "properties": {"line": {"type": "integer", "x-mcp-header": "Line"}},
        },
        "dry": {"type": "boolean", "x-mcp-header": "Dry"},
    },
}


def sent(**named: str) -> Headers:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in named.items()]
    return Headers(raw)


# -- messages


@requirement("mcp:messages")
def test_a_body_is_a_request_a_notification_or_a_response() -> None:
    request = messages.read(b'{"jsonrpc":"2.0","id":"a","method":"ping"}')
    assert request == Request("a", "ping", {})
    told = messages.read(b'{"jsonrpc":"2.0","method":"x","params":{"a":1}}')
    assert told == Notification("x", {"a": 1})
    answer = messages.read(b'{"jsonrpc":"2.0","id":3,"error":{"code":-1,"message":"no"}}')
    assert answer == Response(3, {"error": {"code": -1, "message": "no"}})


@requirement("mcp:messages")
@pytest.mark.parametrize(
    ("body", "code", "id_"),
    [
        (b"{", PARSE_ERROR, None),
        (b'{"id":1,"id":2}', PARSE_ERROR, None),
        (b'{"jsonrpc":"2.0","id":1,"method":"x","params":{"a":NaN}}', PARSE_ERROR, None),
        (b"[" * 80 + b"]" * 80, PARSE_ERROR, None),
        (b"\xff", PARSE_ERROR, None),
        (b"3", INVALID_REQUEST, None),
        (b"[]", INVALID_REQUEST, None),
        (b'{"jsonrpc":"2.0","id":null,"method":"x"}', INVALID_REQUEST, None),
        (b'{"jsonrpc":"2.0","id":true,"method":"x"}', INVALID_REQUEST, None),
        (b'{"jsonrpc":"2.0","id":1.5,"method":"x"}', INVALID_REQUEST, None),
        (b'{"jsonrpc":"1.0","id":7,"method":"x"}', INVALID_REQUEST, 7),
        (b'{"jsonrpc":"2.0","id":7,"method":3}', INVALID_REQUEST, 7),
        (b'{"jsonrpc":"2.0","id":7}', INVALID_REQUEST, 7),
        (b'{"jsonrpc":"2.0","id":7,"result":{},"error":{}}', INVALID_REQUEST, 7),
        (b'{"jsonrpc":"2.0","id":7,"method":"x","params":[1]}', INVALID_PARAMS, 7),
    ],
)
def test_what_is_no_message_is_refused_under_its_id_where_it_has_one(
    body: bytes, code: int, id_: Any
) -> None:
    with pytest.raises(Malformed) as refused:
        messages.read(body)
    assert (refused.value.code, refused.value.id, refused.value.status) == (code, id_, 400)


@requirement("mcp:messages")
def test_an_error_without_a_request_has_no_id() -> None:
    error = RpcError(PARSE_ERROR, "no")
    assert json.loads(messages.failure(None, error)) == {
        "jsonrpc": "2.0",
        "error": {"code": PARSE_ERROR, "message": "no"},
    }
    assert json.loads(messages.failure("\ud800", error))["id"] == "\ud800"


# -- headers


@requirement("mcp:headers")
def test_headers_that_say_what_the_body_says_are_taken() -> None:
    request = Request(1, "tools/call", {"name": "größe"})
    headers.check(sent(mcp_method="tools/call", mcp_name="=?base64?Z3LDtsOfZQ==?="), request)
    headers.check(sent(MCP_METHOD="  tools/list "), Request(1, "tools/list", {}))
    headers.check(sent(mcp_method="tasks/get"), Request(1, "tasks/get", {"taskId": "t"}))


@requirement("mcp:headers")
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"mcp_method": "TOOLS/CALL", "mcp_name": "echo"},
        {"mcp_method": "tools/call"},
        {"mcp_method": "tools/call", "mcp_name": "other"},
        {"mcp_method": "tools/call", "mcp_name": "ec\x01ho"},
        {"mcp_method": "tools/call", "mcp_name": "=?base64?ZWNobw?="},
        {"mcp_method": "tools/call", "mcp_name": "=?base64?ZW!!Nobw==?="},
        {"mcp_method": "tools/call", "mcp_name": "=?base64?/w==?="},
    ],
)
def test_headers_that_are_missing_or_say_something_else_are_refused(given: Any) -> None:
    with pytest.raises(RpcError) as refused:
        headers.check(sent(**given), Request(1, "tools/call", {"name": "echo"}))
    assert refused.value.code == HEADER_MISMATCH


@requirement("mcp:headers")
def test_a_header_that_occurs_twice_is_refused() -> None:
    twice = Headers([(b"mcp-method", b"ping"), (b"Mcp-Method", b"ping")])
    with pytest.raises(RpcError, match="twice"):
        headers.check(twice, Request(1, "ping", {}))


@requirement("mcp:headers")
@pytest.mark.parametrize(
    ("arguments", "given", "taken"),
    [
        ({"region": "eu", "at": {"line": 42}, "dry": True}, ("eu", "42.0", "true"), True),
        ({"region": "=?base64?x"}, ("=?base64?x", None, None), True),
        ({"region": None}, (None, None, None), True),
        ({}, (None, None, None), True),
        ({"region": "eu"}, (None, None, None), False),
        ({}, ("eu", None, None), False),
        ({"at": {"line": 42}}, (None, "43", None), False),
        ({"at": {"line": 42}}, (None, "0x2a", None), False),
        ({"dry": False}, (None, None, "False"), False),
        ({"at": "nowhere"}, (None, "1", None), False),
    ],
)
def test_an_argument_that_a_header_repeats_has_to_be_in_both(
    arguments: Any, given: tuple[str | None, ...], taken: bool
) -> None:
    names = ("mcp_param_region", "mcp_param_line", "mcp_param_dry")
    found = sent(**{name: it for name, it in zip(names, given, strict=True) if it is not None})
    marked = headers.repeated_in(SCHEMA)
    assert len(marked) == 3
    if taken:
        headers.check_parameters(found, arguments, marked)
        return
    with pytest.raises(RpcError) as refused:
        headers.check_parameters(found, arguments, marked)
    assert refused.value.code == HEADER_MISMATCH


@requirement("mcp:headers")
@pytest.mark.parametrize(
    "wrong",
    [
        {"type": "number", "x-mcp-header": "A"},
        {"type": "string", "x-mcp-header": ""},
        {"type": "string", "x-mcp-header": "a b"},
        {"type": "string", "x-mcp-header": "REGION"},
    ],
)
def test_a_schema_with_a_wrong_mark_asks_for_no_headers(wrong: Any) -> None:
    schema = {"properties": {**SCHEMA["properties"], "more": wrong}}  # type: ignore[dict-item]
    assert headers.repeated_in(schema) == ()


# -- what names a call or a stream, in any process


@requirement("mcp:any-replica")
def test_a_calls_id_is_that_of_its_session_and_request_under_this_fleets_key() -> None:
    ids = {
        call_id_of(b"key", "session", 1),
        call_id_of(b"key", "session", "1"),
        call_id_of(b"key", "session", 2),
        call_id_of(b"key", "other", 1),
        call_id_of(b"another key", "session", 1),
    }
    assert len(ids) == 5
    assert call_id_of(b"key", "session", 1) in ids


@requirement("mcp:any-replica")
def test_an_event_id_names_its_request_and_how_it_is_told_of_progress() -> None:
    for request_id, token in (("a.b", "t"), (7, None), ("\ud800", 3)):
        assert request_of(event_name(request_id, token) + ".12") == (request_id, token)
    for nonsense in ("", "x", "!!.1", "W10.1", "WzEsWzJdXQ.1"):
        assert request_of(nonsense) is None


@requirement("mcp:questions")
def test_an_answers_id_names_the_call_and_the_question() -> None:
    call = "0f0e0d0c-0000-4000-8000-000000000000"
    assert asked_by(f"toolfleet-{call}-12") == (call, 12)
    for other in (1, "q1", f"toolfleet-{call}-", f"toolfleet-{call}-0", f"toolfleet-{call}-q1"):
        assert asked_by(other) is None
