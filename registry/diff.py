"""What changed between two versions of a tool, in the eyes of those who call it.

Pure. Arguments are contravariant and results covariant: a tool may take more than it took and
promise more than it promised; all else breaks a caller that was written for the version before.
Where that cannot be shown, the change counts as breaking. Two rules are of our making:

 - A changed or withdrawn ``default`` of an argument breaks: the call without it means another call.
 - A property that a result gains breaks where the schema had ruled out others: runs are pinned, and
   hold the new result to the schema they know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from registry.quoting import pointer, quoted
from registry.schema_diff import REWRITTEN, schema_differences
from registry.schema_keywords import json_text
from registry.schema_values import Relation
from registry.tools import ToolVersion

MOST_DIFFERENCES: Final = 50
"""Of one tool; how many more there are is told as one."""


class ChangeKind(StrEnum):
    """What a change means for callers, the gravest first."""

    ANNOTATION_FLIP = "annotation_flip"
    BREAKING = "breaking"
    REMOVED = "removed"
    WIDENING = "widening"
    ADDED = "added"
    DESCRIPTION = "description"


_GRAVITY: Final = {kind: rank for rank, kind in enumerate(ChangeKind)}
_FOR_ARGUMENTS: Final = {
    Relation.NARROWER: ChangeKind.BREAKING,
    Relation.WIDER: ChangeKind.WIDENING,
    Relation.UNKNOWN: ChangeKind.BREAKING,
    Relation.GONE: ChangeKind.BREAKING,
    Relation.NEW: ChangeKind.WIDENING,
    Relation.DEFAULT: ChangeKind.BREAKING,
    Relation.NOTE: ChangeKind.DESCRIPTION,
}
_FOR_RESULTS: Final = {
    **_FOR_ARGUMENTS,
    Relation.NARROWER: ChangeKind.WIDENING,
    Relation.WIDER: ChangeKind.BREAKING,
    Relation.DEFAULT: ChangeKind.DESCRIPTION,
}
_PROMISE: Final = {
    "readOnlyHint": "to read only",
    "destructiveHint": "to destroy nothing",
    "idempotentHint": "that the same call may be repeated",
    "openWorldHint": "to keep to a closed world",
}


@dataclass(frozen=True)
class Difference:
    """One difference between two versions of a tool: where (a JSON pointer), which kind, what."""

    path: str
    kind: ChangeKind
    what: str


@dataclass(frozen=True)
class ToolChange:
    """How one tool of a listing changed; ``before`` and ``after`` are the versions' digests.

    ``security`` says that the tool no longer claims to be harmless: to read only, or to destroy
    nothing.
    """

    tool: str
    kind: ChangeKind
    security: bool
    before: str | None
    after: str | None
    differences: tuple[Difference, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the change as stored and sent (JSON-ready)."""
        return {
            "change": self.kind.value,
            "tool": self.tool,
            "security": self.security,
            "before": self.before,
            "after": self.after,
            "differences": [
                {"path": it.path, "kind": it.kind.value, "what": it.what} for it in self.differences
            ],
        }


def listing_changes(
    before: Mapping[str, ToolVersion], after: Sequence[ToolVersion]
) -> list[ToolChange]:
    """Return how the tools of two listings differ, ordered by name."""
    listed = {tool.name: tool for tool in after}
    changes = []
    for name in sorted(before.keys() | listed.keys()):
        change = _change(name, before.get(name), listed.get(name))
        if change is not None:
            changes.append(change)
    return changes


def compare(before: ToolVersion, after: ToolVersion) -> tuple[Difference, ...]:
    """Return how two versions of a tool differ, the gravest first.

    Equal digests have no difference, others have one at least. Never raises.
    """
    if before.digest == after.digest:
        return ()
    was, is_ = before.definition, after.definition
    found = [
        *_annotations(_hints(was), _hints(is_)),
        *_arguments(was, is_),
        *_results(was.get("outputSchema"), is_.get("outputSchema")),
        *_texts(was, is_),
    ]
    if not found:
        found = [Difference("", ChangeKind.DESCRIPTION, REWRITTEN)]
    found.sort(key=lambda it: _GRAVITY[it.kind])
    rest = found[MOST_DIFFERENCES:]
    if rest:
        found[MOST_DIFFERENCES:] = [Difference("", rest[0].kind, f"and {len(rest)} more")]
    return tuple(found)


def _change(name: str, before: ToolVersion | None, after: ToolVersion | None) -> ToolChange | None:
    if before is None:
        differences: tuple[Difference, ...] = (Difference("", ChangeKind.ADDED, "the tool is new"),)
    elif after is None:
        differences = (Difference("", ChangeKind.REMOVED, "the tool is no longer listed"),)
    else:
        differences = compare(before, after)
    if not differences:
        return None
    return ToolChange(
        tool=name,
        kind=differences[0].kind,
        security=before is not None and after is not None and _less_harmless(before, after),
        before=before.digest if before else None,
        after=after.digest if after else None,
        differences=differences,
    )


def _arguments(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Difference]:
    was, is_ = (it.get("inputSchema") or {"type": "object"} for it in (before, after))
    for found in schema_differences(was, is_):
        path = _below("inputSchema", found.path)
        yield Difference(path, _FOR_ARGUMENTS[found.relation], found.what)


def _results(before: Any, after: Any) -> Iterator[Difference]:
    if before is None and after is not None:
        what = "the form of the result is declared now"
        yield Difference("outputSchema", ChangeKind.WIDENING, what)
    elif before is not None and after is None:
        what = "the form of the result is no longer declared"
        yield Difference("outputSchema", ChangeKind.BREAKING, what)
    else:
        for found in schema_differences(before, after, result=True):
            path = _below("outputSchema", found.path)
            yield Difference(path, _FOR_RESULTS[found.relation], found.what)


def _below(word: str, path: str) -> str:
    return f"{word}/{path}" if path else word


def _texts(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Difference]:
    for word in ("title", "description"):
        if _differ(before.get(word), after.get(word)):
            yield Difference(word, ChangeKind.DESCRIPTION, f"the {word} changed")


def _annotations(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Difference]:
    kept, keeps = _promises(before), _promises(after)
    for word in sorted(before.keys() | after.keys()):
        if not _differ(before.get(word), after.get(word)):
            continue
        path = pointer("annotations", word)
        if word not in _PROMISE:
            yield Difference(path, ChangeKind.DESCRIPTION, f"the {quoted(word)} changed")
        elif kept[word] == keeps[word]:
            yield Difference(path, ChangeKind.DESCRIPTION, REWRITTEN)
        else:
            claims = "claims now" if keeps[word] else "no longer claims"
            what = f"the tool {claims} {_PROMISE[word]}"
            yield Difference(path, ChangeKind.ANNOTATION_FLIP, what)


def _promises(hints: Mapping[str, Any]) -> dict[str, bool]:
    """Return what each hint promises, by the MCP specification and its defaults.

    What only reads destroys nothing and may be repeated, unless the server says otherwise.
    """
    reads = hints.get("readOnlyHint") is True
    destroys = hints.get("destructiveHint")
    return {
        "readOnlyHint": reads,
        "destructiveHint": destroys is False or (reads and destroys is not True),
        "idempotentHint": reads or hints.get("idempotentHint") is True,
        "openWorldHint": hints.get("openWorldHint") is False,
    }


def _less_harmless(before: ToolVersion, after: ToolVersion) -> bool:
    was, is_ = (_promises(_hints(tool.definition)) for tool in (before, after))
    return any(was[word] and not is_[word] for word in ("readOnlyHint", "destructiveHint"))


def _hints(definition: Mapping[str, Any]) -> Mapping[str, Any]:
    hints = definition.get("annotations")
    return hints if isinstance(hints, dict) else {}


def _differ(one: Any, other: Any) -> bool:
    try:
        return json_text(one) != json_text(other)
    except (RecursionError, ValueError):
        return True
