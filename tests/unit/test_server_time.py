"""What a server says of the time that it took."""

from __future__ import annotations

from typing import Any

import pytest

from registry.server_time import SERVER_SECONDS, believed, header_s, reported_s
from tests.requirements import requirement


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("total;dur=123.4", 0.1234),
        ("db;dur=53, app;dur=47.2", 0.053),
        ('cache;desc="hit", total;desc="all";dur=20, db;dur=900', 0.02),
        ('miss, db;dur="7"', 0.007),
        ("Total;DUR=5", 0.005),
        ("", None),
        ("cache", None),
        ("db;dur=-1", None),
        ("db;dur=nan", None),
        ("db;dur=1e9", None),
        (";;;,dur=1", None),
    ],
)
@requirement("metrics:server-time")
def test_a_server_timing_header_tells_its_total_or_else_its_longest(
    header: str, seconds: float | None
) -> None:
    assert header_s(header) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("said", "seconds"),
    [(0.25, 0.25), (1, 1.0), (-1, None), (float("inf"), None), (True, 0.01), ("2", 0.01)],
)
@requirement("metrics:server-time")
def test_a_number_in_meta_goes_before_the_header(said: Any, seconds: float | None) -> None:
    assert reported_s("total;dur=10", {"_meta": {SERVER_SECONDS: said}}) == seconds


@requirement("metrics:server-time")
def test_no_server_took_longer_than_its_caller_waited() -> None:
    assert believed(0.4, 0.5) == 0.4
    assert believed(0.6, 0.5) is None
    assert believed(None, 0.5) is None
