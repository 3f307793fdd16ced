"""How what is asked of one place differs between two schemas, its parts left aside.

Pure. The relations are those of the sets of allowed values; what they mean for a caller is decided
by `registry.diff`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final

from registry.quoting import pointer, quoted
from registry.schema_keywords import Asked, json_text
from registry.schema_shape import ABSENT, Shape

UNSHOWN: Final = "could not be shown to be compatible"
Path = tuple[str | int, ...]
_MOST_LISTED: Final = 3
_WHOLE: Final = ("pattern", "format", "contentEncoding", "contentMediaType")
_TIGHTNESS: Final[dict[str, Callable[[Any], Any]]] = {
    **dict.fromkeys(("minLength", "minItems", "minProperties"), lambda count: count),
    **dict.fromkeys(("maxLength", "maxItems", "maxProperties"), lambda count: -count),
    "minimum": lambda bound: (bound.value, bound.strict),
    "maximum": lambda bound: (-bound.value, bound.strict),
    "uniqueItems": lambda _: 0,
}


class Relation(Enum):
    """What a difference means for the values that are allowed."""

    NARROWER = auto()
    WIDER = auto()
    UNKNOWN = auto()
    GONE = auto()
    """A property is no longer known."""
    NEW = auto()
    """A property is known now; before, any other property was allowed, and meant nothing."""
    DEFAULT = auto()
    """A value that is left out stands for another one."""
    NOTE = auto()
    """Nothing: only what is said about the values differs."""


@dataclass(frozen=True)
class SchemaDifference:
    """One place at which two schemas differ, as a JSON pointer, and how."""

    path: str
    relation: Relation
    what: str


def difference(path: Path, relation: Relation, what: str) -> SchemaDifference:
    """Return a difference at a place that is given by its steps."""
    return SchemaDifference(pointer(*path), relation, what)


def notes(before: Shape, after: Shape, path: Path) -> Iterator[SchemaDifference]:
    """Yield what is said otherwise: titles, descriptions, keywords that ask for nothing."""
    for word in sorted(before.notes.keys() | after.notes.keys()):
        if before.notes.get(word) != after.notes.get(word):
            verb = "changed" if word in before.notes and word in after.notes else "is new"
            verb = verb if word in after.notes else "is gone"
            yield difference((*path, word), Relation.NOTE, f"`{quoted(word)}` {verb}")


def defaults(before: Shape, after: Shape, path: Path) -> Iterator[SchemaDifference]:
    """Yield a default that changed.

    One that is new says what held already, and one of null stands for nothing.
    """
    was, is_ = before.default, after.default
    place = (*path, "default")
    if was is ABSENT and is_ is not ABSENT:
        yield difference(place, Relation.NOTE, f"the default is new: {_shown(is_)}")
    elif was is not ABSENT and is_ is ABSENT:
        relation = Relation.NOTE if was is None else Relation.DEFAULT
        yield difference(place, relation, f"the default {_shown(was)} is gone")
    elif was is not ABSENT and json_text(was) != json_text(is_):
        what = f"the default went from {_shown(was)} to {_shown(is_)}"
        yield difference(place, Relation.DEFAULT, what)


def types(before: Shape, after: Shape, path: Path) -> Iterator[SchemaDifference]:
    """Yield the types that are no longer allowed, and those that are allowed as well."""
    lost = [_type(name, it) for name, it in before.by_type.items() if name not in after.by_type]
    more = [_type(name, it) for name, it in after.by_type.items() if name not in before.by_type]
    place = (*path, "type")
    if lost:
        verb = "is" if len(lost) == 1 else "are"
        yield difference(place, Relation.NARROWER, f"{_and(lost)} {verb} no longer allowed")
    if more:
        verb = "is" if len(more) == 1 else "are"
        yield difference(place, Relation.WIDER, f"{_and(more)} {verb} allowed as well")


def values(before: Asked, after: Asked, path: Path) -> Iterator[SchemaDifference]:
    """Yield what is asked otherwise of the values of one type."""
    yield from _enum(before.get("enum"), after.get("enum"), (*path, "enum"))
    if not ("enum" in before and "enum" in after):
        yield from _whole_numbers(before, after, (*path, "type"))
    yield from _multiples(before, after, (*path, "multipleOf"))
    for word in (*_TIGHTNESS, *_WHOLE):
        was, is_ = before.get(word), after.get(word)
        place = (*path, word)
        if was == is_:
            continue
        if was is None:
            yield difference(place, Relation.NARROWER, f"`{word}` is new: {_shown(is_)}")
        elif is_ is None:
            yield difference(place, Relation.WIDER, f"`{word}` {_shown(was)} is gone")
        elif word in _TIGHTNESS:
            tighter = _TIGHTNESS[word](is_) > _TIGHTNESS[word](was)
            relation = Relation.NARROWER if tighter else Relation.WIDER
            yield difference(place, relation, f"`{word}` went from {_shown(was)} to {_shown(is_)}")
        else:
            yield difference(place, Relation.UNKNOWN, f"`{word}` changed, and {UNSHOWN}")


def _enum(
    before: frozenset[str] | None, after: frozenset[str] | None, place: Path
) -> Iterator[SchemaDifference]:
    if before is None and after is not None:
        yield difference(place, Relation.NARROWER, f"only {_few(after)} may be given now")
    elif before is not None and after is None:
        yield difference(place, Relation.WIDER, "values that are not listed are allowed as well")
    elif before is not None and after is not None:
        if before - after:
            what = f"no longer allowed: {_few(before - after)}"
            yield difference(place, Relation.NARROWER, what)
        if after - before:
            what = f"allowed as well: {_few(after - before)}"
            yield difference(place, Relation.WIDER, what)


def _whole_numbers(before: Asked, after: Asked, place: Path) -> Iterator[SchemaDifference]:
    if "integer" in after and "integer" not in before:
        yield difference(place, Relation.NARROWER, "only whole numbers are allowed now")
    if "integer" in before and "integer" not in after:
        yield difference(place, Relation.WIDER, "numbers that are not whole are allowed as well")


def _multiples(before: Asked, after: Asked, place: Path) -> Iterator[SchemaDifference]:
    was, is_ = before.get("multipleOf"), after.get("multipleOf")
    if was == is_:
        return
    if was is None or _divides(was, is_):
        yield difference(place, Relation.NARROWER, f"only multiples of {is_} are allowed now")
    elif is_ is None or _divides(is_, was):
        yield difference(place, Relation.WIDER, f"not only multiples of {was} are allowed now")
    else:
        yield difference(place, Relation.UNKNOWN, f"`multipleOf` changed, and {UNSHOWN}")


def _divides(one: Any, other: Any) -> bool:
    """Say whether a whole number divides another; of fractions it cannot be said exactly."""
    return isinstance(one, int) and isinstance(other, int) and one > 0 and other % one == 0


def _type(name: str, asked: Asked) -> str:
    return "integer" if "integer" in asked else name


def _and(names: Collection[str]) -> str:
    *others, last = sorted(names)
    return f"{', '.join(others)} and {last}" if others else last


def _few(texts: Collection[str]) -> str:
    shown = [f"`{quoted(text)}`" for text in sorted(texts)[:_MOST_LISTED]]
    more = len(texts) - len(shown)
    return _and(shown) if not more else f"{', '.join(shown)} and {more} more"


def _shown(value: Any) -> str:
    return f"`{quoted(str(value) if isinstance(value, tuple) else json_text(value))}`"
