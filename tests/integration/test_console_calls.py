"""The console's pages of calls, runs and approvals: what they show, to whom, and what they do."""

from __future__ import annotations

import re
from html import unescape
from typing import Any
from urllib.parse import urlencode

import httpx2
import pytest

from registry import call_search, calls, newest, notices
from registry.call_search import Wanted
from registry.calls import CallState, Ending
from registry.newest import Cursor
from registry.scopes import Scopes, Verb
from tests.ledger import Ledger
from tests.requirements import requirement
from tests.serving import ECHO, WORKER, Api
from tests.waiting import until

pytestmark = pytest.mark.anyio

UNKNOWN_ID = "00000000-0000-4000-8000-000000000000"
HOSTILE = "<script>alert(1)</script>\"'&"
PAY = {"name": "pay", "description": f"Pay. {HOSTILE}", "inputSchema": {"type": "object"}}
TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture(scope="module")
async def api(shared_api: Api) -> Api:
    """An API with servers `demo`, one of whose tools one has to approve, and `safe`, two."""
    await shared_api.serve("demo", ECHO, PAY, tools={"pay": {"approval": True}})
    rule = {"approvers": 2, "redact": ["/card"]}
    await shared_api.serve("safe", PAY, tools={"pay": {"approval": rule}})
    return shared_api


async def shown(client: httpx2.AsyncClient, path: str, **query: Any) -> str:
    """Return a page's text."""
    answer = await client.get(f"/console/{path}" + (f"?{urlencode(query)}" if query else ""))
    assert answer.status_code == 200, answer.text
    return answer.text


def listed(page: str) -> list[str]:
    """Return the ids of the calls or runs that a page lists, in order."""
    return re.findall(r'<tr id="(?:call|run)-([^"]+)"', page)


def text_of(page: str) -> str:
    """Return what a page says, in one line."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", page.partition("<main")[2])).split())


async def waiting(
    api: Api, tenant: str = "acme", tool: str = "demo_pay", **arguments: Any
) -> tuple[str, str]:
    """Return a tenant's call that waits, submitted with a key of its own, and that key."""
    key = await api.key(tenant=tenant)
    async with api.client(key) as agent:
        run = (await agent.post("/v1/runs", json={})).json()
        body = {"tool": tool, "arguments": arguments}
        call = (await agent.post(f"/v1/runs/{run['id']}/calls", json=body)).json()
    assert call["state"] == "awaiting_approval"
    return call["id"], key


def form_about(page: str, call_id: str) -> dict[str, str]:
    """Return what the form about a waiting call sends."""
    card = page.partition(f'id="call-{call_id}"')[2].partition("</form>")[0]
    return dict(re.findall(r'name="(csrf|binding)" value="([^"]*)"', card))


async def decide(
    client: httpx2.AsyncClient, call_id: str, how: str, page: str | None = None, **fields: str
) -> httpx2.Response:
    """Press a button of the page of approvals, as it is now unless an earlier one is given."""
    page = page or await shown(client, "approvals")
    form = {**form_about(page, call_id), **fields}
    return await client.post(f"/console/approvals/{call_id}/{how}", data=form)


# -- the list


@requirement("console:newest")
async def test_the_newest_come_first_page_by_page_and_none_twice(api: Api) -> None:
    run = await api.run("many")
    one = (await api.submit(run))["id"]
    rows = await api.database.statement(
        "INSERT INTO calls SELECT (jsonb_populate_record(c, jsonb_build_object('id',"
        " gen_random_uuid(), 'created_at', c.created_at + n * interval '1 ms'))).*"
        " FROM calls c, generate_series(1, %(more)s) n WHERE c.id = %(id)s RETURNING id",
        id=one,
        more=newest.PAGE + 2,
    )
    ids = [one, *(row["id"] for row in rows)]
    first = await shown(api.http, "calls", tenant="many")
    assert listed(first) == ids[:2:-1]
    older = re.search(r'href="(/console/calls\?[^"]*after=[^"]+)"', first)
    assert older is not None
    await api.submit(run, text="later")
    second = (await api.http.get(unescape(older[1]))).text
    assert listed(second) == ids[2::-1]
    assert "after=" not in second
    assert len(listed(await shown(api.http, f"runs/{run['id']}"))) == newest.PAGE


@requirement("console:newest")
async def test_a_page_that_finds_too_few_says_how_far_it_looked_and_goes_on(
    database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = newest.walk("calls", call_search._COLUMNS, call_search._FITS)
    small = [it.replace(f"LIMIT {newest.LOOKED_AT}", "LIMIT 4") for it in vars(few).values()]
    monkeypatch.setattr(call_search, "_WALK", newest.Walk(*small))
    monkeypatch.setattr(newest, "LOOKED_AT", 4)
    ledger = await Ledger.open(database)
    ids = [await ledger.submit("look" if n % 3 == 0 else "pay") for n in range(10)]
    # Two that were written in one instant, of which only one is looked at first.
    await ledger.sql("UPDATE calls SET created_at = (SELECT created_at FROM calls WHERE id = :b)"
                     " WHERE id = :a", a=ids[6], b=ids[5])  # fmt: skip
    found: list[str] = []
    cursor: Cursor | None = None
    for _ in range(10):
        page = await call_search.newest_calls(database, Wanted(tool="demo_look"), cursor)
        found += [row["id"] for row in page.rows]
        if (cursor := page.next) is None:
            break
        assert page.back_to is not None
        assert cursor.id == "", "it may be of another tenant's call"
    assert found == [ids[9], ids[6], ids[3], ids[0]]


@requirement("console:newest")
async def test_filters_leave_what_fits(api: Api) -> None:
    run, other = await api.run("filter-a"), await api.run("filter-b")
    done, asked, theirs = [(await api.submit(it))["id"] for it in (run, run, other)]
    await api.work(done)
    (claim,) = await calls.claim(api.database, WORKER, [asked])
    assert claim is not None
    failed = Ending(asked, claim.fence, CallState.FAILED, error={"code": "call_timeout"})
    await calls.finish(api.database, WORKER, [failed])

    async def found(**query: str) -> list[str]:
        return listed(await shown(api.http, "calls", **query))

    assert await found(tenant="filter-a") == [asked, done]
    assert await found(tenant="filter-a", state="succeeded") == [done]
    assert await found(tenant="filter-a", state="went_wrong") == [asked]
    assert await found(tenant="filter-b", state="queued", within="1h") == [theirs]
    assert await found(tenant="filter-a", is_error="yes") == []
    assert await found(tenant="filter-a", server="demo", tool="demo_echo") == [asked, done]
    assert await found(tenant="filter-a", server="elsewhere") == []
    assert "call_timeout" in await shown(api.http, "calls", tenant="filter-a")
    runs = await shown(api.http, "runs", tenant="filter-a", state="open")
    assert listed(runs) == [run["id"]]
    assert "failed 1 succeeded 1" in text_of(runs)


@requirement("console:newest")
@pytest.mark.parametrize(
    "query", ["state=lost", "within=1y", "is_error=maybe", "after=12", "server=%00", "find=%0a1"]
)
async def test_what_cannot_be_chosen_is_refused_by_a_page_that_says_so(
    api: Api, query: str
) -> None:
    answer = await api.http.get(f"/console/calls?{query}", headers={"accept": "text/html"})
    assert answer.status_code == (200 if query == "find=%0a1" else 422)
    assert answer.headers["content-type"].startswith("text/html")


@requirement("console:find")
async def test_what_is_typed_leads_to_the_one_call_or_run_that_it_names(api: Api) -> None:
    run = await api.run("finder")
    headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
    body = {"tool": "demo_echo", "arguments": {"text": "x"}, "idempotency_key": "order-17"}
    path = f"/v1/runs/{run['id']}/calls"
    call = (await api.http.post(path, json=body, headers=headers)).json()["id"]
    where = f"/console/calls/{call}"
    for text in (call, call.upper(), call[:13], call.replace("-", ""), "order-17", TRACE,
                 headers["traceparent"], f"  {call} "):  # fmt: skip
        answer = await api.http.get("/console/calls", params={"find": text})
        assert (answer.status_code, answer.headers.get("location")) == (303, where), text
    answer = await api.http.get("/console/calls", params={"find": run["id"]})
    assert answer.headers["location"] == f"/console/runs/{run['id']}"
    for nothing in (UNKNOWN_ID, HOSTILE, "order-1"):
        page = await shown(api.http, "calls", find=nothing)
        assert "Nothing is named" in page
        assert HOSTILE not in page


# -- one call


@requirement("console:call", "console:timeline")
async def test_a_call_shows_its_phases_and_its_end_with_everything_escaped(api: Api) -> None:
    run = await api.run()
    call = (await api.submit(run, text=HOSTILE))["id"]
    before = await shown(api.http, f"calls/{call}")
    assert "every 1s" in before
    assert "Queue" in text_of(before)
    await api.work(call)
    page = await shown(api.http, f"calls/{call}")
    assert "every 1s" not in page, "what has ended does not change"
    assert HOSTILE not in page
    said = text_of(page)
    assert HOSTILE.replace('"', '\\"') in said
    assert re.search(r"Queue [\d.]+ .+ Call until .+ 1 ms Checks, gate, record", said)
    assert "call.succeeded" in said
    assert f'href="/console/runs/{run["id"]}"' in page
    assert "Arguments" not in said, "the API shows them to nobody either"


@requirement("console:call")
async def test_a_failed_call_shows_its_error_and_what_to_do(api: Api) -> None:
    call = (await api.submit(await api.run(), text="x"))["id"]
    (claim,) = await calls.claim(api.database, WORKER, [call])
    assert claim is not None
    error = {
        "code": "call_timeout",
        "message": f"late {HOSTILE}",
        "retryable": True,
        "hint": "wait",
    }
    stopped = {"stop": {"rung": "sigterm", "elapsed_s": 5.02}}
    await api.http.post(f"/console/calls/{call}/cancel")
    ending = Ending(call, claim.fence, CallState.STOPPED, error=error, timings=stopped)
    await calls.finish(api.database, WORKER, [ending])
    page = await shown(api.http, f"calls/{call}")
    assert HOSTILE not in page
    said = text_of(page)
    assert f"call_timeout retryable late {HOSTILE} wait" in said
    assert "ended by SIGTERM; that took 5.020 s" in said


@requirement("console:waterfall")
async def test_a_call_shows_the_steps_that_were_kept_of_its_trace(api: Api) -> None:
    call = (await api.submit(await api.run(), text="x"))["id"]
    page = await until(lambda: _with(api, call, "enqueue"))
    assert "POST /v1/runs/{run_id}/calls" in text_of(page)
    async with api.client(await api.key(tenant="acme")) as agent:
        assert 'id="trace"' not in await shown(agent, f"calls/{call}")


async def _with(api: Api, call: str, word: str) -> str:
    page = await shown(api.http, f"calls/{call}")
    return page if word in text_of(page) else ""


@requirement("console:stopping")
async def test_a_stop_says_what_it_could_still_do(api: Api) -> None:
    run = await api.run()
    queued, running, done = [(await api.submit(run, text="x"))["id"] for _ in range(3)]
    await calls.claim(api.database, WORKER, [running])
    await api.work(done)
    said = {
        queued: "stopped before any server saw it",
        running: "its worker was told to stop it",
        done: "Too late",
    }
    for call, words in said.items():
        answer = await api.http.post(f"/console/calls/{call}/cancel")
        assert answer.status_code == 303
        assert words in text_of((await api.http.get(answer.headers["location"])).text)
    assert "stopping" in text_of(await shown(api.http, f"calls/{running}"))
    assert (await api.http.get(f"/v1/calls/{queued}")).json()["state"] == "stopped"


# -- runs


@requirement("console:stopping")
async def test_a_run_is_closed_and_stopped_with_its_calls(api: Api) -> None:
    run = await api.run()
    call = (await api.submit(run, text="x"))["id"]
    page = await shown(api.http, f"runs/{run['id']}")
    assert listed(page) == [call]
    assert "demo_echo" in text_of(page).partition("as the run sees them")[2]
    closed = await api.http.post(f"/console/runs/{run['id']}/close")
    after = text_of((await api.http.get(closed.headers["location"])).text)
    assert "takes no more calls, and those that it has go on" in after
    assert (await api.http.get(f"/v1/calls/{call}")).json()["state"] == "queued"
    stopped = await api.http.post(f"/console/runs/{run['id']}/cancel")
    assert "cancelled stopped 1" in text_of((await api.http.get(stopped.headers["location"])).text)
    assert (await api.http.get(f"/v1/calls/{call}")).json()["state"] == "stopped"


# -- who sees what


@requirement("console:callers")
async def test_a_tenant_sees_its_own_and_cannot_tell_others_from_none(api: Api) -> None:
    mine, theirs = await api.run("mine"), await api.run("theirs")
    body = {"idempotency_key": "theirs-1"}
    call, other = (await api.submit(mine))["id"], (await api.submit(theirs, **body))["id"]
    waits, _ = await waiting(api, "theirs")
    async with api.client(await api.key(tenant="mine")) as agent:
        agent.headers["accept"] = "text/html"
        assert listed(await shown(agent, "calls", tenant="theirs")) == [call]
        assert listed(await shown(agent, "runs", tenant="theirs")) == [mine["id"]]
        for text in (other, other[:8], "theirs-1", theirs["id"]):
            assert "Nothing is named" in await shown(agent, "calls", find=text)
        for path in (f"calls/{other}", f"runs/{theirs['id']}"):
            here = await agent.get(f"/console/{path}")
            nowhere = await agent.get(f"/console/{path[:-36]}{UNKNOWN_ID}")
            assert (here.status_code, nowhere.status_code) == (404, 404)
            assert text_of(here.text).replace(path[-36:], UNKNOWN_ID) == text_of(nowhere.text)
        for path in (f"calls/{other}/cancel", f"runs/{theirs['id']}/cancel"):
            assert (await agent.post(f"/console/{path}")).status_code == 404
        page = await shown(agent, "approvals", decided=waits)
        assert waits not in page
        own = await shown(agent, f"calls/{call}")
    for kept in ("Audit", WORKER, "key:"):
        assert kept not in text_of(own), "that is for operators"
    assert (await api.http.get(f"/v1/calls/{other}")).json()["state"] == "queued"


@requirement("console:callers", "console:deciding")
async def test_each_role_has_the_pages_that_it_has_routes_for(api: Api) -> None:
    call, tenants_key = await waiting(api)
    narrow = Scopes(verbs=(Verb.CALLS_READ,))
    may = {
        await api.key("approver", "acme"): {"approvals"},
        await api.key("auditor", "acme"): set(),
        tenants_key: {"approvals", "calls", "runs"},
        await api.key("operator", None, scopes=narrow): {"calls"},
    }
    for key, pages in may.items():
        async with api.client(key) as client:
            for path in ("approvals", "calls", "runs"):
                answer = await client.get(f"/console/{path}")
                assert answer.status_code == (200 if path in pages else 403), (path, pages)
    async with api.client(tenants_key) as agent:
        assert "Approve" not in await shown(agent, "approvals")
        assert (await decide(agent, call, "approve")).status_code == 403
    async with api.client(await api.key("operator", None, scopes=narrow)) as client:
        page = await shown(client, f"calls/{call}")
        assert "Arguments" not in text_of(page)
        assert "/cancel" not in page


# -- approvals


@requirement("console:deciding")
async def test_what_waits_is_shown_with_its_arguments_and_hostile_text_is_only_text(
    api: Api,
) -> None:
    call, key = await waiting(api, tool="safe_pay", note=f"{HOSTILE}\u202eevil", card="4111")
    page = await shown(api.http, "approvals")
    assert HOSTILE not in page
    assert "\u202e" not in page, "it would move what stands around it"
    said = text_of(page)
    assert '"card": "[hidden]"' in said
    assert "U+202E" in said
    assert "Approvals 0 of 2" in said
    assert "a key key:" in said
    assert HOSTILE in said, "what the tool says of itself"
    arguments = text_of(await shown(api.http, f"calls/{call}"))
    assert '"card": "[hidden]"' in arguments
    async with api.client(key) as agent:
        assert '"card": "[hidden]"' in text_of(await shown(agent, f"calls/{call}"))


@requirement("console:deciding", "console:forms")
async def test_a_call_is_approved_by_those_it_needs_and_then_runs(api: Api) -> None:
    call, _ = await waiting(api, tool="safe_pay", text="hi")
    for said in ("has 1 of the 2 approvals", "was approved, and is queued now"):
        async with api.signed_in() as boss:
            answer = await decide(boss, call, "approve", reason="known")
            assert answer.status_code == 303, answer.text
            assert said in text_of((await boss.get(answer.headers["location"])).text)
    await api.work(call)
    await notices.sweep(api.database)
    page = text_of(await shown(api.http, f"calls/{call}"))
    assert "Waiting for approval" in page
    assert "Arguments" in page
    assert "succeeded" in page
    decided = text_of(await shown(api.http, "approvals")).partition("Decided lately")[2]
    assert decided.count("“known”") == 2


@requirement("console:deciding")
async def test_a_denial_ends_a_call_and_says_why(api: Api) -> None:
    call, _ = await waiting(api)
    answer = await decide(api.http, call, "deny", reason="not today")
    assert "was denied" in text_of((await api.http.get(answer.headers["location"])).text)
    page = text_of(await shown(api.http, f"calls/{call}"))
    assert "the call was denied: not today" in page


@requirement("console:deciding")
async def test_an_old_page_decides_nothing_and_is_told_what_waits_now(api: Api) -> None:
    call, key = await waiting(api, amount=1)
    page = await shown(api.http, "approvals")
    await api.database.statement(
        "UPDATE calls SET arguments = '{\"amount\": 100}' WHERE id = %(id)s RETURNING id", id=call
    )
    stale = await decide(api.http, call, "approve", page)
    assert stale.status_code == 409
    assert "Nothing was decided" in text_of(stale.text)
    assert '"amount": 100' in text_of(stale.text)
    async with api.client(key) as asker:
        assert (await decide(asker, call, "approve")).status_code == 403
    assert (await decide(api.http, call, "deny")).status_code == 303
    late = await decide(api.http, call, "approve", page)
    assert (late.status_code, "waits for no approval" in late.text) == (409, True)
    none = await api.http.post(f"/console/approvals/{call}/approve", data={})
    assert none.status_code == 422


@requirement("console:deciding")
async def test_who_asked_for_a_call_cannot_approve_it_and_the_page_says_so(api: Api) -> None:
    run = await api.run()
    body = {"tool": "demo_pay", "arguments": {}}
    call = (await api.http.post(f"/v1/runs/{run['id']}/calls", json=body)).json()["id"]
    page = await shown(api.http, "approvals")
    assert "You asked for it" in page
    assert re.search(r"<button[^>]* disabled>Approve", page)
    refused = await decide(api.http, call, "approve", page)
    assert (refused.status_code, "cannot approve it" in refused.text) == (403, True)
