"""The pages of the fleet as people see them: a server that fails, watched and tended."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Page, expect

from tests.browser.conftest import inaccessible
from tests.fleet.driver import Fleet
from tests.requirements import requirement
from tests.waiting import until

pytestmark = pytest.mark.anyio

WITHIN_MS = 20_000
SERVER = "/console/servers/wedged"


@pytest.fixture(scope="module", autouse=True)
async def wedged(fleet: Fleet) -> AsyncIterator[None]:
    """A server whose `sleep` outlasts its timeout, and whose breaker opens for two seconds."""
    await fleet.serve(
        fleet.sleeper(
            "wedged",
            tools={"sleep": {"delivery": "read", "timeout_s": 0.2}, "echo": {"delivery": "read"}},
            breaker={"consecutive_timeouts": 3, "open_for_s": 2},
        ),
        within_s=90,
    )
    yield
    await fleet.clear()


async def mark(page: Page) -> None:
    """Put a mark on a page that a reload would wipe off."""
    await page.evaluate("document.body.dataset.mark = 'kept'")


async def is_marked(page: Page) -> bool:
    return await page.evaluate("document.body.dataset.mark") == "kept"


async def wedge(fleet: Fleet) -> None:
    """Have calls time out until the breaker is open."""
    run = await fleet.run()
    for number in range(3):
        await fleet.call(run, "wedged_sleep", seconds=60, token=f"late-{number}")


async def mend(fleet: Fleet) -> None:
    """Call what answers, until the breaker has closed."""
    run = await fleet.run()

    async def passes() -> bool:
        return (await fleet.call(run, "wedged_echo", text="x"))["state"] == "succeeded"

    await until(passes)


@requirement("console:fleet-live")
async def test_a_servers_breaker_is_seen_to_open_and_to_close_without_a_reload(
    fleet: Fleet, tab: Page
) -> None:
    await tab.goto(SERVER)
    await mark(tab)
    breaker = tab.locator(".breaker")
    await expect(breaker).to_contain_text("Breaker closed")
    await wedge(fleet)
    await expect(breaker).to_contain_text("3 timeouts in a row", timeout=WITHIN_MS)
    await expect(tab.get_by_role("status")).to_have_text("Not called: its breaker is open")
    await mend(fleet)
    await expect(breaker).to_contain_text("Breaker closed", timeout=WITHIN_MS)
    failures = tab.get_by_role("list", name="Last failures")
    await expect(failures).to_contain_text("call_timeout")
    assert await is_marked(tab)


@requirement("console:fleet-live", "console:needs")
async def test_the_fleet_page_says_what_needs_somebody_until_it_does_not(
    fleet: Fleet, phone: Page
) -> None:
    await phone.goto("/console/")
    await mark(phone)
    await fleet.http.post(
        "/v1/servers/wedged/breaker",
        json={"state": "open", "for_s": 600, "reason": "a rehearsal"},
    )
    needs = phone.get_by_role("list", name="What needs somebody now")
    await expect(needs).to_contain_text("wedged: its breaker is open", timeout=WITHIN_MS)
    await expect(needs).to_contain_text("a rehearsal")
    await fleet.http.post("/v1/servers/wedged/breaker", json={"state": "closed"})
    await expect(phone.get_by_text("its breaker is open")).to_have_count(0, timeout=WITHIN_MS)
    assert await is_marked(phone)


@requirement("console:tend")
async def test_a_breaker_is_forced_open_and_closed_by_its_buttons(fleet: Fleet, tab: Page) -> None:
    await tab.goto("/console/")
    await tab.get_by_role("link", name="wedged", exact=True).click()
    await tab.get_by_role("button", name="Force open 5 minutes").click()
    await expect(tab.locator(".breaker")).to_contain_text("Breaker open")
    await expect(tab.locator(".breaker")).to_contain_text("by hand")
    run = await fleet.run()
    refused = await fleet.call(run, "wedged_echo", text="x")
    assert refused["error"]["code"] == "breaker_open"
    await tab.get_by_role("button", name="Close now").click()
    await expect(tab.locator(".breaker")).to_contain_text("Breaker closed")
    await mend(fleet)


@requirement("console:accessible")
@pytest.mark.parametrize("path", ["/console/", SERVER])
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_pages_are_accessible_and_fit_a_desk_and_a_phone(
    tab: Page, phone: Page, path: str, scheme: str
) -> None:
    for page in (tab, phone):
        await page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
        await page.goto(path)
        for details in await page.locator("details").all():
            await details.locator("summary").click()
        assert await inaccessible(page) == []
        wider = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert await page.evaluate(wider) == 0
