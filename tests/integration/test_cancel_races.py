"""A stop never reaches the next borrower of a session (`make soak` runs 100,000 of these)."""

from __future__ import annotations

import pytest

from registry.settings import Settings
from tests.cancel_races import race
from tests.requirements import requirement

pytestmark = pytest.mark.anyio


@requirement("stop:never-the-next")
async def test_stops_of_calls_about_to_end_leave_their_neighbours_alone(
    database_url: str, redis_url: str
) -> None:
    races = await race(Settings(database_url=database_url, redis_url=redis_url), 600)
    assert races.wrong == []
    assert races.ended["stopped (stop came in time)"] >= 1
    assert races.ended["succeeded (undisturbed)"] > 100
