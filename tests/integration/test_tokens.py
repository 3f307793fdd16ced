"""Tokens of an identity provider, against a real one on loopback."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from api.oidc import ASK_EVERY_S, KEYS_KEPT_FOR_S, STALE_FOR_S, Issuer, make_issuer
from registry.database import Database
from registry.errors import Code, FleetError
from registry.settings import Settings
from tests.requirements import requirement
from tests.servers.issuer import AUDIENCE, LocalIssuer, issuing, now_s, public_jwk
from tests.serving import problem_of, serving

pytestmark = pytest.mark.anyio


@pytest.fixture
async def provider(anyio_backend: str) -> AsyncIterator[LocalIssuer]:
    async with issuing() as provider:
        yield provider


def settings_of(provider: LocalIssuer, **rest: Any) -> Settings:
    return Settings(
        **{
            "oidc_issuer": provider.url,
            "oidc_audience": AUDIENCE,
            "outbound_networks": ("127.0.0.0/8",),
            **rest,
        }
    )


def issuer_of(provider: LocalIssuer, **rest: Any) -> Issuer:
    issuer = make_issuer(settings_of(provider, **rest))
    assert issuer is not None
    return issuer


async def refusal(issuer: Issuer, token: str) -> Code:
    with pytest.raises(FleetError) as refused:
        await issuer.actor(token)
    assert token not in refused.value.message
    return refused.value.code


def forged(header: dict[str, Any], claims: dict[str, Any], sign: Callable[[bytes], bytes]) -> str:
    parts = [json.dumps(it).encode() for it in (header, claims)]
    signed = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    signature = base64.urlsafe_b64encode(sign(signed)).rstrip(b"=")
    return (signed + b"." + signature).decode()


def signer(provider: LocalIssuer, private: Any = None) -> Callable[[bytes], bytes]:
    key = private or provider.private["k1"][1]
    return lambda data: jwt.get_algorithm_by_name("RS256").sign(data, key)


# -- who is let in


@requirement("tokens:taken")
async def test_a_token_stands_for_its_subject_in_the_role_and_tenant_of_its_claims(
    provider: LocalIssuer,
) -> None:
    issuer = issuer_of(provider)
    provider.add_key("k2", "ES256")
    provider.add_key("k3", "EdDSA")
    for key_id in ("k1", "k2", "k3"):
        actor, kept_for_s = await issuer.actor(provider.sign(key_id))
        assert (actor.role.value, actor.tenant, actor.scopes) == ("tenant", "acme", None)
        assert actor.label == f"oidc:{provider.url}#user-1"
        assert 0 < kept_for_s <= 300
    assert provider.asked == ["/.well-known/openid-configuration", "/keys"]


@requirement("tokens:taken")
async def test_a_token_asks_as_a_key_does_and_the_audit_names_its_subject(
    provider: LocalIssuer, database: Database, redis_url: str
) -> None:
    async with serving(
        database, redis_url, **settings_of(provider).model_dump(exclude_unset=True)
    ) as api:
        async with api.client(provider.sign()) as user:
            run = (await user.post("/v1/runs", json={})).json()
            assert run["tenant"] == "acme"
            assert (await user.get("/v1/keys")).status_code == 403
            assert (await user.get(f"/v1/runs/{run['id']}")).status_code == 200
        audit = (await api.http.get("/v1/audit", params={"run": run["id"]})).json()["entries"]
        assert [it["actor"] for it in audit] == [f"oidc:{provider.url}#user-1"]
        assert len(provider.asked) == 2
        async with api.client(provider.sign(aud="other")) as stranger:
            problem = problem_of(await stranger.get("/v1/servers"))
        assert problem["code"] == "unauthenticated"


@requirement("tokens:claims")
@pytest.mark.parametrize(
    ("settings", "claims", "role", "tenant"),
    [
        ({}, {"roles": "operator", "tenant": None}, "operator", None),
        ({}, {"roles": ["auditor"]}, "auditor", "acme"),
        ({}, {"roles": ["approver", "other"], "tenant": "*"}, "approver", None),
        (
            {"oidc_role_claim": "realm_access.roles"},
            {"realm_access": {"roles": ["tenant"]}},
            "tenant",
            "acme",
        ),
        (
            {"oidc_role_claim": "https://x.y/roles"},
            {"https://x.y/roles": ["tenant"]},
            "tenant",
            "acme",
        ),
        (
            {"oidc_roles": {"fleet-admin": "operator"}},
            {"roles": ["fleet-admin"], "tenant": None},
            "operator",
            None,
        ),
        ({"oidc_tenant_claim": "org"}, {"org": "globex"}, "tenant", "globex"),
    ],
)
async def test_the_settings_say_which_claims_are_role_and_tenant(
    provider: LocalIssuer, settings: Any, claims: Any, role: str, tenant: str | None
) -> None:
    actor, _ = await issuer_of(provider, **settings).actor(provider.sign(**claims))
    assert (actor.role.value, actor.tenant) == (role, tenant)


@requirement("tokens:claims")
@pytest.mark.parametrize(
    ("settings", "claims"),
    [
        ({}, {"roles": None}),
        ({}, {"roles": ["admin"]}),
        ({}, {"roles": ["tenant", "approver"]}),
        ({}, {"roles": {"tenant": True}}),
        ({}, {"roles": ["operator"]}),
        ({}, {"tenant": None}),
        ({}, {"tenant": "*"}),
        ({}, {"tenant": "a b"}),
        ({}, {"tenant": ["acme", "globex"]}),
        ({}, {"roles": ["auditor"], "tenant": None}),
        ({"oidc_roles": {"fleet-admin": "operator"}}, {"roles": ["operator"], "tenant": None}),
    ],
)
async def test_a_token_that_does_not_say_who_it_stands_for_is_forbidden(
    provider: LocalIssuer, settings: Any, claims: Any
) -> None:
    issuer = issuer_of(provider, **settings)
    assert await refusal(issuer, provider.sign(**claims)) is Code.FORBIDDEN


@requirement("tokens:claims")
async def test_a_scope_claim_narrows_a_token_to_the_verbs_that_it_names(
    provider: LocalIssuer,
) -> None:
    issuer = issuer_of(provider, oidc_scope_claim="scope")
    actor, _ = await issuer.actor(provider.sign(scope="openid calls:read runs:read nonsense"))
    assert actor.scopes is not None
    assert set(actor.scopes.verbs or ()) == {"calls:read", "runs:read"}
    actor, _ = await issuer.actor(provider.sign())
    assert actor.scopes is not None
    assert actor.scopes.verbs == ()


# -- who is not


@requirement("tokens:hostile")
@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://evil.example"},
        {"iss": None},
        {"aud": "other"},
        {"aud": ["other", "toolfleet.run"]},
        {"aud": None},
        {"aud": []},
        {"aud": {"toolfleet": True}},
        {"sub": None},
        {"sub": ""},
        {"sub": "x" * 256},
        {"sub": "line\nbreak"},
        {"exp": None},
        {"exp": "2099-01-01"},
        {"exp": True},
        {"exp": float("inf")},
        {"nbf": None, "iat": None},
        {"nbf": 4_000_000_000},
        {"iat": 4_000_000_000},
        {"nbf": "now"},
    ],
    ids=str,
)
async def test_a_token_with_wrong_claims_is_refused(provider: LocalIssuer, claims: Any) -> None:
    token = forged({"alg": "RS256", "kid": "k1"}, provider.claims(**claims), signer(provider))
    assert await refusal(issuer_of(provider), token) is Code.UNAUTHENTICATED


@requirement("tokens:hostile")
async def test_an_expired_token_says_so_and_clocks_may_differ_a_little(
    provider: LocalIssuer,
) -> None:
    issuer = issuer_of(provider)
    late = provider.sign(exp=now_s() - 60)
    assert await refusal(issuer, late) is Code.TOKEN_EXPIRED
    await issuer.actor(provider.sign(exp=now_s() - 5, nbf=now_s() + 5))


@requirement("tokens:hostile")
@pytest.mark.parametrize(
    "headers",
    [
        {"jku": "http://127.0.0.1:1/keys"},
        {"x5u": "http://127.0.0.1:1/chain"},
        {"x5c": ["MII"]},
        {"jwk": {"kty": "RSA", "n": "AQAB", "e": "AQAB"}},
        {"crit": ["exp"], "exp": 1},
        {"typ": "logout+jwt"},
        {"typ": "dpop+jwt"},
        {"kid": None},
        {"kid": ""},
        {"kid": ["k1"]},
        {"kid": "../../k1"},
        {"kid": "x" * 5000},
    ],
    ids=str,
)
async def test_a_token_that_brings_what_is_not_taken_is_refused(
    provider: LocalIssuer, headers: Any
) -> None:
    head = {"alg": "RS256", "kid": "k1", **headers}
    token = forged(head, provider.claims(), signer(provider))
    assert await refusal(issuer_of(provider), token) is Code.UNAUTHENTICATED


@requirement("tokens:hostile")
async def test_a_token_is_checked_with_the_key_that_the_issuer_lists_and_no_other(
    provider: LocalIssuer,
) -> None:
    issuer = issuer_of(provider)
    provider.add_key("ec", "ES256")
    _, private = provider.private["k1"]
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    claims = provider.claims()

    def by(secret: bytes) -> Callable[[bytes], bytes]:
        return lambda data: hmac.new(secret, data, hashlib.sha256).digest()

    good = provider.sign()
    head, body, signature = good.split(".")
    hostile = [
        forged({"alg": "none", "kid": "k1"}, claims, lambda _: b"x"),
        forged({"alg": "None", "kid": "k1"}, claims, lambda _: b"x"),
        forged({"alg": "HS256", "kid": "k1"}, claims, by(public)),
        forged({"alg": "HS256", "kid": "k1"}, claims, by(public.strip())),
        forged({"alg": "HS512", "kid": "k1"}, claims, by(b"")),
        forged({"alg": "RS256", "kid": "k1"}, claims, signer(provider, stranger)),
        forged({"alg": "RS256", "kid": "ec"}, claims, signer(provider)),
        forged({"alg": "ES256", "kid": "k1"}, claims, lambda _: bytes(64)),
        forged({"alg": "ES256", "kid": "ec"}, claims, lambda _: bytes(64)),
        forged({"alg": "PS256", "kid": "k1"}, claims, signer(provider)),
        forged({"alg": ["RS256"], "kid": "k1"}, claims, signer(provider)),
        forged({"alg": "RS256", "kid": "k1", "b64": False}, claims, signer(provider)),
        f"{head}.{body}.",
        f"{head}.{body}.{signature[:-8]}",
        f"{head}.{provider.sign(sub='admin').split('.')[1]}.{signature}",
        f"{head}..{signature}",
        f"..{signature}",
        f"{'A' * 4000}.{body}.{signature}",
        f"{base64.urlsafe_b64encode(b'[' * 3000).decode()}.{body}.{signature}",
        f"{base64.urlsafe_b64encode(b'[]').decode()}.{body}.{signature}",
    ]
    twice = base64.urlsafe_b64encode(b'{"alg":"none","alg":"RS256","kid":"k1"}').decode()
    hostile.append(f"{twice.rstrip('=')}.{body}.{signature}")
    for token in hostile:
        assert await refusal(issuer, token) is Code.UNAUTHENTICATED, token[:80]
    await issuer.actor(good)


@requirement("tokens:keys")
@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
async def test_keys_that_cannot_check_signatures_are_not_used(provider: LocalIssuer) -> None:
    secret = base64.urlsafe_b64encode(b"a secret of at least thirty-two bytes").decode()
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    for key_id, private in (("weak", weak), ("encrypting", weak), ("private", weak)):
        provider.private[key_id] = ("RS256", private)
    listed = provider.jwks["keys"]
    listed.append({"kty": "oct", "k": secret, "kid": "shared", "alg": "HS256"})
    listed.append({**public_jwk(weak, "RS256"), "kid": "weak"})
    listed.append({**public_jwk(weak, "RS256"), "kid": "encrypting", "use": "enc"})
    listed.append({**public_jwk(weak, "RS256"), "kid": "private", "d": "AQAB"})
    listed.append({**listed[0], "kid": "k1"})
    issuer = issuer_of(provider)
    for key_id in ("weak", "encrypting", "private", "k1"):
        assert await refusal(issuer, provider.sign(key_id)) is Code.UNAUTHENTICATED


# -- where keys come from


def clocked(provider: LocalIssuer) -> tuple[Issuer, list[float]]:
    now = [0.0]
    made = issuer_of(provider)
    issuer = Issuer(
        provider.url, AUDIENCE, made._claims, connect=made._connect, clock=lambda: now[0]
    )
    return issuer, now


async def settled(issuer: Issuer) -> None:
    if issuer._fetching is not None:
        await issuer._fetching


@requirement("tokens:keys")
async def test_a_new_key_is_asked_for_once_and_not_again_for_a_while(provider: LocalIssuer) -> None:
    issuer, now = clocked(provider)
    await issuer.actor(provider.sign())
    provider.add_key("k2", "ES256")
    assert await refusal(issuer, provider.sign("k2")) is Code.UNAUTHENTICATED
    assert len(provider.asked) == 2
    now[0] += ASK_EVERY_S
    await issuer.actor(provider.sign("k2"))
    for _ in range(5):
        stranger = provider.sign("k2", {"kid": "nobody"})
        assert await refusal(issuer, stranger) is Code.UNAUTHENTICATED
    assert len(provider.asked) == 4


@requirement("tokens:keys")
async def test_a_key_that_the_issuer_no_longer_lists_is_dropped(provider: LocalIssuer) -> None:
    issuer, now = clocked(provider)
    await issuer.actor(provider.sign())
    provider.add_key("k2", "ES256")
    provider.drop_key("k1")
    now[0] += KEYS_KEPT_FOR_S
    await issuer.actor(provider.sign())  # known still: the keys are being fetched behind it
    await settled(issuer)
    assert await refusal(issuer, provider.sign()) is Code.UNAUTHENTICATED
    await issuer.actor(provider.sign("k2"))


@requirement("tokens:keys")
async def test_known_keys_hold_for_an_hour_while_the_issuer_is_away(provider: LocalIssuer) -> None:
    issuer, now = clocked(provider)
    await issuer.actor(provider.sign())
    provider.status = 500
    now[0] += STALE_FOR_S - 1
    await issuer.actor(provider.sign())
    await settled(issuer)
    now[0] += ASK_EVERY_S
    assert await refusal(issuer, provider.sign()) is Code.IDENTITY_UNAVAILABLE
    provider.status = 200
    now[0] += ASK_EVERY_S
    await issuer.actor(provider.sign())


@requirement("tokens:keys")
@pytest.mark.parametrize(
    "discovery",
    [
        {"issuer": "https://evil.example"},
        {"issuer": None},
        {"jwks_uri": "http://127.0.0.1:1/keys"},
        {"jwks_uri": None},
        {"jwks_uri": "file:///etc/passwd"},
    ],
    ids=str,
)
async def test_a_discovery_document_of_another_issuer_is_not_followed(
    provider: LocalIssuer, discovery: Any
) -> None:
    provider.discovery |= discovery
    assert await refusal(issuer_of(provider), provider.sign()) is Code.IDENTITY_UNAVAILABLE
    assert provider.asked == ["/.well-known/openid-configuration"]


@requirement("tokens:settings")
@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"oidc_issuer": "http://idp.example"}, "https"),
        ({"oidc_issuer": "https://user@idp.example"}, "no issuer"),
        ({"oidc_issuer": "https://idp.example/?x"}, "no issuer"),
        ({"oidc_issuer": "https://idp.example", "oidc_audience": ""}, "AUDIENCE"),
        ({"oidc_issuer": "https://idp.example", "oidc_roles": {"x": "root"}}, "root"),
    ],
)
def test_settings_that_do_not_fit_are_refused_at_the_start(settings: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make_issuer(Settings(**{"oidc_audience": AUDIENCE, **settings}))


@requirement("tokens:keys")
async def test_an_answer_that_is_no_json_or_too_large_gives_no_keys(provider: LocalIssuer) -> None:
    provider.discovery["filler"] = "x" * 300_000
    assert await refusal(issuer_of(provider), provider.sign()) is Code.IDENTITY_UNAVAILABLE
