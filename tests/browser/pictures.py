"""Take the pictures of the README: the console and Flower, of a fleet with work to do.

``make pictures`` runs it. The servers are the demo's and one that is wedged; agents of two tenants
call them for a minute, one call waits for its approval.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import sys
import tempfile
from contextlib import suppress
from itertools import count
from pathlib import Path

import httpx2
from playwright.async_api import Page, async_playwright

from compose.demo.servers import TENANTS, TimeOverHttp, everyday_calls, set_stage
from compose.demo.tenant import Wanted
from tests.browser.conftest import CHROMIUM, DESK, FLAGS, PHONE, opened
from tests.fleet.driver import Fleet, running

FOLDER = Path(__file__).parents[2] / "compose" / "pictures"
LOAD_S = 75
AGENTS = 6
WEDGED = {
    "tools": {
        "sleep": {"delivery": "read", "timeout_s": 0.3},
        "echo": {"delivery": "read"},
        "write": {"delivery": "write", "approval": True},
    },
    "breaker": {"consecutive_timeouts": 10},
    "cost_tag": "finance",
}


async def main() -> None:
    """Start the fleet, have it work, and take the pictures."""
    folder = Path(tempfile.mkdtemp(prefix="pictures-"))
    clock = TimeOverHttp(folder)
    await clock.start()
    try:
        async with running(folder) as fleet:
            (folder / "stage").mkdir()
            stage = set_stage(folder / "stage", clock.port)
            await fleet.serve(*stage.definitions, fleet.sleeper("billing", **WEDGED), within_s=90)
            agents = asyncio.gather(
                *(agent(fleet, everyday_calls(stage), n) for n in range(AGENTS)),
                wedge(fleet),
            )
            async with async_playwright() as playwright:
                browser = await playwright.chromium.launch(
                    executable_path=shutil.which(CHROMIUM), args=FLAGS
                )
                async with opened(browser, fleet, DESK) as desk:
                    await asyncio.sleep(LOAD_S)
                    await take(desk, fleet)
                async with opened(browser, fleet, PHONE) as phone:
                    await phone.emulate_media(color_scheme="dark")
                    await phone.goto("/console/")
                    await phone.screenshot(path=FOLDER / "phone.png")
                await browser.close()
            agents.cancel()
            with suppress(asyncio.CancelledError):
                await agents
    finally:
        await clock.stop()
        shutil.rmtree(folder, ignore_errors=True)


async def agent(fleet: Fleet, calls: list[Wanted], number: int) -> None:
    """Call tools at random, as a tenant's agent does, until cancelled."""
    while True:
        run = await fleet.run(TENANTS[number % len(TENANTS)])
        for wanted in random.sample(calls, len(calls)):
            with suppress(httpx2.TransportError):
                await fleet.ask(run, wanted.tool, wait_s=30, **wanted.arguments)
            await asyncio.sleep(random.expovariate(4))


async def wedge(fleet: Fleet) -> None:
    """Have one call wait for its approval; then call what does not answer in time."""
    run = await fleet.run(TENANTS[0])
    await fleet.submit(run, "billing_write", token="refund of invoice 4711")
    for number in count():
        tool = "billing_sleep" if number > 60 else "billing_echo"
        arguments = {"seconds": 30} if number > 60 else {"text": "invoice"}
        await fleet.ask(run, tool, wait_s=30, token=str(number), **arguments)
        await asyncio.sleep(0.5 if number < 80 else 3)


async def take(page: Page, fleet: Fleet) -> None:
    """Take a picture of each page that the README shows."""
    await page.emulate_media(color_scheme="light")
    await page.goto("/console/")
    await page.screenshot(path=FOLDER / "fleet.png", full_page=True)
    await page.goto("/console/calls?server=crm&state=succeeded")
    await page.get_by_role("link", name="crm_read_query").first.click()
    await page.wait_for_url("**/console/calls/*")
    while not await page.get_by_text("enqueue").count():  # the API's part of the trace
        await asyncio.sleep(1)
        await page.reload()
    await page.screenshot(path=FOLDER / "call.png", full_page=True)
    await page.goto("/console/approvals")
    await page.screenshot(path=FOLDER / "approval.png", full_page=True)
    await page.goto(f"{fleet.local.flower_url}/tasks")
    await page.wait_for_selector("table tbody tr")
    await page.screenshot(path=FOLDER / "flower.png")


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    sys.exit(asyncio.run(main()))
