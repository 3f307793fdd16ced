"""The official conformance suite's client scenarios of authorization, met by what the product does.

A server refuses, somebody consents (`workers.consent`), the call is made again with the token: as
an operator would have it, but for the person, whose browser is a few lines here.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Self

import httpx2

from compose.loopback import loopback
from registry.consent import ConsentRequest
from registry.credential_kinds import ClientCredentials, parse_credential
from registry.definitions import ServerDefinition, parse_definition
from registry.errors import FleetError
from workers.authorization_servers import AuthorizationServers
from workers.connection import Credential
from workers.consent import Consent, Consenting, Terms
from workers.outbound import open_client
from workers.refusal import refusal_of
from workers.session import Session

LOOPBACK = ["127.0.0.0/8", "::1/128"]
MOST_CONSENTS = 3
# Where the suite has the document that it takes for the client's.
DOCUMENT = "https://conformance-test.local/client-metadata.json"
TOOL = "test-tool"
WITHOUT_A_PERSON = "auth/client-credentials-"


async def run(scenario: str, url: str, context: dict[str, Any]) -> int:
    """Play one scenario; return the status that its client ends with."""
    definition = _definition(url)
    try:
        if scenario.startswith(WITHOUT_A_PERSON):
            refusal = await _log_in(definition, context)
        else:
            refusal = await _have_consent(definition, context)
    except FleetError as error:
        refusal = error
    if refusal is None:
        return 0
    sys.stderr.write(f"{scenario}: {refusal.code.code}: {refusal.message}. {refusal.hint}\n")
    return 1


async def _have_consent(definition: ServerDefinition, context: dict[str, Any]) -> FleetError | None:
    """Use the server until nothing more has to be consented to; return its last refusal, if any."""
    terms = Terms(
        client_id=context.get("client_id"),
        client_secret=context.get("client_secret"),
        client_document=DOCUMENT,
    )
    consent: Consent | None = None
    for _ in range(MOST_CONSENTS):
        refusal = await _use(definition, consent.access_token if consent else None)
        if refusal is None:
            return None
        consent = await _consent(definition, refusal, terms, consent)
    assert consent is not None
    return await _use(definition, consent.access_token)


async def _log_in(definition: ServerDefinition, context: dict[str, Any]) -> FleetError | None:
    """Use the server with a token for the client itself, as the broker gets one."""
    refusal = await refusal_of(definition)
    resource, authority = await Consenting(open_client, definition).find(refusal)
    how: dict[str, Any] = {"secret": context.get("client_secret")}
    if "private_key_pem" in context:
        how = {
            "authentication": "private_key_jwt",
            "private_key": context["private_key_pem"],
            "assertion_audience": authority.issuer,
        }
    credential = parse_credential(
        {
            "kind": "oauth_client_credentials",
            "issuer": authority.issuer,
            "client": {"id": context["client_id"], **how},
            "resource": resource.identifier,
        }
    )
    assert isinstance(credential, ClientCredentials)
    servers = AuthorizationServers(open_client)
    tokens = await servers.tokens(credential, definition.reachable, now=datetime.now(UTC))
    return await _use(definition, tokens.access_token)


def _definition(url: str) -> ServerDefinition:
    return parse_definition(
        {
            "name": "suite",
            "transport": "http",
            "url": url,
            "networks": LOOPBACK,
            "credentials": {"inject": "header", "name": "Authorization"},
        }
    )


async def _use(definition: ServerDefinition, token: str | None) -> FleetError | None:
    """List the tools and call the one there is; return how that was refused, if it was."""
    credential = Credential("header", "Authorization", f"Bearer {token}") if token else None
    refusal = await refusal_of(definition, credential)
    if refusal is not None:
        return refusal
    session = await Session.open(
        definition,
        credential=credential,
        connect_timeout_s=10,
        stop_grace_s=1,
        max_result_bytes=1_000_000,
    )
    try:
        await session.call_tool(TOOL, {}, timeout_s=10)
    except FleetError as error:
        if "challenge" not in error.details:
            raise
        return error
    finally:
        await session.close()
    return None


async def _consent(
    definition: ServerDefinition, refusal: FleetError, terms: Terms, before: Consent | None
) -> Consent:
    if before is not None:
        terms = replace(terms, granted=before.scopes, granted_by=before.issuer)
    consenting = Consenting(open_client, definition)
    async with loopback() as redirects, Person() as person:
        return await consenting.get(refusal, terms, redirects, person.consents, patience_s=15)


class Person:
    """Somebody who consents to everything, with a browser that goes where it is sent."""

    def __init__(self) -> None:
        self._browsing: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await asyncio.gather(*self._browsing, return_exceptions=True)

    async def consents(self, asked: ConsentRequest) -> None:
        """Open the page of a request; it comes back by itself."""
        self._browsing.add(asyncio.create_task(self._browse(asked.url)))

    async def _browse(self, url: str) -> None:
        async with httpx2.AsyncClient(follow_redirects=True, trust_env=False) as browser:
            await browser.get(url)
