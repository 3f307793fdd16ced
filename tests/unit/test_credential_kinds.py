"""Definitions of credentials: what is wrong is named by its path, and never quoted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from registry.credential_kinds import join, names_of, parse_credential, split
from registry.errors import Code, FleetError
from tests.requirements import requirement

SECRET = "s3cret-canary-0123456789"
CLIENT = {"id": "fleet", "secret": SECRET}
OAUTH = {"issuer": "https://login.example.com", "client": CLIENT}
GOOD: list[dict[str, Any]] = [
    {"kind": "static", "secret": SECRET},
    {"kind": "static", "secret": SECRET, "prefix": "Token "},
    {"kind": "file", "path": "/run/secrets/crm"},
    {"kind": "env", "variable": "TOOLFLEET_CREDENTIAL_CRM"},
    {"kind": "vault", "path": "crm/acme", "field": "token", "version": 3},
    {"kind": "oauth_client_credentials", **OAUTH, "scopes": ["read", "crm:write"]},
    {"kind": "oauth_refresh_token", **OAUTH, "refresh_token": SECRET},
    {"kind": "token_exchange", **OAUTH, "subject": {"token": SECRET}},
    {"kind": "token_exchange", **OAUTH, "subject": {"login": OAUTH}},
]


@requirement("broker:kinds")
@pytest.mark.parametrize("document", GOOD)
def test_a_credential_is_parted_from_its_secrets_and_put_together_again(document: Any) -> None:
    credential = parse_credential(document)
    public, secrets = split(credential)
    assert SECRET not in json.dumps(public) + repr(credential)
    assert join(json.loads(json.dumps(public)), json.loads(json.dumps(secrets))) == credential
    assert len(names_of(secrets)) == json.dumps(document).count(SECRET)


@requirement("broker:typed-errors")
@pytest.mark.parametrize(
    ("document", "path"),
    [
        ({"kind": SECRET}, "kind"),
        ({"kind": [SECRET]}, "kind"),
        ({"secret": SECRET}, "kind"),
        ({"kind": "static"}, "secret"),
        ({"kind": "static", "secret": "s3cret-"}, "secret"),
        ({"kind": "static", "secret": {"is": SECRET}}, "secret"),
        ({"kind": "static", "secret": SECRET + "\0"}, "secret"),
        ({"kind": "static", "secret": SECRET + "\ud800"}, "secret"),
        ({"kind": "static", "secret": SECRET * 2000}, "secret"),
        ({"kind": "static", "secret": SECRET, "prefix": SECRET * 2}, "prefix"),
        ({"kind": "static", "secret": SECRET, "scret": SECRET}, "scret"),
        ({"kind": "file", "path": f"../{SECRET}"}, "path"),
        ({"kind": "file", "path": f"/run/secrets/../{SECRET}"}, "path"),
        ({"kind": "env", "variable": "PATH"}, "variable"),
        ({"kind": "env", "variable": "TOOLFLEET_SECRET_KEY"}, "variable"),
        ({"kind": "vault", "path": f"../{SECRET}"}, "path"),
        ({"kind": "vault", "path": f"crm?{SECRET}"}, "path"),
        ({"kind": "oauth_refresh_token", **OAUTH}, "refresh_token"),
        ({"kind": "oauth_client_credentials", **OAUTH, "issuer": SECRET}, "issuer"),
        ({"kind": "oauth_client_credentials", **OAUTH, "issuer": "https://h?x=1"}, "issuer"),
        (
            {"kind": "oauth_client_credentials", **OAUTH, "token_endpoint": f"https://u:{SECRET}@h"},
            "token_endpoint",
        ),
        ({"kind": "oauth_client_credentials", **OAUTH, "client": SECRET}, "client"),
        ({"kind": "oauth_client_credentials", **OAUTH, "client": {"id": "x"}}, "client/secret"),
        (
            {"kind": "oauth_client_credentials", **OAUTH,
             "client": {**CLIENT, "authentication": "none"}},
            "client/secret",
        ),
        (
            {"kind": "oauth_client_credentials", **OAUTH,
             "client": {"id": "x", "authentication": "private_key_jwt", "private_key": SECRET}},
            "client/private_key",
        ),
        ({"kind": "oauth_client_credentials", **OAUTH, "scopes": [f"two {SECRET}"]}, "scopes/0"),
        ({"kind": "token_exchange", **OAUTH, "subject": {}}, "subject/token"),
        (
            {"kind": "token_exchange", **OAUTH, "subject": {"token": SECRET, "login": OAUTH}},
            "subject/token",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_by_its_path_and_not_quoted(
    document: dict[str, Any], path: str
) -> None:
    with pytest.raises(FleetError) as refused:
        parse_credential(document)
    assert refused.value.code is Code.INVALID_DEFINITION
    assert refused.value.details["problems"][0]["path"] == path
    told = json.dumps(refused.value.as_dict()) + str(refused.value.__cause__)
    assert "s3cret" not in told


@requirement("broker:typed-errors")
@pytest.mark.parametrize("document", [None, [], "static", 7])
def test_what_is_no_object_is_no_credential(document: Any) -> None:
    with pytest.raises(FleetError, match="kind"):
        parse_credential(document)
