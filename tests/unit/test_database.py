"""Group commit: what arrives together is written together, and each caller gets its own outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from registry.database import GroupCommit, to_json
from registry.errors import Code, FleetError
from tests.requirements import requirement

pytestmark = pytest.mark.anyio


class Writer:
    """Doubles what it is given, a batch at a time, when it is let."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.error: Exception | None = None

    async def write(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        await self.open.wait()
        if self.error is not None:
            raise self.error
        if 13 in items:
            raise ValueError("13 cannot be written")
        return [item * 2 for item in items]


async def held(
    group: GroupCommit[int, int], writer: Writer, *items: int
) -> list[asyncio.Task[int]]:
    """Return tasks that wait behind a first write that has not come back yet."""
    writer.open.clear()
    tasks = [asyncio.create_task(group.add(item)) for item in items]
    for _ in range(5):
        await asyncio.sleep(0)
    return tasks


@requirement("database:group-commit")
async def test_a_lone_caller_is_written_at_once() -> None:
    writer = Writer()
    assert await GroupCommit(writer.write).add(1) == 2
    assert writer.batches == [[1]]


@requirement("database:group-commit")
async def test_what_arrives_during_a_write_shares_the_next_one() -> None:
    writer = Writer()
    group = GroupCommit(writer.write)
    first = await held(group, writer, 0)
    rest = [asyncio.create_task(group.add(item)) for item in (1, 2, 3)]
    await asyncio.sleep(0)
    writer.open.set()
    assert await asyncio.gather(*first, *rest) == [0, 2, 4, 6]
    assert writer.batches == [[0], [1, 2, 3]]


@requirement("database:group-commit")
async def test_a_batch_has_a_limit() -> None:
    writer = Writer()
    group = GroupCommit(writer.write, max_batch=4)
    assert await asyncio.gather(*(group.add(n) for n in range(10))) == [n * 2 for n in range(10)]
    assert max(len(batch) for batch in writer.batches) == 4


@requirement("database:group-commit")
async def test_one_bad_row_harms_no_neighbour() -> None:
    group = GroupCommit(Writer().write)
    outcomes = await asyncio.gather(*(group.add(n) for n in (1, 13, 2)), return_exceptions=True)
    assert (outcomes[0], outcomes[2]) == (2, 4)
    assert isinstance(outcomes[1], ValueError)


@requirement("database:group-commit")
async def test_while_the_store_is_away_every_caller_is_told_after_one_attempt() -> None:
    writer = Writer()
    writer.error = FleetError(Code.STORE_UNAVAILABLE, "away")
    group = GroupCommit(writer.write)
    outcomes = await asyncio.gather(*(group.add(n) for n in range(3)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {FleetError}
    assert sum(len(batch) for batch in writer.batches) == 3


@requirement("database:group-commit")
async def test_a_caller_that_gives_up_costs_its_neighbours_nothing() -> None:
    writer = Writer()
    group = GroupCommit(writer.write)
    impatient, patient = await held(group, writer, 1, 2)
    impatient.cancel()
    writer.open.set()
    assert await patient == 4
    assert sorted(item for batch in writer.batches for item in batch) == [1, 2]


@requirement("database:group-commit")
async def test_a_group_writes_again_after_a_failure() -> None:
    writer = Writer()
    group = GroupCommit(writer.write)
    with pytest.raises(ValueError, match="13"):
        await group.add(13)
    assert await group.add(1) == 2


@requirement("database:json")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
async def test_what_is_not_json_is_never_written_as_json(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        to_json({"value": value})
