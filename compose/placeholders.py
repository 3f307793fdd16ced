"""The `${...}` in clients' files: which values a text needs, and the text with them put in.

Pure. The forms of all clients are read alike: ``${NAME}`` and ``${NAME:-default}`` (Claude Code,
Gemini CLI), ``${env:NAME}`` and ``${input:id}`` (VS Code, Cursor, Roo Code), and the editors' own
such as ``${workspaceFolder}``. What looks otherwise, ``${{...}}`` or ``${1}``, is plain text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

_NAME: Final = re.compile(r"[A-Za-z_][\w.:/@ -]*|/")


@dataclass(frozen=True)
class Placeholder:
    """A value to put in; ``is_input`` says that its name is one of the file's ``inputs``."""

    name: str
    is_input: bool = False
    default: Template | None = None


Template = tuple[str | Placeholder, ...]


def parse(text: str) -> Template:
    """Return a text's parts in order."""
    parts: list[str | Placeholder] = []
    done = 0
    start = text.find("${")
    while start >= 0:
        end = _end(text, start)
        placeholder = _placeholder(text[start + 2 : end]) if end > 0 else None
        if placeholder is not None:
            parts += [text[done:start], placeholder]
            done = end + 1
        start = text.find("${", done if placeholder else start + 2)
    return (*parts, text[done:])


def needed(template: Template) -> Iterator[Placeholder]:
    """Yield every placeholder of a template, those in defaults too."""
    for part in template:
        if isinstance(part, Placeholder):
            yield part
            yield from needed(part.default or ())


def missing(template: Template, values: Mapping[str, str]) -> Iterator[str]:
    """Yield the names that a template cannot do without and that ``values`` does not have."""
    for part in template:
        if isinstance(part, Placeholder) and part.name not in values:
            if part.default is None:
                yield part.name
            else:
                yield from missing(part.default, values)


def fill(template: Template, values: Mapping[str, str]) -> str:
    """Return the text with values or defaults put in, each as it is; raise `KeyError` for none."""
    return "".join(part if isinstance(part, str) else _value(part, values) for part in template)


def _value(placeholder: Placeholder, values: Mapping[str, str]) -> str:
    if placeholder.name not in values and placeholder.default is not None:
        return fill(placeholder.default, values)
    return values[placeholder.name]


def _end(text: str, start: int) -> int:
    """Return where the brace after ``start`` is closed, those within it closed first; else -1."""
    depth = 0
    for index in range(start + 1, len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return index
    return -1


def _placeholder(inner: str) -> Placeholder | None:
    name, has_default, default = inner.partition(":-")
    kind, _, rest = name.partition(":")
    if kind in {"env", "input"}:
        name = rest
    if not _NAME.fullmatch(name):
        return None
    return Placeholder(name, kind == "input", parse(default) if has_default else None)
