"""A fleet for each module of these tests: everything real, started once."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.fleet.driver import Fleet, running


@pytest.fixture(scope="module")
def folder(session_dir: Path) -> Iterator[Path]:
    """A folder whose path is short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="fleet-", dir=session_dir))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
async def empty_fleet(
    anyio_backend: str, folder: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Fleet]:
    """A running fleet without servers; a module may name `WORKERS` by server."""
    workers = getattr(request.module, "WORKERS", {})
    async with running(folder, workers_per_server=workers) as fleet:
        yield fleet
