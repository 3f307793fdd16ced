"""What a server says its own part of a call took, so that the way to it can be told apart.

Pure. Two places are read: ``_meta`` of a result, under `SERVER_SECONDS` (a number of seconds), and
over HTTP the header ``Server-Timing`` of the answer (W3C; milliseconds), of which the entry
``total`` counts, else the longest one. Nothing is believed that cannot be: see `believed`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final

SERVER_SECONDS: Final = "toolfleet/server-seconds"
_ENTRIES: Final = 32
_LONGEST: Final = 2_048
_ENTRY: Final = re.compile(r"\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*((?:;[^;]*)*)")
_DURATION: Final = re.compile(r';\s*dur\s*=\s*"?([0-9]+(?:\.[0-9]+)?)"?\s*(?:;|$)', re.IGNORECASE)


def reported_s(header: str, body: Mapping[str, Any]) -> float | None:
    """Return the seconds that a server reports for one request; None where it does not."""
    meta = body.get("_meta")
    said = meta.get(SERVER_SECONDS) if isinstance(meta, dict) else None
    if isinstance(said, int | float) and not isinstance(said, bool):
        return float(said) if math.isfinite(said) and said >= 0 else None
    return header_s(header)


def header_s(header: str) -> float | None:
    """Return the seconds that a ``Server-Timing`` header tells; None where it tells none."""
    found: dict[str, float] = {}
    for entry in header[:_LONGEST].split(",")[:_ENTRIES]:
        match = _ENTRY.fullmatch(entry)
        duration = _DURATION.search(match.group(2)) if match else None
        if match and duration:
            found.setdefault(match.group(1).lower(), float(duration.group(1)) / 1_000)
    return found.get("total", max(found.values(), default=None))


def believed(said_s: float | None, round_trip_s: float) -> float | None:
    """Return what a server said, unless it says that it took longer than its caller waited."""
    return said_s if said_s is not None and said_s <= round_trip_s else None
