"""The door of Flower against a running API; the whole of Flower is in tests/fleet."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator

import httpx2
import pytest
from celery import Celery
from flower.app import Flower
from flower.options import options
from flower.urls import handlers
from pydantic import SecretStr
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import HTTPError

from api.console.sessions import COOKIE
from compose.flower_door import KEPT_FOR_S, Door, close_doors
from registry.settings import Settings
from tests.requirements import requirement
from tests.serving import Api

pytestmark = pytest.mark.anyio

NOBODY = "http://127.0.0.1:1"


class Clock:
    """A clock that is moved by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def door(shared_api: Api, clock: Clock) -> AsyncIterator[Door]:
    async with httpx2.AsyncClient(base_url=shared_api.url, trust_env=False) as http:
        yield door_of(http, clock, flower_api_url=shared_api.url)


def door_of(http: httpx2.AsyncClient, clock: Clock, **settings: str) -> Door:
    given = Settings(
        flower_url="http://127.0.0.1:5555", flower_auth=SecretStr("reader:pass"), **settings
    )
    return Door(given, connect=lambda _: http, clock=clock)


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


@requirement("celery:flower-sign-in")
async def test_an_operators_key_opens_flower_under_any_name(shared_api: Api, door: Door) -> None:
    key = await shared_api.key("operator", None)
    for shown in (basic("operator", key), basic("ada", key), {"Authorization": f"Bearer {key}"}):
        visitor = await door.visitor(shown)
        assert visitor is not None
        assert (visitor.name, visitor.csrf) == ("a key", "")
    for nothing in (
        basic("operator", "tf_guess"),
        basic("reader", ""),
        basic("reader", "é\r\nx: y"),
        {"Authorization": "Basic"},
        {"Authorization": "Bearer é"},
        {"Cookie": "name=é"},
        {},
    ):
        assert await door.visitor(nothing) is None


@requirement("celery:flower-sign-in")
async def test_a_session_that_ended_opens_flower_for_seconds_at_most(
    shared_api: Api, door: Door, clock: Clock
) -> None:
    async with shared_api.signed_in() as browser:
        shown = {"Cookie": f"other=é; {COOKIE}={browser.cookies[COOKIE]}; _xsrf=2"}
        visitor = await door.visitor(shown)
        assert visitor is not None
        await browser.post("/console/sign-out", data={"csrf": visitor.csrf})
    assert await door.visitor(shown) == visitor
    clock.now += KEPT_FOR_S
    assert await door.visitor(shown) is None


@requirement("celery:flower-sign-in")
async def test_flower_is_for_operators_whose_key_is_not_narrowed(
    shared_api: Api, door: Door
) -> None:
    for role in ("tenant", "approver", "auditor"):
        with pytest.raises(HTTPError) as refused:
            await door.visitor(basic("x", await shared_api.key(role)))
        assert refused.value.status_code == 403


@requirement("celery:flower-sign-in")
async def test_the_password_for_programs_reads_and_stops_nothing(door: Door) -> None:
    reader = await door.visitor(basic("reader", "pass"))
    assert reader is not None
    with pytest.raises(HTTPError) as refused:
        await door.stop(reader, "00000000-0000-4000-8000-000000000000")
    assert refused.value.status_code == 403


@pytest.fixture
async def reader(
    shared_api: Api, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[httpx2.AsyncClient]:
    """A program that has the password, before a Flower without workers."""
    closed = list(handlers)
    monkeypatch.setattr("compose.flower_door.handlers", closed)
    monkeypatch.setattr("flower.app.default_handlers", closed)
    close_doors(Settings(flower_api_url=shared_api.url, flower_auth=SecretStr("reader:pass")))
    socket, port = bind_unused_port()
    server = HTTPServer(Flower(options, Celery(set_as_current=False)))
    server.add_socket(socket)
    url = f"http://127.0.0.1:{port}"
    async with httpx2.AsyncClient(base_url=url, auth=("reader", "pass"), trust_env=False) as http:
        yield http
    server.stop()
    await server.close_all_connections()


@requirement("celery:flower-sign-in")
@pytest.mark.parametrize(
    "path",
    [
        "worker/shutdown/celery@one",
        "worker/pool/shrink/celery@one",
        "worker/queue/cancel-consumer/celery@one",
        "task/send-task/some.task",
        "task/rate-limit/some.task",
        "task/revoke/00000000-0000-4000-8000-000000000000",
    ],
)
async def test_the_password_for_programs_changes_nothing(
    reader: httpx2.AsyncClient, path: str
) -> None:
    for method in ("POST", "PUT", "DELETE"):
        answer = await reader.request(method, f"/api/{path}", json={})
        assert (answer.status_code, "reads alone" in answer.text) == (403, True), answer.text


@requirement("celery:flower-sign-in")
async def test_the_password_for_programs_reads_figures_and_the_list_of_tasks(
    reader: httpx2.AsyncClient,
) -> None:
    assert (await reader.get("/metrics")).status_code == 200
    form = {"draw": 1, "start": 0, "length": 10, "order[0][column]": 0}
    listed = await reader.post("/tasks/datatable", data=form)
    assert (listed.status_code, listed.json()["data"]) == (200, [])


@requirement("celery:flower-sign-in")
async def test_flower_is_closed_while_the_api_is_away(clock: Clock) -> None:
    async with httpx2.AsyncClient(base_url=NOBODY, trust_env=False) as http:
        door = door_of(http, clock, flower_api_url=NOBODY)
        with pytest.raises(HTTPError) as refused:
            await door.visitor(basic("operator", "tf_key"))
    assert refused.value.status_code == 503


@requirement("celery:flower-sign-in")
async def test_the_way_to_the_sign_in_goes_by_the_name_that_the_browser_uses(clock: Clock) -> None:
    async with httpx2.AsyncClient(base_url=NOBODY) as http:
        local = door_of(http, clock, flower_api_url="http://127.0.0.1:8080")
        away = door_of(http, clock, public_url="https://fleet.example")
    back = "http%3A%2F%2Flocalhost%3A5555%2Ftasks%3Fa%3Db"
    assert local.sign_in("localhost:5555", "/tasks?a=b") == (
        f"http://localhost:8080/console/sign-in?next={back}"
    )
    back = "http%3A%2F%2F127.0.0.1%3A5555%2F"
    for host in ("evil.example", "evil.example:5555", "127.0.0.1.evil.example", ""):
        assert away.sign_in(host, "/") == f"https://fleet.example/console/sign-in?next={back}"
