"""The pages of the fleet as a client gets them: escaped, live, and forms that do what verbs do."""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

import httpx2
import pytest

from compose.embedded import free_port
from registry import calls, catalog, ingest, leases, overview
from registry.calls import CallState, Ending
from registry.database import Database
from tests.brokering import Keys
from tests.requirements import requirement
from tests.serving import ECHO, WORKER, Api, serving
from workers.signals import Signals

pytestmark = pytest.mark.anyio

HOSTILE = "<img src=x onerror=alert(1)>"
LEASE = timedelta(seconds=60)
FORM = {"content-type": "application/x-www-form-urlencoded"}
POOL = """
toolfleet_sessions{server="busy",state="idle",version="1"} 2.0
toolfleet_sessions{server="busy",state="in_use",version="1"} 3.0
toolfleet_pool_max_size{server="busy",version="1"} 8.0
toolfleet_pool_waiting{server="busy",version="1"} 4.0
"""


@pytest.fixture
async def api(emptied_api: Api, redis_url: str) -> AsyncIterator[Api]:
    """The API that this module shares, without servers and workers, and with an empty Redis."""
    emptied_api.app.state.lookout.forget()
    yield emptied_api
    for worker in await overview.living_workers(emptied_api.database):
        await leases.close_worker(emptied_api.database, worker["id"])


async def at_work(api: Api, exposition: str = "", server: str = "demo") -> str:
    """Have a worker of a server at work; return its id."""
    worker = f"{server}-host-{uuid.uuid4().hex}"
    await leases.open_worker(api.database, worker, server, "host", 7, LEASE)
    await Signals(api.redis).figures(worker, exposition)
    return worker


async def shown(api: Api, path: str) -> str:
    answer = await api.http.get(path)
    assert answer.status_code == 200, answer.text
    return answer.text


async def post(api: Api, path: str, fields: Mapping[str, str]) -> httpx2.Response:
    return await api.http.post(path, content=urlencode(fields), headers=FORM)


async def events(api: Api) -> list[tuple[str, Any]]:
    entries = (await api.http.get("/v1/audit")).json()["entries"]
    return [(it["event"], it["details"].get("server")) for it in entries]


async def fail(api: Api, message: str, code: str = "call_timeout") -> str:
    """Have a call of `demo` fail, as its worker would; return its id."""
    call = await api.submit(await api.run())
    (claim,) = await calls.claim(api.database, WORKER, [call["id"]])
    assert claim is not None
    error = {"code": code, "message": message, "retryable": True}
    ending = Ending(call["id"], claim.fence, CallState.FAILED, error=error)
    assert await calls.finish(api.database, WORKER, [ending]) == [True]
    return str(call["id"])


@requirement("console:fleet")
async def test_a_fleet_without_servers_says_how_to_register_one(api: Api) -> None:
    assert "toolfleet servers add" in await shown(api, "/console/")


@requirement("console:fleet")
async def test_a_server_is_shown_with_its_sessions_in_words_and_what_waits(api: Api) -> None:
    await api.serve("busy")  # calls of `demo` have failed in other tests
    await at_work(api, POOL, "busy")
    page = await shown(api, "/console/")
    assert "3 of 8 sessions in use, 2 idle, 3 more may be opened, 4 calls wait for one" in page
    assert re.findall('class="how ([a-z]+)">([^<]+)', page) == [("wait", "Every session is busy")]


@requirement("console:needs")
async def test_what_needs_a_person_comes_first_and_says_since_when_and_what_to_do(
    api: Api,
) -> None:
    await api.serve()
    await leases.close_worker(api.database, await at_work(api))
    await api.http.post("/v1/servers/demo/breaker", json={"state": "open", "for_s": 60})
    page = await shown(api, "/console/")
    for said in ("demo: no worker serves its queue", "demo: its breaker is open", "by hand of"):
        assert said in page
    assert page.count("Since") == 2
    assert page.index("its breaker is open") < page.index("Calls a minute")


@requirement("console:fleet")
async def test_while_redis_is_away_the_pages_say_so_and_show_the_rest(
    database: Database,
) -> None:
    async with serving(database, f"redis://127.0.0.1:{free_port()}/0") as api:
        await api.serve()
        for path in ("/console/", "/console/servers/demo"):
            assert "The broker (Redis) is away" in await shown(api, path)


@requirement("console:escaped")
async def test_hostile_names_and_messages_stay_text(api: Api) -> None:
    await api.serve("demo", {**ECHO, "description": HOSTILE}, version=HOSTILE)
    call = await fail(api, HOSTILE)
    await api.http.post(
        "/v1/servers/demo/breaker", json={"state": "open", "for_s": 60, "reason": HOSTILE}
    )
    for path in ("/console/", "/console/servers/demo"):
        page = await shown(api, path)
        assert "<img" not in page
        assert "&lt;img" in page
    assert f"/console/calls/{call}" in await shown(api, "/console/servers/demo")


@requirement("console:fleet-live")
async def test_the_live_part_of_a_page_comes_alone(api: Api) -> None:
    await api.serve()
    for path in ("/console/", "/console/servers/demo"):
        whole, part = await shown(api, path), await shown(api, f"{path}?part=live")
        assert f'data-hx-get="{path}?part=live"' in whole
        assert "<html" not in part
        assert part.strip().startswith("<div id=")


@requirement("console:fleet")
async def test_a_server_is_shown_with_its_tools_and_without_its_secrets(
    database: Database, redis_url: str, keys: Keys
) -> None:
    definition = {
        "name": "demo",
        "transport": "stdio",
        "command": "true",
        "env": {"T": "hush-hush"},
    }
    async with serving(database, redis_url, encryption_keys_file=keys.path) as api:
        added = await api.http.post("/v1/servers", json=definition)
        server = await catalog.get_server(database, "demo")
        await ingest.ingest(database, server.id, server.definition, [ECHO])
        page = await shown(api, "/console/servers/demo")
    assert added.status_code == 201, added.text
    assert "hush-hush" not in page
    for said in ("Give back a text", "additionalProperties", "write", "2 to 8 sessions"):
        assert said in page


@requirement("console:fleet")
async def test_a_server_that_nobody_registered_is_not_found(api: Api) -> None:
    answer = await api.http.get("/console/servers/nobody")
    assert answer.status_code == 404
    assert "There is no server named" in answer.text


@requirement("console:fleet")
async def test_the_last_failures_show_the_cause_and_not_what_the_breaker_refused(api: Api) -> None:
    await api.serve()
    cause = await fail(api, "no answer")
    refused = await fail(api, "refused", "breaker_open")
    page = await shown(api, "/console/servers/demo")
    assert cause in page
    assert refused not in page


# -- forms


@requirement("console:tend")
async def test_the_forms_force_a_breaker_and_the_page_shows_it_at_once(api: Api) -> None:
    await api.serve()
    form = {"state": "open", "for_s": "300", "version": "1"}
    answer = await post(api, "/console/servers/demo/breaker", form)
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/servers/demo")
    assert "Breaker open" in await shown(api, "/console/servers/demo")
    await post(api, "/console/servers/demo/breaker", {"state": "closed"})
    assert "Breaker closed" in await shown(api, "/console/servers/demo")
    told = [event for event, server in await events(api) if server == "demo"]
    assert told[:2] == ["breaker.forced_closed", "breaker.forced_open"]


@requirement("console:tend")
async def test_a_form_acts_for_whoever_is_signed_in_and_only_from_our_own_page(api: Api) -> None:
    await api.serve()
    form = {"state": "open", "for_s": "300"}
    async with api.signed_in() as browser:
        page = await browser.get("/console/servers/demo")
        (csrf, *_) = re.findall(r'name="csrf" value="([0-9a-f]{64})"', page.text)
        forged = await browser.post("/console/servers/demo/breaker", data=form)
        ours = await browser.post("/console/servers/demo/breaker", data={**form, "csrf": csrf})
    assert (forged.status_code, ours.status_code) == (403, 303)
    (entry,) = (await api.http.get("/v1/audit", params={"event": "breaker.*", "limit": 1})).json()[
        "entries"
    ]
    assert entry["actor"].startswith("key:")
    shown_now = (await api.http.get("/v1/servers/demo/breaker")).json()
    assert shown_now["why"] == f"by hand of {entry['actor']}"


@requirement("console:tend")
async def test_a_form_that_makes_no_sense_changes_nothing(api: Api) -> None:
    await api.serve()
    for form in ({"state": "ajar"}, {"state": "open", "for_s": "soon"}, {"for_s": "9"}, {}):
        answer = await post(api, "/console/servers/demo/breaker", form)
        assert answer.status_code == 422, form
    assert (await api.http.get("/v1/servers/demo/breaker")).json()["state"] == "closed"


@requirement("console:tend", "tending:drain")
async def test_the_forms_drain_a_worker_and_have_tools_listed_anew(api: Api) -> None:
    await api.serve()
    drained = await post(api, f"/console/workers/{await at_work(api)}/drain", {})
    assert (drained.status_code, drained.headers["location"]) == (303, "/console/servers/demo")
    assert "draining" in await shown(api, "/console/servers/demo")
    assert ("worker.drain_requested", "demo") in await events(api)
    await post(api, "/console/servers/demo/refresh", {})
    assert (await api.http.get("/v1/servers/demo")).json()["stale"] is True


@requirement("console:operators-only")
async def test_the_pages_and_forms_of_the_fleet_are_for_operators(api: Api) -> None:
    await api.serve()
    for role in ("tenant", "approver", "auditor"):
        async with api.client(await api.key(role)) as client:
            for path in ("/console/", "/console/servers/demo"):
                assert (await client.get(path)).status_code == 403
            for path in ("servers/demo/breaker", "servers/demo/refresh", "workers/x/drain"):
                answer = await client.post(
                    f"/console/{path}", content=urlencode({"state": "open"}), headers=FORM
                )
                assert answer.status_code == 403
    assert (await api.http.get("/v1/servers/demo/breaker")).json()["state"] == "closed"
