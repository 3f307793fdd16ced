"""Settings from the environment."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import ValidationError

from registry.settings import Settings
from tests.requirements import requirement


@requirement("settings:durations")
@pytest.mark.parametrize(
    ("written", "read_s"), [("5", 5), ("0.5", 0.5), ("PT30S", 30), ("PT1M", 60)]
)
def test_a_duration_is_seconds_or_iso_8601(
    monkeypatch: pytest.MonkeyPatch, written: str, read_s: float
) -> None:
    monkeypatch.setenv("TOOLFLEET_DRAIN_GRACE", written)
    assert Settings().drain_grace == timedelta(seconds=read_s)


@requirement("settings:durations")
def test_a_duration_that_is_neither_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOLFLEET_DRAIN_GRACE", "soon")
    with pytest.raises(ValidationError, match="drain_grace"):
        Settings()
