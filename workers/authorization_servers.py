"""Authorization servers, asked for tokens: where their endpoints are, and what they answer.

What is asked and what an answer means is in `registry.oauth`; here it is sent. A request for a
token is sent once, follows no redirect, and has its answer within `REQUEST_LIMIT_S` or none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final

from registry.addresses import Network
from registry.credential_kinds import ClientCredentials, OAuth
from registry.oauth import (
    Failure,
    TokenError,
    Tokens,
    judge_answer,
    listed_endpoint,
    metadata_urls,
    needs_metadata,
    refuse_plain,
    subject_of,
    token_request,
)
from workers.request import Answer, NoAnswerError, OpenClient, request

REQUEST_LIMIT_S: Final = 20.0
METADATA_KEPT_S: Final = 3600.0
_METADATA_LIMIT_S: Final = 5.0
_MOST_KEPT: Final = 1_000


class AuthorizationServers:
    """Every authorization server that this process gets tokens from."""

    def __init__(
        self,
        open_client: OpenClient,
        networks: Sequence[Network] = (),
        *,
        clock: Callable[[], float] = time.monotonic,
        limit_s: float = REQUEST_LIMIT_S,
    ) -> None:
        self._open_client = open_client
        self._networks = tuple(networks)
        self._clock = clock
        self._limit_s = limit_s
        self._listed: dict[tuple[str, str | None], tuple[float, str]] = {}

    async def tokens(
        self, credential: OAuth, networks: Sequence[Network], *, now: datetime
    ) -> Tokens:
        """Return new tokens; raise `TokenError`.

        ``networks`` are those that the server's definition allows, beside the fleet's own.
        """
        allowed = (*networks, *self._networks)
        subject = subject_of(credential)
        if isinstance(subject, ClientCredentials):
            subject = (await self.tokens(subject, networks, now=now)).access_token
        endpoint = await self._endpoint(credential, allowed)
        asked = token_request(credential, endpoint, now=now, subject_token=subject)
        answer = await self._ask(
            credential.issuer, "POST", endpoint, allowed,
            limit_s=self._limit_s, headers=asked.headers, body=asked.body,
        )  # fmt: skip
        return judge_answer(credential, answer.status, answer.body, answer.retry_after_s)

    async def _endpoint(self, credential: OAuth, networks: Sequence[Network]) -> str:
        if not needs_metadata(credential):
            assert credential.token_endpoint is not None
            return credential.token_endpoint
        name = (credential.issuer, credential.token_endpoint)
        known_until, endpoint = self._listed.get(name, (0.0, ""))
        if self._clock() < known_until:
            return endpoint
        endpoint = await self._discover(credential, networks)
        if len(self._listed) >= _MOST_KEPT:
            self._listed.clear()
        self._listed[name] = (self._clock() + METADATA_KEPT_S, endpoint)
        return endpoint

    async def _discover(self, credential: OAuth, networks: Sequence[Network]) -> str:
        statuses = []
        for url in metadata_urls(credential.issuer):
            answer = await self._ask(
                credential.issuer, "GET", url, networks,
                limit_s=_METADATA_LIMIT_S, headers={"accept": "application/json"},
            )  # fmt: skip
            if answer.status == 200 and answer.json is not None:
                return listed_endpoint(credential, answer.json)
            statuses.append(answer.status)
        down = any(status >= 500 or status == 429 for status in statuses)
        raise TokenError(
            Failure.TRANSIENT if down else Failure.SETUP,
            f"the authorization server {credential.issuer} answered with no metadata "
            f"(HTTP {', '.join(map(str, statuses))})",
        )

    async def _ask(
        self,
        issuer: str,
        method: str,
        url: str,
        networks: Sequence[Network],
        *,
        limit_s: float,
        headers: dict[str, str],
        body: bytes | None = None,
    ) -> Answer:
        refuse_plain(url, networks)
        try:
            return await request(
                self._open_client, networks, method, url,
                timeout_s=limit_s, headers=headers, body=body,
            )  # fmt: skip
        except NoAnswerError as error:
            raise TokenError(
                Failure.TRANSIENT, f"the authorization server {issuer} has no answer: {error}"
            ) from None
