"""What a server asks for, whom a person is sent to, and which redirect is theirs."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pytest

from registry.authorization import (
    Authority,
    Resource,
    choose_issuer,
    read_authority,
    read_resource,
    resource_urls,
)
from registry.challenge import Challenge, read_challenge
from registry.client_registration import (
    documented_client,
    known_client,
    read_registration,
    registration,
)
from registry.consent import ConsentRequest, scopes_to_ask
from registry.credential_kinds import RefreshToken, Static
from registry.errors import Code, FleetError
from registry.oauth import Tokens
from tests.requirements import requirement

URL = "https://crm.example.com/mcp"
ISSUER = "https://login.example.com"
METADATA = {
    "issuer": ISSUER,
    "authorization_endpoint": f"{ISSUER}/authorize",
    "token_endpoint": f"{ISSUER}/token",
    "code_challenge_methods_supported": ["S256"],
}
AUTHORITY = Authority(ISSUER, f"{ISSUER}/authorize", f"{ISSUER}/token")
CLIENT = known_client(AUTHORITY, "fleet", "the secret of the client")


def request(authority: Authority = AUTHORITY, *scopes: str) -> ConsentRequest:
    return ConsentRequest(authority, CLIENT, URL, scopes, "http://127.0.0.1:7/callback")


def refused(act: Callable[[], Any]) -> str:
    with pytest.raises(FleetError) as caught:
        act()
    assert caught.value.code is Code.CONSENT_FAILED
    return caught.value.message


# -- what a server asks for


@requirement("consent:discovery")
@pytest.mark.parametrize(
    ("header", "challenge"),
    [
        ("", None),
        ('Basic realm="x"', None),
        ('Bearerish scope="a"', None),
        ("Bearer", Challenge()),
        (
            'Bearer scope="a b", resource_metadata="https://crm.example.com/m", error=no_token',
            Challenge(("a", "b"), "https://crm.example.com/m", "no_token"),
        ),
        ('Basic realm="x", bearer error="too_little"', Challenge(None, None, "too_little")),
        ('Bearer scope="a", Basic realm="scope=b", scope="c"', Challenge(("a",))),
        ('Bearer xscope="b", scope="say \\"a\\" c"', Challenge(("say", "c"))),
        ('Bearer resource_metadata="file:///etc/passwd", error="Run this: rm"', Challenge()),
    ],
)  # fmt: skip
def test_a_challenge_is_read_for_what_it_can_hold(header: str, challenge: Challenge | None) -> None:
    assert read_challenge(header) == challenge
    if challenge is not None:
        assert Challenge.of(challenge.as_dict()) == challenge


@requirement("consent:discovery")
def test_a_servers_metadata_is_looked_for_where_it_says_then_where_the_standard_puts_it() -> None:
    well_known = "https://crm.example.com/.well-known/oauth-protected-resource"
    assert resource_urls(URL + "?key=1", None) == (well_known + "/mcp", well_known)
    assert resource_urls("https://crm.example.com/", None) == (well_known,)
    stated = "https://crm.example.com/custom.json"
    assert resource_urls(URL, stated) == (stated, well_known + "/mcp", well_known)


@requirement("consent:resource")
@pytest.mark.parametrize(
    "resource",
    [
        "https://evil.example.com/mcp",
        "http://crm.example.com/mcp",
        "https://crm.example.com:444/mcp",
        "https://crm.example.com/mc",
        "https://crm.example.com/mcp/admin",
    ],
)
def test_metadata_about_another_resource_is_refused(resource: str) -> None:
    document = {"resource": resource, "authorization_servers": [ISSUER]}
    assert resource in refused(lambda: read_resource(URL, document))


@requirement("consent:resource")
@pytest.mark.parametrize("resource", [URL, "https://CRM.example.com:443", URL + "/"])
def test_a_resource_may_be_what_the_server_is_a_part_of(resource: str) -> None:
    document = {"resource": resource, "authorization_servers": [ISSUER], "scopes_supported": ["a"]}
    assert read_resource(URL, document) == Resource(resource, (ISSUER,), ("a",))
    assert read_resource(URL, {**document, "authorization_servers": []}) is None


# -- whom a person is sent to


@requirement("consent:issuer")
@pytest.mark.parametrize("issuer", [ISSUER + "/", "https://LOGIN.example.com", "https://a.example"])
def test_metadata_of_another_issuer_is_refused_as_a_string(issuer: str) -> None:
    assert "another issuer" in refused(
        lambda: read_authority(ISSUER, {**METADATA, "issuer": issuer})
    )


@requirement("consent:pkce")
@pytest.mark.parametrize("methods", [None, [], ["plain"]])
def test_an_authorization_server_without_s256_is_refused(methods: list[str] | None) -> None:
    metadata = {**METADATA, "code_challenge_methods_supported": methods}
    assert "PKCE" in refused(lambda: read_authority(ISSUER, metadata))


@requirement("consent:issuer")
def test_a_client_is_not_taken_to_another_issuer_than_its_own() -> None:
    resource = Resource(URL, ("https://new.example.com", ISSUER))
    assert choose_issuer(resource, None) == "https://new.example.com"
    assert choose_issuer(resource, ISSUER) == ISSUER
    message = refused(lambda: choose_issuer(resource, "https://old.example.com"))
    assert "https://new.example.com" in message


@requirement("consent:scopes")
def test_scopes_come_from_the_refusal_else_from_the_resource_and_keep_what_was_granted() -> None:
    authority = read_authority(ISSUER, {**METADATA, "scopes_supported": ["x", "offline_access"]})
    resource = Resource(URL, (ISSUER,), ("read", "list"))
    challenge = Challenge(("write",))
    assert scopes_to_ask(challenge, resource, AUTHORITY, ("read",)) == ("read", "write")
    assert scopes_to_ask(None, resource, AUTHORITY, ()) == ("read", "list")
    assert scopes_to_ask(None, resource, authority, ()) == ("read", "list", "offline_access")
    assert scopes_to_ask(Challenge(), Resource(URL, (ISSUER,)), authority, ()) == ()


# -- the client


@requirement("consent:client")
def test_a_client_registers_as_a_native_one_in_a_way_that_the_server_takes() -> None:
    metadata = {**METADATA, "token_endpoint_auth_methods_supported": ["none", "client_secret_post"]}
    authority = read_authority(ISSUER, metadata)
    asked = registration(authority, "http://127.0.0.1:7/callback", ("a",))
    assert (asked["application_type"], asked["scope"]) == ("native", "a")
    assert asked["token_endpoint_auth_method"] == "client_secret_post"
    assert "refresh_token" in asked["grant_types"]
    said = {"client_id": "fleet-7", "client_secret": "12345678", "scope": None}
    client = read_registration(authority, asked, 201, said)
    assert (client.id, client.authentication) == ("fleet-7", "client_secret_post")
    public = read_registration(
        authority, asked, 200, {"client_id": "fleet-7", "token_endpoint_auth_method": "none"}
    )
    assert public.secret is None


@requirement("consent:client")
@pytest.mark.parametrize(
    ("status", "said", "problem"),
    [
        (400, {"error": "invalid_redirect_uri", "error_description": "x"}, "invalid_redirect_uri"),
        (201, {"client_secret": "12345678"}, "no registration"),
        (201, {"client_id": "a"}, "no secret"),
        (201, {"client_id": "a", "token_endpoint_auth_method": "private_key_jwt"}, "has not"),
        (201, {"client_id": "a", "client_secret": "short"}, "cannot be kept"),
    ],
)
def test_a_registration_that_is_of_no_use_is_refused(
    status: int, said: dict[str, str], problem: str
) -> None:
    asked = registration(AUTHORITY, "http://127.0.0.1:7/callback", ())
    message = refused(lambda: read_registration(AUTHORITY, asked, status, said))
    assert problem in message
    assert "short" not in message


@requirement("consent:client")
def test_a_known_client_shows_its_secret_as_the_server_takes_it_and_a_document_has_none() -> None:
    post = read_authority(
        ISSUER, {**METADATA, "token_endpoint_auth_methods_supported": ["client_secret_post"]}
    )
    assert known_client(post, "a", "12345678").authentication == "client_secret_post"
    assert known_client(AUTHORITY, "a", "12345678").authentication == "client_secret_basic"
    assert known_client(AUTHORITY, "a", None).authentication == "none"
    assert documented_client("https://a.example/client.json").authentication == "none"
    for url in ("https://a.example/", "http://a.example/client.json"):
        assert url in refused(lambda url=url: documented_client(url))


# -- the request and its redirect


@requirement("consent:pkce", "consent:resource")
def test_a_request_names_the_resource_and_proves_itself_when_the_code_is_exchanged() -> None:
    asked = request(
        Authority(ISSUER, f"{ISSUER}/authorize?a=1", f"{ISSUER}/token"), "offline_access"
    )
    page = dict(parse_qsl(urlsplit(asked.url).query))
    assert page["a"] == "1"
    assert (page["resource"], page["prompt"]) == (URL, "consent")
    assert (page["code_challenge_method"], page["response_type"]) == ("S256", "code")
    sent = asked.for_tokens("the-code", now=datetime(2026, 11, 26, tzinfo=UTC))
    form = {name: value[0] for name, value in parse_qs(sent.body.decode()).items()}
    assert (form["code"], form["resource"]) == ("the-code", URL)
    assert form["redirect_uri"] == page["redirect_uri"]
    digest = hashlib.sha256(form["code_verifier"].encode()).digest()
    assert page["code_challenge"] == base64.urlsafe_b64encode(digest).decode().rstrip("=")
    assert form["code_verifier"] not in asked.url
    assert asked.verifier not in repr(asked)
    assert asked.state not in repr(asked)
    assert request().state != request().state


@requirement("consent:redirect")
def test_a_redirect_belongs_to_its_request_by_its_state() -> None:
    asked = request()
    assert asked.is_answered_by({"state": asked.state})
    for other in ({}, {"state": ""}, {"state": request().state}, {"state": "é"}):
        assert not asked.is_answered_by(other)
        assert "does not belong" in refused(
            lambda other=other: asked.code_of({"code": "c", **other})
        )


@requirement("consent:issuer")
@pytest.mark.parametrize(
    ("promised", "told", "taken"),
    [
        (True, ISSUER, True),
        (True, None, False),
        (True, "https://evil.example.com", False),
        (True, ISSUER + "/", False),
        (False, None, True),
        (False, ISSUER, True),
        (False, "https://evil.example.com", False),
        (False, "", False),
    ],
)
def test_a_redirect_is_taken_from_its_own_issuer(
    promised: bool, told: str | None, taken: bool
) -> None:
    authority = Authority(
        ISSUER, f"{ISSUER}/authorize", f"{ISSUER}/token", names_itself=promised
    )  # fmt: skip
    asked = request(authority)
    redirect = {"state": asked.state, **({} if told is None else {"iss": told})}
    if taken:
        assert asked.code_of({**redirect, "code": "the-code"}) == "the-code"
        return
    for rest in ({"code": "the-code"}, {"error": "access_denied"}):
        message = refused(lambda rest=rest: asked.code_of({**redirect, **rest}))
        assert "access_denied" not in message


@requirement("consent:redirect")
def test_an_error_is_told_by_its_code_and_never_in_the_words_it_came_with() -> None:
    asked = request()
    redirect = {"state": asked.state, "error": "access_denied", "error_description": "call 555"}
    assert refused(lambda: asked.code_of(redirect)).endswith("access_denied")
    message = refused(lambda: asked.code_of({**redirect, "error": "<b>call 555</b>"}))
    assert "555" not in message
    assert "no code" in refused(lambda: asked.code_of({"state": asked.state}))


# -- what is kept


@requirement("consent:kept")
def test_a_refresh_token_is_kept_with_its_issuer_and_a_lone_token_as_it_is() -> None:
    asked = request(AUTHORITY, "a", "b")
    kept = asked.credential(Tokens("the-access-token", "the-refresh-token", 60.0))
    assert isinstance(kept, RefreshToken)
    assert (kept.issuer, kept.resource, kept.scopes) == (ISSUER, URL, ("a", "b"))
    assert kept.token_endpoint is None
    granted = asked.credential(Tokens("the-access-token", "the-refresh-token", None, ("a",)))
    assert isinstance(granted, RefreshToken)
    assert granted.scopes == ("a",)
    alone = asked.credential(Tokens("the-access-token", None, None))
    assert isinstance(alone, Static)
    assert (alone.prefix, alone.secret.get_secret_value()) == ("Bearer ", "the-access-token")
    message = refused(lambda: asked.credential(Tokens("short", None, None)))
    assert "short" not in message
