"""The load test of `make load-test`, small: more concurrent runs than there is room for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.pool_exhaustion import parse, run
from tests.requirements import requirement

pytestmark = pytest.mark.anyio


@requirement("load:no-call-lost")
@pytest.mark.long
@pytest.mark.timeout(240)
async def test_no_call_is_lost_while_runs_of_three_tiers_exhaust_a_pool(
    folder: Path, tmp_path: Path
) -> None:
    page = tmp_path / "load.html"
    small = ["--steps", "1,8", "--seconds", "3", "--sessions", "2", "--out", str(page)]
    assert await run(parse(small), folder) == 0
    found = json.loads(page.with_suffix(".json").read_text())
    assert found["ledger"]["problems"] == []
    assert found["ledger"]["calls"] > 0
    few, many = found["steps"]
    assert not any(tier["refused"] for tier in few["tiers"])
    free, _, enterprise = many["tiers"]
    assert free["refused"]["tenant_limited: calls at once"] > 0
    assert enterprise["refused"] == {}
    assert "No call lost, none run twice" in page.read_text()
