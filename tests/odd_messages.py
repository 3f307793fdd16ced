"""Messages that make no sense, as anybody can write them who reaches Redis."""

from __future__ import annotations

import base64
import json
import uuid
from typing import Any

NOBODY = "00000000-0000-4000-8000-000000000000"
ODD_ARGUMENTS: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...] = (
    ((), {}),
    ((NOBODY,), {}),
    ((NOBODY, NOBODY), {}),
    ((NOBODY,), {"approved": True}),
    ((), {"call_id": NOBODY}),
    ((None,), {}),
    ((7,), {}),
    (([NOBODY],), {}),
    (({"id": NOBODY},), {}),
    (("\0",), {}),
    (("x" * 100_000,), {}),
)
BODY = [[NOBODY], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
ODD_BODIES: tuple[Any, ...] = (
    b"", b"no json", b"7", b"null", b"[]", b"{}", b'"x"', b"[[[]]]", b"[1, 2, 3]", b"\xff\xfe",
    json.dumps([{"a": 1}, [], None]).encode(), json.dumps([NOBODY, {}, {}]).encode(),
    json.dumps([[NOBODY], "x", {}]).encode(), json.dumps([[NOBODY], {}, "x"]).encode(),
    json.dumps([[NOBODY], {"request": 1}, {}]).encode(),
)  # fmt: skip
ODD_HEADERS: tuple[dict[str, Any], ...] = (
    {"task": "toolfleet.nothing"},
    {"task": "toolfleet.submit"},
    {"task": None},
    {"task": ["toolfleet.call"]},
    {"id": None},
    {"id": {}},
    {"id": "\0"},
    {"expires": "never"},
    {"eta": "x"},
    {"retries": "many"},
    {"timelimit": "x"},
    {"stamped_headers": ["run"], "stamps": 7},
    {"argsrepr": {}},
    {"root_id": [], "parent_id": {}},
)
ODD_ELEMENTS: tuple[bytes, ...] = (
    b"", b"no json", b"7", b"null", b"[]", b"{}", b'"next"', b'"x"', b"\xff\xfe",
    b'{"body": "x"}', b'{"properties": {}}', b'{"body": 7, "headers": 7, "properties": 7}',
)  # fmt: skip


def envelope(queue: str, body: bytes, **rest: Any) -> bytes:
    """Return a message as kombu writes it into Redis."""
    message_id = str(uuid.uuid4())
    headers = {"lang": "py", "task": "toolfleet.call", "id": message_id, "retries": 0}
    properties = {
        "correlation_id": message_id, "reply_to": message_id, "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": queue}, "priority": 0,
        "body_encoding": "base64", "delivery_tag": message_id,
    }  # fmt: skip
    message = {
        "body": base64.b64encode(body).decode(), "content-encoding": "utf-8",
        "content-type": "application/json", "headers": headers, "properties": properties,
    }  # fmt: skip
    message |= {key: value for key, value in rest.items() if key in message}
    return json.dumps(message).encode()


def odd_messages(queue: str) -> list[bytes]:
    """Return what to push onto the list of a queue."""
    good = json.dumps(BODY).encode()
    headers = json.loads(envelope(queue, good))["headers"]
    wrapped = [envelope(queue, body) for body in ODD_BODIES]
    wrapped += [envelope(queue, good, headers={**headers, **odd}) for odd in ODD_HEADERS]
    for kind in ("application/x", "", "yaml"):
        wrapped.append(envelope(queue, good, **{"content-type": kind}))
    wrapped.append(envelope(queue, good, **{"content-encoding": "rot13"}))
    wrapped.append(envelope(queue, good, properties={}))
    return [*wrapped, *ODD_ELEMENTS]
