"""Masks that fit a schema: what was redacted stays a value that its tool's output schema allows.

Pure. Where `[email]` does not fit (a pattern, a format, a length), other masks are tried: a value
that is nobody's, zeros and letters in the shape of what they stand for, less and less. None of
them tells anything but the shape. Where none fits, the result is refused with the path: neither
the value itself nor an invalid structure is let out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from registry.quoting import pointer
from registry.redaction import Redactor, about, refused, unlike
from registry.schemas import problem_paths
from registry.spans import Kind, Span

_Path = tuple[str | int, ...]
_NOBODYS: Final = {Kind.EMAIL: "redacted{}@example.invalid", Kind.IP: "0.0.0.0"}  # noqa: S104 no address to listen at
_DIGIT: Final = re.compile(r"\d")
_LETTER: Final = re.compile(r"[^\W\d_]")


def masked_to_fit(redactor: Redactor, schema: dict[str, Any], value: Any) -> Any:
    """Return a value that fits its schema redacted, and still fitting; raise `redaction_failed`."""
    clean = redactor.value(value)
    if clean == value or not (problems := problem_paths(schema, clean)):
        return clean
    fitting = _Fitting(redactor, value)
    for _ in range(_MOST_ROUNDS):
        if not fitting.weaken(problems):
            break
        clean = fitting.build()
        if not (problems := problem_paths(schema, clean)):
            return clean
    raise refused("no mask fits the tool's output schema", pointer(*problems[0]) or "its root")


class _Masked(NamedTuple):
    """A string or number that has to be masked, and which of all of them it is."""

    value: str | int | float
    spans: list[Span]
    ordinal: int

    def replaced(self, mask: Callable[[str, str], str]) -> str:
        """Return the text with what was found replaced by what ``mask`` makes of word and part."""
        text, at, parts = str(self.value), 0, []
        for start, end, word in self.spans:
            parts += [text[at:start], mask(word, text[start:end])]
            at = end
        return "".join([*parts, text[at:]])


class _Fitting:
    """A value of which some parts have to be masked, and how far the mask of each has weakened."""

    def __init__(self, redactor: Redactor, value: Any) -> None:
        self._redactor = redactor
        self._value = value
        self._found: dict[_Path, _Masked] = {}
        self._names: dict[_Path, _Masked] = {}
        self._levels: dict[tuple[bool, _Path], int] = {}
        self._places: dict[tuple[bool, _Path], _Path] = {}
        self._look(value, (), "")
        self.build()

    def weaken(self, problems: list[_Path]) -> bool:
        """Take the next mask for all that is at or below a problem; say whether there was one."""
        below: set[tuple[bool, _Path]] = set()
        for problem in problems:
            near = {
                part
                for part, place in self._places.items()
                if place[: len(problem)] == problem
                or (part[0] and problem[: len(place)] == place)
                or (part[0] and place[:-1] == problem)
            }
            if not near:
                return False
            below |= near
        left = {part for part in below if self._levels.get(part, 0) + 1 < self._most(part)}
        for part in left:
            self._levels[part] = self._levels.get(part, 0) + 1
        return bool(left)

    def build(self) -> Any:
        """Return the value with each part masked as far as it has come."""
        return self._build(self._value, (), ())

    def _look(self, value: Any, path: _Path, name: str) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                if self._redactor.text(key) != key:
                    self._names[*path, key] = self._masked(key, "")
                self._look(item, (*path, key), about(value, key))
        elif isinstance(value, list):
            for index, item in enumerate(value):
                self._look(item, (*path, index), name)
        elif not isinstance(value, bool) and self._redactor.leaf(value, name) != value:
            self._found[path] = self._masked(value, name)

    def _masked(self, value: str | float, name: str) -> _Masked:
        text = str(value)
        whole = [Span(0, len(text), Kind.SECRET)]
        mask = self._redactor.leaf(value, name)
        spans = [] if mask == f"[{Kind.SECRET}]" else self._redactor.spans(text, name)
        return _Masked(value, spans or whole, len(self._found) + len(self._names) + 1)

    def _build(self, value: Any, path: _Path, place: _Path) -> Any:
        if isinstance(value, dict):
            return self._build_members(value, path, place)
        if isinstance(value, list):
            return [
                self._build(item, (*path, index), (*place, index))
                for index, item in enumerate(value)
            ]
        found = self._found.get(path)
        return value if found is None else self._mask(found, (False, path), place)

    def _build_members(self, members: dict[str, Any], path: _Path, place: _Path) -> Any:
        built: dict[str, Any] = {}
        for key, item in members.items():
            name, found = key, self._names.get((*path, key))
            if found is not None:
                part = (True, (*path, key))
                name = unlike(str(self._mask(found, part, ()) or ""), built)
                self._places[part] = (*place, name)
            built[name] = self._build(item, (*path, key), (*place, name))
        return built

    def _mask(self, found: _Masked, part: tuple[bool, _Path], place: _Path) -> Any:
        self._places[part] = place
        masks = _TEXTS if isinstance(found.value, str) else _FIGURES
        return masks[self._levels.get(part, 0)](found)

    def _most(self, part: tuple[bool, _Path]) -> int:
        found = (self._names if part[0] else self._found)[part[1]]
        return len(_TEXTS if isinstance(found.value, str) else _FIGURES)


def _nobodys(word: str, part: str, ordinal: int) -> str:
    """Return a value of the kind that is nobody's: the first of its kind has no number."""
    known = _NOBODYS.get(word)  # type: ignore[call-overload] # a kind is its word
    return known.format(ordinal) if known else _shaped(part, "0", "x")


def _shaped(part: str, digit: str, letter: str) -> str:
    return _LETTER.sub(
        lambda it: letter if it[0].islower() else letter.upper(), _DIGIT.sub(digit, part)
    )


def _numbered(part: str, ordinal: int) -> str:
    """Return zeros in the shape of a part, with a number in the last of them."""
    digits = iter(f"{ordinal:0{len(_DIGIT.findall(part))}d}"[-len(part) :])
    return _LETTER.sub("x", _DIGIT.sub(lambda _: next(digits), part))


_TEXTS: Final[tuple[Callable[[_Masked], Any], ...]] = (
    lambda it: it.replaced(lambda word, _: f"[{word}]"),
    lambda it: it.replaced(lambda word, part: _nobodys(word, part, it.ordinal)),
    lambda it: it.replaced(lambda word, _: f"[{word} {it.ordinal}]"),
    lambda it: it.replaced(lambda _, part: _shaped(part, "0", "x")),
    lambda it: it.replaced(lambda _, part: _numbered(part, it.ordinal)),
    lambda it: it.replaced(lambda _, part: _shaped(part, "1", "a")),
    lambda it: "*" * len(str(it.value)),
    lambda _: "*",
    lambda _: "",
    lambda _: None,
)
_FIGURES: Final[tuple[Callable[[_Masked], Any], ...]] = (
    lambda it: f"[{it.spans[0].word}]",
    lambda _: 0,
    lambda it: 10 ** (len(str(int(it.value))) - 1),
    lambda it: it.ordinal,
    lambda it: int("1" * len(str(int(it.value)))),
    lambda it: 9 * 10 ** (len(str(int(it.value))) - 1),
    lambda _: None,
)
_MOST_ROUNDS: Final = 3 * len(_TEXTS)
