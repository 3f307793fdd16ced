"""Getting a person's consent for a server that wants the MCP authorization flow.

What is asked and what an answer means is in `registry.authorization` and `registry.consent`; here
it is sent, one consent at a time: discovery from the server's refusal, a client, the person, and
the exchange of the code.

1. Every request goes the guarded way out, follows no redirect, and is bounded in size and time.
2. Metadata is asked for without any secret; a code, and a client's secret, go to the token endpoint
   of the issuer that the person was sent to, and to nobody else.
3. The token goes nowhere from here: it is what the caller stores.

The SDK's own provider (`mcp.client.auth`) is not used for this: it logs what servers answer,
follows redirects with a code, and asks servers that do not say that they take PKCE.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from mcp_types import LATEST_PROTOCOL_VERSION
from pydantic_core import to_json

from registry.addresses import Network
from registry.authorization import (
    Authority,
    Resource,
    authority_by_origin,
    canonical,
    choose_issuer,
    failed,
    read_authority,
    read_resource,
    resource_by_origin,
    resource_urls,
)
from registry.challenge import Challenge
from registry.client_registration import (
    documented_client,
    known_client,
    read_registration,
    registration,
)
from registry.consent import ConsentRequest, Redirect, scopes_to_ask
from registry.credential_kinds import Client, RefreshToken, Static
from registry.definitions import ServerDefinition
from registry.errors import FleetError
from registry.oauth import TokenError, Tokens, judge_grant, metadata_urls, origin, refuse_plain
from workers.refusal import challenge_of
from workers.request import Answer, NoAnswerError, OpenClient, request

PATIENCE_S: Final = 300.0
"""How long a person has, unless somebody else says."""
_REQUEST_LIMIT_S: Final = 20.0
_ASKING: Final = {"accept": "application/json", "mcp-protocol-version": LATEST_PROTOCOL_VERSION}


@dataclass(frozen=True)
class Terms:
    """What the fleet brings to a consent of its own."""

    scopes: tuple[str, ...] = ()
    """To be asked for beside what the server names."""
    granted: tuple[str, ...] = ()
    """What was granted before, by ``granted_by``: it is asked for again there."""
    granted_by: str | None = None
    client_id: str | None = None
    """A client that was registered beforehand."""
    client_secret: str | None = field(default=None, repr=False)
    issuer: str | None = None
    """The only one that the client is known to."""
    client_document: str | None = None
    """Where the fleet's client ID metadata document is, for who takes such."""


@dataclass(frozen=True)
class Consent:
    """What came of it; the token is there for a first call."""

    credential: RefreshToken | Static
    issuer: str
    scopes: tuple[str, ...]
    access_token: str = field(repr=False)
    life_s: float | None


class Redirects(Protocol):
    """Where the person's browser comes back to."""

    @property
    def uri(self) -> str:
        """Return the address that a redirect has to go to."""

    async def receive(self, belongs: Callable[[Redirect], bool]) -> Redirect:
        """Return the first redirect that belongs; others are turned away."""


class Consenting:
    """Whoever gets a consent for one server; ``networks`` are the fleet's own."""

    def __init__(
        self,
        open_client: OpenClient,
        definition: ServerDefinition,
        networks: Sequence[Network] = (),
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._open_client = open_client
        self._url = canonical(str(definition.url))
        self._own = tuple(networks)
        self._networks = (*definition.reachable, *networks)
        self._now = now

    async def get(
        self,
        refusal: FleetError | None,
        terms: Terms,
        redirects: Redirects,
        show: Callable[[ConsentRequest], Awaitable[None]],
        *,
        patience_s: float = PATIENCE_S,
    ) -> Consent:
        """Have a person consent to what a server asks for; raise `consent_failed`.

        ``refusal`` is how it refused; ``show`` brings the request's page before the person.
        """
        resource, authority = await self.find(refusal, terms.issuer)
        granted = terms.granted if terms.granted_by == authority.issuer else ()
        more = (*granted, *terms.scopes)
        scopes = scopes_to_ask(challenge_of(refusal), resource, authority, more)
        client = await self._client(authority, terms, redirects.uri, scopes)
        asked = ConsentRequest(authority, client, resource.identifier, scopes, redirects.uri)
        await show(asked)
        try:
            async with asyncio.timeout(patience_s):
                redirect = await redirects.receive(asked.is_answered_by)
        except TimeoutError:
            raise failed(
                f"nobody came back from {authority.issuer} within {patience_s:g} s",
                "start again, and open the page on the machine where the command runs",
            ) from None
        tokens = await self._tokens(asked, asked.code_of(redirect))
        return Consent(
            asked.credential(tokens),
            authority.issuer,
            asked.scopes if tokens.scopes is None else tokens.scopes,
            tokens.access_token,
            tokens.life_s,
        )

    # -- discovery

    async def find(
        self, refusal: FleetError | None, issuer: str | None = None
    ) -> tuple[Resource, Authority]:
        """Return what the server is to its authorization server, and that server.

        ``issuer`` is the only one that will do. Raises `consent_failed`.
        """
        resource = await self._resource(challenge_of(refusal), refused=refusal is not None)
        authority = await self._authority(choose_issuer(resource, issuer), resource)
        return resource, authority

    async def _resource(self, challenge: Challenge | None, *, refused: bool) -> Resource:
        stated = challenge.resource_metadata if challenge is not None else None
        for url in resource_urls(self._url, stated):
            # A server may say that its metadata is elsewhere, but not in the networks it is in.
            networks = self._networks if origin(url) == origin(self._url) else self._own
            found = await self._document(url, networks)
            if found is not None and (resource := read_resource(self._url, found)) is not None:
                return resource
        if not refused:
            raise failed(
                f"{self._url} asks for no authorization: it takes requests as they are, and names "
                "no authorization server",
                "it needs no credential, or one that is set with `toolfleet credentials set`",
            )
        return resource_by_origin(self._url)

    async def _authority(self, issuer: str, resource: Resource) -> Authority:
        by_origin = not resource.has_metadata
        for url in metadata_urls(issuer):
            found = await self._document(url, self._networks)
            if found is not None:
                return self._reachable(read_authority(issuer, found, by_origin=by_origin))
        if by_origin:
            return self._reachable(authority_by_origin(issuer))
        raise failed(
            f"the authorization server {issuer} has no metadata where it should be",
            "see whether it is up, and whether the server names the right one",
        )

    def _reachable(self, authority: Authority) -> Authority:
        """Return an authorization server whose pages are such that a browser may be sent there."""
        self._refuse_plain(authority.authorization_endpoint)
        return authority

    async def _document(self, url: str, networks: Sequence[Network]) -> Any:
        """Return the JSON at a URL, None where there is none."""
        answer = await self._ask("GET", url, networks, headers=_ASKING)
        if answer.status == 429 or answer.status >= 500:
            raise failed(
                f"{url} cannot be read just now: HTTP {answer.status}",
                "start again when it is up",
            )
        return answer.json if answer.status == 200 else None

    # -- the client

    async def _client(
        self, authority: Authority, terms: Terms, redirect_uri: str, scopes: tuple[str, ...]
    ) -> Client:
        if terms.client_id is not None:
            return known_client(authority, terms.client_id, terms.client_secret)
        if terms.client_document is not None and authority.takes_documents:
            return documented_client(terms.client_document)
        endpoint = authority.registration_endpoint
        if endpoint is None:
            raise failed(
                f"the authorization server {authority.issuer} registers no clients by itself",
                "register a client there, and give its --client-id",
            )
        asked = registration(authority, redirect_uri, scopes)
        answer = await self._ask("POST", endpoint, self._networks, headers=_ASKING, json=asked)
        return read_registration(authority, asked, answer.status, answer.json)

    # -- the code

    async def _tokens(self, asked: ConsentRequest, code: str) -> Tokens:
        authority = asked.authority
        sent = asked.for_tokens(code, now=self._now())
        answer = await self._ask(
            "POST", authority.token_endpoint, self._networks, headers=sent.headers, body=sent.body
        )
        try:
            return judge_grant(authority.issuer, answer.status, answer.body, of_a_user=True)
        except TokenError as error:
            raise failed(f"the code of the consent got no token: {error.message}", _AGAIN) from None

    # -- requests

    async def _ask(
        self,
        method: str,
        url: str,
        networks: Sequence[Network],
        *,
        headers: dict[str, str],
        body: bytes | None = None,
        json: Any = None,
    ) -> Answer:
        self._refuse_plain(url)
        if json is not None:
            body = to_json(json)
            headers = {**headers, "content-type": "application/json"}
        try:
            return await request(
                self._open_client, networks, method, url,
                timeout_s=_REQUEST_LIMIT_S, headers=headers, body=body,
            )  # fmt: skip
        except NoAnswerError as error:
            raise failed(f"{url} has no answer: {error}", _AGAIN) from None

    def _refuse_plain(self, url: str) -> None:
        try:
            refuse_plain(url, self._networks)
        except TokenError as error:
            raise failed(f"{url} is not asked: {error.message}", _WAY) from None


_AGAIN: Final = "start again with `toolfleet credentials authorize`"
_WAY: Final = (
    "it has to be reached by https; a network of your own goes under networks in the server's "
    "definition, or in TOOLFLEET_OUTBOUND_NETWORKS"
)
