"""A thousand changes of the registry while fifty runs call tools (goal 29)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.changing_registry import each_run_sees_one_version_of_each_tool
from tests.fleet.driver import running
from tests.requirements import requirement

pytestmark = [pytest.mark.anyio, pytest.mark.soak, pytest.mark.timeout(600)]


@requirement("offer:one-version")
async def test_each_run_sees_one_version_of_each_tool_over_a_thousand_changes(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as fleet:
        await each_run_sees_one_version_of_each_tool(fleet, changes=1_000, runs=50)
