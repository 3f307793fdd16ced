"""Getting tokens from an authorization server, as far as it is no I/O: what to ask, what it means.

1. A secret of one issuer is sent to an endpoint on the issuer's own origin, or to one that the
   issuer's metadata lists, and to no other.
2. Only `invalid_grant`, said as RFC 6749 has it, means that a grant is gone. Whatever else goes
   wrong takes nothing away: the server may be down, in someone's hands, or set up wrongly.
3. No error quotes a server's own words, which may repeat what they were sent: its code alone.
"""

from __future__ import annotations

import base64
import json
import math
import re
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final, TypeGuard
from urllib.parse import quote_plus, urlencode, urlsplit

import jwt

from registry.addresses import Network, refuse_host
from registry.credential_kinds import (
    MOST_SCOPES,
    SCOPE,
    Client,
    ClientCredentials,
    OAuth,
    RefreshToken,
    TokenExchange,
)

LARGEST_ANSWER: Final = 65_536
RENEW_AT: Final = 0.8
RENEW_JITTER: Final = 0.05
_LONGEST_TOKEN: Final = 16_384
_LONGEST_LIFE_S: Final = 366 * 86_400.0
_FIRST_PAUSE_S: Final = {"transient": 1.0, "setup": 15.0, "consent": 15.0}
_LONGEST_PAUSE_S: Final = {"transient": 60.0, "setup": 300.0, "consent": 300.0}
_ACCESS_TOKEN: Final = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - a name
_ASSERTION_LIFE: Final = timedelta(seconds=60)
_SETUP: Final = frozenset(
    {
        "invalid_client",
        "invalid_request",
        "invalid_scope",
        "invalid_target",
        "unauthorized_client",
        "unsupported_grant_type",
    }
)
SAID_CODE: Final = re.compile(r"[a-z_]{1,64}")
_TOKEN: Final = re.compile(r"[\x21-\x7e]+")


class Failure(StrEnum):
    """What a failed request for a token says about the grant."""

    TRANSIENT = "transient"
    """Nothing: it will be asked again."""
    SETUP = "setup"
    """Nothing, but that somebody has to look after client, scope or endpoint."""
    CONSENT = "consent"
    """It is gone: only a new consent brings another."""


class TokenError(Exception):
    """Why there is no token; its text quotes neither secrets nor what a server wrote."""

    def __init__(
        self, failure: Failure, message: str, *, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.failure = failure
        self.message = message
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class Tokens:
    """What an authorization server gave: ``life_s`` is None where it did not say."""

    access_token: str = field(repr=False)
    refresh_token: str | None = field(repr=False)
    life_s: float | None
    scopes: tuple[str, ...] | None = None
    """What they are good for, None where it did not say: what was asked for."""


@dataclass(frozen=True)
class TokenRequest:
    """A request to a token endpoint."""

    body: bytes = field(repr=False)
    headers: dict[str, str] = field(repr=False)


# -- where


def metadata_urls(issuer: str) -> tuple[str, ...]:
    """Return where an issuer's metadata may be: RFC 8414 first, then OpenID Connect's two places.

    The two are one for an issuer without a path.
    """
    parts = urlsplit(issuer)
    origin, path = f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/")
    urls = (
        f"{origin}/.well-known/oauth-authorization-server{path}",
        f"{origin}/.well-known/openid-configuration{path}",
        f"{origin}{path}/.well-known/openid-configuration",
    )
    return tuple(dict.fromkeys(urls))


def needs_metadata(credential: OAuth) -> bool:
    """Say whether only the issuer's metadata tells that an endpoint is the issuer's."""
    endpoint = credential.token_endpoint
    return endpoint is None or origin(endpoint) != origin(credential.issuer)


def listed_endpoint(credential: OAuth, metadata: Any) -> str:
    """Return the token endpoint by the issuer's metadata; raise `TokenError` where it is not so."""
    issuer, wanted = credential.issuer, credential.token_endpoint
    if not isinstance(metadata, dict) or metadata.get("issuer") != issuer:
        raise TokenError(Failure.SETUP, f"what {issuer} lists is the metadata of another issuer")
    listed = metadata.get("token_endpoint")
    if not isinstance(listed, str) or not re.fullmatch(r"https?://[!-~]+", listed):
        raise TokenError(Failure.SETUP, f"the metadata of {issuer} lists no token endpoint")
    if wanted is not None and wanted != listed:
        raise TokenError(
            Failure.SETUP, f"token_endpoint is neither at {issuer} nor listed in its metadata"
        )
    return listed


def origin(url: str) -> tuple[str, str | None, int | None]:
    """Return scheme, host and port of a URL."""
    parts = urlsplit(url)
    port = parts.port or {"https": 443, "http": 80}.get(parts.scheme)
    return (parts.scheme, parts.hostname, port)


def refuse_plain(url: str, networks: Iterable[Network]) -> None:
    """Raise `TokenError` for a URL that a secret would be sent to unencrypted and over a network.

    Plain HTTP is for what an operator has named: hosts that are not public, in ``networks``.
    """
    parts = urlsplit(url)
    if parts.scheme == "https":
        return
    try:
        refuse_host(parts.hostname or "", ())
    except ValueError:
        try:
            refuse_host(parts.hostname or "", networks)
        except ValueError as error:
            raise TokenError(Failure.SETUP, str(error)) from None
        return
    raise TokenError(Failure.SETUP, f"{parts.hostname} has to be reached by https")


# -- what to ask


def token_request(
    credential: OAuth, endpoint: str, *, now: datetime, subject_token: str | None = None
) -> TokenRequest:
    """Return the request for an access token; ``subject_token`` is what an exchange exchanges."""
    form: dict[str, str] = {}
    if isinstance(credential, ClientCredentials):
        form["grant_type"] = "client_credentials"
    elif isinstance(credential, RefreshToken):
        form["grant_type"] = "refresh_token"
        form["refresh_token"] = credential.refresh_token.get_secret_value()
    else:
        assert subject_token is not None
        form["grant_type"] = "urn:ietf:params:oauth:grant-type:token-exchange"
        form["subject_token"] = subject_token
        form["subject_token_type"] = credential.subject.token_type
        form["requested_token_type"] = _ACCESS_TOKEN
    if credential.scopes:
        form["scope"] = " ".join(credential.scopes)
    for name in ("resource", "audience"):
        if value := getattr(credential, name):
            form[name] = value
    return client_request(credential.client, endpoint, form, now=now)


def client_request(
    client: Client, endpoint: str, form: dict[str, str], *, now: datetime
) -> TokenRequest:
    """Return a form as a client sends it to a token endpoint: with what shows who it is."""
    form = dict(form)
    headers = {
        "accept": "application/json",
        "content-type": "application/x-www-form-urlencoded",
    }
    _authenticate(client, endpoint, form, headers, now)
    return TokenRequest(urlencode(form).encode(), headers)


def _authenticate(
    client: Client, endpoint: str, form: dict[str, str], headers: dict[str, str], now: datetime
) -> None:
    if client.authentication == "client_secret_basic":
        assert client.secret is not None
        pair = f"{quote_plus(client.id)}:{quote_plus(client.secret.get_secret_value())}"
        headers["authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        return
    form["client_id"] = client.id
    if client.secret is not None:
        form["client_secret"] = client.secret.get_secret_value()
    elif client.private_key is not None:
        claims = {
            "iss": client.id,
            "sub": client.id,
            "aud": client.assertion_audience or endpoint,
            "jti": uuid.uuid4().hex,
            "iat": now,
            "exp": now + _ASSERTION_LIFE,
        }
        form["client_assertion_type"] = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
        form["client_assertion"] = jwt.encode(
            claims,
            client.private_key.get_secret_value(),
            client.algorithm,
            headers={"kid": client.key_id} if client.key_id else None,
        )


# -- what it means


def judge_answer(
    credential: OAuth, status: int, body: bytes, retry_after_s: float | None = None
) -> Tokens:
    """Return the tokens of an answer; raise `TokenError` saying what it means that there are none.

    ``body`` is what was read of it, at most one byte more than `LARGEST_ANSWER`.
    """
    of_a_user = isinstance(credential, RefreshToken | TokenExchange)
    return judge_grant(credential.issuer, status, body, retry_after_s, of_a_user=of_a_user)


def judge_grant(
    issuer: str, status: int, body: bytes, retry_after_s: float | None = None, *, of_a_user: bool
) -> Tokens:
    """Do as `judge_answer`, by issuer and by whether it is a user's consent that was shown."""
    who = f"the authorization server {issuer}"
    found: Any = None
    if len(body) <= LARGEST_ANSWER:
        try:
            found = json.loads(body)
        except (ValueError, RecursionError):
            found = None
    if status == 200:
        return _tokens(found, who)
    code = found.get("error") if isinstance(found, dict) else None
    code = code if isinstance(code, str) and SAID_CODE.fullmatch(code) else None
    said = f"{who} answered with HTTP {status}" + (f" and {code}" if code else "")
    if status in {400, 401} and code == "invalid_grant":
        raise TokenError(Failure.CONSENT if of_a_user else Failure.SETUP, said)
    if 300 <= status < 400:
        raise TokenError(Failure.SETUP, f"{said}: a redirect is not followed with a secret")
    if status in {401, 403, 404} or (status == 400 and code in _SETUP):
        raise TokenError(Failure.SETUP, said)
    raise TokenError(Failure.TRANSIENT, said, retry_after_s=retry_after_s)


def _tokens(found: Any, who: str) -> Tokens:
    said = found if isinstance(found, dict) else {}
    access, refresh = said.get("access_token"), said.get("refresh_token")
    if not _is_token(access) or not (refresh is None or _is_token(refresh)):
        raise TokenError(Failure.TRANSIENT, f"{who} answered with what is no token")
    if str(said.get("token_type", "bearer")).lower() != "bearer":
        raise TokenError(Failure.SETUP, f"{who} gave a token that is no bearer token")
    scope = said.get("scope")
    scopes = scopes_of(scope) if isinstance(scope, str) and scope else None
    return Tokens(access, refresh, _life_s(said.get("expires_in")), scopes)


def scopes_of(text: str) -> tuple[str, ...]:
    """Return the scopes that a server names, each once; what can be none is left out."""
    found = (scope for scope in text.split() if SCOPE.fullmatch(scope))
    return tuple(dict.fromkeys(found))[:MOST_SCOPES]


def _is_token(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and len(value) <= _LONGEST_TOKEN and bool(_TOKEN.fullmatch(value))


def _life_s(value: Any) -> float | None:
    try:
        life_s = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    if isinstance(value, bool) or not math.isfinite(life_s) or life_s <= 0:
        return None
    return min(life_s, _LONGEST_LIFE_S)


# -- when


def renew_in_s(life_s: float, chance: float) -> float:
    """Return after how many seconds to renew: at 80 % of a token's life, give or take 5 %.

    ``chance`` is a random number of 0 to 1.
    """
    return life_s * (RENEW_AT + RENEW_JITTER * (2 * chance - 1))


def pause_s(failure: Failure, failures: int, retry_after_s: float | None, chance: float) -> float:
    """Return how long to wait before the next try, after so many that failed in a row.

    Each pause is twice the one before, up to a limit, less a random part of at most half.
    """
    longest = _LONGEST_PAUSE_S[failure]
    wanted = _FIRST_PAUSE_S[failure] * 2.0 ** min(failures - 1, 16)
    return max(min(wanted, longest) * (1 - chance / 2), min(retry_after_s or 0.0, longest))


def subject_of(credential: OAuth) -> str | ClientCredentials | None:
    """Return what a token exchange exchanges: a stored token, or a login that gets one."""
    if not isinstance(credential, TokenExchange):
        return None
    subject = credential.subject
    return subject.login or (subject.token.get_secret_value() if subject.token else None)
