"""Signing in to the console and out of it, and to Flower behind it, as people do."""

from __future__ import annotations

import pytest
from playwright.async_api import Browser, Page, expect

from tests.browser.conftest import DESK, PHONE, inaccessible, sign_in, stranger
from tests.fleet.driver import Fleet
from tests.requirements import requirement

pytestmark = pytest.mark.anyio

PAGE = "/console/sign-in"


@requirement("console:sign-in", "console:sign-out")
async def test_somebody_signs_in_is_led_back_and_signs_out(chromium: Browser, fleet: Fleet) -> None:
    async with stranger(chromium, fleet, DESK) as page:
        await page.goto("/console/session")
        await expect(page).to_have_url(f"{fleet.local.api_url}{PAGE}?next=/console/session")
        await sign_in(page, "tf_not-a-key")
        await expect(page.get_by_role("alert")).to_have_text("The API key is not known.")
        await expect(page.get_by_label("API key or token")).to_be_focused()
        await sign_in(page, fleet.local.operator_key)
        await expect(page).to_have_url(f"{fleet.local.api_url}/console/session")
        await page.goto(PAGE)
        await page.context.clear_cookies()
        await page.goto("/console/")
        await expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")


@requirement("console:sign-out")
async def test_who_signs_out_is_out_in_every_tab(tab: Page, fleet: Fleet) -> None:
    other = await tab.context.new_page()
    for page in (tab, other):
        await page.goto("/console/sign-in")
        await page.goto("/console/")
    await tab.get_by_role("button", name="Sign out").click()
    await expect(tab).to_have_url(f"{fleet.local.api_url}{PAGE}")
    await other.reload()
    await expect(other).to_have_url(f"{fleet.local.api_url}{PAGE}?next=/console/")


@requirement("console:sign-out")
async def test_a_live_page_whose_session_ended_elsewhere_goes_to_the_sign_in(
    tab: Page, fleet: Fleet
) -> None:
    await tab.goto("/console/")
    await fleet.database.statement(
        "UPDATE console_sessions SET ended_at = now() WHERE ended_at IS NULL RETURNING digest"
    )
    await tab.evaluate(
        "setInterval(() => htmx.ajax('GET', location.pathname,"
        " {target: '#main', select: '#main', swap: 'outerHTML'}), 300)"
    )
    await tab.wait_for_url(f"**{PAGE}?next=/console/")
    await sign_in(tab, fleet.local.operator_key)
    await expect(tab).to_have_url(f"{fleet.local.api_url}/console/")


@requirement("console:sign-in")
async def test_the_keyboard_is_enough(chromium: Browser, fleet: Fleet) -> None:
    async with stranger(chromium, fleet, DESK) as page:
        await page.goto("/console/")
        await page.keyboard.type(fleet.local.operator_key)  # the field has the focus
        await page.keyboard.press("Enter")
        await expect(page).to_have_url(f"{fleet.local.api_url}/console/")
        await page.keyboard.press("Tab")
        skip = page.get_by_role("link", name="Skip to content")
        await expect(skip).to_be_focused()
        assert await skip.evaluate("it => getComputedStyle(it).outlineStyle") == "solid"
        await page.keyboard.press("Enter")
        await expect(page.locator("#main")).to_be_focused()
        await page.get_by_role("button", name="Sign out").focus()
        await page.keyboard.press("Enter")
        await expect(page.get_by_label("API key or token")).to_be_focused()


@requirement("console:accessible")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
async def test_the_sign_in_and_an_error_are_accessible(
    chromium: Browser, fleet: Fleet, size: dict[str, int], scheme: str
) -> None:
    async with stranger(chromium, fleet, size) as page:
        await page.emulate_media(color_scheme=scheme)
        await page.goto(PAGE)
        assert await inaccessible(page) == []
        await sign_in(page, "tf_not-a-key")
        await expect(page.get_by_role("alert")).to_be_visible()
        assert await inaccessible(page) == []
        width = await page.evaluate("document.documentElement.scrollWidth")
        assert width <= size["width"]


@requirement("console:accessible")
async def test_a_theme_that_was_chosen_stays_chosen(tab: Page) -> None:
    await tab.goto(PAGE)
    ground = "getComputedStyle(document.body).backgroundColor"
    light = await tab.evaluate(ground)
    await tab.get_by_label("Theme").select_option("dark")
    dark = await tab.evaluate(ground)
    assert dark != light
    await tab.reload()
    assert await tab.evaluate(ground) == dark
    assert await inaccessible(tab) == []
    await tab.get_by_label("Theme").select_option("System")
    assert await tab.evaluate(ground) == light


@requirement("celery:flower-sign-in")
async def test_the_button_of_flower_stops_a_call_for_who_is_signed_in(
    chromium: Browser, fleet: Fleet
) -> None:
    await fleet.serve(fleet.sleeper("flowered"))
    call_id = await fleet.submit(await fleet.run(), "flowered_sleep", seconds=60, token="doomed")
    await fleet.journal("flowered").saw("started", "doomed")
    async with stranger(chromium, fleet, DESK) as page:
        task = f"{fleet.local.flower_url}/task/{call_id}"
        await page.goto(task)
        await sign_in(page, fleet.local.operator_key)
        await expect(page).to_have_url(task)
        await expect(page.get_by_text("flowered_sleep").first).to_be_visible()
        await page.get_by_role("button", name="Terminate").click()
        await expect(page.get_by_text(f"Call {call_id}: stop requested")).to_be_visible()
    assert (await fleet.ended(call_id))["state"] == "stopped"
    await fleet.clear()
