"""Definitions compared line by line for people, and text that is shown with what it hides."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from registry.definition_lines import LONGEST_LINE, MOST_LINES, changed_parts
from registry.hidden_text import has_hidden, pieces
from tests.requirements import requirement


@requirement("console:changes")
def test_one_changed_word_is_one_line_out_and_one_in() -> None:
    before = {"name": "put", "description": "Put a note. It is kept. Nobody reads it."}
    after = {**before, "description": "Put a note. It is lost. Nobody reads it."}
    (part,) = changed_parts(before, after)
    assert part.name == "description"
    assert [line.sign for line in part.lines] == [" ", "-", "+", " "]
    assert [line.text for line in part.lines[1:3]] == ["It is kept.", "It is lost."]


@requirement("console:changes")
def test_what_did_not_change_is_counted_and_left_out() -> None:
    before = {"inputSchema": {"properties": {f"p{n:03}": {"type": "string"} for n in range(100)}}}
    after = {"inputSchema": {"properties": {**before["inputSchema"]["properties"], "p050": {}}}}
    (part,) = changed_parts(before, after)
    skipped = [line.text for line in part.lines if line.sign == "~"]
    assert len(skipped) == 2
    assert all(text.endswith("lines unchanged") for text in skipped)
    assert len(part.lines) < 20


@requirement("console:changes")
def test_a_new_tool_is_all_in_and_a_gone_one_all_out() -> None:
    tool = {"name": "put", "description": "Put a note."}
    assert {it.sign for part in changed_parts(None, tool) for it in part.lines} == {"+"}
    assert {it.sign for part in changed_parts(tool, None) for it in part.lines} == {"-"}


@requirement("console:changes")
def test_however_long_a_definition_is_what_is_shown_of_it_is_bounded() -> None:
    huge = {"description": "x" * 100_000, "inputSchema": {f"p{n}": n for n in range(20_000)}}
    for part in changed_parts({}, huge):
        assert len(part.lines) <= MOST_LINES
        assert all(len(line.text) < LONGEST_LINE + 50 for line in part.lines)


VALUES = st.sampled_from([None, "a", "a. b.", "a\nb", {}, {"x": 1}, {"x": True}, {"x": [1, 2]}])
DEFINITIONS = st.dictionaries(st.sampled_from(["description", "inputSchema", "x"]), VALUES)


@requirement("console:changes")
@given(DEFINITIONS, DEFINITIONS)
def test_a_part_is_shown_exactly_if_it_differs(
    before: dict[str, object], after: dict[str, object]
) -> None:
    parts = changed_parts(before, after)
    assert all(any(line.sign in "+-" for line in part.lines) for part in parts)
    differing = {
        name
        for name in before.keys() | after.keys()
        if json.dumps(before.get(name)) != json.dumps(after.get(name))
    }
    assert {part.name for part in parts} == differing


@requirement("console:revealed")
@given(st.text())
def test_a_text_for_review_hides_nothing_and_loses_nothing(text: str) -> None:
    shown = pieces(text)
    assert not any(has_hidden(piece) for piece, _ in shown)
    restored = "".join(chr(int(it.replace("U+", "0x"), 0)) if coded else it for it, coded in shown)
    assert restored == text
