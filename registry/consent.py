"""One request for a person's consent, from the URL they open to the credential that comes of it.

Pure (OAuth 2.1, authorization code with PKCE).

1. A redirect belongs to its request by its state, and to nothing else: another one is not read.
2. Who answered is checked before what was answered, an error included (RFC 9207): the issuer as a
   string, wherever it is said or promised.
3. State, verifier and code are good for one use, and in no repr or error.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from urllib.parse import urlencode

from pydantic import ValidationError

from registry.authorization import Authority, Resource, failed
from registry.challenge import Challenge
from registry.credential_kinds import Client, RefreshToken, Static
from registry.oauth import SAID_CODE, TokenRequest, Tokens, client_request

Redirect = Mapping[str, str]
"""The parameters of a redirect, each of which was there once."""
_OFFLINE: Final = "offline_access"
_LONGEST_CODE: Final = 4096


@dataclass(frozen=True)
class ConsentRequest:
    """What a person is asked, and what tells their answer from others."""

    authority: Authority
    client: Client
    resource: str
    scopes: tuple[str, ...]
    redirect_uri: str
    state: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    verifier: str = field(default_factory=lambda: secrets.token_urlsafe(64), repr=False)

    @property
    def url(self) -> str:
        """Return the page to open."""
        digest = hashlib.sha256(self.verifier.encode()).digest()
        asked = {
            "response_type": "code",
            "client_id": self.client.id,
            "redirect_uri": self.redirect_uri,
            "state": self.state,
            "code_challenge": base64.urlsafe_b64encode(digest).decode().rstrip("="),
            "code_challenge_method": "S256",
            "resource": self.resource,
        }
        if self.scopes:
            asked["scope"] = " ".join(self.scopes)
        if _OFFLINE in self.scopes:
            asked["prompt"] = "consent"  # OpenID Connect Core, 11: it is not granted without
        endpoint = self.authority.authorization_endpoint
        return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(asked)}"

    def is_answered_by(self, redirect: Redirect) -> bool:
        """Say whether a redirect belongs to this request."""
        return secrets.compare_digest(redirect.get("state", "").encode(), self.state.encode())

    def code_of(self, redirect: Redirect) -> str:
        """Return the code of a redirect; raise `consent_failed` where it brings none to use."""
        issuer = self.authority.issuer
        if not self.is_answered_by(redirect):
            raise failed("a redirect came that does not belong to this request", _AGAIN)
        if "iss" in redirect and redirect["iss"] != issuer:
            raise failed(f"the redirect is not from {issuer}: it names another issuer", _MIXED_UP)
        if "iss" not in redirect and self.authority.names_itself:
            raise failed(f"the redirect does not say that it is from {issuer}", _MIXED_UP)
        if "error" in redirect:
            said = redirect["error"]
            said = said if SAID_CODE.fullmatch(said) else "an error that is none of OAuth"
            raise failed(f"{issuer} gave no consent: {said}", _HINTS.get(said, _AGAIN))
        code = redirect.get("code", "")
        if not 0 < len(code) <= _LONGEST_CODE or not code.isprintable():
            raise failed(f"{issuer} answered with no code", _AGAIN)
        return code

    def for_tokens(self, code: str, *, now: datetime) -> TokenRequest:
        """Return what the code is exchanged with."""
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self.redirect_uri,
            "code_verifier": self.verifier,
            "resource": self.resource,
        }
        return client_request(self.client, self.authority.token_endpoint, form, now=now)

    def credential(self, tokens: Tokens) -> RefreshToken | Static:
        """Return what is kept: the refresh token, or where there is none the token itself.

        Raises `consent_failed` for tokens that cannot be kept.
        """
        token = tokens.refresh_token
        try:
            if token is None:
                return Static.model_validate({"secret": tokens.access_token, "prefix": "Bearer "})
            authority = self.authority
            return RefreshToken.model_validate(
                {
                    "issuer": authority.issuer,
                    "token_endpoint": None if authority.has_metadata else authority.token_endpoint,
                    "client": self.client,
                    "scopes": self.scopes if tokens.scopes is None else tokens.scopes,
                    "resource": self.resource,
                    "refresh_token": token,
                }
            )
        except ValidationError:
            raise failed(f"{self.authority.issuer} gave a token that cannot be kept") from None


def scopes_to_ask(
    challenge: Challenge | None, resource: Resource, authority: Authority, more: tuple[str, ...]
) -> tuple[str, ...]:
    """Return the scopes to ask for: what a refusal names, else what the resource says it needs.

    ``more`` (what was granted before, or is wanted beside) comes first. Where scopes are named at
    all, `offline_access` is added for an authorization server that has it: it gives the refresh
    token.
    """
    named = challenge.scopes if challenge is not None else None
    if named is None:
        named = resource.scopes or ()
    scopes = tuple(dict.fromkeys((*more, *named)))
    if scopes and _OFFLINE in authority.scopes and _OFFLINE not in scopes:
        return (*scopes, _OFFLINE)
    return scopes


_AGAIN: Final = "start again with `toolfleet credentials authorize`"
_MIXED_UP: Final = (
    "nothing was sent to anybody; see whether the server's authorization server can be trusted, "
    "and what stands before it"
)
_HINTS: Final = {
    "access_denied": "whoever was asked declined; start again when they would not",
    "invalid_scope": "ask for other scopes: --scope",
    "unauthorized_client": "the client may not do this: register another, and give its --client-id",
}
