"""The shape of a result: equal for equal make, different for different make, bounded always."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.shapes import LONGEST, shape_of
from tests.requirements import requirement


def text(said: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": said}]}


@requirement("rollout:shapes")
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (text("Berlin"), text("Paris")),
        (text('{"id": 1, "name": "a"}'), text('{"name": "b", "id": 2}')),
        (text("[1, 2]"), text("[3]")),
        ({"structuredContent": {"n": 1}}, {"structuredContent": {"n": 2.5}}),
        ({"content": [{"type": "text"}] * 2}, {"content": [{"type": "text"}] * 5}),
    ],
)
def test_what_a_result_says_does_not_change_its_shape(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    assert shape_of(one) == shape_of(other)


@requirement("rollout:shapes")
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (text("Berlin"), {"content": [{"type": "image"}]}),
        (text('{"id": 1}'), text('{"id": "1"}')),
        (text('{"id": 1}'), text('{"ident": 1}')),
        (text("a"), {**text("a"), "structuredContent": {}}),
        ({"structuredContent": {"a": {"b": 1}}}, {"structuredContent": {"a": {"c": 1}}}),
        (text("a"), {"content": []}),
    ],
)
def test_what_a_result_is_made_of_does(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert shape_of(one) != shape_of(other)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=20,
)


@requirement("rollout:shapes")
@given(st.dictionaries(st.sampled_from(["content", "structuredContent", "isError"]), JSON))
def test_any_result_has_a_shape_of_bounded_length(body: dict[str, Any]) -> None:
    assert 0 < len(shape_of(body)) <= LONGEST
