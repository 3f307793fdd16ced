"""References in an OpenAPI document: what they lead to, and what nothing leads to.

Pure; nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Any, Final

_MAX_DEPTH: Final = 200
_COMPONENTS: Final = "#/components/"
# Members that hold data, in which "$ref" means nothing.
_DATA: Final = ("example", "examples", "default", "enum", "const")
# Members that hold objects by names, which may be anything.
_NAMING: Final = (
    "properties", "patternProperties", "dependentSchemas", "$defs", "definitions",
    "schemas", "parameters", "requestBodies", "responses", "headers",
)  # fmt: skip

Where = tuple[str | int, ...]
"""Names and indexes, from a document's root."""


class DocumentError(ValueError):
    """What is wrong with a document; ``place`` says where, beside the document's own fields."""

    def __init__(self, problem: str, *where: str | int, field: str = "document") -> None:
        super().__init__(problem)
        self.place: Where = (field, *map(escaped, where))


def references(root: Any, schemas: Container[str] = ()) -> Iterator[tuple[str, Where]]:
    """Yield every reference and where it stands, those by which discriminators name schemas too.

    Raises `DocumentError` for what is nested too deeply.
    """
    # The third says whether the members of an object are names, which mean nothing.
    left: list[tuple[Any, Where, bool]] = [(root, (), False)]
    while left:
        node, where, naming = left.pop()
        if len(where) > _MAX_DEPTH:
            raise DocumentError("it is nested too deeply", *where[:4])
        if isinstance(node, list):
            left.extend((item, (*where, number), False) for number, item in enumerate(node))
        elif isinstance(node, dict):
            if not naming:
                yield from (
                    (target, (*where, *steps)) for target, *steps in _targets(node, schemas)
                )
            left.extend(
                (item, (*where, str(name)), not naming and name in _NAMING)
                for name, item in node.items()
                if isinstance(item, dict | list)
                and (naming or not (name in _DATA or str(name).startswith("x-")))
            )


def refuse_references(document: dict[str, Any]) -> None:
    """Raise `DocumentError` for what leads out of the document, or nowhere."""
    _schemas(document)
    for target, where in references(document):
        if not target.startswith("#"):
            problem = (
                f"{target[:200]!r} is another document, and nothing is fetched: bundle the two"
            )
        elif target.startswith("#/$defs/"):  # of the schema that it stands in
            continue
        elif not _is_component(target):
            problem = f"{target[:200]!r} is not among the document's components"
        elif _find(document, target) is None:
            problem = f"{target[:200]!r} does not exist"
        else:
            continue
        raise DocumentError(problem, *where)


def resolve(document: dict[str, Any], item: Any) -> Any:
    """Follow references within the document until there is none; None where they lead nowhere."""
    for _ in range(_MAX_DEPTH):
        target = item.get("$ref") if isinstance(item, dict) else None
        if not isinstance(target, str):
            return item
        item = _find(document, target)
    return None


def without_unused(document: dict[str, Any]) -> dict[str, Any]:
    """Return a document without the components that its paths do not need."""
    schemas = _schemas(document)
    kept: dict[str, dict[str, Any]] = {}
    left: list[Any] = [document.get("paths", {})]
    while left:
        for target, _ in references(left.pop(), schemas):
            if not _is_component(target):
                continue
            kind, name = (_unescaped(step) for step in target.split("/")[2:4])
            if name not in kept.setdefault(kind, {}):
                kept[kind][name] = _find(document, "/".join(target.split("/")[:4]))
                left.append({kind: {name: kept[kind][name]}})
    return {**document, "components": kept}


def object_at(value: Any, *where: str | int) -> dict[str, Any]:
    """Return what is at a place in a document; raise `DocumentError` unless it is an object."""
    if not isinstance(value, dict):
        raise DocumentError("it is not an object", *where)
    return value


def _targets(node: dict[str, Any], schemas: Container[str]) -> Iterator[tuple[str, ...]]:
    target = node.get("$ref")
    if isinstance(target, str):
        yield target, "$ref"
    discriminator = node.get("discriminator")
    mapping = discriminator.get("mapping") if isinstance(discriminator, dict) else None
    for value, named in (mapping if isinstance(mapping, dict) else {}).items():
        if isinstance(named, str) and (named.startswith(_COMPONENTS) or named in schemas):
            target = named if "/" in named else f"{_COMPONENTS}schemas/{named}"
            yield target, "discriminator", "mapping", value


def _schemas(document: dict[str, Any]) -> dict[str, Any]:
    components = object_at(document.get("components", {}), "components")
    return object_at(components.get("schemas", {}), "components", "schemas")


def _is_component(target: str) -> bool:
    return target.startswith(_COMPONENTS) and target.count("/") > 2


def _find(document: dict[str, Any], target: str) -> Any:
    """Follow a JSON pointer; None when it leads to nothing."""
    found: Any = document
    for step in map(_unescaped, target.split("/")[1:]):
        if isinstance(found, list) and step.isdecimal() and int(step) < len(found):
            found = found[int(step)]
        elif isinstance(found, dict):
            found = found.get(step)
        else:
            return None
    return found


def _unescaped(step: str) -> str:
    return step.replace("~1", "/").replace("~0", "~")


def escaped(step: str | int) -> str | int:
    """Return a step of a path as a JSON pointer has it."""
    return step.replace("~", "~0").replace("/", "~1") if isinstance(step, str) else step
