"""Signing in to the console: who is let in by what, and what ends it, over real HTTP."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import timedelta
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from pydantic import SecretStr

from api.console.door import SIGN_IN
from api.console.sessions import COOKIE
from registry import tenants
from registry.database import Database
from registry.scopes import Scopes, Verb
from registry.tenants import Role
from tests.requirements import requirement
from tests.servers.issuer import AUDIENCE, issuing, now_s
from tests.serving import Api, problem_of, serving
from tests.waiting import until

pytestmark = pytest.mark.anyio

PAGE = "/console/no-such-page"
"""A page that everybody sees who is signed in: it says that there is none."""


@pytest.fixture
async def browser(shared_api: Api) -> AsyncIterator[httpx2.AsyncClient]:
    """A browser in which an operator is signed in."""
    async with shared_api.signed_in() as browser:
        yield browser


async def sign_in(api: Api, credential: str, place: str = "", **headers: str) -> httpx2.Response:
    async with api.client(None) as nobody:
        form = {"credential": credential, "next": place}
        return await nobody.post(SIGN_IN, data=form, headers=headers)


def cookie_of(answer: httpx2.Response) -> Any:
    return SimpleCookie(answer.headers["set-cookie"])[COOKIE]


def csrf_of(page: httpx2.Response) -> str:
    found = re.search(r'name="csrf" value="([0-9a-f]{64})"', page.text)
    assert found is not None
    return found[1]


# -- in


@requirement("console:sign-in")
async def test_a_key_begins_a_session_that_no_script_and_no_other_site_can_use(
    shared_api: Api,
) -> None:
    key = await shared_api.key("operator", None)
    answer = await sign_in(shared_api, f"  {key}\n")
    assert (answer.status_code, answer.headers["location"][:9]) == (303, "/console/")
    cookie = cookie_of(answer)
    assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "lax", "/")
    assert (cookie["max-age"], cookie["secure"]) == ("28800", "")
    assert len(cookie.value) >= 43  # 256 bits
    stored = await shared_api.database.statement("SELECT * FROM console_sessions")
    assert cookie.value not in str(stored)
    assert key not in str(stored)


@requirement("console:sign-in")
async def test_what_is_no_key_begins_nothing_and_is_not_repeated(shared_api: Api) -> None:
    for wrong in ("tf_guess-of-mallory", "", "x" * 20_000):
        answer = await sign_in(shared_api, wrong)
        assert answer.status_code == 401
        assert "set-cookie" not in answer.headers
        assert "The API key is not known." in answer.text
        assert "mallory" not in answer.text
        assert answer.headers["content-type"].startswith("text/html")


@requirement("console:sign-in", "door:attempts", "door:refusals-audited")
async def test_guesses_on_the_form_and_by_cookies_are_limited_together_and_audited(
    api: Api,
) -> None:
    await api.http.get("/v1/servers")  # who was let in lately is not kept out
    codes = [(await sign_in(api, f"tf_guess-{number}")).status_code for number in range(20)]
    async with api.client(None) as guesser:
        for number in range(15):
            forged = {"cookie": f"{COOKIE}=forged-{number}"}
            codes.append((await guesser.get(PAGE, headers=forged)).status_code)
    assert codes[:30] == [401] * 30
    assert codes[-1] == 429
    assert (await sign_in(api, "tf_another")).status_code == 429

    async def audited() -> Any:
        query = {"event": "access.refused"}
        entries = (await api.http.get("/v1/audit", params=query)).json()["entries"]
        return len(entries) > 1 and str(entries)  # of the form, and of cookies

    entries = await until(audited)
    assert "guess" not in entries
    assert "forged" not in entries


@requirement("console:sign-in")
async def test_a_browser_gets_a_new_session_each_time_and_the_old_one_ends(
    shared_api: Api, browser: httpx2.AsyncClient
) -> None:
    before = browser.cookies[COOKIE]
    key = await shared_api.key("operator", None)
    await browser.post(SIGN_IN, data={"credential": key})
    assert browser.cookies[COOKIE] != before
    assert (await browser.get(PAGE)).status_code == 404
    async with shared_api.client(None) as old:
        assert (await old.get(PAGE, headers={"cookie": f"{COOKIE}={before}"})).status_code == 401


@requirement("console:sign-in")
async def test_behind_https_the_cookie_is_for_https_alone(
    database: Database, redis_url: str
) -> None:
    options = {"public_url": "https://fleet.example", "console_session": timedelta(minutes=5)}
    async with serving(database, redis_url, **options) as api:
        cookie = cookie_of(await sign_in(api, await api.key("operator", None)))
    assert (cookie["secure"], cookie["max-age"]) == (True, "300")


@requirement("console:sign-in")
async def test_a_token_begins_a_session_that_lasts_no_longer_than_it(
    database: Database, redis_url: str
) -> None:
    async with issuing() as provider:
        options = {
            "oidc_issuer": provider.url,
            "oidc_audience": AUDIENCE,
            "outbound_networks": ("127.0.0.0/8",),
        }
        async with serving(database, redis_url, **options) as api:
            claims = {"roles": ["auditor"], "tenant": "*", "exp": now_s() + 600}
            token = provider.sign(**claims)
            answer = await sign_in(api, token)
            cookie = cookie_of(answer)
            assert 590 <= int(cookie["max-age"]) <= 630
            async with api.client(None) as reader:
                reader.cookies.set(COOKIE, cookie.value)
                api.app.state.sessions.forget()
                who = (await reader.get("/console/session")).json()
    assert (who["role"], who["flower"]) == ("auditor", False)
    (stored,) = await database.statement("SELECT key_id, actor FROM console_sessions")
    assert (stored["key_id"], stored["actor"]["kind"]) == (None, "oidc")


# -- where to


@requirement("console:sign-in")
@pytest.mark.parametrize(
    ("place", "leads_there"),
    [
        ("/console/calls?state=failed&server=a%20b", True),
        ("/console/", True),
        ("/console", True),
        ("http://127.0.0.1:5555/tasks", True),
        ("http://127.0.0.1:5555/", True),
        ("http://127.0.0.1:5555", False),
        ("http://127.0.0.1:5555@evil.example/", False),
        ("http://127.0.0.1:55555/", False),
        ("http://127.0.0.1:5555.evil.example/", False),
        ("//evil.example/console/", False),
        ("/\\evil.example/console/", False),
        ("/console/../v1/servers", False),
        ("/console/\r\nset-cookie: a=b", False),
        ("/consoles", False),
        ("/v1/servers", False),
        ("https://evil.example/console/", False),
        ("javascript:alert(1)", False),
        ("/console/sign-out", False),
        ("/console/" + "x" * 3000, False),
    ],
)
async def test_the_sign_in_leads_back_into_the_fleet_and_nowhere_else(
    flowering: Api, place: str, leads_there: bool
) -> None:
    answer = await sign_in(flowering, await flowering.key("operator", None), place)
    assert answer.status_code == 303
    assert (answer.headers["location"] == place) is leads_there
    assert "evil" not in answer.headers["location"]
    shown = await flowering.http.get(SIGN_IN, params={"next": place})
    assert ("evil" in shown.text) is False


@pytest.fixture(scope="module")
async def flowering(
    shared_api: Api, shared_database_url: str, _redis_url: str
) -> AsyncIterator[Api]:
    """The API of a fleet that has a Flower."""
    database = Database(shared_database_url, application="toolfleet tests")
    async with serving(database, _redis_url, flower_url="http://127.0.0.1:5555/") as api:
        yield api
    await database.close()


@requirement("console:sign-in")
async def test_flower_is_linked_to_by_the_name_that_the_browser_uses_for_operators_alone(
    flowering: Api,
) -> None:
    port = flowering.url.rpartition(":")[2]
    async with flowering.signed_in() as browser:
        page = await browser.get(PAGE)
        by_name = await browser.get(PAGE, headers={"host": f"localhost:{port}"})
    assert 'href="http://127.0.0.1:5555/"' in page.text
    assert 'href="http://localhost:5555/"' in by_name.text
    async with flowering.signed_in(await flowering.key("auditor", None)) as browser:
        assert "Flower" not in (await browser.get(PAGE)).text


@requirement("console:sign-in")
async def test_without_a_session_people_are_sent_to_the_sign_in_and_programs_are_refused(
    shared_api: Api,
) -> None:
    async with shared_api.client(None) as nobody:
        html = {"accept": "text/html,*/*"}
        page = await nobody.get("/console/calls?state=failed", headers=html)
        posted = await nobody.post("/console/calls", headers=html)
        live = {
            **html,
            "hx-request": "true",
            "hx-current-url": f"{shared_api.url}/console/runs?tenant=acme",
        }
        part = await nobody.get("/console/runs", headers=live)
        program = await nobody.get("/console/runs")
        wrong = await nobody.get("/console/runs", headers={**html, "authorization": "Bearer tf_x"})
    wanted = quote("/console/calls?state=failed", safe="/")
    assert (page.status_code, page.headers["location"]) == (303, f"{SIGN_IN}?next={wanted}")
    assert (posted.status_code, posted.headers["location"]) == (303, SIGN_IN)
    wanted = quote("/console/runs?tenant=acme", safe="/")
    assert (part.status_code, part.headers["hx-redirect"]) == (401, f"{SIGN_IN}?next={wanted}")
    for answer in (program, wrong):
        assert problem_of(answer)["code"] == "unauthenticated"


@requirement("console:sign-in")
async def test_a_part_of_a_page_whose_address_is_none_is_sent_to_the_sign_in(
    shared_api: Api,
) -> None:
    async with shared_api.client(None) as nobody:
        live = {"hx-request": "true", "hx-current-url": "http://["}
        part = await nobody.get("/console/runs", headers=live)
    assert (part.status_code, part.headers["hx-redirect"]) == (401, SIGN_IN)


# -- out


@requirement("console:sign-out")
async def test_signing_out_ends_the_session_in_the_record_for_every_process(
    shared_api: Api, flowering: Api, browser: httpx2.AsyncClient
) -> None:
    cookie = {"cookie": f"{COOKIE}={browser.cookies[COOKIE]}"}
    async with flowering.client(None) as elsewhere:
        page = await elsewhere.get(PAGE, headers=cookie)
        assert page.status_code == 404
        out = await browser.post("/console/sign-out", data={"csrf": csrf_of(page)})
        assert (out.status_code, out.headers["location"]) == (303, SIGN_IN)
        assert COOKIE not in browser.cookies
        flowering.app.state.sessions.forget()  # as it does after two seconds
        async with shared_api.client(None) as same:
            assert (await same.get(PAGE, headers=cookie)).status_code == 401
        assert (await elsewhere.get(PAGE, headers=cookie)).status_code == 401


@requirement("console:sign-out")
@pytest.mark.parametrize("ending", ["revoked", "rotated", "expired"])
async def test_a_session_ends_with_its_key(shared_api: Api, ending: str) -> None:
    key_id, key = await tenants.create_key(
        shared_api.database, name="k", role=Role.OPERATOR, lifetime=timedelta(hours=1)
    )
    async with shared_api.signed_in(key) as browser:
        assert (await browser.get(PAGE)).status_code == 404
        if ending == "revoked":
            await shared_api.http.delete(f"/v1/keys/{key_id}")
        elif ending == "rotated":
            await shared_api.http.post(f"/v1/keys/{key_id}/rotate", json={"overlap_s": 0})
        else:
            await shared_api.database.statement(
                "UPDATE api_keys SET expires_at = now() WHERE id = %(id)s RETURNING id", id=key_id
            )
            shared_api.app.state.sessions.forget()
        ended = await browser.get(PAGE)
    assert (ended.status_code, ended.headers["location"][:16]) == (303, SIGN_IN)
    assert COOKIE not in browser.cookies


@requirement("console:sign-out")
async def test_a_session_ends_after_its_time(shared_api: Api, browser: httpx2.AsyncClient) -> None:
    await shared_api.database.statement(
        "UPDATE console_sessions SET expires_at = now() RETURNING digest"
    )
    shared_api.app.state.sessions.forget()
    assert (await browser.get(PAGE)).status_code == 303


@requirement("console:sign-in", "console:sign-out")
async def test_the_audit_tells_who_signed_in_and_out(api: Api) -> None:
    key_id, key = await tenants.create_key(api.database, name="Ada", role=Role.OPERATOR)
    async with api.signed_in(key) as browser:
        await browser.post("/console/sign-out", data={"csrf": csrf_of(await browser.get(PAGE))})
    query = {"event": "console.*"}
    entries = (await api.http.get("/v1/audit", params=query)).json()["entries"]
    assert [(it["event"], it["actor"]) for it in entries] == [
        ("console.signed_out", f"key:{key_id}"),
        ("console.signed_in", f"key:{key_id}"),
    ]
    assert entries[1]["details"] == {"name": "Ada", "source": "127.0.0.1"}


# -- what a session is good for


@requirement("console:apart")
async def test_a_session_opens_nothing_but_the_console(
    shared_api: Api, browser: httpx2.AsyncClient
) -> None:
    token = browser.cookies[COOKIE]
    for path in ("/v1/servers", "/v1/keys", "/metrics", "/openapi.json", "/docs", "/mcp"):
        assert (await browser.get(path)).status_code == 401, path
        async with shared_api.client(token) as bearer:
            assert (await bearer.get(path)).status_code == 401, path


@requirement("console:forms")
async def test_a_form_is_heard_with_what_the_sessions_own_pages_carry_alone(
    shared_api: Api, browser: httpx2.AsyncClient
) -> None:
    async with shared_api.signed_in() as other:
        theirs = csrf_of(await other.get(PAGE))
    mine = csrf_of(await browser.get(PAGE))
    for wrong in ({}, {"csrf": ""}, {"csrf": theirs}, {"csrf": mine.upper()}, {"csrf": "é"}):
        answer = await browser.post("/console/sign-out", data=wrong)
        assert answer.status_code == 403
        assert "does not come from a page of this session" in answer.text
        assert "authorization" not in answer.headers.get("www-authenticate", "")
    assert (await browser.get(PAGE)).status_code == 404
    assert (await browser.post("/console/sign-out", data={"csrf": mine})).status_code == 303


@requirement("console:forms")
async def test_a_key_needs_no_form_of_a_page(shared_api: Api) -> None:
    answer = await shared_api.http.post("/console/no-such-page")
    assert answer.status_code == 404


@requirement("console:pages")
async def test_an_unknown_path_is_a_page_with_a_way_on(browser: httpx2.AsyncClient) -> None:
    for path in (PAGE, "/console/static/../x", "/console/static/none.js", "/console/<script>"):
        answer = await browser.get(path)
        assert answer.status_code == 404, path
        assert "<h1>Not found</h1>" in answer.text, path
        assert "<script>" not in answer.text
    moved = await browser.get("/console")
    assert (moved.status_code, moved.headers["location"]) == (303, "/console/")


@requirement("console:pages")
async def test_every_answer_of_the_console_carries_its_policy_and_no_page_is_kept(
    shared_api: Api, browser: httpx2.AsyncClient
) -> None:
    async with shared_api.client(None) as nobody:
        html = {"accept": "text/html"}
        answers = [
            await browser.get(PAGE),
            await browser.get("/console/session"),
            await browser.post("/console/sign-out"),
            await nobody.get(SIGN_IN),
            await nobody.post(SIGN_IN, data={"credential": "tf_x"}),
            await nobody.get(PAGE, headers=html),
            await nobody.get(PAGE),
            await nobody.get("/console/static/console.css"),
        ]
    for answer in answers:
        headers = answer.headers
        assert "frame-ancestors 'none'" in headers["content-security-policy"], answer.url
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-frame-options"] == "DENY"
        assert headers["x-content-type-options"] == "nosniff"
        if "static" not in str(answer.url):
            assert headers["cache-control"] == "no-store", answer.url


@requirement("console:roles")
async def test_the_navigation_shows_what_somebody_may_see_and_leads_there(
    shared_api: Api,
) -> None:
    for role in Role:
        key = await shared_api.key(role.value, None if role is Role.OPERATOR else "acme")
        async with shared_api.signed_in(key) as browser:
            shown = set(
                re.findall(r'<li><a href="(/console/[a-z]*)"', (await browser.get(PAGE)).text)
            )
            for section in shared_api.app.state.frame.sections:
                status = (await browser.get(section.href)).status_code
                assert (status == 403) is (section.href not in shown), (role, section)


@requirement("console:roles", "keys:scopes")
async def test_a_narrowed_key_sees_the_pages_of_its_verbs_and_can_sign_out(
    shared_api: Api,
) -> None:
    scopes = Scopes(verbs=(Verb.CALLS_READ,))
    key = await shared_api.key("operator", None, scopes=scopes)
    async with shared_api.signed_in(key) as browser:
        page = await browser.get(PAGE)
        shown = set(re.findall(r'<li><a href="(/console/[a-z]*)"', page.text))
        assert shown <= {"/console/calls"}
        for section in shared_api.app.state.frame.sections:
            status = (await browser.get(section.href)).status_code
            assert (status == 403) is (section.verb != "calls:read"), section
        out = await browser.post("/console/sign-out", data={"csrf": csrf_of(page)})
        assert out.status_code == 303


@requirement("console:pages")
async def test_names_are_shown_as_text_and_never_as_markup(shared_api: Api) -> None:
    _, key = await tenants.create_key(
        shared_api.database, name='"><script>alert(1)</script>', role=Role.OPERATOR
    )
    async with shared_api.signed_in(key) as browser:
        page = await browser.get(PAGE)
    assert "<script>alert" not in page.text
    assert "&lt;script&gt;alert(1)" in page.text


@requirement("console:forms")
async def test_what_forms_carry_cannot_be_made_without_the_fleets_own_key(
    database: Database, redis_url: str
) -> None:
    async with serving(database, redis_url) as first, first.signed_in() as browser:
        forged, token = csrf_of(await browser.get(PAGE)), browser.cookies[COOKIE]
    other = SecretStr("another secret of thirty-two bytes or more")
    async with serving(database, redis_url, secret_key=other) as second:
        cookie = {"cookie": f"{COOKIE}={token}"}
        async with second.client(None) as reader:
            answer = await reader.post("/console/sign-out", data={"csrf": forged}, headers=cookie)
    assert answer.status_code == 403
