"""Two definitions of a tool line by line, as a person reads them who has to decide about a change.

Pure. Texts are compared sentence by sentence and JSON line by line, with its keys in order, so that
one changed word is one line out and one in. What did not change is left out, but for a few lines
around what did. However long definitions are, what is returned is bounded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, Final, NamedTuple

AROUND: Final = 3
"""How many unchanged lines are told before and after a changed one."""
MOST_LINES: Final = 120
"""Of one part."""
LONGEST_LINE: Final = 2_000
_ORDER: Final = ("name", "title", "description", "annotations", "inputSchema", "outputSchema")
_SENTENCE: Final = re.compile(r"(?<=[.!?]) +")
_NOT_COMPARED: Final = 4_000
"""Lines of a part beyond which it is told as out and in as a whole: comparing takes long."""


class Line(NamedTuple):
    """A line of a part: out (``-``), in (``+``), on both sides (a space), or left out (``~``)."""

    sign: str
    text: str


@dataclass(frozen=True)
class Part:
    """A part of a definition that changed, such as `description`."""

    name: str
    lines: tuple[Line, ...]
    left_out: int
    """How many lines more there are."""


def changed_parts(
    before: Mapping[str, Any] | None, after: Mapping[str, Any] | None
) -> tuple[Part, ...]:
    """Return the parts that differ, in the order in which a tool is read; None is no tool."""
    was, is_ = before or {}, after or {}
    others = sorted((was.keys() | is_.keys()) - set(_ORDER))
    return tuple(
        _part(name, was.get(name), is_.get(name))
        for name in (*_ORDER, *others)
        if _written(was.get(name)) != _written(is_.get(name))
    )


def _part(name: str, was: Any, is_: Any) -> Part:
    lines = list(_differences(_lines(was), _lines(is_)))
    shown = tuple(Line(line.sign, _cut(line.text)) for line in lines[:MOST_LINES])
    return Part(name, shown, len(lines) - len(shown))


def _differences(was: Sequence[str], is_: Sequence[str]) -> list[Line]:
    if len(was) + len(is_) > _NOT_COMPARED:
        return [*(Line("-", it) for it in was), *(Line("+", it) for it in is_)]
    found: list[Line] = []
    end = 0
    for group in SequenceMatcher(None, was, is_, autojunk=False).get_grouped_opcodes(AROUND):
        skipped = group[0][1] - end
        found += [Line("~", _skipped(skipped))] if skipped else []
        for tag, from_, to, into, onto in group:
            if tag == "equal":
                found += [Line(" ", it) for it in was[from_:to]]
                continue
            found += [Line("-", it) for it in was[from_:to]]
            found += [Line("+", it) for it in is_[into:onto]]
        end = group[-1][2]
    skipped = len(was) - end
    return found + ([Line("~", _skipped(skipped))] if skipped else [])


def _lines(value: Any) -> list[str]:
    """Return a value as lines; none for what is not there."""
    if value is None:
        return []
    if isinstance(value, str):
        return [part for line in value.split("\n") for part in _SENTENCE.split(line)]
    return _written(value).split("\n")


def _written(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)


def _skipped(count: int) -> str:
    return f"{count} line{'s' if count > 1 else ''} unchanged"


def _cut(text: str) -> str:
    rest = len(text) - LONGEST_LINE
    return text if rest <= 0 else f"{text[:LONGEST_LINE]} … and {rest} characters more"
