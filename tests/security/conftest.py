"""One fleet for each module of attacks."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.security.target import Target, target


@pytest.fixture(scope="module")
async def fleet(anyio_backend: str, postgres_url: str, _redis_url: str) -> AsyncIterator[Target]:
    """A running API, and the workers of the servers that the attacks register."""
    async with target(postgres_url, _redis_url) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="toolfleet-secrets-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
