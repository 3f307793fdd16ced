"""The shop: a small HTTP API (`tests.servers.shop`), its OpenAPI document, and its journal."""

from __future__ import annotations

import asyncio
import copy
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.waiting import until

SCRIPT: Final = Path(__file__).parent / "servers" / "shop.py"
PATIENCE_S: Final = 20.0
CREDENTIAL: Final = {"inject": "header", "name": "Authorization"}


def _query(name: str, kind: str = "string", **rest: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": {"type": kind}, **rest}


def _get(id_: str, *parameters: dict[str, Any]) -> dict[str, Any]:
    responses = {"200": {"description": "it"}}
    return {"get": {"operationId": id_, "parameters": list(parameters), "responses": responses}}


_ORDER: Final = {"$ref": "#/components/schemas/Order"}
_OK: Final = {"200": {"description": "the request", "content": {"application/json": {}}}}
DOCUMENT: Final[dict[str, Any]] = {
    "openapi": "3.0.3",
    "info": {"title": "Shop", "version": "1.4.0"},
    "servers": [{"url": "/v1"}, {"url": "https://{place}.shop.example/v1", "variables": {
        "place": {"default": "eu"}}}],
    "paths": {
        "/orders": {
            "parameters": [{"$ref": "#/components/parameters/Trace"}],
            "get": {
                "operationId": "orders/list",
                "summary": "List orders",
                "description": "Lists the newest orders.",
                "parameters": [
                    _query("limit", "integer"),
                    {"name": "tags", "in": "query", "schema": {
                        "type": "array", "items": {"type": "string"}}},
                    {"name": "Authorization", "in": "header", "schema": {"type": "string"}},
                ],
                "responses": {"200": {"description": "orders", "content": {
                    "application/json": {"schema": {
                        "type": "object",
                        "properties": {"orders": {"type": "array", "items": _ORDER}},
                        "required": ["orders"]}}}}},
            },
            "post": {
                "operationId": "orders/create",
                "requestBody": {"required": True, "content": {
                    "application/xml": {"schema": _ORDER},
                    "application/json": {"schema": _ORDER}}},
                "responses": _OK,
            },
        },
        "/orders/{orderId}": {
            "parameters": [
                {"name": "orderId", "in": "path", "required": True, "schema": {"type": "string"}}],
            "get": {"responses": _OK},
            "put": {
                "operationId": "orders/replace",
                "requestBody": {"$ref": "#/components/requestBodies/Order"},
                "responses": _OK},
            "patch": {"operationId": "orders/change", "responses": _OK},
            "delete": {"operationId": "orders/delete", "responses": _OK},
        },
        "/status/{code}": _get(
            "status", {"name": "code", "in": "path", "schema": {"type": "integer"}}),
        "/wait": _get("wait", _query("token")),
        "/write": {"post": {
            "operationId": "write", "parameters": [_query("token")], "responses": _OK}},
        "/large": _get("large", _query("size", "integer")),
        "/packed": _get("packed", _query("size", "integer")),
        "/redirect": _get("redirect"),
        "/cookie": _get("cookie"),
        "/numbers": _get("numbers"),
        "/break": _get("break"),
    },
    "components": {
        "parameters": {
            "Trace": {"name": "X-Trace", "in": "header", "schema": {"type": "string"}}},
        "requestBodies": {"Order": {"content": {"application/json": {"schema": _ORDER}}}},
        "schemas": {
            "Order": {
                "type": "object",
                "required": ["item"],
                "properties": {
                    "item": {"type": "string"},
                    "count": {"type": "integer", "maximum": 2**63 - 1},
                    "gift": {"$ref": "#/components/schemas/Gift"}}},
            "Gift": {"type": "object", "properties": {
                "note": {"type": "string", "nullable": True},
                "of": {"$ref": "#/components/schemas/Order"}}},
            "Unused": {"type": "string"},
        },
    },
}  # fmt: skip


def document(**changes: Any) -> dict[str, Any]:
    """Return the shop's document, for changing."""
    return {**copy.deepcopy(DOCUMENT), **changes}


def shop_definition(url: str = "http://127.0.0.1:9/v1", **rest: Any) -> dict[str, Any]:
    """Return the definition of a server that stands in front of a shop."""
    openapi = {"document": document(), **rest.pop("openapi", {})}
    return {
        "name": "shop",
        "transport": "openapi",
        "url": url,
        "networks": ["127.0.0.0/8"],
        "openapi": openapi,
        **rest,
    }


@dataclass(frozen=True)
class Shop:
    """A running shop."""

    url: str
    journal: Path

    def events(self, event: str) -> list[str]:
        """Return the tokens of the requests of which it noted an event."""
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        return [it.get("token", "") for it in map(json.loads, lines) if it["event"] == event]

    async def saw(self, event: str, token: str) -> None:
        """Return once it has noted an event of the request with this token."""
        await until(lambda: token in self.events(event))


@asynccontextmanager
async def running_shop(journal: Path) -> AsyncIterator[Shop]:
    """Run a shop on a free port."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(SCRIPT), str(journal), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE_S):
            port = int(await process.stdout.readline())
        yield Shop(f"http://127.0.0.1:{port}/v1", journal)
    finally:
        process.kill()
        await process.wait()
