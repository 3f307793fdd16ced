"""What the integration tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from registry.database import Database
from tests.serving import Api, serving


@pytest.fixture
async def api(database: Database, redis_url: str) -> AsyncIterator[Api]:
    """A running API that nothing else uses."""
    async with serving(database, redis_url) as api:
        yield api
