"""By which keys questions go, and which of them were asked before."""

from __future__ import annotations

import pytest

from registry.answers import NewQuestion
from registry.question_keys import LONGEST_KEY, Earlier, places
from tests.requirements import requirement

PARAMS = {"message": "Where?"}
WHERE = NewQuestion("elicitation/create", PARAMS, "city")
ROOTS = NewQuestion("roots/list", {})


@requirement("questions:answered-once")
@pytest.mark.parametrize(
    "key", [None, "", "x" * (LONGEST_KEY + 1), "a\u0000b", "a\u202eb", "a\ud800"]
)
def test_what_is_no_usable_key_is_replaced_by_a_place(key: str | None) -> None:
    (place,) = places([NewQuestion("roots/list", {}, key)], [])
    assert place == ("q1", 1, False)


@requirement("questions:answered-once")
def test_no_two_questions_have_one_key_however_servers_call_them() -> None:
    long = "x" * LONGEST_KEY
    asked = [NewQuestion("roots/list", {}, key) for key in ("a", "a-2", "q1", None, long, long)]
    earlier = [Earlier(1, "a", "roots/list", None)]
    found = places([*asked, asked[0]], earlier)
    keys = [it.key for it in found]
    assert keys == ["a-2", "a-2-2", "q1", "q2", long, long[:-2] + "-2", "a-3"]
    assert [it.number for it in found] == list(range(2, 9))


@requirement("questions:asked-once")
@pytest.mark.parametrize(
    ("before", "known"),
    [
        (Earlier(1, "city", "elicitation/create", PARAMS), True),
        (Earlier(1, "city", "elicitation/create", {**PARAMS, "_meta": {"a": 1}}), True),
        (Earlier(1, "city", "elicitation/create", None), False),
        (Earlier(1, "city", "elicitation/create", {"message": "Who?"}), False),
        (Earlier(1, "city", "sampling/createMessage", PARAMS), False),
        (Earlier(1, "town", "elicitation/create", PARAMS), False),
    ],
    ids=["the same", "another request", "of this attempt", "another text", "another method", "key"],
)
def test_what_was_asked_alike_under_its_key_is_the_same_question(
    before: Earlier, known: bool
) -> None:
    (place,) = places([WHERE], [before])
    assert place.known is known
    assert (place.number == before.number) is known


@requirement("questions:asked-once")
def test_without_keys_the_first_of_its_kind_is_the_same_question() -> None:
    earlier = [
        Earlier(1, "q1", "elicitation/create", PARAMS),
        Earlier(2, "q2", "roots/list", {}),
        Earlier(3, "q3", "roots/list", {}),
    ]
    found = places([ROOTS, ROOTS, ROOTS, NewQuestion("elicitation/create", PARAMS)], earlier)
    assert [(it.key, it.known) for it in found] == [
        ("q2", True), ("q3", True), ("q4", False), ("q1", True)
    ]  # fmt: skip
