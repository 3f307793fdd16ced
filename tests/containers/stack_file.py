"""The Compose file as it is read where no variable is set."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

COMPOSE = Path(__file__).parents[2] / "compose" / "compose.yaml"
_VARIABLE = re.compile(r"\$\{[A-Z_]+:-([^}]*)\}")


def read_stack() -> dict[str, Any]:
    """Return the document, each variable replaced by its default."""
    document: dict[str, Any] = _plain(yaml.load(COMPOSE.read_text(), yaml.CSafeLoader))
    return document


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(it) for key, it in value.items()}
    if isinstance(value, list):
        return [_plain(it) for it in value]
    return _VARIABLE.sub(r"\1", value) if isinstance(value, str) else value
