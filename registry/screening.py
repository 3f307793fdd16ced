"""What is wrong or suspicious with one tool as a server lists it, before it is taken in.

Pure, and bounded in time whatever a server sends: what is deeper or larger than any real tool is
refused unread. Of what is `unusable` nothing can be offered to a model; what is `suspicious` waits
until an operator has looked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain, islice
from typing import Any, Final, NamedTuple

from registry.hidden_text import (
    Hidden,
    first_acting,
    first_hidden,
    first_illegal,
    is_storable,
)
from registry.instructions import suspicions
from registry.quoting import pointer, quoted
from registry.schema_cost import (
    LARGEST_BYTES,
    is_metaschema,
    refuse_costly,
    refuse_huge,
    resolve,
)
from registry.schemas import refuse_unusable

LONGEST_NAME: Final = 128  # by the MCP specification
MOST_FINDINGS: Final = 50
MOST_PATTERNS: Final = 50
"""Different patterns of one schema; the worst takes 25 ms to be made ready."""
_AROUND: Final = 20  # characters quoted before a hidden one
_BY_NAME: Final = (
    *("properties", "patternProperties", "$defs", "definitions"),
    *("dependentSchemas", "dependencies"),
)
_VALUES: Final = ("enum", "const", "default", "examples", "example")
_Path = tuple[str | int, ...]


class FindingKind(StrEnum):
    """What a finding is about."""

    NAME = "name"
    SCHEMA = "schema"
    """A part of the definition that cannot be used."""
    HIDDEN_TEXT = "hidden_text"
    INSTRUCTIONS = "instructions"


@dataclass(frozen=True)
class Finding:
    """One thing found in a tool: where, as a JSON pointer, and what is the matter there."""

    kind: FindingKind
    path: str
    problem: str


def screen(listed: Mapping[str, Any]) -> list[Finding]:
    """Return what is found in a tool as a server lists it, at most `MOST_FINDINGS`.

    What makes the tool unusable comes first. Never raises for JSON.
    """
    found = list(_name(listed.get("name")))
    texts: list[_Text] = []
    for word in ("title", "description"):
        said = listed.get(word)
        if isinstance(said, str) and len(said.encode(errors="surrogatepass")) <= LARGEST_BYTES:
            texts.append(_Text((word,), said))
        elif said is not None:
            problem = f"it is no text of at most {LARGEST_BYTES} bytes"
            found.append(Finding(FindingKind.SCHEMA, word, problem))
    for word in ("inputSchema", "outputSchema", "annotations"):
        part = listed.get(word)
        try:
            refuse_huge(part)
        except ValueError as error:
            found.append(Finding(FindingKind.SCHEMA, word, str(error)))
            continue
        texts += _texts(part, (word,))
        if part is not None and word != "annotations":
            found += _schema(part, word)
    unread = chain(
        *(_unusable_text(text) for text in texts), *(_suspicious_text(text) for text in texts)
    )
    return [*found, *islice(unread, MOST_FINDINGS)][:MOST_FINDINGS]


def unusable(findings: Iterable[Finding]) -> bool:
    """Say whether a tool cannot be offered at all."""
    return any(it.kind in {FindingKind.NAME, FindingKind.SCHEMA} for it in findings)


def suspicious(findings: Iterable[Finding]) -> bool:
    """Say whether an operator has to look at a tool before it is offered."""
    return any(it.kind in {FindingKind.HIDDEN_TEXT, FindingKind.INSTRUCTIONS} for it in findings)


class _Text(NamedTuple):
    """A text of a tool; ``is_name`` for the name of a property or keyword."""

    path: _Path
    text: str
    is_name: bool = False


def _texts(part: Any, path: _Path) -> Iterator[_Text]:
    """Yield every string there is: a model is shown all of them."""
    if isinstance(part, str):
        yield _Text(path, part)
    elif isinstance(part, list):
        for index, item in enumerate(part):
            yield from _texts(item, (*path, index))
    elif isinstance(part, dict):
        for name, item in part.items():
            yield _Text((*path, name), name, is_name=True)
            yield from _texts(item, (*path, name))


def _name(name: Any) -> Iterator[Finding]:
    if not isinstance(name, str) or not name:
        yield Finding(FindingKind.NAME, "name", "the tool has no name")
        return
    if len(name) > LONGEST_NAME:
        problem = f"it is longer than {LONGEST_NAME} characters: `{quoted(name)}`"
        yield Finding(FindingKind.NAME, "name", problem)
    illegal = first_illegal(name)
    if illegal:
        yield Finding(
            FindingKind.NAME, "name", f"it has {illegal.what}: `{_around(name, illegal)}`"
        )


def _schema(schema: Any, word: str) -> Iterator[Finding]:
    """Yield why values cannot be checked against a schema."""
    if not isinstance(schema, dict):
        yield Finding(FindingKind.SCHEMA, word, "it is no JSON object")
        return
    if word == "inputSchema" and schema.get("type", "object") not in ("object", ["object"]):
        yield Finding(FindingKind.SCHEMA, word, "it does not describe an object")
        return
    patterns: set[str] = set()
    traceable = True
    for path, place in _places(schema, (word,)):
        patterns |= _patterns(place)
        problem = _reference_problem(place.get("$ref"), schema)
        if problem:
            traceable = False
            yield Finding(FindingKind.SCHEMA, pointer(*path, "$ref"), problem)
    if len(patterns) > MOST_PATTERNS:
        yield Finding(FindingKind.SCHEMA, word, f"it has over {MOST_PATTERNS} patterns")
    elif traceable:
        yield from _invalid(schema, word)


def _reference_problem(target: Any, schema: dict[str, Any]) -> str | None:
    if not isinstance(target, str) or is_metaschema(target):
        return None
    if not target.startswith("#"):
        return f"it leads out of the schema, and is not fetched: `{quoted(target)}`"
    if resolve(target, schema) is None:
        return f"it leads to nowhere: `{quoted(target)}`"
    return None


def _invalid(schema: dict[str, Any], word: str) -> Iterator[Finding]:
    try:
        refuse_costly(schema)
    except ValueError as error:
        yield Finding(FindingKind.SCHEMA, word, str(error))
        return
    try:
        refuse_unusable(schema)
    except ValueError as error:
        reason = quoted(str(error).partition("\n")[0])
        yield Finding(FindingKind.SCHEMA, word, f"it is no valid JSON Schema: {reason}")


def _places(part: Any, path: _Path) -> Iterator[tuple[_Path, dict[str, Any]]]:
    """Yield a schema and its subschemas; what is in values and examples is none."""
    if not isinstance(part, dict):
        return
    yield path, part
    for word, inner in part.items():
        if word in _VALUES:
            continue
        if isinstance(inner, list):
            for index, item in enumerate(inner):
                yield from _places(item, (*path, word, index))
        elif word in _BY_NAME and isinstance(inner, dict):
            for name, item in inner.items():
                yield from _places(item, (*path, word, name))
        else:
            yield from _places(inner, (*path, word))


def _patterns(place: dict[str, Any]) -> set[str]:
    by_pattern = place.get("patternProperties")
    patterns = [place.get("pattern"), *(by_pattern if isinstance(by_pattern, dict) else ())]
    return {pattern for pattern in patterns if isinstance(pattern, str)}


def _unusable_text(text: _Text) -> Iterator[Finding]:
    path = pointer(*text.path)
    acting = first_acting(text.text) if text.is_name else None
    if not is_storable(text.text):
        problem = f"it has a character that cannot be stored: `{quoted(text.text)}`"
        yield Finding(FindingKind.SCHEMA, path, problem)
    elif acting:
        problem = f"the name has {acting.what}: `{_around(text.text, acting)}`"
        yield Finding(FindingKind.SCHEMA, path, problem)


def _suspicious_text(text: _Text) -> Iterator[Finding]:
    path = pointer(*text.path)
    hidden = first_hidden(text.text)
    if hidden:
        problem = f"it has {hidden.what}: `{_around(text.text, hidden)}`"
        yield Finding(FindingKind.HIDDEN_TEXT, path, problem)
    for suspicion in suspicions(text.text):
        problem = f"{suspicion.reason} ({suspicion.name}): `{quoted(suspicion.words)}`"
        yield Finding(FindingKind.INSTRUCTIONS, path, problem)


def _around(text: str, hidden: Hidden) -> str:
    return quoted(text[max(0, hidden.at - _AROUND) : hidden.at + _AROUND])
