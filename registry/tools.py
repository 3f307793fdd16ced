"""Tools as values: what a server lists, what a run sees, and the names models call them by.

Pure. A tool version is the canonical JSON of one listed tool and its digest; a snapshot is the
ordered list of a run's tools and its digest. Equal content has an equal digest, always.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from registry.definitions import Delivery, ServerDefinition, TaskUse, ToolRule, digest
from registry.errors import Code, FleetError

_MAX_EXACT: Final = 2**53 - 1
MAX_NAME: Final = 64  # the longest tool name that every model API accepts
MIRRORED_AS: Final = "x-mcp-header"
_FOREIGN: Final = re.compile(r"[^A-Za-z0-9_-]")
_KEPT: Final = ("name", "title", "description", "inputSchema", "outputSchema", "annotations")


@dataclass(frozen=True)
class ToolVersion:
    """One immutable version of a listed tool."""

    name: str
    digest: str
    definition: dict[str, Any]


@dataclass(frozen=True)
class SnapshotTool:
    """A tool as one run sees it: model-facing name, schemas and routing."""

    name: str
    server: str
    server_version_id: int
    tool_version_id: int
    upstream_name: str
    delivery: Delivery
    approval: bool
    timeout_s: float
    description: str
    input_schema: dict[str, Any]
    output_schema: dict[str, Any] | None
    annotations: dict[str, Any] | None
    task: TaskUse = TaskUse.WHEN_SLOW

    def as_dict(self) -> dict[str, Any]:
        """Return the entry as stored in a snapshot (JSON-ready)."""
        body = {**vars(self), "delivery": self.delivery.value, "task": self.task.value}
        if self.task is TaskUse.WHEN_SLOW:
            del body["task"]  # so that snapshots from before there was this field stay the same
        return body

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> SnapshotTool:
        """Rebuild an entry from `as_dict`."""
        task = TaskUse(body.get("task", TaskUse.WHEN_SLOW))
        return cls(**{**body, "delivery": Delivery(body["delivery"]), "task": task})


def tool_version(listed: Mapping[str, Any]) -> ToolVersion:
    """Return the version of a tool as a server lists it; icons and the like do not count."""
    definition = {key: listed[key] for key in _KEPT if listed.get(key) is not None}
    name = definition.get("name")
    if not isinstance(name, str) or not name:
        raise FleetError(Code.PROTOCOL_ERROR, "the server lists a tool without a name")
    try:
        named = digest(_exact(definition))
    except (ValueError, RecursionError) as error:
        raise FleetError(
            Code.PROTOCOL_ERROR, f"the definition of tool {name!r} is not valid JSON: {error}"
        ) from error
    return ToolVersion(name, named, definition)


def model_name(prefix: str, name: str) -> str:
    """Return the name a model calls a tool by: prefixed, legal, at most 64 characters, stable.

    A name that has to be changed keeps a hash of the original, so that two tools never fall
    together by shortening.
    """
    wanted = prefix + name
    legal = _FOREIGN.sub("_", wanted)
    if legal == wanted and len(wanted) <= MAX_NAME:
        return wanted
    tail = hashlib.sha256(wanted.encode()).hexdigest()[:8]
    return f"{legal[: MAX_NAME - 9]}_{tail}"


def delivery_of(definition: ServerDefinition, tool: ToolVersion) -> Delivery:
    """Return a tool's delivery class (see `delivery_class`)."""
    return delivery_class(definition, tool.name, tool.definition.get("annotations"))


def delivery_class(
    definition: ServerDefinition, tool: str, annotations: Mapping[str, Any] | None
) -> Delivery:
    """Return a tool's delivery class: the operator's word, else trusted annotations, else `write`.

    Annotations are untrusted by the MCP specification unless the operator vouches for the server.
    Those of an API's tools are ours: they say what its HTTP methods promise.
    """
    rule = definition.tools.get(tool)
    if rule is not None and rule.delivery is not None:
        return rule.delivery
    if definition.annotations == "trusted" or definition.transport == "openapi":
        hints = annotations or {}
        if hints.get("readOnlyHint") is True:
            return Delivery.READ
        if hints.get("idempotentHint") is True:
            return Delivery.IDEMPOTENT
    return Delivery.WRITE


def snapshot_tools(
    definition: ServerDefinition, version_id: int, tools: Iterable[tuple[int, ToolVersion]]
) -> list[SnapshotTool]:
    """Return a server version's visible tools as a run sees them, ordered by name."""
    entries = []
    for tool_version_id, tool in tools:
        rule = definition.tools.get(tool.name, ToolRule())
        if rule.hidden:
            continue
        entries.append(
            SnapshotTool(
                name=model_name(definition.prefix, tool.name),
                server=definition.name,
                server_version_id=version_id,
                tool_version_id=tool_version_id,
                upstream_name=tool.name,
                delivery=delivery_of(definition, tool),
                approval=rule.approval.required,
                timeout_s=rule.timeout_s or definition.timeouts.call_s,
                description=tool.definition.get("description", ""),
                input_schema=tool.definition.get("inputSchema") or {"type": "object"},
                output_schema=tool.definition.get("outputSchema"),
                annotations=tool.definition.get("annotations"),
                task=rule.task,
            )
        )
    return sorted(entries, key=lambda entry: entry.name)


def refuse_collisions(entries: Iterable[SnapshotTool]) -> None:
    """Raise `name_collision` if two tools would have one model-facing name."""
    owners: dict[str, SnapshotTool] = {}
    for entry in entries:
        other = owners.setdefault(entry.name, entry)
        if other is not entry:
            raise FleetError(
                Code.NAME_COLLISION,
                f"the tools {other.upstream_name!r} of server {other.server!r} and "
                f"{entry.upstream_name!r} of server {entry.server!r} are both named {entry.name!r}",
                hint="give one of the servers another tool_prefix",
                details={"name": entry.name, "servers": sorted({other.server, entry.server})},
            )


def mirrored_parameters(schema: Mapping[str, Any] | None) -> dict[tuple[str, ...], str]:
    """Return which arguments travel as HTTP headers too: what ``Mcp-Param-`` goes before, by path.

    An annotation counts where ``properties`` alone lead to it (MCP 2026-07-28, x-mcp-header).
    """
    found: dict[tuple[str, ...], str] = {}
    waiting: list[tuple[tuple[str, ...], Any]] = [((), schema)]
    while waiting:
        path, at = waiting.pop()
        properties = at.get("properties") if isinstance(at, Mapping) else None
        for name, under in properties.items() if isinstance(properties, Mapping) else ():
            here = (*path, name)
            if isinstance(under, Mapping) and isinstance(under.get(MIRRORED_AS), str):
                found[here] = under[MIRRORED_AS]
            waiting.append((here, under))
    return found


def snapshot_digest(entries: Iterable[SnapshotTool]) -> str:
    """Return the digest that names a snapshot: equal tools, equal digest."""
    return digest(_exact([entry.as_dict() for entry in entries]))


def _exact(value: Any) -> Any:
    """Return what a digest is taken of: RFC 8785 has no integers beyond 2^53, schemas do.

    Raises ValueError for text that the record cannot keep.
    """
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int) and abs(value) > _MAX_EXACT:
        return {"integer": str(value)}
    if isinstance(value, str) and "\0" in value:
        raise ValueError("it contains a NUL character")
    if isinstance(value, dict):
        return {_exact(key): _exact(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_exact(item) for item in value]
    return value
