"""The secrets within a definition: told by their names, sealed, and opened in their own place."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.definitions import content_digest, parse_definition
from registry.envelope import SealedError, new_key
from registry.errors import FleetError
from registry.sealed_definitions import hidden, keys_in, seal, secrets_in, unseal, unsealed_in
from tests.requirements import requirement

KEY_ID, KEY = "0" * 32, new_key()
STDIO: dict[str, Any] = {
    "name": "crm",
    "version": "1",
    "transport": "stdio",
    "command": "serve",
    "args": ["--fast"],
    "env": {
        "API_KEY": "an-api-key",
        "PASSWORD": "s",
        "DATABASE_URL": "postgresql://app:hunter2@db/app",
        "MODE": "production",
        "EMPTY_TOKEN": "",
    },
}
HTTP: dict[str, Any] = {
    "name": "web",
    "version": "1",
    "transport": "http",
    "url": "https://mcp.example.com/mcp?a=1&api_key=a%2Bkey&token&b=postgres%3A%2F%2Fu%3Apw%40db",
    "headers": {"Authorization": "Bearer of-it", "accept-language": "de"},
}


def sealed(body: dict[str, Any]) -> dict[str, Any]:
    return seal(body, KEY_ID, KEY)


@requirement("sealed:told-by-name")
@pytest.mark.parametrize(
    ("body", "paths"),
    [
        (STDIO, ["env/API_KEY", "env/PASSWORD", "env/DATABASE_URL"]),
        (HTTP, ["headers/Authorization", "url/api_key", "url/b"]),
        ({**STDIO, "env": {"MODE": "production"}}, []),
    ],
)
def test_which_values_are_secrets_is_told_by_their_names(
    body: dict[str, Any], paths: list[str]
) -> None:
    assert secrets_in(body) == secrets_in(sealed(body)) == unsealed_in(body) == paths
    assert unsealed_in(sealed(body)) == []
    assert keys_in(sealed(body)) == ({KEY_ID} if paths else set())


@requirement("sealed:stands-in")
@pytest.mark.parametrize("body", [STDIO, HTTP])
def test_a_sealed_definition_is_one_and_opens_to_what_it_was(body: dict[str, Any]) -> None:
    kept = parse_definition(body).model_dump(mode="json")
    stored = sealed(kept)
    read = type(parse_definition(body)).model_validate(stored).model_dump(mode="json")
    for secret in ("an-api-key", "hunter2", "a%2Bkey", "pw%40db", "of-it"):
        assert secret not in str(stored)
    assert read == stored
    assert unseal(read, {KEY_ID: KEY}) == kept


@requirement("sealed:stands-in")
@given(
    st.dictionaries(st.sampled_from(["A_KEY", "B_TOKEN", "MODE", "URL"]), st.text(max_size=40)),
    st.lists(
        st.tuples(st.sampled_from(["key", "a", "to%6ben", ""]), st.text("ab%=+2F", max_size=9))
    ),
)
def test_whatever_the_values_are_they_come_back(
    env: dict[str, str], query: list[tuple[str, str]]
) -> None:
    url = "https://example.com/mcp?" + "&".join(f"{name}={value}" for name, value in query)
    body = {**HTTP, "env": env, "url": url}
    assert unseal(sealed(body), {KEY_ID: KEY}) == body
    assert unsealed_in(sealed(body)) == []


@requirement("sealed:place")
@pytest.mark.parametrize(
    "elsewhere",
    [
        {"name": "other"},
        {"version": "2"},
        {"command": "steal"},
        {"args": ["--to", "elsewhere"]},
        {"env": {"OTHER_KEY": sealed(STDIO)["env"]["API_KEY"]}},
        {"env": {}, "headers": {"API_KEY": sealed(STDIO)["env"]["API_KEY"]}},
        {"env": {}, "url": "https://a.example/?API_KEY=" + sealed(STDIO)["env"]["API_KEY"]},
        {"env": {"API_KEY": sealed(STDIO)["env"]["API_KEY"][:-3]}},
        {"env": {"API_KEY": "toolfleet-sealed." + KEY_ID + ".A"}},
        {"env": {"API_KEY": "toolfleet-sealed.nothing"}},
    ],
)
def test_a_sealed_value_opens_nowhere_but_in_its_own_place(elsewhere: dict[str, Any]) -> None:
    with pytest.raises(SealedError):
        unseal({**sealed(STDIO), **elsewhere}, {KEY_ID: KEY})


@requirement("sealed:place")
@pytest.mark.parametrize("keys", [{}, {KEY_ID: new_key()}])
def test_a_sealed_value_opens_with_its_own_key_alone(keys: dict[str, bytes]) -> None:
    with pytest.raises(SealedError):
        unseal(sealed(HTTP), keys)


@requirement("sealed:stands-in")
@pytest.mark.parametrize("body", [STDIO, HTTP])
def test_the_digest_of_a_definition_tells_nobody_which_secrets_it_was_made_of(
    body: dict[str, Any],
) -> None:
    plain = parse_definition(body)
    stored = type(plain).model_validate(sealed(plain.model_dump(mode="json")))
    assert content_digest(plain) == content_digest(stored)
    open_ = {**STDIO, "env": {"MODE": "production"}}
    assert content_digest(parse_definition(open_)) != content_digest(
        parse_definition({**open_, "env": {"MODE": "test"}})
    )


@requirement("sealed:shown")
def test_what_is_shown_has_no_secret_sealed_or_not() -> None:
    shown = "https://mcp.example.com/mcp?a=1&api_key=***&token&b=***"
    assert hidden(HTTP)["url"] == hidden(sealed(HTTP))["url"] == shown


@requirement("sealed:not-registered")
@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({**STDIO, "env": {"MODE": "toolfleet-sealed.x"}}, "env/MODE"),
        ({**HTTP, "headers": {"x-key": "toolfleet-sealed.x"}}, "headers/x-key"),
        ({**HTTP, "url": "https://mcp.example.com/?a=toolfleet%2Dsealed.x"}, "url"),
        ({**HTTP, "url": "https://mcp.example.com/?a=" + "x" * 2083}, "url"),
    ],
)
def test_what_looks_sealed_is_not_registered_and_no_endless_url(
    body: dict[str, Any], path: str
) -> None:
    with pytest.raises(FleetError) as refused:
        parse_definition(body)
    assert [it["path"] for it in refused.value.details["problems"]] == [path]


@requirement("sealed:stands-in")
def test_the_longest_url_that_is_registered_is_read_with_its_secrets_sealed() -> None:
    pairs = "&".join(f"key{n}=xxxxxxxx" for n in range(100))
    plain = parse_definition({**HTTP, "url": f"https://mcp.example.com/mcp?{pairs}"})
    stored = sealed(plain.model_dump(mode="json"))
    assert len(stored["url"]) > 4 * len(str(plain.url))
    assert str(type(plain).model_validate(stored).url) == stored["url"]
