"""A Chromium for all tests, a tab for each, and one fleet for all modules."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright

from tests.fleet.driver import Fleet, running

CHROMIUM = "chromium"
# The tests run as root too; nothing but the fleet is asked.
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
DESK, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
QUIET = "/console/session"
"""A page that asks for nothing more."""
LIMIT_S = 150


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.parent == here:
            item.add_marker(pytest.mark.browser)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(LIMIT_S))


@pytest.fixture(scope="package")
async def fleet(anyio_backend: str, session_dir: Path) -> AsyncIterator[Fleet]:
    """A running fleet without servers, with Flower."""
    folder = Path(tempfile.mkdtemp(prefix="fleet-", dir=session_dir))
    async with running(folder) as fleet:
        yield fleet
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="package")
async def chromium(anyio_backend: str) -> AsyncIterator[Browser]:
    """The browser that Debian's package `chromium` installs."""
    program = shutil.which(CHROMIUM)
    if program is None:
        pytest.fail("there is no `chromium` on the PATH: install your system's package of it")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        await browser.close()


@asynccontextmanager
async def opened(browser: Browser, fleet: Fleet, size: dict[str, int]) -> AsyncIterator[Page]:
    """Open a tab in which the fleet's operator is signed in, and that knows no other's cookies.

    A script that the page's policy stopped, or that failed, fails the test.
    """
    async with stranger(browser, fleet, size) as page:
        await page.goto(f"/console/sign-in?next={QUIET}")
        await sign_in(page, fleet.local.operator_key)
        await page.wait_for_url(QUIET)
        yield page


@asynccontextmanager
async def stranger(browser: Browser, fleet: Fleet, size: dict[str, int]) -> AsyncIterator[Page]:
    """Open a tab in which nobody is signed in; what fails in it fails the test."""
    context = await browser.new_context(base_url=fleet.local.api_url, viewport=size)
    problems: list[str] = []

    def note(said: ConsoleMessage) -> None:
        # Chromium writes down each refusal too, which is none of a script.
        if said.type == "error" and "status of 401" not in said.text:
            problems.append(said.text)

    page = await context.new_page()
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", note)
    yield page
    await context.close()
    assert not problems


async def sign_in(page: Page, key: str) -> None:
    """Fill in and send the form of the sign-in page."""
    await page.get_by_label("API key or token").fill(key)
    await page.get_by_role("button", name="Sign in").click()


@pytest.fixture
async def tab(chromium: Browser, fleet: Fleet) -> AsyncIterator[Page]:
    """A tab of a desktop's width."""
    async with opened(chromium, fleet, DESK) as page:
        yield page


@pytest.fixture
async def phone(chromium: Browser, fleet: Fleet) -> AsyncIterator[Page]:
    """A tab of a phone's width."""
    async with opened(chromium, fleet, PHONE) as page:
        yield page


async def inaccessible(page: Page) -> list[str]:
    """Return what axe (WCAG 2.2 A and AA, and its own best practices) finds wrong with a page."""
    found = await Axe().run(page)
    return [
        f"{it['id']}: {it['help']} ({', '.join(str(node['target']) for node in it['nodes'][:3])})"
        for it in found.response["violations"]
    ]
