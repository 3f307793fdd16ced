"""An OpenAPI document, as it was read from a file, into the definition of a server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from registry.definitions import invalid_document, parse_definition
from registry.openapi import narrowed, select
from registry.openapi_references import DocumentError


def definition_from_openapi(
    document: Any,
    *,
    name: str,
    url: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    check_results: bool = False,
    **fields: Any,
) -> dict[str, Any]:
    """Return the definition of a server whose tools are the operations of a document.

    ``url`` is the base of the API's paths, by default the document's first absolute server;
    ``fields`` are other fields of the definition (``credentials``, ``headers``, ``tools``, ...).
    Of operations that are left out nothing is kept. Raises `invalid_definition` naming what is
    wrong and where.
    """
    try:
        document = _as_json(document)
        if include or exclude:
            document = narrowed(document, select(document, include, exclude))
        definition = {
            "name": name,
            "transport": "openapi",
            "url": url or _server_url(document),
            "openapi": {"document": document, "check_results": check_results},
            **fields,
        }
    except DocumentError as error:
        raise invalid_document(error) from error
    parse_definition(definition)
    return definition


def _as_json(document: Any) -> dict[str, Any]:
    """Return a document with nothing but JSON in it: YAML has dates, and numbers as keys."""
    try:
        found = json.loads(json.dumps(document, default=str))
    except (ValueError, TypeError, RecursionError) as error:
        raise DocumentError(f"it cannot be written as JSON: {error}") from error
    if not isinstance(found, dict):
        raise DocumentError("it is not an object")
    return found


def _server_url(document: dict[str, Any]) -> str:
    servers = document.get("servers")
    for server in servers if isinstance(servers, list) else ():
        if isinstance(server, dict) and (url := _filled(server)):
            return url
    raise DocumentError("none of them has an absolute URL: say which url the API has", "servers")


def _filled(server: dict[str, Any]) -> str | None:
    """Return a server's URL with its variables' defaults; None unless it is absolute."""
    url, variables = server.get("url"), server.get("variables")
    if not isinstance(url, str):
        return None
    for name, variable in (variables if isinstance(variables, dict) else {}).items():
        if isinstance(variable, dict) and isinstance(variable.get("default"), str):
            url = url.replace(f"{{{name}}}", variable["default"])
    parts = urlsplit(url)
    return url if parts.scheme in {"http", "https"} and parts.hostname else None
