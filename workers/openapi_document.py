"""An OpenAPI document as FastMCP reads it: nothing in it is ambiguous, and nothing is left out.

FastMCP takes the first media type of a body, and leaves out what it cannot follow. So it gets the
chosen operations alone, under their tools' names, with every parameter and body in its place and
one media type for each body; of the components it gets the schemas that these need.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any, Final

from registry.openapi import Operation, parameters_of
from registry.openapi_references import resolve, without_unused

# By the specification these are no parameters, whatever a document says.
_NO_PARAMETERS: Final = frozenset({"accept", "content-type", "authorization"})
_OF_PARAMETERS: Final = ("name", "in", "description", "schema", "content", "style", "explode")
_FORMS: Final = ("application/x-www-form-urlencoded", "multipart/form-data")
_ANY_ANSWER: Final = {"200": {"description": ""}}


def to_convert(
    document: dict[str, Any],
    operations: Sequence[Operation],
    *,
    own_headers: Container[str],
    with_results: bool,
) -> dict[str, Any]:
    """Return the document to convert.

    Header parameters among ``own_headers`` (in lower case) are ours to set, no argument's. Without
    ``with_results`` nothing is said of answers.
    """
    paths: dict[str, dict[str, Any]] = {}
    for it in operations:
        converted = {
            "operationId": it.name,
            "summary": it.body.get("summary"),
            "description": it.body.get("description"),
            "parameters": _parameters(document, it, own_headers),
            "requestBody": _request_body(document, it),
            "responses": _responses(document, it) if with_results else _ANY_ANSWER,
        }
        paths.setdefault(it.path, {})[it.method.lower()] = {
            name: value for name, value in converted.items() if value is not None
        }
    return without_unused(
        {
            "openapi": document["openapi"],
            "info": {"title": "API", "version": "1"},
            "paths": paths,
            "components": document.get("components", {}),
        }
    )


def _parameters(
    document: dict[str, Any], operation: Operation, own_headers: Container[str]
) -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = []
    for parameter in parameters_of(document, operation):
        name = parameter["name"].lower()
        if parameter["in"] == "header" and (name in _NO_PARAMETERS or name in own_headers):
            continue
        said: dict[str, Any] = {
            member: parameter[member] for member in _OF_PARAMETERS if member in parameter
        }
        said["required"] = parameter["in"] == "path" or parameter.get("required") is True
        kept.append(said)
    return kept


def _request_body(document: dict[str, Any], operation: Operation) -> dict[str, Any] | None:
    body = resolve(document, operation.body.get("requestBody"))
    content = body.get("content") if isinstance(body, dict) else None
    if not isinstance(content, dict) or not content:
        return None
    return {"required": body.get("required") is True, "content": _one_of(content)}


def _responses(document: dict[str, Any], operation: Operation) -> dict[str, Any]:
    """Return what is said of answers, as far as it is about JSON."""
    responses: dict[str, Any] = {}
    said = operation.body.get("responses")
    for status, item in (said if isinstance(said, dict) else {}).items():
        response = resolve(document, item)
        content = response.get("content") if isinstance(response, dict) else None
        responses[status] = {"description": ""}
        if isinstance(content, dict) and any(_is_json(kind) for kind in content):
            responses[status]["content"] = _one_of(content)
    return responses or _ANY_ANSWER


def _one_of(content: dict[str, Any]) -> dict[str, Any]:
    """Return the media type to use: JSON where it is spoken, else a form, else the first."""
    kind = min(content, key=lambda kind: (not _is_json(kind), _bare(kind) not in _FORMS))
    said = content[kind] if isinstance(content[kind], dict) else {}
    schema = said.get("schema", {} if _is_json(kind) else {"type": "string"})
    encoding = {"encoding": said["encoding"]} if said.get("encoding") else {}
    return {kind: {"schema": schema, **encoding}}


def _is_json(kind: str) -> bool:
    return _bare(kind) == "application/json" or _bare(kind).endswith("+json")


def _bare(kind: str) -> str:
    return kind.partition(";")[0].strip().lower()
