"""The fleet's MCP endpoint over HTTP: one exchange at a time, and the messages that it brings.

Where the fleet answers, and by which key, is looked up for each exchange: a client's server lives
for days, and the fleet may come back elsewhere meanwhile.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import httpx2

from api.mcp.asked import FLEET_ERROR
from compose.api_client import Address, AskError, problem_of
from compose.bridge.messages import Message, NoMessageError, read

CONNECT_S: Final = 10.0
SILENCE_S: Final = 60.0
"""How long a stream may say nothing: the fleet shows every 15 s that it is there."""
BOTH_KINDS: Final = "application/json, text/event-stream"

_UNREACHED: Final = (
    httpx2.ConnectError,
    httpx2.ConnectTimeout,
    httpx2.UnsupportedProtocol,
    httpx2.InvalidURL,
)

Hear = Callable[[Message], Awaitable[None]]


class RefusedError(Exception):
    """The fleet answered with an HTTP status that is an error."""

    def __init__(self, status: int, error: dict[str, Any]) -> None:
        super().__init__(str(error.get("message")))
        self.status = status
        self.error = error
        """As a JSON-RPC response has it."""


class LostError(Exception):
    """The connection ended before the answer was there."""


@dataclass
class Place:
    """How far a stream was read, so that it can be gone on with."""

    event_id: str = ""
    retry_s: float = 1.0


class Endpoint:
    """The endpoint at a path of the fleet that ``find`` finds."""

    def __init__(
        self, find: Callable[[], Address], path: str, headers: Mapping[str, str] | None = None
    ) -> None:
        self._find = find
        self._path = path
        self._headers = dict(headers or {})
        self._http = httpx2.AsyncClient(
            timeout=httpx2.Timeout(CONNECT_S, read=SILENCE_S),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=20),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._http.aclose()

    async def exchange(
        self,
        verb: str,
        headers: Mapping[str, str],
        body: str | None,
        hear: Hear,
        place: Place,
    ) -> httpx2.Headers:
        """Send a body and hear all that comes back; return the answer's headers.

        Raises `AskError` where the fleet is not reached, `RefusedError`, and `LostError`.
        """
        address = self._find()
        sent = {
            "accept": BOTH_KINDS,
            "authorization": f"Bearer {address.key}",
            **({} if body is None else {"content-type": "application/json"}),
            **self._headers,
            **headers,
        }
        url = address.url.rstrip("/") + self._path
        try:
            async with self._http.stream(verb, url, content=body, headers=sent) as answer:
                if not answer.is_success:
                    await answer.aread()
                    raise RefusedError(answer.status_code, _error_of(answer))
                await _hear_all(answer, hear, place)
                return answer.headers
        except _UNREACHED as error:
            raise AskError(
                "unreachable",
                f"no answer from {address.url} ({type(error).__name__})",
                "start a fleet with `toolfleet up`, or set TOOLFLEET_URL",
            ) from error
        except (httpx2.HTTPError, NoMessageError) as error:
            raise LostError(f"{type(error).__name__}: {error}") from error


async def _hear_all(answer: httpx2.Response, hear: Hear, place: Place) -> None:
    kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "text/event-stream":
        if (await answer.aread()).strip():
            for message in read(answer.text):
                await hear(message)
        return
    async for event in httpx2.EventSource(answer, max_event_size=None):
        for message in read(event.data) if event.data else []:
            await hear(message)
        place.event_id = event.id or place.event_id
        if event.retry is not None:
            place.retry_s = event.retry / 1000


def _error_of(answer: httpx2.Response) -> dict[str, Any]:
    """Return what an answer says went wrong, as a JSON-RPC response has it."""
    try:
        error = answer.json().get("error")
    except (ValueError, AttributeError):
        error = None
    return error if isinstance(error, dict) else error_of(problem_of(answer))


def error_of(problem: AskError) -> dict[str, Any]:
    """Return a problem of ours as a JSON-RPC response has it."""
    hint = f" ({problem.hint})" if problem.hint else ""
    data: dict[str, Any] = {
        "code": problem.code,
        "message": problem.message,
        "hint": problem.hint,
    }
    if problem.details:
        data["details"] = problem.details
    return {"code": FLEET_ERROR, "message": problem.message + hint, "data": data}
