"""One HTTP request of the fleet's own and its whole answer, bounded in size and in time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import httpx2

from registry.addresses import Network
from registry.errors import FleetError

LARGEST_ANSWER: Final = 65_536
_LONGEST_RETRY_AFTER_S: Final = 3600.0


class OpenClient(Protocol):
    """How a client for requests to somewhere else is made; see `workers.outbound`."""

    def __call__(
        self, *, networks: Iterable[Network] = (), timeout_s: float
    ) -> AbstractAsyncContextManager[httpx2.AsyncClient]:
        """Return a client that follows no redirect."""


class NoAnswerError(Exception):
    """A request without an answer; its text tells how, and nothing of what was sent."""


@dataclass(frozen=True)
class Answer:
    """A status, and at most one byte more than `LARGEST_ANSWER` of the body."""

    status: int
    body: bytes = field(repr=False)
    retry_after_s: float | None = None

    @property
    def json(self) -> Any:
        """Return the body as JSON; None for what is not."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


async def request(
    open_client: OpenClient,
    networks: Iterable[Network],
    method: str,
    url: str,
    *,
    timeout_s: float,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
) -> Answer:
    """Return the answer to a request; raise `NoAnswerError` when there is none in time."""
    try:
        async with (
            asyncio.timeout(timeout_s),
            open_client(networks=networks, timeout_s=timeout_s) as client,
            client.stream(method, url, headers=headers, content=body) as response,
        ):
            read = bytearray()
            async for piece in response.aiter_bytes():
                read += piece
                if len(read) > LARGEST_ANSWER:
                    break
            return Answer(
                response.status_code,
                bytes(read[: LARGEST_ANSWER + 1]),
                _retry_after_s(response.headers.get("retry-after")),
            )
    except TimeoutError:
        raise NoAnswerError(f"it did not answer within {timeout_s:g} s") from None
    except FleetError as error:
        raise NoAnswerError(error.message) from None
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        raise NoAnswerError(f"it could not be reached ({type(error).__name__})") from None


def _retry_after_s(value: str | None) -> float | None:
    if value is None or not value.strip().isdigit() or len(value) > 9:
        return None
    return min(float(value), _LONGEST_RETRY_AFTER_S)
