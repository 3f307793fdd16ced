"""Attacks on the console, rows of the matrix (test_attack_matrix.py), tried on every page."""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator
from typing import Any, Final

import httpx2
import pytest
from fastapi.routing import iter_route_contexts

from api.console.door import OPEN
from api.console.sessions import COOKIE
from registry import tenants
from registry.tenants import Role
from tests.requirements import requirement
from tests.security.target import Target
from tests.serving import ECHO

pytestmark = pytest.mark.anyio

MARKUP: Final = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 191 }}"
ANYTHING: Final = "00000000-0000-4000-8000-000000000000"


def routes(fleet: Target, method: str) -> list[str]:
    """Return the paths of the console's routes of a method, but for those that are open."""
    return [
        context.path
        for context in iter_route_contexts(fleet.api.app.routes)
        if (context.path or "").startswith("/console/")
        and method in (context.methods or ())
        and not any(context.path == path for path in (*OPEN, "/console/static/{name}"))
    ]


def filled(template: str, **known: str) -> str:
    return re.sub(r"\{(\w+)[^}]*\}", lambda found: known.get(found[1], ANYTHING), template)


@pytest.fixture
async def browser(fleet: Target) -> AsyncIterator[httpx2.AsyncClient]:
    async with fleet.api.signed_in() as browser:
        yield browser


@requirement("attacks:console")
async def test_no_form_of_elsewhere_changes_anything(
    fleet: Target, browser: httpx2.AsyncClient
) -> None:
    async with fleet.api.signed_in() as other:
        theirs = (await other.get("/console/session")).json()["csrf"]
    mine = (await browser.get("/console/session")).json()["csrf"]
    posted = routes(fleet, "POST")
    assert len(posted) >= 2
    for template in posted:
        path = filled(template)
        for form in ({}, {"csrf": theirs}, {"csrf": mine[:-1]}):
            answer = await browser.post(path, data=form)
            assert answer.status_code == 403, path
            assert "does not come from a page of this session" in answer.text
        evil = {"origin": "https://evil.example"}
        answer = await browser.post(path, data={"csrf": mine}, headers=evil)
        assert (answer.status_code, answer.json()["code"]) == (403, "origin_not_allowed"), path


@requirement("attacks:console")
async def test_a_session_that_was_forged_or_has_ended_opens_no_page(fleet: Target) -> None:
    async with fleet.api.signed_in() as ended:
        token = ended.cookies[COOKIE]
        csrf = (await ended.get("/console/session")).json()["csrf"]
        await ended.post("/console/sign-out", data={"csrf": csrf})
    nothing = ("", f"{COOKIE}=", f"{COOKIE}={token}; {COOKIE}={token}", f"{COOKIE}={'x' * 4_000}")
    guesses = (token, secrets.token_urlsafe(32), "' OR 1=1")
    # Each guess is an attempt, of which a source has some thirty.
    every = routes(fleet, "GET")
    tried = [(cookie, every) for cookie in nothing]
    tried += [(f"{COOKIE}={guess}", every[-2:]) for guess in guesses]
    async with fleet.api.client(None) as client:
        for cookie, templates in tried:
            for template in templates:
                headers = {"cookie": cookie, "accept": "text/html"}
                answer = await client.get(filled(template), headers=headers)
                assert answer.status_code == 303, (template, cookie)
                assert answer.headers["location"].startswith("/console/sign-in?next=")


@requirement("attacks:console")
async def test_no_page_can_be_framed_cached_or_runs_scripts_of_its_own(
    fleet: Target, browser: httpx2.AsyncClient
) -> None:
    for template in routes(fleet, "GET"):
        answer = await browser.get(filled(template))
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["cache-control"] == "no-store"
        if not answer.headers["content-type"].startswith("text/html"):
            assert answer.headers["x-content-type-options"] == "nosniff"
            continue
        assert not re.search(r"<script(?![^>]* src=\"/console/static/)", answer.text), template
        assert not re.search(r"<[^>]*\s(on\w+|style)=", answer.text), template


@requirement("attacks:console")
async def test_no_name_and_no_argument_becomes_markup(fleet: Target) -> None:
    known = await _named_like_markup(fleet)
    _, key = await tenants.create_key(fleet.database, name=MARKUP, role=Role.OPERATOR)
    seen = 0
    async with fleet.api.signed_in(key) as browser:
        for template in routes(fleet, "GET"):
            answer = await browser.get(filled(template, **known))
            assert answer.status_code in {200, 303, 404}, (template, answer.text)
            seen += "&lt;script&gt;alert(1)" in answer.text
            if answer.headers["content-type"].startswith("text/html"):
                assert "<script>alert" not in answer.text, template
                assert "<img" not in answer.text, template
                assert "1337" not in re.sub(r"[0-9a-f-]{32,}|\d{5,}", "", answer.text), template
    assert seen >= 1


async def _named_like_markup(fleet: Target) -> dict[str, str]:
    """Make a call whose server, tool, arguments, result and reason are markup where they can."""
    tool: dict[str, Any] = {
        **ECHO,
        "title": MARKUP,
        "description": MARKUP,
        "annotations": {"readOnlyHint": True, "title": MARKUP},
    }
    await fleet.api.serve("demo", tool, tools={"echo": {"approval": True}})
    run = await fleet.api.run("acme")
    call = await fleet.api.submit(run, MARKUP)
    return {"run_id": run["id"], "call_id": call["id"], "name": "demo", "tenant": "acme"}
