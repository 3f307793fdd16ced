"""An operator governs a fleet in the console: decides about a change, tries a version, verifies."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, expect

from tests.browser.conftest import inaccessible
from tests.changing import Changing, changing
from tests.fleet.driver import LIMIT_S, Fleet
from tests.fleet.test_rollouts import add_canary, crm
from tests.requirements import requirement
from tests.waiting import until

pytestmark = pytest.mark.anyio

SEEN_MS = LIMIT_S * 1000
CRM = "crm-tried"


async def serve_changing(fleet: Fleet, server: Changing, name: str) -> None:
    """Serve a server whose new tools are held."""
    await fleet.serve(server.definition(name, changes={"added": "hold"}))


async def accessible(page: Page) -> None:
    assert await inaccessible(page) == []


@requirement("console:changes")
async def test_a_changed_schema_appears_by_itself_and_is_accepted_by_a_button(
    fleet: Fleet, tab: Page, tmp_path: Path
) -> None:
    async with changing("stdio", tmp_path) as server:
        await serve_changing(fleet, server, "changing-desk")
        await tab.goto("/console/changes")
        card = tab.get_by_role("article", name="changing-desk / second")
        await expect(card).to_have_count(0)
        server.says("first", "second")
        await expect(card).to_be_visible(timeout=SEEN_MS)
        await expect(card).to_contain_text("new runs are not offered the tool")
        await accessible(tab)
        await card.get_by_role("button", name="Accept").press("Enter")
        await expect(card).to_have_count(0)
        run = await fleet.run(servers=["changing-desk"])
        assert [it["name"] for it in run["tools"]] == [
            "changing_desk_first",
            "changing_desk_second",
        ]
        await tab.goto("/console/servers/changing-desk/changes")
        await expect(tab.get_by_text("accepted by an operator")).to_be_visible()
        await accessible(tab)


@requirement("console:changes")
async def test_a_change_is_rejected_at_a_phones_width(
    fleet: Fleet, phone: Page, tmp_path: Path
) -> None:
    async with changing("stdio", tmp_path) as server:
        await serve_changing(fleet, server, "changing-phone")
        server.says("first", "third")
        await phone.goto("/console/changes")
        card = phone.get_by_role("article", name="changing-phone / third")
        await card.get_by_role("button", name="Reject").click(timeout=SEEN_MS)
        await expect(card.get_by_text("rejected", exact=True)).to_be_visible()
        await expect(card.get_by_role("button", name="Reject")).to_have_count(0)
        assert await wide(phone) <= 390
        await accessible(phone)


@requirement("console:rollouts")
async def test_a_canary_gets_more_tenants_and_is_promoted_by_buttons(
    fleet: Fleet, tab: Page
) -> None:
    accepting = {"changes": {"breaking": "accept"}}
    await fleet.serve(crm("2.0", CRM, **accepting))
    await add_canary(fleet, crm("2.1", CRM, **accepting), percent=5)
    await tab.goto("/console/changes")
    card = tab.get_by_role("article", name=f"{CRM} 2.0 → 2.1")
    await expect(card).to_contain_text("There is not enough to judge by yet.")
    await accessible(tab)
    await card.get_by_label("Percent of tenants").fill("40")
    await card.get_by_role("button", name="Change").click()
    await expect(card).to_contain_text("40 % of the tenants")
    await card.get_by_role("button", name="Promote").click()
    await expect(card).to_have_count(0)
    await expect(tab.get_by_role("row", name=CRM)).to_contain_text("promoted")
    server = (await fleet.http.get(f"/v1/servers/{CRM}")).json()
    assert server["version"] == "2.1"


@requirement("console:verification", "console:audit")
async def test_the_audit_is_read_and_verified_by_a_button(fleet: Fleet, tab: Page) -> None:
    await fleet.run("audited")
    await until(partial(_signed, fleet), within_s=LIMIT_S)
    await tab.goto("/console/audit")
    await tab.get_by_label("Tenant", exact=True).fill("audited")
    await tab.get_by_role("button", name="Find").click()
    row = tab.get_by_role("row", name="run.started")
    await row.locator("summary").click()
    await expect(row).to_contain_text("snapshot")
    await accessible(tab)
    await tab.get_by_role("button", name="Verify audited").click()
    await expect(tab.get_by_text("Nothing is wrong.")).to_be_visible(timeout=SEEN_MS)
    await accessible(tab)


@requirement("console:verification")
async def test_the_audit_is_verified_at_a_phones_width(fleet: Fleet, phone: Page) -> None:
    await phone.goto("/console/audit")
    assert await wide(phone) <= 390
    await accessible(phone)
    await phone.get_by_role("button", name="Verify").click()
    await expect(phone.get_by_text("Nothing is wrong.")).to_be_visible(timeout=SEEN_MS)
    assert await wide(phone) <= 390
    await accessible(phone)


async def _signed(fleet: Fleet) -> bool:
    """Say whether a checkpoint vouches for what the tenant's chain has."""
    rows = await fleet.database.statement(
        "SELECT 1 FROM audit_chains WHERE chain = 'audited' AND signed_seq = seq"
    )
    return bool(rows)


async def wide(page: Page) -> Any:
    """Return how wide a page is, in pixels: more than its window makes people scroll sideways."""
    return await page.evaluate("document.documentElement.scrollWidth")
