"""The ``requestState`` of an answer that asks for input: which call goes on when it comes back.

Pure. It passes through the client, so it is signed with the fleet's secret key, and holds for one
caller, for one request word by word, and as long as the call may take (spec 2026-07-28,
basic/patterns/mrtr). To send it twice makes no second call: it names the one that there is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from api.mcp.asked import INVALID_PARAMS, Asked, RpcError
from registry import tokens
from registry.errors import FleetError

AFTER_DEADLINE: Final = timedelta(minutes=5)
"""How long a state holds beyond its call's deadline, so that the client hears of the end."""
_AUDIENCE: Final = "toolfleet.request"
_NOT_THE_REQUEST: Final = frozenset({"_meta", "inputResponses", "requestState"})


def seal(asked: Asked, call_id: str, deadline_at: datetime, asks: list[str]) -> str:
    """Return the state with which a client goes on with a call; ``asks`` are the open questions."""
    claims = {"call": call_id, "asks": asks, **_bound(asked)}
    return tokens.sign(
        claims, audience=_AUDIENCE, expires_at=deadline_at + AFTER_DEADLINE, key=_key(asked)
    )


def unseal(asked: Asked) -> str | None:
    """Return the call that a request goes on with; None for a request without a state.

    Raises `RpcError` (invalid params) for a state that is not this request's, has expired, or was
    not made here.
    """
    state = asked.params.get("requestState") if asked.revision.stateless else None
    if state is None:
        return None
    if not isinstance(state, str) or not state.isascii():
        raise _invalid("it is not one that was made here")
    try:
        claims = tokens.read(state, audience=_AUDIENCE, key=_key(asked))
    except FleetError as error:
        raise _invalid(error.message) from error
    bound = _bound(asked)
    if any(claims.get(name) != value for name, value in bound.items()):
        raise _invalid("it belongs to another caller or another request")
    call_id = claims["call"]
    assert isinstance(call_id, str)
    return call_id


def responses(asked: Asked) -> dict[str, dict[str, Any]]:
    """Return what a client answers to questions, by their keys; raise `RpcError` for no answers."""
    given = asked.params.get("inputResponses", {})
    if not isinstance(given, dict) or not all(isinstance(it, dict) for it in given.values()):
        raise RpcError(INVALID_PARAMS, "inputResponses: has to be an object of objects")
    return given


def _bound(asked: Asked) -> dict[str, Any]:
    return {
        "sub": asked.actor.label,
        "tenant": asked.actor.tenant or "",
        "request": _digest(asked.method, asked.server, asked.params),
    }


def _digest(method: str, server: str | None, params: Mapping[str, Any]) -> str:
    request = {name: it for name, it in params.items() if name not in _NOT_THE_REQUEST}
    body = json.dumps([method, server, request], sort_keys=True)
    return hashlib.sha256(body.encode()).hexdigest()


def _key(asked: Asked) -> str:
    return asked.operations.settings.secret_key.get_secret_value()


def _invalid(why: str) -> RpcError:
    return RpcError(INVALID_PARAMS, f"requestState is not valid: {why}; send the request anew")
