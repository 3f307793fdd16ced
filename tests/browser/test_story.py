"""One operator's night, told once from the sign-in to the audit, with the keyboard alone."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
from playwright.async_api import Browser, Locator, Page, expect

from tests.browser.conftest import DESK, inaccessible, stranger
from tests.fleet.driver import LIMIT_S, Fleet
from tests.requirements import requirement

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(240)]

SERVER = "night"
TENANT = "sleepless"
SEEN_MS = LIMIT_S * 1000
MOST_TABS = 150


@dataclass
class Agent:
    """A tenant's agent whose run goes on all night."""

    fleet: Fleet
    http: httpx2.AsyncClient
    run: dict[str, Any]

    async def submit(self, tool: str, **arguments: Any) -> str:
        """Submit a call; return its id."""
        answer = await self.http.post(
            f"/v1/runs/{self.run['id']}/calls",
            json={"tool": f"{SERVER}_{tool}", "arguments": arguments},
        )
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])


@asynccontextmanager
async def agent_of(fleet: Fleet) -> AsyncIterator[Agent]:
    made = await fleet.http.post(
        "/v1/keys", json={"name": "an agent", "role": "tenant", "tenant": TENANT}
    )
    headers = {"authorization": f"Bearer {made.json()['key']}"}
    async with httpx2.AsyncClient(base_url=fleet.local.api_url, headers=headers) as http:
        started = await http.post("/v1/runs", json={"servers": [SERVER]})
        assert started.status_code == 201, started.text
        yield Agent(fleet, http, started.json())


async def enter(page: Page, target: Locator) -> None:
    """Reach something by the Tab key, and press Enter on it."""
    for _ in range(MOST_TABS):
        if await target.evaluate("it => it === document.activeElement"):
            await page.keyboard.press("Enter")
            return
        await page.keyboard.press("Tab")
    pytest.fail(f"the Tab key does not lead to {target}")


async def go(page: Page, section: str) -> None:
    """Go to a section of the console by its navigation."""
    await enter(page, page.get_by_role("navigation").get_by_role("link", name=section, exact=True))
    await expect(page.get_by_role("heading", level=1)).to_have_text(section)
    assert await inaccessible(page) == []


@requirement("console:story")
async def test_an_operators_night(chromium: Browser, fleet: Fleet) -> None:
    await fleet.serve(
        fleet.sleeper(
            SERVER,
            tools={
                "sleep": {"delivery": "read", "timeout_s": 0.3},
                "echo": {"delivery": "read", "approval": True},
                "write": {"delivery": "write", "timeout_s": 120},
            },
            breaker={"consecutive_timeouts": 2, "open_for_s": 600},
        )
    )
    async with agent_of(fleet) as agent, stranger(chromium, fleet, DESK) as page:
        await signs_in(page, fleet)
        await sees_the_breaker_open_and_finds_the_call(page, agent)
        await closes_the_breaker(page)
        await approves_a_call_and_sees_it_finish(page, agent)
        await stops_the_run(page, agent)
        await reads_in_the_audit_what_was_done(page, agent)


async def signs_in(page: Page, fleet: Fleet) -> None:
    await page.goto("/console/")
    await page.keyboard.type(fleet.local.operator_key)  # the field has the focus
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", level=1)).to_have_text("Fleet")
    await expect(card_of(page)).to_contain_text("Breaker closed", timeout=SEEN_MS)


async def sees_the_breaker_open_and_finds_the_call(page: Page, agent: Agent) -> None:
    late = [await agent.submit("sleep", seconds=60, token=f"late-{n}") for n in range(2)]
    await expect(card_of(page)).to_contain_text("Breaker open", timeout=SEEN_MS)
    await enter(page, page.get_by_role("link", name=f"Look: {SERVER}: its breaker is open"))
    await expect(page.get_by_role("heading", level=1)).to_have_text(SERVER)
    failures = page.get_by_role("list", name="Last failures").get_by_role("link")
    await expect(failures).to_have_count(2)
    await enter(page, failures.first)
    await expect(page.get_by_role("main")).to_contain_text("call_timeout")
    assert page.url.rpartition("/")[2] in late
    assert await inaccessible(page) == []


async def closes_the_breaker(page: Page) -> None:
    await enter(page, page.get_by_role("main").get_by_role("link", name=SERVER, exact=True))
    await enter(page, page.get_by_role("button", name="Close now"))
    await go(page, "Fleet")
    await expect(card_of(page)).to_contain_text("Breaker closed", timeout=SEEN_MS)


async def approves_a_call_and_sees_it_finish(page: Page, agent: Agent) -> None:
    call = await agent.submit("echo", text="the night's one question")
    await enter(page, page.get_by_role("link", name=re.compile("Look: .* for an approval")))
    waiting = page.locator(f"#call-{call}")
    await expect(waiting).to_contain_text("the night's one question")
    await enter(page, waiting.get_by_role("button", name="Approve"))
    await enter(page, page.get_by_role("alert").get_by_role("link"))
    await expect(page.get_by_role("status")).to_contain_text("succeeded", timeout=SEEN_MS)
    await expect(page.get_by_role("main")).to_contain_text("call.approved")


async def stops_the_run(page: Page, agent: Agent) -> None:
    call = await agent.submit("write", seconds=60, token="endless")
    await agent.fleet.journal(SERVER).saw("started", "endless")
    await go(page, "Runs")
    await enter(page, page.locator(f"a[href='/console/runs/{agent.run['id']}']").first)
    await enter(page, page.get_by_role("button", name="Stop the run"))
    await expect(page.get_by_role("status").first).to_contain_text("cancelled")
    await agent.fleet.journal(SERVER).saw("cancelled", "endless")
    assert (await agent.fleet.ended(call))["ended_at"]


async def reads_in_the_audit_what_was_done(page: Page, agent: Agent) -> None:
    await go(page, "Audit")
    for event in ("call.approved", "run.cancelled"):
        row = page.get_by_role("row", name=event).filter(has_text=TENANT).first
        await expect(row).to_be_visible()
    await enter(page, page.get_by_role("button", name="Verify"))
    await expect(page.get_by_text("Nothing is wrong.")).to_be_visible(timeout=SEEN_MS)


def card_of(page: Page) -> Locator:
    """Return what the fleet's page shows of the server."""
    return page.get_by_role("listitem").filter(
        has=page.get_by_role("heading", level=3, name=SERVER, exact=True)
    )
