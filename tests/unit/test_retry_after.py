"""For how long a server wants to be left alone, by what it says."""

from __future__ import annotations

import pytest

from tests.requirements import requirement
from workers.retry_after import retry_after_s

NOW = "Wed, 25 Nov 2026 12:00:00 GMT"
THEN = "Wed, 25 Nov 2026 12:00:07 GMT"


@requirement("quota:pause")
@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": THEN, "date": NOW}, 7.0),
        ({"retry-after": NOW, "date": THEN}, 0.0),
        ({"retry-after": THEN}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "2", "ratelimit-reset": "9"}, 2.0),
        ({"ratelimit": '"day";r=5;t=9000, "minute";r=0;t=12'}, 12.0),
        ({"ratelimit": '"minute";r=4;t=12'}, None),
        ({"ratelimit-reset": "30"}, 30.0),
        ({"x-ratelimit-reset": "1795608007", "date": NOW}, 7.0),
        ({"x-ratelimit-reset": "1795608007"}, None),
        ({"x-ratelimit-reset": "nan"}, None),
        ({}, None),
    ],
)
def test_a_429_says_how_long_by_retry_after_or_by_when_its_limit_is_reset(
    headers: dict[str, str], wait_s: float | None
) -> None:
    assert retry_after_s(429, headers) == wait_s


@requirement("quota:pause")
def test_what_a_limit_says_in_passing_is_no_word_about_another_failure() -> None:
    assert retry_after_s(503, {"ratelimit-reset": "30"}) is None
    assert retry_after_s(503, {"retry-after": "30"}) == 30.0
