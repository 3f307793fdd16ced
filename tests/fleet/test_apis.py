"""HTTP APIs behind a whole fleet, by their OpenAPI documents: called, stopped, and kept apart."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.driver import Fleet
from tests.requirements import requirement
from tests.shop import CREDENTIAL, Shop, running_shop, shop_definition

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(150)]

SECRETS = {
    "acme": "Bearer secret-of-acme",
    "umbrella": "Bearer secret-of-umbrella",
    "*": "shared-1",
}


@pytest.fixture(scope="module")
async def shop(anyio_backend: str, folder: Path) -> AsyncIterator[Shop]:
    async with running_shop(folder / "shop.journal") as shop:
        yield shop


@pytest.fixture(scope="module")
async def fleet(shop: Shop, empty_fleet: Fleet) -> Fleet:
    secrets = json.dumps({who: {"shop": SECRETS[who]} for who in SECRETS})
    empty_fleet.credentials_file.write_text(secrets)
    pool = {"min_idle": 1, "max_size": 4}
    await empty_fleet.serve(
        shop_definition(shop.url, credentials=CREDENTIAL, pool=pool),
        {**shop_definition("http://127.0.0.1:9/v1", pool=pool), "name": "closed"},
    )
    return empty_fleet


def seen(call: dict[str, Any]) -> dict[str, Any]:
    """Return the request that the shop saw."""
    assert (call["state"], call["is_error"]) == ("succeeded", False), call
    return call["result"]["structuredContent"]  # type: ignore[no-any-return]


@requirement("openapi:fleet", "openapi:credentials")
async def test_an_operation_is_called_with_its_tenants_credential(fleet: Fleet) -> None:
    for tenant in ("acme", "umbrella"):
        run = await fleet.run(tenant)
        request = seen(await fleet.call(run, "shop_orders_create", item="tea", count=2))
        assert json.loads(request["body"]) == {"item": "tea", "count": 2}
        assert request["heard"] == sha256(SECRETS[tenant].encode()).hexdigest()


@requirement("openapi:fleet", "openapi:delivery")
@pytest.mark.parametrize(
    ("tool", "arguments", "delivery"),
    [
        ("orders_list", {}, "read"),
        ("orders_replace", {"orderId": "7", "item": "tea"}, "idempotent"),
        ("orders_create", {"item": "tea"}, "write"),
    ],
)
async def test_a_call_is_delivered_as_its_operations_method_allows(
    fleet: Fleet, tool: str, arguments: dict[str, Any], delivery: str
) -> None:
    call = await fleet.call(await fleet.run(), f"shop_{tool}", **arguments)
    assert (call["state"], call["delivery"]) == ("succeeded", delivery)


@requirement("openapi:fleet", "openapi:cancels")
async def test_a_stopped_call_breaks_off_its_request_to_the_api(fleet: Fleet, shop: Shop) -> None:
    run = await fleet.run()
    call_id = await fleet.submit(run, "shop_wait", token="stopped")
    await shop.saw("started", "stopped")
    assert await fleet.cancel(call_id) == "stop_requested"
    call = await fleet.ended(call_id)
    assert (call["state"], call["error"]["code"]) == ("stopped", "stopped")
    await shop.saw("cancelled", "stopped")


@requirement("openapi:fleet", "openapi:errors")
async def test_a_refusal_is_a_call_that_succeeded_with_an_error(fleet: Fleet) -> None:
    call = await fleet.call(await fleet.run(), "shop_status", code=404)
    assert (call["state"], call["is_error"]) == ("succeeded", True)
    assert call["result"]["structuredContent"] == {"status": 404}
    assert "secret-of" not in json.dumps(call)


@requirement("openapi:fleet", "openapi:unreachable")
async def test_a_call_of_an_api_that_is_not_there_fails_and_can_be_made_again(fleet: Fleet) -> None:
    call = await fleet.call(await fleet.run(), "closed_orders_create", item="tea")
    assert (call["state"], call["error"]["code"]) == ("failed", "upstream_unreachable")
    assert call["error"]["retryable"]
