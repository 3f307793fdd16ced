"""What an operator does with runs, calls and approvals in a browser, in front of a real fleet."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from playwright.async_api import Page, expect

from tests.browser.conftest import inaccessible
from tests.fleet.driver import Fleet
from tests.requirements import requirement

pytestmark = pytest.mark.anyio

SERVER = "pages"
LONG_S, PATIENCE_MS = 60.0, 20_000


@pytest.fixture(scope="module")
async def served(fleet: Fleet) -> AsyncIterator[Fleet]:
    """The fleet with a server, to whose tool `write` one has to agree."""
    tools = {it: {"delivery": "read"} for it in ("echo", "sleep")}
    tools["write"] = {"delivery": "write", "approval": True}
    await fleet.serve(fleet.sleeper(SERVER, tools=tools))
    yield fleet
    await fleet.http.delete(f"/v1/servers/{SERVER}")


@pytest.fixture(params=["tab", "phone"])
def page(request: pytest.FixtureRequest, served: Fleet) -> Page:
    """A tab of a desktop's width, and one of a phone's."""
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


async def ask(fleet: Fleet, tool: str, **arguments: Any) -> tuple[str, str]:
    """Return a new run and its call, by somebody else than who looks on."""
    made = await fleet.http.post(
        "/v1/keys", json={"name": "some agent", "role": "tenant", "tenant": "acme"}
    )
    headers = {"authorization": f"Bearer {made.json()['key']}"}
    async with httpx2.AsyncClient(base_url=fleet.local.api_url, headers=headers) as agent:
        run = (await agent.post("/v1/runs", json={})).json()
        body = {"tool": f"{SERVER}_{tool}", "arguments": arguments}
        call = await agent.post(f"/v1/runs/{run['id']}/calls", json=body)
    assert call.status_code == 202, call.text
    return run["id"], call.json()["id"]


async def sees(page: Page, text: str) -> None:
    """Return once the page says something, by itself."""
    await expect(page.get_by_role("main")).to_contain_text(text, timeout=PATIENCE_MS)


@requirement("console:find", "console:call")
async def test_a_call_is_found_by_its_id_and_watched_to_its_end(served: Fleet, page: Page) -> None:
    _, call = await ask(served, "write", token=f"found in {page.viewport_size}")
    await page.goto("/console/calls")
    await page.get_by_label("Find a call or run").fill(call)
    await page.keyboard.press("Enter")
    await page.wait_for_url(f"**/console/calls/{call}")
    await expect(page.get_by_role("button", name="Stop")).to_be_visible()
    shown = (await served.http.get(f"/v1/approvals/{call}")).json()
    body = {"binding": shown["binding"]}
    assert (await served.http.post(f"/v1/approvals/{call}/approve", json=body)).is_success
    await sees(page, "succeeded")
    await sees(page, "Checks, gate, record")
    await expect(page.get_by_role("region", name="Result, redacted")).to_be_visible()
    await expect(page.get_by_role("button", name="Stop")).to_have_count(0)
    assert await page.locator("[data-live]").count() == 0, "what has ended is not asked for again"


@requirement("console:deciding")
async def test_a_waiting_call_is_approved_and_seen_to_finish(served: Fleet, page: Page) -> None:
    await page.goto("/console/approvals")
    _, call = await ask(served, "write", token=f"approved in {page.viewport_size}")
    card = page.locator(f"#call-{call}")
    await expect(card).to_be_visible(timeout=PATIENCE_MS)
    await expect(card).to_contain_text("approved in")
    await expect(card).to_contain_text("some agent")
    await card.get_by_label("Reason (optional)").fill("known")
    await card.get_by_role("button", name="Approve").click()
    await expect(page.get_by_role("alert")).to_contain_text("was approved")
    await page.get_by_role("alert").get_by_role("link").click()
    await sees(page, "succeeded")
    await sees(page, "Waiting for approval")


@requirement("console:stopping")
async def test_a_run_is_stopped_with_the_call_that_it_has(served: Fleet, page: Page) -> None:
    run, call = await ask(served, "sleep", seconds=LONG_S, token=f"run {page.viewport_size}")
    await page.goto(f"/console/runs/{run}")
    row = page.locator(f"#call-{call}")
    await expect(row).to_contain_text("running", timeout=PATIENCE_MS)
    await page.get_by_role("button", name="Stop the run").click()
    await expect(row).to_contain_text("stopped", timeout=PATIENCE_MS)
    await row.get_by_role("link", name=f"{SERVER}_sleep").click()
    await sees(page, "that took")


@requirement("console:stopping", "console:timeline")
async def test_a_call_is_stopped_and_shows_by_which_rung(served: Fleet, tab: Page) -> None:
    _, call = await ask(served, "sleep", seconds=LONG_S, token="one call")
    await tab.goto(f"/console/calls/{call}")
    await sees(tab, "running")
    await tab.get_by_role("button", name="Stop").click()
    await expect(tab.get_by_role("alert")).to_contain_text("its worker was told to stop it")
    await sees(tab, "its server's process ended when it was told to stop")
    await sees(tab, "Trace")


@requirement("console:call")
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_pages_are_usable_by_everyone_at_every_width(
    served: Fleet, page: Page, scheme: Any
) -> None:
    run, done = await ask(served, "echo", text="hello")
    _, waits = await ask(served, "write", token="not yet")
    await served.ended(done)
    await page.emulate_media(color_scheme=scheme)
    for path in ("calls", f"calls/{done}", f"calls/{waits}", "calls?find=nothing", "runs",
                 f"runs/{run}", "approvals"):  # fmt: skip
        await page.goto(f"/console/{path}")
        for fold in await page.locator("summary").all():
            await fold.click()
        assert await inaccessible(page) == [], path
        wide = await page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, f"{path} is wider than the screen"
    await served.cancel(waits)
