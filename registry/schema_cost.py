"""What checking one place of a value against a schema can cost, before it is ever checked.

Schemas come from servers. One of a hundred bytes a level can ask for a check that doubles with each
level (``allOf`` twice the same ``$ref``), and no engine is linear in that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import unquote

MOST_CHECKS: Final = 1_000
"""Subschemas that may be tried on one place of a value (about 25 us; real ones: below 200)."""
_LISTS: Final = ("allOf", "anyOf", "oneOf")
_SINGLE: Final = ("not", "if", "then", "else")


def refuse_costly(schema: Any) -> None:
    """Raise ``ValueError`` when one place of a value may take over `MOST_CHECKS` checks, or loop.

    What a schema asks of a value's parts is counted at those parts, so recursive types pass.
    """
    try:
        costs: dict[int, int] = {}
        for part in _parts(schema):
            if _cost(part, schema, costs, set()) > MOST_CHECKS:
                raise ValueError(f"it asks for over {MOST_CHECKS} checks of one place of a value")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _cost(part: Any, root: Any, costs: dict[int, int], under_way: set[int]) -> int:
    if not isinstance(part, dict):
        return 1
    if id(part) in costs:
        return costs[id(part)]
    if id(part) in under_way:
        raise ValueError("a $ref leads back to itself")
    under_way.add(id(part))
    cost = 1 + sum(_cost(same, root, costs, under_way) for same in _at_the_same_place(part, root))
    under_way.discard(id(part))
    costs[id(part)] = cost
    return cost


def _at_the_same_place(part: dict[str, Any], root: Any) -> Iterator[Any]:
    """Yield the subschemas that are tried on the same place of the value."""
    for name in _LISTS:
        if isinstance(part.get(name), list):
            yield from part[name]
    yield from (part[name] for name in _SINGLE if name in part)
    if isinstance(part.get("dependentSchemas"), dict):
        yield from part["dependentSchemas"].values()
    target = part.get("$ref")
    if isinstance(target, str) and target.startswith("#"):
        yield _resolve(target, root)


def _resolve(target: str, root: Any) -> Any:
    """Follow a JSON pointer; None for what it does not lead to (the engine then says so)."""
    found = root
    for step in unquote(target[1:]).split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and name.isdigit() and int(name) < len(found):
            found = found[int(name)]
        elif isinstance(found, dict):
            found = found.get(name)
        else:
            return None
    return found


def _parts(schema: Any) -> Iterator[Any]:
    """Yield a schema and everything in it that may be one."""
    if isinstance(schema, dict):
        yield schema
        for item in schema.values():
            yield from _parts(item)
    elif isinstance(schema, list):
        for item in schema:
            yield from _parts(item)
