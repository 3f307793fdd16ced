"""How values become JSON."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any


def encode(value: Any) -> bytes:
    """Return JSON; instants become ISO 8601, lone surrogates stay escaped."""
    return json.dumps(value, separators=(",", ":"), default=_instant).encode()


def _instant(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no place in an answer")
