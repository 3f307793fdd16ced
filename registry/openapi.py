"""The OpenAPI document of an HTTP API: its operations, their tools' names, and what is refused.

Pure; nothing is ever fetched, whatever a document refers to. What passes `choose` can be turned
into tools, whole: no operation or parameter is left out without a word.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

from registry.openapi_references import (
    DocumentError,
    Where,
    object_at,
    refuse_references,
    resolve,
    without_unused,
)

MAX_DOCUMENT_BYTES: Final = 2_000_000
"""As compact JSON."""
MAX_OPERATIONS: Final = 1_000
_LONGEST_NAME: Final = 128  # that MCP allows
_METHODS: Final = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
_KEPT: Final = ("openapi", "swagger", "info", "servers", "components")
_PLACES: Final = ("path", "query", "header", "cookie")
_VARIABLE: Final = re.compile(r"\{([^{}]+)\}")
_SERVED: Final = re.compile(r"3\.[01](\.\d+)*")
_FOREIGN: Final = re.compile(r"[^A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Operation:
    """One operation of a document: a tool of its server."""

    method: str
    path: str
    id: str | None
    where: Where
    body: dict[str, Any]
    shared: list[dict[str, Any]]
    """The parameters that all operations of its path have."""

    @property
    def label(self) -> str:
        """Return ``METHOD /path``."""
        return f"{self.method} {self.path}"

    @property
    def name(self) -> str:
        """Return its tool's name: made of its id, else of method and path; legal and stable."""
        wanted = self.id or f"{self.method.lower()} {self.path}"
        legal = _FOREIGN.sub("_", wanted) if self.id else _FOREIGN.sub("_", wanted).strip("_")
        if len(legal) <= _LONGEST_NAME:
            return legal
        tail = hashlib.sha256(wanted.encode()).hexdigest()[:8]
        return f"{legal[: _LONGEST_NAME - 9]}_{tail}"

    def matches(self, pattern: str) -> bool:
        """Say whether a pattern is its id's or its label's; ``*`` stands for anything."""
        return any(fnmatchcase(it, pattern) for it in (self.id, self.label) if it)


def choose(
    document: dict[str, Any], include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> list[Operation]:
    """Return the operations to serve; raise `DocumentError` unless all of them can be served.

    A pattern of ``include`` or ``exclude`` that matches nothing is an error, so that none is left
    out, or in, by a slip.
    """
    _refuse_version(document)
    refuse_references(document)
    _refuse_size(document)
    chosen = select(document, include, exclude)
    if len(chosen) > MAX_OPERATIONS:
        problem = f"there are {len(chosen)} operations, more than {MAX_OPERATIONS}: include fewer"
        raise DocumentError(problem, "paths")
    _refuse_namesakes(chosen)
    for operation in chosen:
        _refuse_undeclared(operation, parameters_of(document, operation))
    return chosen


def select(
    document: dict[str, Any], include: Sequence[str], exclude: Sequence[str]
) -> list[Operation]:
    """Return the operations that are included and not excluded; with no ``include``, all are."""
    operations = list(_operations(document))
    if not operations:
        raise DocumentError("it has no operations", "paths")
    for field, patterns in (("include", include), ("exclude", exclude)):
        for number, pattern in enumerate(patterns):
            if not any(it.matches(pattern) for it in operations):
                problem = (
                    f"{pattern!r} matches no operation: give an operationId or METHOD /path, "
                    "with * for anything"
                )
                raise DocumentError(problem, number, field=field)
    chosen = [
        it
        for it in operations
        if (not include or any(it.matches(pattern) for pattern in include))
        and not any(it.matches(pattern) for pattern in exclude)
    ]
    if not chosen:
        raise DocumentError("no operation is left", field="exclude")
    return chosen


def parameters_of(document: dict[str, Any], operation: Operation) -> list[dict[str, Any]]:
    """Return an operation's parameters, those of its path included, with no reference left."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for own, listed in enumerate((operation.shared, operation.body.get("parameters", []))):
        where = (*operation.where[: 2 + own], "parameters")
        for number, item in enumerate(listed):
            parameter = object_at(resolve(document, item), *where, number)
            name, place = parameter.get("name"), parameter.get("in")
            if not isinstance(name, str) or place not in _PLACES:
                raise DocumentError(
                    f"a parameter has a name, and is in one of {', '.join(_PLACES)}", *where, number
                )
            found[name, place] = parameter
    return list(found.values())


def narrowed(document: dict[str, Any], operations: Sequence[Operation]) -> dict[str, Any]:
    """Return a document with these operations alone, and the components that they need."""
    paths: dict[str, dict[str, Any]] = {}
    for it in operations:
        item = paths.setdefault(it.path, {"parameters": it.shared} if it.shared else {})
        item[it.method.lower()] = it.body
    kept = {name: document[name] for name in document if name in _KEPT}
    return without_unused({**kept, "paths": paths})


# -- refusals


def _refuse_version(document: dict[str, Any]) -> None:
    if "swagger" in document:
        problem = "Swagger 2.0 is not served: convert it to OpenAPI 3, as swagger2openapi does"
        raise DocumentError(problem, "swagger")
    version = document.get("openapi")
    if not isinstance(version, str):
        raise DocumentError("this is no OpenAPI document: it does not say its version", "openapi")
    if not _SERVED.fullmatch(version):
        raise DocumentError(f"OpenAPI {version} is not served: 3.0 and 3.1 are", "openapi")


def _refuse_size(document: dict[str, Any]) -> None:
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False)
    if len(text.encode("utf-8", "replace")) > MAX_DOCUMENT_BYTES:
        raise DocumentError(f"it is larger than {MAX_DOCUMENT_BYTES} bytes as JSON")


def _refuse_namesakes(operations: Sequence[Operation]) -> None:
    owners: dict[str, Operation] = {}
    for operation in operations:
        other = owners.setdefault(operation.name, operation)
        if other is not operation:
            problem = (
                f"{other.label} and {operation.label} would both be tool {operation.name!r}: "
                "exclude one of them, or give it another operationId"
            )
            raise DocumentError(problem, *operation.where)


def _refuse_undeclared(operation: Operation, parameters: list[dict[str, Any]]) -> None:
    declared = {parameter["name"] for parameter in parameters if parameter["in"] == "path"}
    for name in _VARIABLE.findall(operation.path):
        if name not in declared:
            raise DocumentError(f"its {{{name}}} is not among its parameters", *operation.where)


# -- reading


def _operations(document: dict[str, Any]) -> Iterator[Operation]:
    for path, listed in object_at(document.get("paths", {}), "paths").items():
        where = ("paths", path)
        if path.startswith("x-"):
            continue
        if not path.startswith("/"):
            raise DocumentError("a path begins with /", *where)
        item = object_at(resolve(document, listed), *where)
        shared = _objects(item.get("parameters", []), *where, "parameters")
        for method in _METHODS:
            if method not in item:
                continue
            body = object_at(item[method], *where, method)
            _objects(body.get("parameters", []), *where, method, "parameters")
            id_ = body.get("operationId")
            if id_ is not None and (not isinstance(id_, str) or not id_):
                raise DocumentError("it is not a name", *where, method, "operationId")
            yield Operation(method.upper(), path, id_, (*where, method), body, shared)


def _objects(value: Any, *where: str | int) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise DocumentError("it is not a list of objects", *where)
    return value
