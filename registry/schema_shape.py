"""What a schema asks of one place of a value, type by type, however it is written.

Pure. ``type: [string, null]``, an ``anyOf`` of the two, a ``$ref`` to either of these and an
``allOf`` of one have one shape. What cannot be laid out by type is kept as it is in `Shape.rest`;
what asks for nothing (titles, descriptions, unknown keywords) is in `Shape.notes`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from registry.schema_cost import resolve
from registry.schema_keywords import (
    TYPES,
    Asked,
    ByType,
    NotUnderstoodError,
    as_list,
    ask,
    json_text,
    keep_values,
    tidy,
    types_named,
)

ABSENT: Final = object()
_KEPT_WHOLE: Final = (
    *("not", "if", "then", "else", "contains", "minContains", "maxContains", "dependencies"),
    *("dependentRequired", "dependentSchemas", "unevaluatedItems", "unevaluatedProperties"),
    *("$dynamicRef", "$recursiveRef", "$anchor", "$dynamicAnchor", "$recursiveAnchor"),
)
_READ_APART: Final = ("$ref", "allOf", "anyOf", "oneOf", "type", "enum", "const", "default")
_OF_ELSEWHERE: Final = ("$defs", "definitions")
_EVALUATING: Final = {
    *("$ref", "allOf", "anyOf", "oneOf", "if", "dependentSchemas", "contains"),
    *("items", "additionalItems", "additionalProperties", "$dynamicRef", "$recursiveRef"),
}
_ALONE: Final = {"unevaluatedProperties": "additionalProperties", "unevaluatedItems": "items"}
# The keywords of a group read each other: together they are one condition.
_GROUPS: Final = (
    {"properties", "patternProperties", "additionalProperties"},
    {"items", "prefixItems"},
)


@dataclass(frozen=True)
class Shape:
    """What is asked of values of each allowed type, and what could not be laid out so.

    ``notes`` maps a keyword to the JSON texts that stand there.
    """

    by_type: ByType
    rest: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    default: Any = ABSENT

    @property
    def asks_nothing(self) -> bool:
        """Say whether every value is allowed."""
        return len(self.by_type) == len(TYPES) and not self.rest and not any(self.by_type.values())

    @property
    def asks_something(self) -> bool:
        """Say whether some values are allowed, and others not."""
        return bool(self.by_type) and not self.asks_nothing


class Shapes:
    """The shapes of one schema's places, each made once; local references are followed."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._made: dict[int, Shape] = {}
        self._under_way: set[int] = set()

    def of(self, part: Any) -> Shape:
        """Return the shape of a part of the schema; raise `NotUnderstoodError`."""
        if isinstance(part, bool):
            return Shape({name: {} for name in TYPES} if part else {})
        if not isinstance(part, dict):
            raise NotUnderstoodError("it is no schema")
        if id(part) not in self._made:
            if id(part) in self._under_way:
                raise NotUnderstoodError("a $ref leads back to itself")
            self._under_way.add(id(part))
            self._made[id(part)] = self._make(part)
            self._under_way.discard(id(part))
        return self._made[id(part)]

    def _make(self, part: dict[str, Any]) -> Shape:
        shape = _own(part, at_root=part is self._root)
        for word in ("anyOf", "oneOf"):
            if word in part:
                shape = self._with_union(shape, word, as_list(part[word]))
        conjuncts = as_list(part.get("allOf", []))
        if "$ref" in part:
            named = part["$ref"]
            target = resolve(named, self._root) if isinstance(named, str) else None
            if target is None:  # it leads out of the schema, or to nowhere
                shape.rest["$ref"] = named
            else:
                conjuncts = [target, *conjuncts]
        apart = []
        for conjunct in conjuncts:
            joined = _both(shape, self.of(conjunct))
            if joined is None:
                apart.append(conjunct)
            else:
                shape = joined
        if apart:
            shape = replace(
                shape, rest={**shape.rest, "allOf": shape.rest.get("allOf", []) + apart}
            )
        return shape

    def _with_union(self, shape: Shape, word: str, branches: list[Any]) -> Shape:
        shapes = [self.of(branch) for branch in branches]
        union, exact = _either(shapes, exclusive=word == "oneOf")
        joined = _both(shape, Shape(union, notes=_notes(shapes))) if exact else None
        if joined is not None:
            return joined
        # What no branch allows is not allowed, whatever else they ask for.
        allowed = {name: asked for name, asked in shape.by_type.items() if name in union}
        return Shape(allowed, {**shape.rest, word: branches}, shape.notes, shape.default)

    def told_apart(self, branches: list[Any]) -> bool:
        """Say whether no value fits two branches: objects that a required property tells apart."""
        asked = [self.of(branch).by_type for branch in branches]
        if any(by_type.keys() != {"object"} for by_type in asked):
            return False
        objects = [by_type["object"] for by_type in asked]
        names = frozenset[str].intersection(*(it.get("required", frozenset()) for it in objects))
        return any(
            _disjoint([self.of(it.get("properties", {}).get(name, True)) for it in objects])
            for name in names
        )


def _disjoint(shapes: list[Shape]) -> bool:
    """Say whether each shape allows listed values alone, and no two the same."""
    asked = [it for shape in shapes for it in shape.by_type.values()]
    listed = [text for it in asked for text in it.get("enum", ())]
    return all("enum" in it for it in asked) and len(set(listed)) == len(listed)


def _own(part: dict[str, Any], *, at_root: bool) -> Shape:
    by_type: ByType = {name: {} for name in TYPES}
    if "type" in part:
        by_type = types_named(part["type"])
    rest: dict[str, Any] = {}
    part = _alone(part)
    notes: dict[str, tuple[str, ...]] = {}
    for word, value in part.items():
        if word in _READ_APART or word in _OF_ELSEWHERE:
            continue
        if word in _KEPT_WHOLE or (word == "$id" and not at_root):
            rest[word] = value
        elif not ask(by_type, word, value):
            notes[word] = (json_text(value),)
    tidy(by_type)
    if "enum" in part:
        keep_values(by_type, as_list(part["enum"]))
    if "const" in part:
        keep_values(by_type, [part["const"]])
    return Shape(by_type, rest, notes, part.get("default", ABSENT))


def _alone(part: dict[str, Any]) -> dict[str, Any]:
    """Write ``unevaluated...`` as ``additional...`` where nothing beside it evaluates a part."""
    if part.keys() & _EVALUATING:
        return part
    return {_ALONE.get(word, word): value for word, value in part.items()}


def _both(one: Shape, other: Shape) -> Shape | None:
    """Return what both ask for together, or None when that cannot be laid out by type."""
    if one.rest.keys() & other.rest.keys():
        return None
    by_type: ByType = {}
    for name in TYPES:
        if name in one.by_type and name in other.by_type:
            joined = _joined(one.by_type[name], other.by_type[name])
            if joined is None:
                return None
            if joined.get("enum") != frozenset():
                by_type[name] = joined
    return Shape(
        by_type,
        {**one.rest, **other.rest},
        _notes([one, other]),
        other.default if one.default is ABSENT else one.default,
    )


def _joined(one: Asked, other: Asked) -> Asked | None:
    if not one or not other or _alike(one, other):
        return one or other
    if any(one.keys() & group and other.keys() & group for group in _GROUPS):
        return None
    joined = {**one, **other}
    for word in one.keys() & other.keys():
        if word == "enum":
            joined[word] = one[word] & other[word]
        elif word == "required":
            joined[word] = one[word] | other[word]
        elif not _same(one[word], other[word]):
            return None
    return joined


def _either(shapes: list[Shape], *, exclusive: bool) -> tuple[ByType, bool]:
    """Return what one of the shapes at least asks for, and whether that says all.

    ``exclusive`` is oneOf, which refuses a value that two of its branches allow.
    """
    union: ByType = {}
    exact = not any(shape.rest for shape in shapes)
    for name in TYPES:
        asked = [shape.by_type[name] for shape in shapes if name in shape.by_type]
        listed = [it["enum"] for it in asked if "enum" in it and it.keys() <= {"enum", "integer"}]
        if not asked:
            continue
        if len(asked) == 1:
            union[name] = asked[0]
        elif len(listed) == len(asked):
            values = frozenset[str]().union(*listed)
            whole = {"integer": True} if all("integer" in it for it in asked) else {}
            union[name] = {"enum": values, **whole}
            exact = exact and not (exclusive and sum(map(len, listed)) > len(values))
        else:
            alike = not exclusive and all(_alike(asked[0], it) for it in asked)
            union[name] = asked[0] if alike else {}
            exact = exact and not exclusive and (alike or not all(asked))
    return union, exact


def _alike(one: Asked, other: Asked) -> bool:
    return one is other or (
        one.keys() == other.keys() and all(_same(one[word], other[word]) for word in one)
    )


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, frozenset | tuple):
        return bool(one == other)
    return json_text(one) == json_text(other)


def _notes(shapes: Iterable[Shape]) -> dict[str, tuple[str, ...]]:
    notes: dict[str, dict[str, None]] = {}
    for shape in shapes:
        for word, texts in shape.notes.items():
            notes.setdefault(word, {}).update(dict.fromkeys(texts))
    return {word: tuple(texts) for word, texts in notes.items()}
