"""What the load test holds tiers' service against."""

from __future__ import annotations

import pytest

from tests.bench.fairness import fair_shares, jain
from tests.requirements import requirement


@requirement("load:fair-share")
def test_a_capacity_is_shared_by_weight_and_what_one_leaves_goes_to_the_others() -> None:
    assert fair_shares(70, {"a": (1, 100), "b": (2, 100), "c": (4, 100)}) == {
        "a": 10,
        "b": 20,
        "c": 40,
    }
    assert fair_shares(70, {"a": (1, 100), "b": (2, 5), "c": (4, 100)}) == {
        "a": 13,
        "b": 5,
        "c": 52,
    }
    assert fair_shares(70, {"a": (1, 3), "b": (2, 4), "c": (4, 0)}) == {"a": 3, "b": 4, "c": 0}
    assert fair_shares(0, {"a": (1, 3)}) == {"a": 0}


@requirement("load:fair-share")
def test_jains_index_is_one_where_all_are_alike_and_a_share_where_one_has_everything() -> None:
    assert jain([3, 3, 3]) == pytest.approx(1)
    assert jain([1, 0, 0, 0]) == pytest.approx(0.25)
    assert jain([0, 0]) == 1
