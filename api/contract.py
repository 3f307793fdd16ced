"""The OpenAPI document, completed: who may ask, and every answer that there is.

A route declares what it answers when it succeeds (``responses={200: {"model": ...}}``), whom it is
for (`api.auth.only`), and its subject (its first tag). The refusals that any route of its kind may
answer with are added here, each a problem; a route declares only those that are its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from fastapi import APIRouter
from pydantic import BaseModel, WithJsonSchema
from pydantic.json_schema import models_json_schema

from api.auth import OPEN_PATHS, verb_of
from api.errors import PROBLEM
from api.wire import StrictRoute

_IN_PLACE: Final = "InPlace"
_REFS: Final = "#/components/schemas/{model}"
_ANY_ROUTE: Final = {
    403: "Not for this host or web page",
    408: "It took too long to arrive",
    413: "The body is too large",
    414: "The address is too long",
    415: "The body is compressed",
    431: "The headers are too large",
}
_WITH_KEY: Final = {
    401: "No valid key or token",
    403: "Not for this role, beyond the key's scopes, denied by policy, or not for this host",
    422: "Not valid: `details.problems` says what and where",
    429: "Too much: `Retry-After` says when to ask again",
    500: "A failure inside",
    503: "A part of the fleet is away, or busy",
}
_OF_OBJECTS: Final = {404: "There is no such object for this caller"}
_OF_CHANGES: Final = {409: "Not in the state that things are in"}

_written: dict[str, type[BaseModel]] = {}
_in_place: set[str] = set()


def written_as(model: type[BaseModel], *, in_place: bool = False) -> WithJsonSchema:
    """Return how the document shows a body that the route parses as a model by itself.

    ``in_place`` is for one whose name is in the address: it may leave its own out.
    """
    name = model.__name__
    _written[name] = model
    if in_place:
        _in_place.add(name)
        name += _IN_PLACE
    return WithJsonSchema({"$ref": _REFS.format(model=name)})


def fails_with(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the declaration of refusals that are a route's own."""
    return {status: _problem("Failed: see `code` and `retryable`") for status in statuses}


def complete(document: dict[str, Any], parts: Iterable[APIRouter]) -> None:
    """Add to a document what all its routes have in common."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    _, bodies = models_json_schema(
        [(model, "validation") for model in _written.values()], ref_template=_REFS
    )
    schemas.update(bodies.get("$defs", {}))
    for name in _in_place:
        required = [field for field in schemas[name].get("required", ()) if field != "name"]
        schemas[name + _IN_PLACE] = {**schemas[name], "required": required}
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    admits = {
        (method.lower(), route.path): route.admits
        for part in parts
        for route in part.routes
        if isinstance(route, StrictRoute)
        for method in route.methods or ()
    }
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            said = operation["responses"]
            for status, what in _refusals(path, method, operation).items():
                said[str(status)] = _problem(what)
            if path in OPEN_PATHS:
                operation["security"] = []
            elif operation.get("tags"):
                verb = verb_of(operation["tags"][0], [method.upper()], path)
                operation["security"] = [{"key": [verb]}]
            if (method, path) in admits:
                roles = admits[method, path].roles
                operation["x-roles"] = [role.value for role in roles]


def _refusals(path: str, method: str, operation: dict[str, Any]) -> dict[int, str]:
    found = dict(_ANY_ROUTE)
    if path in OPEN_PATHS:
        return found
    found |= _WITH_KEY
    if "{" in path or "requestBody" in operation:
        found |= _OF_OBJECTS
    if method != "get":
        found |= _OF_CHANGES
    return found


def _problem(description: str) -> dict[str, Any]:
    schema = {"$ref": _REFS.format(model="Problem")}
    return {"description": description, "content": {PROBLEM: {"schema": schema}}}
