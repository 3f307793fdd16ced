"""The audit's entries in ArcSight's Common Event Format, for who collects events of many systems.

A line is `CEF:0|vendor|product|version|event|name|severity|extension`. In the header, backslash and
pipe are escaped; in the extension backslash, equals sign and line ends are; nothing else is.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from registry.chain import read

_HEADER: Final = str.maketrans({"\\": r"\\", "|": r"\|", "\n": " ", "\r": " "})
_EXTENSION: Final = str.maketrans({"\\": r"\\", "=": r"\=", "\n": r"\n", "\r": r"\r"})
_USUAL: Final = 3
_NOTABLE: Final = 5
_GRAVE: Final = 8
_SEVERITIES: Final = {
    "call.failed": _NOTABLE,
    "call.expired": _NOTABLE,
    "call.denied": _NOTABLE,
    "call.outcome_unknown": _GRAVE,
    "key.created": _NOTABLE,
    "key.revoked": _NOTABLE,
    "listing.alert": _GRAVE,
    "audit.pruned": _GRAVE,
    "audit.key_changed": _GRAVE,
}
_OUTCOMES: Final = {
    "call.succeeded": "success",
    "call.failed": "failure",
    "call.expired": "failure",
    "call.denied": "failure",
    "call.stopped": "failure",
    "call.outcome_unknown": "unknown",
}


def cef(entry: Any, version: str) -> str:
    """Return the line of an entry, a row of `registry.export`; without a line end."""
    details = read(entry.details)
    header = ("CEF:0", "Toolfleet", "toolfleet", version, entry.event, _name(entry.event))
    severity = _SEVERITIES.get(entry.event, _USUAL)
    if details.get("is_error") is True:
        severity = max(severity, _NOTABLE)
    fields = " ".join(
        f"{key}={str(value).translate(_EXTENSION)}"
        for key, value in _extension(entry, details).items()
        if value is not None
    )
    told = "|".join(part.translate(_HEADER) for part in header[1:])
    return f"{header[0]}|{told}|{severity}|{fields}"


def _name(event: str) -> str:
    return event.replace(".", " ").replace("_", " ").capitalize()


def _extension(entry: Any, details: Mapping[str, Any]) -> dict[str, Any]:
    seconds = datetime.fromisoformat(entry.at).timestamp()
    fields: dict[str, Any] = {
        "rt": int(seconds * 1000),
        "externalId": entry.id,
        "suser": entry.actor,
        "act": entry.event,
        "outcome": "failure" if details.get("is_error") is True else _OUTCOMES.get(entry.event),
        "reason": details.get("code") or details.get("reason"),
        "cat": entry.event.partition(".")[0],
    }
    labelled = (
        ("cs1", "tenant", entry.tenant_id),
        ("cs2", "run", entry.run_id),
        ("cs3", "call", entry.call_id),
        ("cs4", "tool", details.get("tool")),
        ("cs5", "argumentsDigest", details.get("arguments_digest")),
        ("cs6", "hash", entry.hash),
        ("cn1", "sequence", entry.seq),
        ("cn2", "toolVersion", details.get("tool_version_id")),
    )
    for key, label, value in labelled:
        if value is not None:
            fields |= {key: value, f"{key}Label": label}
    return fields | {"msg": entry.details}
