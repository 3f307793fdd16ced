"""Runs keep what they were shown while the registry changes (a thousand times: `make soak`)."""

from __future__ import annotations

import pytest

from tests.changing_registry import each_run_sees_one_version_of_each_tool
from tests.fleet.driver import Fleet
from tests.requirements import requirement

pytestmark = pytest.mark.anyio


@requirement("offer:one-version")
async def test_each_run_sees_one_version_of_each_tool_while_the_registry_changes(
    empty_fleet: Fleet,
) -> None:
    await each_run_sees_one_version_of_each_tool(empty_fleet, changes=100, runs=10)
