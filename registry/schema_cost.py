"""What checking one place of a value against a schema can cost, before it is ever checked.

Schemas come from servers. One of a hundred bytes a level can ask for a check that doubles with each
level (``allOf`` twice the same ``$ref``), and no engine is linear in that. What cannot be followed
here (anchors, dynamic references, a part with an address of its own) cannot be counted, and is
refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Final
from urllib.parse import unquote

MOST_CHECKS: Final = 1_000
"""Subschemas that may be tried on one place of a value (about 25 us; real ones: below 200)."""
LARGEST_BYTES: Final = 65_536
"""Of one schema as compact JSON; real ones: below 20,000."""
DEEPEST: Final = 64
"""Objects and lists within each other in one schema; real ones: below 30."""
MOST_OBJECTS: Final = 2_000
"""JSON objects in one schema, which its subschemas are among; real ones: below 500."""
_LISTS: Final = ("allOf", "anyOf", "oneOf")
_SINGLE: Final = ("not", "if", "then", "else")
_BY_NAME: Final = ("dependentSchemas", "dependencies")
_UNEVALUATED: Final = ("unevaluatedProperties", "unevaluatedItems")
_TRIED_AGAIN: Final = 3  # measured: what stands beside `unevaluated...` costs 2.6 times as much
_DYNAMIC: Final = ("$dynamicRef", "$recursiveRef")
_METASCHEMAS: Final = ("https://json-schema.org/draft/", "http://json-schema.org/draft-")


def refuse_costly(schema: Any) -> None:
    """Raise ``ValueError`` when one place of a value may take over `MOST_CHECKS` checks, or loop.

    What a schema asks of a value's parts is counted at those parts, so recursive types pass.
    """
    try:
        costs: dict[int, int] = {}
        for part in _parts(schema):
            _refuse_untraceable(part, schema)
            if _cost(part, schema, costs, set()) > MOST_CHECKS:
                raise ValueError(f"it asks for over {MOST_CHECKS} checks of one place of a value")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def refuse_huge(schema: Any) -> None:
    """Raise ``ValueError`` for what is deeper, larger or in more parts than any real schema.

    What passes may be recursed into.
    """
    objects, level = 0, [schema]
    for _ in range(DEEPEST):
        objects += sum(isinstance(part, dict) for part in level)
        level = [inner for part in level for inner in _inside(part)]
    if any(isinstance(part, dict | list) for part in level):
        raise ValueError(f"it is nested deeper than {DEEPEST} levels")
    if objects > MOST_OBJECTS:
        raise ValueError(f"it has over {MOST_OBJECTS} parts")
    compact = json.dumps(schema, separators=(",", ":"), ensure_ascii=False)
    if len(compact.encode(errors="surrogatepass")) > LARGEST_BYTES:
        raise ValueError(f"it is larger than {LARGEST_BYTES} bytes")


def is_metaschema(target: str) -> bool:
    """Say whether a ``$ref`` names JSON Schema's own schema, which the engine brings with it."""
    return target.startswith(_METASCHEMAS)


def resolve(target: str, root: Any) -> Any:
    """Follow a JSON pointer (``#/...``); None for what it does not lead to."""
    steps = unquote(target[1:]).split("/")
    if not target.startswith("#") or steps[0]:
        return None
    found = root
    for step in steps[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        elif isinstance(found, dict):
            found = found.get(name)
        else:
            return None
    return found


def _refuse_untraceable(part: Any, root: Any) -> None:
    """Raise ``ValueError`` for references whose cost cannot be counted."""
    if not isinstance(part, dict):
        return
    target = part.get("$ref")
    if isinstance(target, str) and not is_metaschema(target) and target[:2] not in {"#", "#/"}:
        raise ValueError("a $ref is no JSON pointer into the schema itself")
    dynamic = [word for word in _DYNAMIC if isinstance(part.get(word), str)]
    if dynamic:
        raise ValueError(f"it uses {dynamic[0]}, which cannot be followed")
    # An $id makes the pointers below it start there, and not at the root.
    based = part is not root and isinstance(part.get("$id"), str)
    if based and any(
        isinstance(it, dict) and isinstance(it.get("$ref"), str) for it in _parts(part)
    ):
        raise ValueError("a part with an $id of its own has a $ref")


def _cost(part: Any, root: Any, costs: dict[int, int], under_way: set[int]) -> int:
    if not isinstance(part, dict):
        return 1
    if id(part) in costs:
        return costs[id(part)]
    if id(part) in under_way:
        raise ValueError("a $ref leads back to itself")
    under_way.add(id(part))
    cost = sum(_cost(same, root, costs, under_way) for same in _at_the_same_place(part, root))
    if any(word in part for word in _UNEVALUATED):
        cost *= _TRIED_AGAIN
    under_way.discard(id(part))
    costs[id(part)] = cost + 1
    return cost + 1


def _at_the_same_place(part: dict[str, Any], root: Any) -> Iterator[Any]:
    """Yield the subschemas that are tried on the same place of the value."""
    for name in _LISTS:
        if isinstance(part.get(name), list):
            yield from part[name]
    yield from (part[name] for name in _SINGLE if name in part)
    for name in _BY_NAME:
        if isinstance(part.get(name), dict):
            yield from part[name].values()
    target = part.get("$ref")
    if isinstance(target, str) and target.startswith("#"):
        yield resolve(target, root)


def _inside(part: Any) -> Iterable[Any]:
    if isinstance(part, dict):
        return part.values()
    return part if isinstance(part, list) else ()


def _parts(schema: Any) -> Iterator[Any]:
    """Yield a schema and everything in it that may be one."""
    if isinstance(schema, dict):
        yield schema
    for item in _inside(schema):
        yield from _parts(item)
