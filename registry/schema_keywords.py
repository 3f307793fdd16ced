"""What each keyword of JSON Schema asks of values, and of which type of value.

Pure. A reader returns what is asked in one form however it was written, None when nothing is
asked, and raises `NotUnderstoodError` for what JSON Schema does not allow there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

TYPES: Final = ("array", "boolean", "null", "number", "object", "string")
Asked = dict[str, Any]
"""What is asked of the values of one type, by keyword."""
ByType = dict[str, Asked]
"""What is asked of the values of each allowed type."""


class NotUnderstoodError(ValueError):
    """A place of a schema is not what JSON Schema says it should be."""


class Bound(NamedTuple):
    """A limit of a number; ``strict`` when the limit itself is not allowed."""

    value: int | float
    strict: bool

    def __str__(self) -> str:
        return f"{self.value} (exclusive)" if self.strict else str(self.value)


def json_text(value: Any) -> str:
    """Return JSON text that is equal for equal values: keys sorted, 1.0 written as 1."""
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"))


def as_list(value: Any) -> list[Any]:
    """Return a list as it is; raise `NotUnderstoodError` for anything else."""
    if not isinstance(value, list):
        raise NotUnderstoodError("there is no list where one belongs")
    return value


def types_named(named: Any) -> ByType:
    """Read the value of ``type``; `integer` is a number of which whole ones are asked."""
    names = named if isinstance(named, list) else [named]
    for name in names:
        if name != "integer" and name not in TYPES:
            raise NotUnderstoodError("the type is none of JSON's")
    by_type: ByType = {name: {} for name in TYPES if name in names}
    if "integer" in names and "number" not in names:
        by_type["number"] = {"integer": True}
    return by_type


def ask(by_type: ByType, word: str, value: Any) -> bool:
    """Note what one keyword asks of the allowed types; False for one that asks for nothing."""
    if word not in _KEYWORDS:
        return False
    types, read = _KEYWORDS[word]
    asked = read(value)
    for name in types:
        if asked is not None and name in by_type:
            by_type[name][word] = asked
    return True


def tidy(by_type: ByType) -> None:
    """Join keywords that say one thing together: both limits of a number, a tuple's items."""
    numbers = by_type.get("number", {})
    for word, exclusive, sign in (
        ("minimum", "exclusiveMinimum", 1),
        ("maximum", "exclusiveMaximum", -1),
    ):
        limits = [Bound(numbers.pop(word), strict=False)] if word in numbers else []
        limits += [Bound(numbers.pop(exclusive), strict=True)] if exclusive in numbers else []
        if numbers.get("integer"):
            limits = [_inclusive(limit, sign) for limit in limits]
        if limits:
            numbers[word] = max(limits, key=_tightness(sign))
    arrays = by_type.get("array", {})
    further = arrays.pop("additionalItems", True)
    if isinstance(arrays.get("items"), list):  # a tuple, as drafts before 2020-12 wrote it
        arrays["prefixItems"] = arrays.pop("items")
        if further is not True:
            arrays["items"] = further


def keep_values(by_type: ByType, values: list[Any]) -> None:
    """Allow the given values alone (`enum`, `const`)."""
    for name in list(by_type):
        asked = by_type[name]
        own = {json_text(value): value for value in values if _type_of(value) == name}
        if asked.get("integer"):
            own = {text: value for text, value in own.items() if _is_whole(value)}
        texts = own.keys() & asked.get("enum", own.keys())
        if not texts:
            del by_type[name]
        elif name != "null" and texts != {"true", "false"}:
            asked["enum"] = frozenset(texts)
            if name == "number" and all(_is_whole(own[text]) for text in texts):
                asked["integer"] = True


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _tightness(sign: int) -> Callable[[Bound], tuple[float, bool]]:
    return lambda limit: (limit.value * sign, limit.strict)


def _inclusive(limit: Bound, sign: int) -> Bound:
    """Return the first whole number within a limit."""
    nearest = math.ceil(limit.value * sign)
    if limit.strict and nearest == limit.value * sign:
        nearest += 1
    return Bound(nearest * sign, strict=False)


def _type_of(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def _is_whole(value: float) -> bool:
    return isinstance(value, int) or value.is_integer()


def _number(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise NotUnderstoodError("a limit is no number")
    if isinstance(value, float) and not math.isfinite(value):
        raise NotUnderstoodError("a limit is infinite")
    return int(value) if _is_whole(value) else value


def _most(value: Any) -> int:
    count = _number(value)
    if count < 0 or not isinstance(count, int):
        raise NotUnderstoodError("a count is no whole number")
    return count


def _least(value: Any) -> int | None:
    return _most(value) or None


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise NotUnderstoodError("there is no string where one belongs")
    return value


def _names(value: Any) -> frozenset[str] | None:
    return frozenset(_string(name) for name in as_list(value)) or None


def _schema(value: Any) -> Any:
    return None if value is True or value == {} else value


def _by_name(value: Any) -> Mapping[str, Any] | None:
    if not isinstance(value, dict):
        raise NotUnderstoodError("there is no object where one belongs")
    return value or None


_STRING: Final = ("string",)
_NUMBER: Final = ("number",)
_ARRAY: Final = ("array",)
_OBJECT: Final = ("object",)
_KEYWORDS: Final[dict[str, tuple[tuple[str, ...], Callable[[Any], Any]]]] = {
    "minLength": (_STRING, _least),
    "maxLength": (_STRING, _most),
    "pattern": (_STRING, _string),
    "contentEncoding": (_STRING, _string),
    "contentMediaType": (_STRING, _string),
    "format": (_STRING + _NUMBER, _string),
    "minimum": (_NUMBER, _number),
    "maximum": (_NUMBER, _number),
    "exclusiveMinimum": (_NUMBER, _number),
    "exclusiveMaximum": (_NUMBER, _number),
    "multipleOf": (_NUMBER, _number),
    "minItems": (_ARRAY, _least),
    "maxItems": (_ARRAY, _most),
    "uniqueItems": (_ARRAY, lambda value: value is True or None),
    "items": (_ARRAY, _schema),
    "prefixItems": (_ARRAY, lambda value: as_list(value) or None),
    "additionalItems": (_ARRAY, _schema),
    "minProperties": (_OBJECT, _least),
    "maxProperties": (_OBJECT, _most),
    "required": (_OBJECT, _names),
    "properties": (_OBJECT, _by_name),
    "patternProperties": (_OBJECT, _by_name),
    "additionalProperties": (_OBJECT, _schema),
    "propertyNames": (_OBJECT, _schema),
}
