"""One fleet for all modules that leave it as they found it; the others start their own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fleet.driver import Fleet, running

WORKERS = {"twin": 2, "paced": 2, "tripping": 2}
"""Servers that have more than one worker, in whichever module they are."""

LIMIT_S = 150
"""For a test that says nothing else: the first one starts the fleet and its module's servers."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.parent == here and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(LIMIT_S))


@pytest.fixture(scope="module")
def folder(session_dir: Path) -> Iterator[Path]:
    """A folder whose path is short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="fleet-", dir=session_dir))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="package")
async def shared_fleet(anyio_backend: str, session_dir: Path) -> AsyncIterator[Fleet]:
    """A running fleet, started once in each process that runs tests: a start costs 10 s of CPU."""
    folder = Path(tempfile.mkdtemp(prefix="fleet-", dir=session_dir))
    async with running(folder, workers_per_server=WORKERS) as fleet:
        yield fleet
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
async def empty_fleet(shared_fleet: Fleet, folder: Path) -> AsyncIterator[Fleet]:
    """The shared fleet without servers, with a folder of this module's own for journals."""
    fleet = replace(shared_fleet, folder=folder)
    yield fleet
    await fleet.clear()


@pytest.fixture(scope="module")
async def own_fleet(anyio_backend: str, folder: Path) -> AsyncIterator[Fleet]:
    """A running fleet without servers and without Flower, for a module that breaks parts of it."""
    async with running(folder, workers_per_server=WORKERS, flower=False) as fleet:
        yield fleet
