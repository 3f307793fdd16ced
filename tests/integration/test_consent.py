"""A person consents, over real HTTP: to a server of the fleet, and to what must not be had."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import httpx2
import pytest
from typer.testing import CliRunner, Result

from compose.cli import app
from compose.loopback import Loopback, loopback
from registry.challenge import Challenge
from registry.consent import ConsentRequest
from registry.credential_kinds import RefreshToken, Static
from registry.database import Database
from registry.definitions import parse_definition
from registry.errors import Code, FleetError
from tests.brokering import Keys, Tenancy
from tests.requirements import requirement
from tests.servers.authorization import (
    CLIENT_ID,
    CLIENT_SECRET,
    AuthorizationServer,
    Reply,
    authorization_server,
    http,
)
from tests.servers.guarded import Guarded, guarded
from tests.serving import Api, serving
from workers.consent import Consent, Consenting, Terms
from workers.outbound import open_client
from workers.refusal import challenge_of, refusal_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def login() -> Iterator[AuthorizationServer]:
    with authorization_server() as server:
        server.speaks()
        yield server


def crm(url: str) -> dict[str, Any]:
    return {
        "name": "crm",
        "transport": "http",
        "url": url,
        "networks": ["127.0.0.0/8"],
        "credentials": {"inject": "header", "name": "Authorization", "required": True},
    }


REFUSAL = FleetError(
    Code.CREDENTIAL_REJECTED, "who are you?", details={"challenge": {"scope": "read"}}
)


def known_at(issuer: str) -> Terms:
    """Return the terms of a client that was registered beforehand."""
    return Terms(client_id=CLIENT_ID, client_secret=CLIENT_SECRET, issuer=issuer)


@dataclass
class Person:
    """Whoever consents, with a browser that goes where it is sent."""

    pages: list[int] = field(default_factory=list)
    """The status that each page ended with."""
    before: list[dict[str, str]] = field(default_factory=list)
    """What somebody else sends to where the browser comes back to, before it does."""
    seen: list[ConsentRequest] = field(default_factory=list)

    async def shown(self, asked: ConsentRequest) -> None:
        self.seen.append(asked)
        asyncio.get_running_loop().create_task(self._browse(asked))

    async def _browse(self, asked: ConsentRequest) -> None:
        async with httpx2.AsyncClient(follow_redirects=True, trust_env=False) as browser:
            for other in self.before:
                await self._visit(browser, f"{asked.redirect_uri}?{urlencode(other)}")
            await self._visit(browser, asked.url)

    async def _visit(self, browser: httpx2.AsyncClient, url: str) -> None:
        self.pages.append((await browser.get(url)).status_code)


async def consent(
    login: AuthorizationServer,
    person: Person | None = None,
    terms: Terms | None = None,
    *,
    redirects: Loopback | None = None,
    patience_s: float = 20.0,
) -> Consent:
    """Get a consent for a server on the same port as its authorization server."""
    url = f"{login.url}/mcp"
    if login.resource_metadata is None:
        login.resource_metadata = {"resource": url, "authorization_servers": [login.url]}
    consenting = Consenting(open_client, parse_definition(crm(url)))
    person = person or Person()
    async with AsyncExitStack() as stack:
        redirects = redirects or await stack.enter_async_context(loopback())
        return await consenting.get(
            REFUSAL, terms or Terms(), redirects, person.shown, patience_s=patience_s
        )


async def refused(login: AuthorizationServer, **rest: Any) -> str:
    with pytest.raises(FleetError) as caught:
        await consent(login, **rest)
    assert caught.value.code is Code.CONSENT_FAILED
    assert caught.value.hint
    return caught.value.message


# -- the command, from a refusal to a call with a token that was renewed


@dataclass
class Operator:
    """Somebody at a shell, with a fleet and a browser."""

    api: Api
    server: Guarded
    keys: Keys

    login: AuthorizationServer

    async def types(self, *arguments: str) -> Result:
        command = ["credentials", "authorize", *arguments]
        return await asyncio.to_thread(CliRunner().invoke, app, command)


@pytest.fixture(scope="module")
async def operator(
    anyio_backend: str,
    shared_database_url: str,
    _redis_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Operator]:
    folder = tmp_path_factory.mktemp("consent")
    keys = Keys(folder / "encryption.keys")
    database = Database(shared_database_url, application="toolfleet tests")
    with authorization_server() as login, pytest.MonkeyPatch.context() as patch:
        login.speaks()
        async with (
            serving(database, _redis_url, encryption_keys_file=keys.path) as api,
            guarded(login.live) as server,
        ):
            server.resource_metadata = {
                "resource": server.url,
                "authorization_servers": [login.url],
            }
            server.challenge = 'Bearer error="invalid_token", scope="read"'
            await api.serve("local")
            assert (await api.http.post("/v1/servers", json=crm(server.url))).status_code == 201
            patch.setenv("TOOLFLEET_URL", api.url)
            patch.setenv("TOOLFLEET_KEY", api.http.headers["authorization"][len("Bearer ") :])
            patch.setattr("webbrowser.open", _browse)
            yield Operator(api, server, keys, login)
    await database.close()


def _browse(url: str) -> bool:
    httpx2.get(url, follow_redirects=True, trust_env=False)
    return True


@requirement("consent:command", "consent:discovery", "consent:secret")
async def test_a_server_that_wants_oauth_is_connected_by_one_command(operator: Operator) -> None:
    login, url = operator.login, operator.server.url
    result = await operator.types("crm", "--tenant", "alice", "--scope", "write", "--json")
    assert result.exit_code == 0, result.output
    stored = json.loads(result.stdout)
    assert (stored["kind"], stored["state"]) == ("oauth_refresh_token", "ready")
    assert (stored["definition"]["issuer"], stored["definition"]["resource"]) == (login.url, url)
    assert login.asked[-1]["scope"] == "write read"
    assert f"Somebody has to consent at {login.url}" in result.stderr
    assert not [it for it in (*login.live, "code-", "rt-", CLIENT_SECRET) if it in result.output]

    definition = parse_definition(crm(url))
    broker = Tenancy(operator.api.database, operator.keys, definition).broker()
    grant = await broker.resolve("alice", definition)
    await broker.close()
    assert grant is not None
    assert login.live[grant.secret.removeprefix("Bearer ")] == "alice"
    assert login.said["refreshed"] == 1


@requirement("consent:scopes")
async def test_a_second_consent_keeps_the_scopes_of_the_first(operator: Operator) -> None:
    for scope in ("write", "delete"):
        result = await operator.types("crm", "--tenant", "bob", "--scope", scope)
        assert result.exit_code == 0, result.output
    assert operator.login.asked[-1]["scope"].split() == ["write", "read", "delete"]


@requirement("consent:command")
@pytest.mark.parametrize(
    ("server", "problem"), [("local", "reached by stdio"), ("nobody", "unknown_server")]
)
async def test_what_cannot_be_connected_so_is_refused(
    operator: Operator, server: str, problem: str
) -> None:
    result = await operator.types(server, "--tenant", "alice")
    assert result.exit_code == 1
    assert problem in result.output


# -- what a refusal tells


def answering(*answers: Reply) -> Callable[..., Reply]:
    """Return a server that refuses `server/discover`, then `initialize`."""
    return lambda method, path, headers, body: answers[b'"initialize"' in body]


@requirement("consent:discovery", "consent:scopes")
async def test_a_call_that_lacks_a_scope_tells_what_to_do_about_it() -> None:
    challenge = 'Bearer error="insufficient_scope", scope="read $(reboot)"'
    reply = Reply(403, {}, {"www-authenticate": challenge})
    with http(answering(reply, reply)) as url:
        told = await refusal_of(parse_definition(crm(url)))
    assert told is not None
    assert told.code is Code.UPSTREAM_FORBIDDEN
    assert told.details["challenge"]["scope"] == "read $(reboot)"
    assert "`toolfleet credentials authorize crm --scope read --scope '$(reboot)'`" in told.hint


@requirement("consent:discovery")
async def test_a_server_that_wants_a_token_is_not_taken_for_one_that_is_down() -> None:
    wanted = Reply(401, {}, {"www-authenticate": 'Bearer scope="read"'})
    with http(answering(wanted, Reply(400, {"error": "no initialize here"}))) as url:
        told = await refusal_of(parse_definition(crm(url)))
    assert told is not None
    assert told.code is Code.CREDENTIAL_REJECTED
    assert challenge_of(told) == Challenge(("read",))


# -- one consent


@requirement("consent:kept", "consent:client")
async def test_a_consent_is_kept_with_the_client_that_was_registered(
    login: AuthorizationServer,
) -> None:
    got = await consent(login)
    assert isinstance(got.credential, RefreshToken)
    assert (got.credential.client.id, got.issuer) == (CLIENT_ID, login.url)
    assert (got.scopes, login.asked[0]["scope"]) == (("read",), "read")
    assert got.access_token in login.live
    assert login.registered[0]["redirect_uris"] == [login.asked[0]["redirect_uri"]]


@requirement("consent:client")
async def test_a_known_client_is_used_and_none_is_registered(login: AuthorizationServer) -> None:
    got = await consent(login, terms=known_at(login.url))
    assert isinstance(got.credential, RefreshToken)
    assert login.registered == []


@requirement("consent:kept")
async def test_a_token_that_comes_alone_is_kept_as_it_is(login: AuthorizationServer) -> None:
    login.refreshes = False
    got = await consent(login)
    assert isinstance(got.credential, Static)
    assert got.credential.secret.get_secret_value() == got.access_token


@requirement("consent:redirect")
async def test_a_redirect_with_another_state_is_turned_away_and_the_right_one_is_still_taken(
    login: AuthorizationServer,
) -> None:
    person = Person(before=[{"code": "stolen", "state": "another"}, {"code": "stolen"}])
    async with loopback() as redirects:
        got = await consent(login, person, redirects=redirects)
        assert got.access_token in login.live
        again = {"code": "again", "state": person.seen[0].state}
        async with httpx2.AsyncClient(trust_env=False) as browser:
            late = await browser.get(f"{redirects.uri}?{urlencode(again)}")
    assert person.pages[:2] == [400, 400]
    assert late.status_code == 400
    assert [form["code"] for form in login.forms] != ["stolen"]


@requirement("consent:redirect")
async def test_a_redirect_is_one_get_of_one_page_that_says_each_thing_once() -> None:
    async with loopback() as redirects, httpx2.AsyncClient(trust_env=False) as browser:
        received = asyncio.create_task(redirects.receive(lambda redirect: "state" in redirect))
        elsewhere = redirects.uri.replace("/callback", "/other")
        for method, url in (
            ("POST", f"{redirects.uri}?state=a"),
            ("GET", f"{elsewhere}?state=a"),
            ("GET", f"{redirects.uri}?state=a&state=b"),
            ("GET", redirects.uri),
        ):
            assert (await browser.request(method, url)).status_code == 400
        assert (await browser.get(f"{redirects.uri}?state=a&code=%20b")).status_code == 200
        assert await received == {"state": "a", "code": " b"}


@requirement("consent:redirect")
async def test_an_authorization_server_that_loses_the_state_gets_no_code_back(
    login: AuthorizationServer,
) -> None:
    login.redirects = {"state": "another"}
    assert "nobody came back" in await refused(login, patience_s=0.5)
    assert login.forms == []


@requirement("consent:issuer")
@pytest.mark.parametrize("issuer", ["https://evil.example.com", None])
async def test_a_redirect_of_another_issuer_gets_no_code_back(
    login: AuthorizationServer, issuer: str | None
) -> None:
    login.redirects = {"iss": issuer}
    assert login.url in await refused(login)
    assert login.forms == []


@requirement("consent:resource")
async def test_a_server_that_stands_for_another_resource_gets_no_consent(
    login: AuthorizationServer,
) -> None:
    login.resource_metadata = {
        "resource": "https://bank.example.com/mcp",
        "authorization_servers": [login.url],
    }
    assert "https://bank.example.com/mcp" in await refused(login)
    assert (login.registered, login.asked, login.said["metadata"]) == ([], [], 0)


@requirement("consent:discovery")
async def test_a_server_sends_nobody_into_the_networks_that_it_is_in(
    login: AuthorizationServer,
) -> None:
    stated = {"resource_metadata": f"{login.url}/.well-known/oauth-protected-resource"}
    told = FleetError(Code.CREDENTIAL_REJECTED, "who?", details={"challenge": stated})
    definition = parse_definition(crm("http://127.0.0.1:9/mcp"))
    with pytest.raises(FleetError) as caught:
        await Consenting(open_client, definition).find(told)
    assert caught.value.code is Code.CONSENT_FAILED
    assert not login.said


@requirement("consent:pkce")
async def test_an_authorization_server_without_pkce_is_not_asked(
    login: AuthorizationServer,
) -> None:
    login.speaks(code_challenge_methods_supported=["plain"])
    assert "PKCE" in await refused(login)
    assert (login.registered, login.asked) == ([], [])


@requirement("consent:issuer")
async def test_a_known_client_goes_to_no_other_issuer(login: AuthorizationServer) -> None:
    terms = known_at("https://old.example.com")
    assert "https://old.example.com" in await refused(login, terms=terms)
    assert login.asked == []


@requirement("consent:secret")
async def test_a_code_follows_no_redirect_and_no_answer_is_quoted(
    login: AuthorizationServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    body = {"error": "invalid_grant", "error_description": "call 555"}
    login.broken = Reply(307, body, {"location": f"{login.url}/token"})
    message = await refused(login)
    assert "redirect is not followed" in message
    assert len(login.forms) == 1
    form = login.forms[0]
    secrets = ("call 555", form["code_verifier"], CLIENT_SECRET, form["authorization"])
    assert form["code"] not in message
    assert not [it for it in secrets if it in message + caplog.text]


@requirement("consent:discovery")
async def test_a_server_of_2025_03_26_is_its_own_issuer_with_the_usual_endpoints(
    login: AuthorizationServer,
) -> None:
    login.metadata, login.resource_metadata = None, {"resource": "none"}
    got = await consent(login)
    assert isinstance(got.credential, RefreshToken)
    assert got.credential.issuer == login.url
    assert got.credential.token_endpoint == f"{login.url}/token"
