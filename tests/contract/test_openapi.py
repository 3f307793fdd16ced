"""Sessions with a real HTTP API by its OpenAPI document: what is listed, sent and answered."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any

import psutil
import pytest

from registry.definitions import parse_definition
from registry.errors import Code, FleetError
from registry.schemas import check_arguments, check_result
from tests.requirements import requirement
from tests.shop import CREDENTIAL, Shop, document, running_shop, shop_definition
from workers.large import LargeReader
from workers.outcome import consequence
from workers.scrub import REPLACEMENT
from workers.session import CallError, Credential, Session, ToolResult

pytestmark = [pytest.mark.anyio, pytest.mark.long]

SECRET = "Bearer shop-secret-of-acme"
LIMIT_S = 20.0
MAX_RESULT_BYTES = 100_000


@asynccontextmanager
async def opened(
    url: str, options: dict[str, Any] | None = None, **rest: Any
) -> AsyncIterator[Session]:
    definition = parse_definition(shop_definition(url, credentials=CREDENTIAL, **rest))
    settings: dict[str, Any] = {
        "credential": Credential("header", "Authorization", SECRET),
        "connect_timeout_s": LIMIT_S,
        "stop_grace_s": 2.0,
        "max_result_bytes": MAX_RESULT_BYTES,
    }
    session = await Session.open(definition, **{**settings, **(options or {})})
    try:
        yield session
    finally:
        await session.close()


@pytest.fixture(scope="module")
async def shop(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shop]:
    async with running_shop(tmp_path_factory.mktemp("shop") / "journal") as shop:
        yield shop


@pytest.fixture(scope="module")
async def session(shop: Shop) -> AsyncIterator[Session]:
    """One session for the tests that leave it as it was."""
    async with opened(shop.url, headers={"X-Shop": "toolfleet"}) as session:
        yield session


@pytest.fixture
async def unreachable(anyio_backend: str) -> AsyncIterator[Session]:
    """A session whose API is not there."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with opened(f"http://127.0.0.1:{port}/v1") as session:
        yield session


async def call(session: Session, tool: str, **arguments: Any) -> ToolResult:
    return await session.call_tool(tool, arguments, timeout_s=LIMIT_S)


async def asked(session: Session, tool: str, **arguments: Any) -> dict[str, Any]:
    """Make a call of the shop; return the request that it saw."""
    result = await call(session, tool, **arguments)
    assert not result.is_error, result.body
    return result.body["structuredContent"]  # type: ignore[no-any-return]


async def failed(session: Session, tool: str, **arguments: Any) -> CallError:
    with pytest.raises(CallError) as caught:
        await call(session, tool, **arguments)
    return caught.value


def text(result: ToolResult) -> str:
    return str(result.body["content"][0]["text"])


# -- tools


@requirement("openapi:tools")
async def test_every_operation_is_listed_with_what_its_method_promises(session: Session) -> None:
    tools = {tool["name"]: tool for tool in await session.list_tools()}
    promised = {
        name: (
            tools[name]["annotations"]["readOnlyHint"],
            tools[name]["annotations"]["idempotentHint"],
            tools[name]["annotations"].get("destructiveHint"),
        )
        for name in ("orders_list", "orders_replace", "orders_delete", "orders_create")
    }
    assert len(tools) == 15
    assert promised == {
        "orders_list": (True, True, None),
        "orders_replace": (False, True, True),
        "orders_delete": (False, True, True),
        "orders_create": (False, False, False),
    }


@requirement("openapi:tools")
async def test_a_tool_is_described_as_its_operation_is(session: Session) -> None:
    (tool,) = [it for it in await session.list_tools() if it["name"] == "orders_list"]
    assert (tool["title"], tool["description"]) == ("List orders", "Lists the newest orders.")
    assert set(tool["inputSchema"]["properties"]) == {"limit", "tags", "X-Trace"}


@requirement("openapi:tools")
async def test_arguments_are_checked_by_the_documents_own_schemas(session: Session) -> None:
    (tool,) = [it for it in await session.list_tools() if it["name"] == "orders_create"]
    check_arguments("orders_create", tool["inputSchema"], {"item": "tea", "gift": {"note": None}})
    with pytest.raises(FleetError, match=r"\$\.gift\.of\.count"):
        check_arguments(
            "orders_create",
            tool["inputSchema"],
            {"item": "tea", "gift": {"of": {"item": "cup", "count": "many"}}},
        )


@requirement("openapi:tools")
async def test_only_what_is_included_is_listed(shop: Shop) -> None:
    chosen = {"include": ["GET *"], "exclude": ["wait"]}
    async with opened(shop.url, openapi=chosen) as session:
        names = {tool["name"] for tool in await session.list_tools()}
    assert {"orders_list", "get_orders_orderId"} < names
    assert not {"wait", "orders_create"} & names


@requirement("openapi:tools")
async def test_many_large_tools_are_listed_in_pages_that_a_worker_reads() -> None:
    one = document()["paths"]["/numbers"]["get"]
    words = {"name": "word", "in": "query", "schema": {"enum": [f"word-{n}" for n in range(2_500)]}}
    many = {
        f"/n/{n}": {"get": {**one, "operationId": f"n{n}", "parameters": [words]}}
        for n in range(40)
    }
    reader = LargeReader(longest_bytes=5_000_000)
    definition = {"document": document(paths=many)}
    options = {"large": reader, "max_result_bytes": 5_000_000}
    async with opened("http://127.0.0.1:9/v1", options, openapi=definition) as session:
        tools = await session.list_tools()
    await reader.close()
    assert len({tool["name"] for tool in tools}) == 40


@requirement("openapi:tools")
async def test_a_document_that_makes_no_tools_says_where_it_is_wrong() -> None:
    wrong = document()
    wrong["paths"]["/wait"]["get"]["parameters"][0]["schema"] = "text"
    with pytest.raises(FleetError) as caught:
        async with opened("http://127.0.0.1:9/v1", openapi={"document": wrong}):
            pass
    assert caught.value.code is Code.SERVER_UNAVAILABLE
    assert "cannot be served: paths/~1wait/get/parameters/0/" in caught.value.message


# -- requests


@requirement("openapi:requests")
async def test_query_and_header_arguments_are_sent_as_such(session: Session) -> None:
    seen = await asked(session, "orders_list", limit=2, tags=["new", "a&b"], **{"X-Trace": "t1"})
    assert seen["query"] == [["limit", "2"], ["tags", "new"], ["tags", "a&b"]]
    assert (seen["headers"]["x-trace"], seen["headers"]["x-shop"]) == ("t1", "toolfleet")
    assert seen["headers"]["accept"].startswith("application/json")


@requirement("openapi:requests")
async def test_a_path_argument_stays_one_segment_of_the_path(session: Session) -> None:
    seen = await asked(session, "get_orders_orderId", orderId="a/b c")
    assert seen["path"] == "/v1/orders/a%2Fb%20c"
    climbing = await call(session, "get_orders_orderId", orderId="../../admin")
    assert climbing.is_error


@requirement("openapi:requests")
@pytest.mark.parametrize(
    ("tool", "path", "method"),
    [("orders_create", {}, "POST"), ("orders_replace", {"orderId": "7"}, "PUT")],
)
async def test_a_body_is_sent_as_json(
    session: Session, tool: str, path: dict[str, str], method: str
) -> None:
    seen = await asked(session, tool, item="tea", gift={"note": None}, **path)
    assert (seen["method"], seen["headers"]["content-type"]) == (method, "application/json")
    assert seen["body"] == '{"item":"tea","gift":{"note":null}}'


@requirement("openapi:requests")
async def test_proxies_are_not_taken_from_the_environment(shop: Shop) -> None:
    proxy = {"http_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}
    async with opened(shop.url, env=proxy, openapi={"include": ["orders/list"]}) as session:
        assert (await asked(session, "orders_list"))["method"] == "GET"


# -- answers


@requirement("openapi:results")
async def test_text_is_text_and_a_list_is_the_result_of_an_object(session: Session) -> None:
    cookie, numbers = await call(session, "cookie"), await call(session, "numbers")
    assert (text(cookie), "structuredContent" in cookie.body) == ("have a cookie", False)
    assert numbers.body["structuredContent"] == {"result": [1, 2, 3]}


@requirement("openapi:results")
async def test_results_are_checked_only_where_that_is_wanted(shop: Shop, session: Session) -> None:
    (free,) = [it for it in await session.list_tools() if it["name"] == "orders_list"]
    assert "outputSchema" not in free
    checked = {"include": ["orders/list", "wait"], "check_results": True}
    async with opened(shop.url, openapi=checked) as strict:
        tools = {tool["name"]: tool.get("outputSchema") for tool in await strict.list_tools()}
        result = await call(strict, "orders_list")
    assert tools["wait"] is None
    with pytest.raises(FleetError) as caught:
        check_result("orders_list", tools["orders_list"], result.body)
    assert caught.value.code is Code.RESULT_INVALID


@requirement("openapi:errors")
@pytest.mark.parametrize(
    ("code", "said", "told"),
    [
        (404, "the API answered HTTP 404 Not Found: {", {"status": 404}),
        (500, "the API answered HTTP 500 Internal", {"status": 500}),
    ],
)
async def test_a_refusal_is_the_tools_error_with_status_and_excerpt(
    session: Session, code: int, said: str, told: dict[str, Any]
) -> None:
    result = await call(session, "status", code=code)
    assert result.is_error
    assert text(result).startswith(said)
    assert 2_000 < len(text(result)) < 2_200
    assert result.body["structuredContent"] == told


@requirement("openapi:errors", "quota:pause")
async def test_an_api_that_is_called_too_often_says_when_to_come_again(session: Session) -> None:
    error = await failed(session, "status", code=429)
    assert (error.code, error.retry_after_s, error.dispatched) == (Code.RATE_LIMITED, 7.0, False)
    assert not session.poisoned


@requirement("openapi:errors")
async def test_of_a_page_nothing_is_quoted(session: Session) -> None:
    assert text(await call(session, "status", code=502)) == "the API answered HTTP 502 Bad Gateway"


@requirement("openapi:errors")
async def test_a_redirect_is_not_followed(session: Session) -> None:
    result = await call(session, "redirect")
    assert result.is_error
    assert text(result) == "the API answered HTTP 302 Found, a redirect, which is not followed"
    assert result.body["structuredContent"] == {"status": 302, "location": "/tell/redirected"}


@requirement("openapi:unreachable")
async def test_an_api_that_is_not_there_is_a_typed_error_and_the_session_stays(
    unreachable: Session,
) -> None:
    assert await unreachable.list_tools()
    for _ in range(2):
        error = await failed(unreachable, "orders_list")
        assert (error.code, error.dispatched) == (Code.UPSTREAM_UNREACHABLE, False)
    assert consequence(error).keep_session
    assert not unreachable.poisoned


@requirement("openapi:unreachable")
async def test_a_connection_that_breaks_leaves_it_open_whether_the_api_acted(
    session: Session,
) -> None:
    error = await failed(session, "break")
    assert (error.code, error.dispatched) == (Code.UPSTREAM_FAILED, True)


@requirement("openapi:bounds")
@pytest.mark.parametrize(
    ("tool", "size"), [("large", MAX_RESULT_BYTES), ("large", 60_000), ("packed", 50_000_000)]
)
async def test_an_answer_that_is_too_large_costs_its_call_and_nothing_else(
    session: Session, tool: str, size: int
) -> None:
    error = await failed(session, tool, size=size)
    assert (error.code, error.dispatched) == (Code.RESULT_TOO_LARGE, True)
    assert not session.poisoned
    assert not (await call(session, tool, size=1_000)).is_error


# -- cancellation


@requirement("openapi:cancels")
async def test_a_cancelled_call_breaks_off_its_request(shop: Shop) -> None:
    async with opened(shop.url, openapi={"include": ["wait"]}) as session:
        waiting = asyncio.create_task(call(session, "wait", token="cancelled"))
        await shop.saw("started", "cancelled")
        waiting.cancel()
        await shop.saw("cancelled", "cancelled")


@requirement("openapi:cancels")
async def test_a_call_that_takes_too_long_breaks_off_its_request(shop: Shop) -> None:
    async with opened(shop.url, openapi={"include": ["wait", "orders/list"]}) as session:
        await asked(session, "orders_list")  # so that the request is under way by then
        with pytest.raises(CallError) as caught:
            await session.call_tool("wait", {"token": "late"}, timeout_s=2)
        assert caught.value.code is Code.CALL_TIMEOUT
        await shop.saw("cancelled", "late")


@requirement("openapi:cancels")
async def test_a_session_that_ends_takes_its_request_and_its_process_along(shop: Shop) -> None:
    async with opened(shop.url, openapi={"include": ["wait"]}) as session:
        waiting = asyncio.create_task(call(session, "wait", token="closed"))
        await shop.saw("started", "closed")
        report = await session.close()
        assert report.rung in {"exited", "sigterm"}
        await shop.saw("cancelled", "closed")
        with pytest.raises(CallError):
            await waiting


# -- secrets


@requirement("openapi:credentials")
async def test_a_credential_goes_out_in_its_header(session: Session) -> None:
    seen = await asked(session, "orders_list")
    assert seen["heard"] == sha256(SECRET.encode()).hexdigest()


@requirement("openapi:credentials")
async def test_no_argument_replaces_the_credential(session: Session) -> None:
    seen = await asked(session, "orders_list", Authorization="Bearer somebody-elses")
    assert seen["heard"] == sha256(SECRET.encode()).hexdigest()


@requirement("openapi:credentials")
async def test_what_the_api_repeats_of_a_credential_is_replaced(
    session: Session, unreachable: Session
) -> None:
    refusal = await call(session, "status", code=403)
    assert f'"sent":"{REPLACEMENT}"' in text(refusal).replace(" ", "")
    error = await failed(unreachable, "orders_list")
    listed = await session.list_tools()
    assert "shop-secret" not in f"{refusal} {error.as_dict()} {listed}"


@requirement("openapi:credentials")
async def test_a_credential_and_a_document_are_in_no_command_line_or_environment(
    session: Session,
) -> None:
    assert session.pid is not None
    family = [psutil.Process(session.pid), *psutil.Process(session.pid).children(recursive=True)]
    seen = [f"{it.cmdline()} {it.environ()}" for it in family]
    assert any("workers.openapi_server" in it for it in seen)
    assert not [it for it in seen if "shop-secret" in it or "orders" in it]


@requirement("openapi:apart")
async def test_a_cookie_is_forgotten_by_the_next_call(session: Session) -> None:
    await call(session, "cookie")
    assert "cookie" not in (await asked(session, "orders_list"))["headers"]


@requirement("openapi:credentials")
async def test_a_missing_credential_cannot_be_given_by_an_argument(shop: Shop) -> None:
    async with opened(shop.url, {"credential": None}) as session:
        seen = await asked(session, "orders_list", Authorization="Bearer made-up")
    assert "authorization" not in seen["headers"]
