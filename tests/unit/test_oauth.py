"""What is asked of an authorization server, where that goes, and what its answers mean."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from registry.addresses import parse_network
from registry.credential_kinds import OAuth, parse_credential, split
from registry.errors import FleetError
from registry.oauth import (
    LARGEST_ANSWER,
    Failure,
    TokenError,
    judge_answer,
    listed_endpoint,
    metadata_urls,
    needs_metadata,
    pause_s,
    refuse_plain,
    renew_in_s,
    token_request,
)
from tests.requirements import requirement

ISSUER = "https://login.example.com"
NOW = datetime(2026, 11, 25, tzinfo=UTC)
LOOPBACK = [parse_network("127.0.0.0/8")]
Pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()


def oauth(kind: str = "oauth_refresh_token", **rest: Any) -> OAuth:
    more = {"oauth_refresh_token": {"refresh_token": "rt-secret-1"}}.get(kind, {})
    credential = parse_credential(
        {
            "kind": kind,
            "issuer": ISSUER,
            "token_endpoint": f"{ISSUER}/token",
            "client": {"id": "fleet:1", "secret": "of the client%"},
            **more,
            **rest,
        }
    )
    assert isinstance(credential, OAuth)
    return credential


def asked(credential: OAuth, **rest: Any) -> tuple[dict[str, str], dict[str, str]]:
    request = token_request(credential, f"{ISSUER}/token", now=NOW, **rest)
    form = {name: value[0] for name, value in parse_qs(request.body.decode()).items()}
    return form, request.headers


# -- what is asked


@requirement("broker:kinds")
def test_a_refresh_names_token_scopes_and_resource() -> None:
    form, headers = asked(oauth(scopes=["a", "b:c"], resource="https://crm.example.com/mcp"))
    assert form == {
        "grant_type": "refresh_token",
        "refresh_token": "rt-secret-1",
        "scope": "a b:c",
        "resource": "https://crm.example.com/mcp",
    }
    basic = base64.b64decode(headers["authorization"].removeprefix("Basic ")).decode()
    assert basic == "fleet%3A1:of+the+client%25"


@requirement("broker:kinds")
def test_a_client_may_send_its_secret_in_the_body_or_have_none() -> None:
    client = {"id": "fleet:1", "authentication": "client_secret_post", "secret": "of the client%"}
    form, headers = asked(oauth("oauth_client_credentials", client=client))
    assert (form["client_id"], form["client_secret"]) == ("fleet:1", "of the client%")
    assert "authorization" not in headers
    form, _ = asked(oauth(client={"id": "public", "authentication": "none"}))
    assert (form["client_id"], "client_secret" in form) == ("public", False)


@requirement("broker:kinds")
@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
def test_a_client_may_sign_for_itself_with_its_private_key(algorithm: str) -> None:
    made = {"RS256": lambda: rsa.generate_private_key(65537, 2048)}
    key = made.get(algorithm, lambda: ec.generate_private_key(ec.SECP256R1()))()
    pem = key.private_bytes(*Pem).decode()
    how = {"id": "fleet", "authentication": "private_key_jwt", "private_key": pem, "key_id": "k7"}
    form, _ = asked(oauth("oauth_client_credentials", client=how))
    claims = jwt.decode(
        form["client_assertion"],
        key.public_key(),
        [algorithm],
        audience=f"{ISSUER}/token",
        options={"verify_exp": False, "verify_iat": False},
    )
    assert (claims["iss"], claims["sub"], claims["exp"] - claims["iat"]) == ("fleet", "fleet", 60)
    assert jwt.get_unverified_header(form["client_assertion"])["kid"] == "k7"


@requirement("broker:kinds")
def test_an_assertion_may_be_for_the_issuer_where_that_is_what_it_takes() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(*Pem).decode()
    how = {"id": "fleet", "authentication": "private_key_jwt", "private_key": pem}
    client = {**how, "assertion_audience": ISSUER}
    form, _ = asked(oauth("oauth_client_credentials", client=client))
    claims = jwt.decode(form["client_assertion"], options={"verify_signature": False})
    assert claims["aud"] == ISSUER
    with pytest.raises(FleetError) as refused:
        oauth(client={"id": "fleet", "authentication": "none", "assertion_audience": ISSUER})
    assert refused.value.details["problems"][0]["path"] == "client/assertion_audience"


@requirement("broker:kinds")
def test_an_exchange_names_the_subjects_token_and_its_type() -> None:
    exchange = oauth("token_exchange", subject={"token": "subject-1"}, audience="crm")
    form, _ = asked(exchange, subject_token="subject-1")
    assert form["grant_type"] == "urn:ietf:params:oauth:grant-type:token-exchange"
    assert (form["subject_token"], form["audience"]) == ("subject-1", "crm")
    assert form["subject_token_type"].endswith("access_token")


# -- where it goes


@requirement("broker:issuer")
def test_an_endpoint_is_the_issuers_own_or_listed_by_it() -> None:
    own, other = oauth(), oauth(token_endpoint="https://oauth.example.net/token")
    found = oauth(token_endpoint=None)
    assert [needs_metadata(it) for it in (own, other, found)] == [False, True, True]
    listed = {"issuer": ISSUER, "token_endpoint": "https://oauth.example.net/token"}
    assert listed_endpoint(other, listed) == listed_endpoint(found, listed)


@requirement("broker:issuer")
@pytest.mark.parametrize(
    "metadata",
    [
        None,
        [],
        {},
        {"issuer": "https://evil.example.com", "token_endpoint": "https://evil.example.com/t"},
        {"issuer": ISSUER + "/", "token_endpoint": "https://oauth.example.net/token"},
        {"issuer": ISSUER, "token_endpoint": "https://evil.example.com/token"},
        {"issuer": ISSUER, "token_endpoint": "javascript:alert(1)"},
        {"issuer": ISSUER, "token_endpoint": "https://a\nb/"},
        {"issuer": ISSUER},
    ],
)
def test_metadata_that_does_not_list_the_endpoint_is_refused(metadata: Any) -> None:
    with pytest.raises(TokenError) as refused:
        listed_endpoint(oauth(token_endpoint="https://oauth.example.net/token"), metadata)
    assert refused.value.failure is Failure.SETUP


@requirement("broker:issuer")
def test_metadata_is_looked_for_where_the_standards_put_it() -> None:
    assert metadata_urls("https://login.example.com/tenant/1") == (
        "https://login.example.com/.well-known/oauth-authorization-server/tenant/1",
        "https://login.example.com/.well-known/openid-configuration/tenant/1",
        "https://login.example.com/tenant/1/.well-known/openid-configuration",
    )
    assert metadata_urls("https://login.example.com") == (
        "https://login.example.com/.well-known/oauth-authorization-server",
        "https://login.example.com/.well-known/openid-configuration",
    )


@requirement("broker:issuer")
def test_a_secret_goes_over_http_only_into_networks_that_are_allowed() -> None:
    refuse_plain("https://login.example.com/token", ())
    refuse_plain("http://127.0.0.1:8080/token", LOOPBACK)
    for url in ("http://login.example.com/token", "http://127.0.0.1/token", "http://93.184.216.34"):
        with pytest.raises(TokenError):
            refuse_plain(url, () if "127" in url else LOOPBACK)


# -- what an answer means


def judged(status: int, body: Any, credential: OAuth | None = None) -> Failure:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(TokenError) as refused:
        judge_answer(credential or oauth(), status, data)
    assert "you sent" not in refused.value.message
    return refused.value.failure


@requirement("broker:never-lost")
@pytest.mark.parametrize(
    ("status", "body", "failure"),
    [
        (400, {"error": "invalid_grant"}, Failure.CONSENT),
        (401, {"error": "invalid_grant"}, Failure.CONSENT),
        (500, {"error": "invalid_grant"}, Failure.TRANSIENT),
        (429, {"error": "invalid_grant"}, Failure.TRANSIENT),
        (200, {"error": "invalid_grant"}, Failure.TRANSIENT),
        (400, {"error": ["invalid_grant"]}, Failure.TRANSIENT),
        (400, {"error": "invalid_grant" + "x" * LARGEST_ANSWER}, Failure.TRANSIENT),
        (400, b"<html>invalid_grant", Failure.TRANSIENT),
        (400, {"error": "temporarily_unavailable"}, Failure.TRANSIENT),
        (400, {"error": "you sent: rt-secret-1"}, Failure.TRANSIENT),
        (400, {"error": "invalid_client"}, Failure.SETUP),
        (401, {"error": "invalid_client"}, Failure.SETUP),
        (400, {"error": "invalid_scope"}, Failure.SETUP),
        (302, {}, Failure.SETUP),
        (307, {"error": "invalid_grant"}, Failure.SETUP),
        (404, b"", Failure.SETUP),
        (503, b"", Failure.TRANSIENT),
        (200, b"", Failure.TRANSIENT),
        (200, b"[" * 60_000, Failure.TRANSIENT),
        (200, {}, Failure.TRANSIENT),
        (200, {"access_token": 7}, Failure.TRANSIENT),
        (200, {"access_token": ""}, Failure.TRANSIENT),
        (200, {"access_token": "two\nlines"}, Failure.TRANSIENT),
        (200, {"access_token": "at-1", "refresh_token": 7}, Failure.TRANSIENT),
        (200, {"access_token": "at-1", "token_type": "DPoP"}, Failure.SETUP),
    ],
)
def test_only_invalid_grant_says_that_a_grant_is_gone(
    status: int, body: Any, failure: Failure
) -> None:
    assert judged(status, body) is failure


@requirement("broker:never-lost")
def test_a_client_that_asks_for_itself_has_no_consent_to_lose() -> None:
    mine = oauth("oauth_client_credentials")
    assert judged(400, {"error": "invalid_grant"}, mine) is Failure.SETUP


@requirement("broker:ahead")
@pytest.mark.parametrize(
    ("said", "life_s"),
    [(3600, 3600), ("3600", 3600), (None, None), (0, None), (-5, None), ("soon", None),
     (True, None), (float("inf"), None), (1e300, 366 * 86_400), ({}, None)],
)  # fmt: skip
def test_how_long_a_token_lives_is_taken_where_it_makes_sense(said: Any, life_s: Any) -> None:
    body = json.dumps({"access_token": "at-1", "token_type": "bearer", "expires_in": said})
    assert judge_answer(oauth(), 200, body.encode()).life_s == life_s


@requirement("broker:ahead")
def test_a_token_is_renewed_at_80_percent_of_its_life_give_or_take() -> None:
    assert [renew_in_s(1000, chance) for chance in (0, 0.5, 1)] == pytest.approx([750, 800, 850])


@requirement("broker:never-lost")
def test_pauses_between_tries_grow_to_a_limit_and_keep_to_retry_after() -> None:
    pauses = [pause_s(Failure.TRANSIENT, n, None, 0) for n in (1, 2, 3, 7, 1000)]
    assert pauses == [1, 2, 4, 60, 60]
    assert pause_s(Failure.TRANSIENT, 1, None, 1) == 0.5
    assert pause_s(Failure.TRANSIENT, 1, 30, 0.5) == 30
    assert pause_s(Failure.TRANSIENT, 1, 9999, 0.5) == 60
    assert pause_s(Failure.SETUP, 1, None, 0) == 15


@requirement("broker:secret")
def test_neither_tokens_nor_requests_show_what_they_hold() -> None:
    body = b'{"access_token": "at-1", "token_type": "bearer", "refresh_token": "rt-2"}'
    shown = repr(judge_answer(oauth(), 200, body)) + repr(
        token_request(oauth(), f"{ISSUER}/token", now=NOW)
    )
    assert not {it for it in ("at-1", "rt-2", "rt-secret", "Basic") if it in shown}
    assert "rt-secret-1" not in json.dumps(split(oauth())[0])
