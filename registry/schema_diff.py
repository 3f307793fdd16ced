"""How the values that a schema allows differ from those that another one allowed.

Pure, and always ends: after `MOST_STEPS` comparisons, or at what JSON Schema does not know, the
answer is that the two could not be compared. It errs to one side: where nothing worse than wider,
new and notes is found, every value that was allowed before is allowed still, unless it had a
property that the schema did not name (a schema that leaves others open does not promise them).
The dialects of JSON Schema are read as one, the newest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Final

from registry.quoting import quoted
from registry.schema_cost import DEEPEST, refuse_huge
from registry.schema_keywords import TYPES, Asked, NotUnderstoodError, json_text
from registry.schema_shape import ABSENT, Shape, Shapes
from registry.schema_values import (
    UNSHOWN,
    Path,
    Relation,
    SchemaDifference,
    defaults,
    difference,
    notes,
    types,
    values,
)
from registry.schemas import refuse_unusable

MOST_STEPS: Final = 10_000
"""Pairs of places that are compared (about 20 us each; real schemas: below 500)."""
REWRITTEN: Final = "rewritten without a change of meaning"
UNCOMPARABLE: Final = "could not be compared"
# No other keyword changes what these ask for.
_ALONE: Final = (
    *("allOf", "anyOf", "oneOf", "not"),
    *("dependencies", "dependentRequired", "dependentSchemas"),
)
_ONE_SCHEMA: Final = ("not", "if", "then", "else", "contains")
_UNEVALUATED: Final = frozenset({"unevaluatedItems", "unevaluatedProperties"})


@dataclass(frozen=True)
class _Seen:
    """The pairs of places met on a way; on an exact way they are taken to mean the same.

    They do, or the way ends at the first difference.
    """

    pairs: set[tuple[int, int]] = field(default_factory=set)
    exact: bool = False

    def exactly(self) -> _Seen:
        """Return the start of a way that only asks whether two places mean the same."""
        return _Seen(set(self.pairs) if self.exact else set(), exact=True)


class _TooMuchError(Exception):
    pass


def schema_differences(before: Any, after: Any, *, result: bool = False) -> list[SchemaDifference]:
    """Return how two schemas differ, of arguments or of a tool's ``result``.

    Schemas that are not equal have a difference. Never raises for JSON.
    """
    try:
        refuse_huge(before)
        refuse_huge(after)
        if json_text(before) == json_text(after):
            return []
        refuse_unusable(after)
        compared = _Comparison(before, after, result=result)
        found = list(compared.places(before, after, (), _Seen()))
    except (ValueError, RecursionError, _TooMuchError) as error:
        reason = "they are too intricate"
        if isinstance(error, ValueError):
            reason = quoted(str(error).partition("\n")[0])
        return [difference((), Relation.UNKNOWN, f"{UNCOMPARABLE}: {reason}")]
    return found or [difference((), Relation.NOTE, REWRITTEN)]


class _Comparison:
    """The way through two schemas at once; each pair of places is told of once."""

    def __init__(self, before: Any, after: Any, *, result: bool) -> None:
        self._before = Shapes(before)
        self._after = Shapes(after)
        self._result = result
        self._steps = 0

    def places(
        self, before: Any, after: Any, path: Path, seen: _Seen
    ) -> Iterator[SchemaDifference]:
        """Yield how two places differ; of a pair in ``seen`` it is told elsewhere."""
        self._steps += 1
        if self._steps > MOST_STEPS or len(path) > DEEPEST:
            raise _TooMuchError
        if (id(before), id(after)) in seen.pairs:
            return
        seen.pairs.add((id(before), id(after)))
        try:
            was, is_ = self._before.of(before), self._after.of(after)
        except NotUnderstoodError as error:
            if not _is_literally(before, after):
                yield difference(path, Relation.UNKNOWN, f"{UNCOMPARABLE}: {error}")
            return
        found = self._asked(was, is_, path, seen)
        if _UNEVALUATED & (was.rest.keys() | is_.rest.keys()):
            found = _as_one(found, path)
        yield from found

    def _asked(
        self, before: Shape, after: Shape, path: Path, seen: _Seen
    ) -> Iterator[SchemaDifference]:
        yield from notes(before, after, path)
        yield from defaults(before, after, path)
        yield from types(before, after, path)
        for name in TYPES:
            if name in before.by_type and name in after.by_type:
                pair = before.by_type[name], after.by_type[name]
                yield from values(*pair, path)
                if name == "array":
                    yield from self._items(*pair, path, seen)
                if name == "object":
                    yield from self._properties(*pair, path, seen)
        yield from self._rest(before.rest, after.rest, path, seen)

    def _same(self, before: Any, after: Any, seen: _Seen) -> bool:
        """Say whether two places mean the same."""
        self._steps += len(seen.pairs) // 100  # they are copied
        found = self.places(before, after, (), seen.exactly())
        return all(it.relation is Relation.NOTE for it in found)

    def _items(
        self, before: Asked, after: Asked, path: Path, seen: _Seen
    ) -> Iterator[SchemaDifference]:
        was, is_ = before.get("items", True), after.get("items", True)
        firsts = zip_longest(
            before.get("prefixItems", ()), after.get("prefixItems", ()), fillvalue=ABSENT
        )
        for index, (one, other) in enumerate(firsts):
            pair = was if one is ABSENT else one, is_ if other is ABSENT else other
            yield from self.places(*pair, (*path, "prefixItems", index), seen)
        yield from self.places(was, is_, (*path, "items"), seen)

    def _properties(
        self, before: Asked, after: Asked, path: Path, seen: _Seen
    ) -> Iterator[SchemaDifference]:
        was, is_ = before.get("properties", {}), after.get("properties", {})
        others, others_now = (it.get("additionalProperties", True) for it in (before, after))
        patterns = "patternProperties" in before or "patternProperties" in after
        new, gone = set(), set()
        for name in was:
            place = (*path, "properties", name)
            if name in is_:
                yield from self.places(was[name], is_[name], place, seen)
            elif self._after.of(others_now).asks_something and not patterns:
                yield from self.places(was[name], others_now, place, seen)
            else:
                gone.add(name)
                yield difference(place, Relation.GONE, f"{self._named(name, path)} is gone")
        for name in is_:
            place = (*path, "properties", name)
            if name in was:
                continue
            if self._before.of(others).asks_something and not patterns:
                yield from self.places(others, is_[name], place, seen)
            else:
                new.add(name)
                required = name in after.get("required", ())
                relation, what = self._new(others, required=required, patterns=patterns)
                yield difference(place, relation, f"{self._named(name, path)} {what}")
        yield from self._required(before, after, path, told=(new, gone))
        yield from self._others(others, others_now, (*path, "additionalProperties"), seen)
        yield from self._patterns(before, after, (*path, "patternProperties"), seen)
        if "propertyNames" in before or "propertyNames" in after:
            pair = before.get("propertyNames", True), after.get("propertyNames", True)
            yield from self.places(*pair, (*path, "propertyNames"), seen)

    def _new(self, others: Any, *, required: bool, patterns: bool) -> tuple[Relation, str]:
        """Return what a property is that was not named, ``others`` being what was asked of it."""
        what = "is new and required" if required else "is new"
        if patterns:
            return Relation.UNKNOWN, f"{what}, and {UNSHOWN}"
        if not self._before.of(others).by_type:  # no other property was allowed
            return Relation.UNKNOWN if required else Relation.WIDER, what
        return Relation.NARROWER if required else Relation.NEW, what

    def _required(
        self, before: Asked, after: Asked, path: Path, *, told: tuple[set[str], set[str]]
    ) -> Iterator[SchemaDifference]:
        were, are = (it.get("required", frozenset()) for it in (before, after))
        new, gone = told  # what they say of a name need not be said again
        for name in sorted(are - were - new):
            what = "is guaranteed now" if self._result else "became required"
            named = self._named(name, path)
            yield difference((*path, "required"), Relation.NARROWER, f"{named} {what}")
        for name in sorted(were - are - gone):
            what = f"is no longer {'guaranteed' if self._result else 'required'}"
            named = self._named(name, path)
            yield difference((*path, "required"), Relation.WIDER, f"{named} {what}")

    def _others(
        self, before: Any, after: Any, place: Path, seen: _Seen
    ) -> Iterator[SchemaDifference]:
        was, is_ = self._before.of(before), self._after.of(after)
        if was.asks_nothing and not is_.by_type:
            yield difference(place, Relation.NARROWER, "other properties are no longer allowed")
        elif is_.asks_nothing and not was.by_type:
            yield difference(place, Relation.WIDER, "other properties are allowed as well")
        else:
            yield from self.places(before, after, place, seen)

    def _patterns(
        self, before: Asked, after: Asked, place: Path, seen: _Seen
    ) -> Iterator[SchemaDifference]:
        was, is_ = (it.get("patternProperties", {}) for it in (before, after))
        for pattern in sorted(was.keys() | is_.keys()):
            if pattern in was and pattern in is_:
                yield from self.places(was[pattern], is_[pattern], (*place, pattern), seen)
            else:
                what = f"names like this are {'told' if pattern in is_ else 'no longer told'} apart"
                yield difference((*place, pattern), Relation.UNKNOWN, f"{what}, and {UNSHOWN}")

    def _rest(
        self, before: dict[str, Any], after: dict[str, Any], path: Path, seen: _Seen
    ) -> Iterator[SchemaDifference]:
        """Yield how what could not be laid out by type differs."""
        for word in sorted(before.keys() | after.keys()):
            place = (*path, word)
            if word not in before or word not in after:
                what = f"`{word}` is {'new' if word in after else 'gone'}"
                if word in _ALONE:
                    relation = Relation.NARROWER if word in after else Relation.WIDER
                    yield difference(place, relation, what)
                else:
                    yield difference(place, Relation.UNKNOWN, f"{what}, and {UNSHOWN}")
            elif word in {"allOf", "anyOf"} or self._told_apart(word, before, after):
                yield from self._alternatives(word, before[word], after[word], path, seen)
            elif not self._same_whole(word, before[word], after[word], seen):
                yield difference(place, Relation.UNKNOWN, f"`{word}` changed, and {UNSHOWN}")

    def _alternatives(
        self, word: str, before: list[Any], after: list[Any], path: Path, seen: _Seen
    ) -> Iterator[SchemaDifference]:
        """Yield how the members of a union differ, or of ``allOf``.

        Whichever two are put together: while each is as wide as the one before, so is the union.
        """
        new = dict(enumerate(after))
        pairs, gone = [], []
        for index, one in enumerate(before):
            found = next((at for at, other in new.items() if self._same(one, other, seen)), None)
            if found is None:
                gone.append((index, one))
            else:
                pairs.append((found, one, new.pop(found)))
        if seen.exact:
            pairs = []  # what is the same has been walked
        pairs += [(at, one, b) for (_, one), (at, b) in zip(gone, new.items(), strict=False)]
        for at, one, other in pairs:
            yield from self.places(one, other, (*path, word, at), seen)
        less, more = Relation.NARROWER, Relation.WIDER
        if word == "allOf":
            less, more = more, less
        for index, _ in gone[len(new) :]:
            yield difference((*path, word, index), less, f"a member of `{word}` is gone")
        for index in list(new)[len(gone) :]:
            yield difference((*path, word, index), more, f"a member of `{word}` is new")

    def _same_whole(self, word: str, before: Any, after: Any, seen: _Seen) -> bool:
        if word in {*_ONE_SCHEMA, *_UNEVALUATED}:
            return self._same(before, after, seen)
        if word == "oneOf":
            return len(before) == len(after) and all(
                self._same(*pair, seen) for pair in zip(before, after, strict=True)
            )
        if word == "dependentSchemas" and isinstance(before, dict) and isinstance(after, dict):
            return before.keys() == after.keys() and all(
                self._same(before[name], after[name], seen) for name in before
            )
        return _is_literally(before, after)

    def _told_apart(self, word: str, before: dict[str, Any], after: dict[str, Any]) -> bool:
        """Say whether this is a ``oneOf`` that means the same as ``anyOf``, both times."""
        return word == "oneOf" and all(
            shapes.told_apart(rest[word])
            for shapes, rest in ((self._before, before), (self._after, after))
        )

    def _named(self, name: str, path: Path) -> str:
        noun = "property" if self._result or path else "argument"
        return f"the {noun} `{quoted(name)}`"


def _as_one(found: Iterable[SchemaDifference], path: Path) -> Iterator[SchemaDifference]:
    """Yield notes as they are: beside ``unevaluated...`` any other difference may be any other."""
    told = list(found)
    yield from (it for it in told if it.relation is Relation.NOTE)
    if any(it.relation is not Relation.NOTE for it in told):
        what = f"what stands beside `unevaluated...` changed, and {UNSHOWN}"
        yield difference(path, Relation.UNKNOWN, what)


def _is_literally(before: Any, after: Any) -> bool:
    """Say whether two texts are one, and do not lead to others that may differ."""
    text = json_text(before)
    return text == json_text(after) and '"$ref"' not in text
