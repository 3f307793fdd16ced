"""No call that needs an approval runs without one, however it is tried (`tests.approval_attacks`).

`make test-long` does every variant, three times: more than 500 cases.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.approval_attacks import FAMILIES, Range, attack, attacked
from tests.requirements import requirement
from tests.serving import Api

pytestmark = pytest.mark.anyio


@pytest.fixture
async def range_(api: Api, tmp_path: Path) -> AsyncIterator[Range]:
    async with attacked(api, tmp_path) as range_:
        yield range_


@requirement("approval:no-bypass")
async def test_no_way_around_an_approval_is_found(range_: Range) -> None:
    await attack(range_, rounds=1, each=3)
    assert range_.bypasses == []
    assert len(range_.tried) == len(FAMILIES) + 1


@requirement("approval:no-bypass")
@pytest.mark.long
@pytest.mark.timeout(300)
async def test_no_way_around_an_approval_is_found_in_500_cases(range_: Range) -> None:
    await attack(range_, rounds=3)
    assert range_.bypasses == []
    assert sum(range_.tried.values()) - range_.tried["approved"] >= 500, range_.tried
