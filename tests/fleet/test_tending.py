"""What tending does to a whole fleet: a drained worker finishes, and another takes its place."""

from __future__ import annotations

import pytest

from tests.fleet.driver import Fleet
from tests.requirements import requirement
from tests.waiting import until

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def fleet(empty_fleet: Fleet) -> Fleet:
    await empty_fleet.serve(empty_fleet.sleeper("tended", pool={"min_idle": 1, "max_size": 1}))
    return empty_fleet


@requirement("tending:drain")
async def test_a_drained_worker_finishes_what_it_runs_and_a_new_one_takes_the_next(
    fleet: Fleet,
) -> None:
    run, journal = await fleet.run(), fleet.journal("tended")
    running = await fleet.submit(run, "tended_sleep", seconds=1.5, token="running")
    await journal.saw("started", "running")
    listed = (await fleet.http.get("/v1/workers")).json()["workers"]
    (old,) = [it["id"] for it in listed if it["server"] == "tended"]
    answer = await fleet.http.post(f"/v1/workers/{old}/drain")
    assert answer.status_code == 202, answer.text
    assert (await fleet.ended(running))["state"] == "succeeded"

    async def gone() -> bool:
        known = (await fleet.http.get("/v1/workers")).json()["workers"]
        return old not in [it["id"] for it in known]

    await until(gone)
    following = await fleet.call(run, "tended_echo", text="x")
    assert following["state"] == "succeeded"
    first, second = await fleet.workers_of(running, following["id"])
    assert (first == old, second == old) == (True, False)
