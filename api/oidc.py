"""The identity provider: its discovery document, its keys, and the tokens that they check.

Keys are fetched when they are first needed, again every `KEYS_KEPT_FOR_S`, and for a key id that is
not known at most every `ASK_EVERY_S`. While the provider is away the keys of before hold for
`STALE_FOR_S`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2

from api.claims import ClaimMap
from registry import tokens
from registry.addresses import is_loopback, parse_network
from registry.errors import Code, FleetError
from registry.settings import Settings
from registry.tenants import Actor
from workers.outbound import open_client

KEYS_KEPT_FOR_S: Final = 600.0
ASK_EVERY_S: Final = 10.0
STALE_FOR_S: Final = 3600.0
TOKEN_KEPT_FOR_S: Final = 300.0
_FETCH_WITHIN_S: Final = 5.0
_LARGEST: Final = 262_144
_NEVER: Final = float("-inf")

logger = logging.getLogger("toolfleet.api")


class Issuer:
    """One identity provider, and what its tokens stand for."""

    def __init__(
        self,
        url: str,
        audience: str,
        claims: ClaimMap,
        *,
        connect: Callable[[], httpx2.AsyncClient],
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,  # noqa: TID251 - exp and nbf are wall times
    ) -> None:
        self._url = url
        self._audience = audience
        self._claims = claims
        self._connect = connect
        self._clock = clock
        self._wall_clock = wall_clock
        self._keys: dict[str, Mapping[str, Any]] = {}
        self._fetched_at = _NEVER
        self._asked_at = _NEVER
        self._answered = False
        self._fetching: asyncio.Task[None] | None = None

    def may_have_issued(self, credential: str) -> bool:
        """Say whether a credential has the form of a token."""
        return credential.count(".") == 2

    async def actor(self, token: str) -> tuple[Actor, float]:
        """Return who holds a token, and for how many seconds that may be kept.

        Raises `unauthenticated`, `token_expired`, `forbidden`, and `identity_unavailable` where the
        provider's keys cannot be had.
        """
        claims, left_s = await self._checked(token)
        return self._claims.actor(claims), min(left_s + tokens.LEEWAY_S, TOKEN_KEPT_FOR_S)

    async def left_s(self, token: str) -> float:
        """Return how many seconds are left until a token's expiry; raise what `actor` does."""
        _, left_s = await self._checked(token)
        return left_s

    async def close(self) -> None:
        """Stop asking."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait([self._fetching])

    async def _checked(self, token: str) -> tuple[tokens.Claims, float]:
        header = tokens.read_header(token)
        key = await self._key(header.key_id)
        now_s = self._wall_clock()
        claims = tokens.check(
            token, header, key, issuer=self._url, audience=self._audience, now_s=now_s
        )
        return claims, claims.expires_at - now_s

    async def _key(self, key_id: str) -> Mapping[str, Any]:
        age_s = self._clock() - self._fetched_at
        known = key_id in self._keys and age_s < STALE_FOR_S
        fetching = self._fetch() if not known or age_s >= KEYS_KEPT_FOR_S else None
        if known:
            return self._keys[key_id]  # whatever is being fetched is for the next one
        if fetching is not None:
            await asyncio.wait([fetching])
        if self._clock() - self._fetched_at < STALE_FOR_S and key_id in self._keys:
            return self._keys[key_id]
        if not self._answered:
            raise FleetError(
                Code.IDENTITY_UNAVAILABLE,
                "the identity provider's keys cannot be had, so its tokens cannot be checked",
                hint="the log of the API process says why; API keys work meanwhile",
                retry_after_s=ASK_EVERY_S,
            )
        raise tokens.invalid("its key (kid) is not one of the issuer's")

    def _fetch(self) -> asyncio.Task[None] | None:
        """Return the one task that fetches the keys; None when that was done a moment ago."""
        if self._fetching is None and self._clock() - self._asked_at >= ASK_EVERY_S:
            self._asked_at = self._clock()
            self._fetching = asyncio.create_task(self._fetch_keys())
        return self._fetching

    async def _fetch_keys(self) -> None:
        try:
            async with asyncio.timeout(_FETCH_WITHIN_S), self._connect() as client:
                place = f"{self._url.rstrip('/')}/.well-known/openid-configuration"
                about = await _document(client, place)
                listed = await _document(client, self._keys_url(about))
            self._keys = tokens.public_keys(listed)
            self._fetched_at = self._clock()
            self._answered = True
        except (httpx2.HTTPError, OSError, ValueError, RecursionError, FleetError) as error:
            self._answered = False
            logger.warning("the keys of %s cannot be had: %s", self._url, error)
        finally:
            self._fetching = None

    def _keys_url(self, about: Any) -> str:
        if not isinstance(about, dict) or about.get("issuer") != self._url:
            raise ValueError("its discovery document is of another issuer")
        url = about.get("jwks_uri")
        if not isinstance(url, str) or not url:
            raise ValueError("its discovery document has no jwks_uri")
        if urlsplit(url).scheme != "https" and _origin(url) != _origin(self._url):
            raise ValueError("its jwks_uri is neither https nor on the issuer's own origin")
        return url


def make_issuer(settings: Settings) -> Issuer | None:
    """Return the provider that the settings name; raise `ValueError` where they do not fit."""
    url = settings.oidc_issuer.rstrip("/")
    if not url:
        return None
    parts = urlsplit(url)
    if parts.query or parts.fragment or parts.username or not parts.hostname:
        raise ValueError("TOOLFLEET_OIDC_ISSUER is no issuer: https://host/path")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname)):
        raise ValueError("TOOLFLEET_OIDC_ISSUER has to be https (or http on a loopback address)")
    if not settings.oidc_audience:
        raise ValueError("TOOLFLEET_OIDC_AUDIENCE is empty: it says whose tokens are taken")
    networks = [parse_network(network) for network in settings.outbound_networks]
    return Issuer(
        settings.oidc_issuer,
        settings.oidc_audience,
        ClaimMap.of(settings),
        connect=lambda: open_client(networks=networks, timeout_s=_FETCH_WITHIN_S),
    )


async def _document(client: httpx2.AsyncClient, url: str) -> Any:
    async with client.stream("GET", url, headers={"accept": "application/json"}) as answer:
        if answer.status_code != 200:
            raise ValueError(f"{url} answered {answer.status_code}")
        body = bytearray()
        async for chunk in answer.aiter_bytes():
            body += chunk
            if len(body) > _LARGEST:
                raise ValueError(f"{url} answered more than {_LARGEST} bytes")
    return json.loads(body)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port
