"""Characters that a person does not see and a model reads.

Pure, in time with the length of a text. What writing needs is left alone: joiners within emoji and
within the scripts that use them, direction marks in right-to-left text, soft hyphens in words.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final, NamedTuple

_CONTROL: Final = "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"
_DIRECTION: Final = "\u202a-\u202e\u2066-\u2069"
_MARK: Final = "\u061c\u200e\u200f"
_JOINER: Final = "\u200b-\u200d\u034f"
_SELECTOR: Final = "\ufe00-\ufe0f"
_INVISIBLE: Final = (
    "\xad\u115f\u1160\u17b4\u17b5\u180e\u2060-\u2065\u206a-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_SURROGATE: Final = "\ud800-\udfff"
_HIDDEN: Final = re.compile(
    f"[{_CONTROL}{_DIRECTION}{_MARK}{_JOINER}{_SELECTOR}{_INVISIBLE}{_SURROGATE}]"
)
_NEVER: Final = re.compile(f"[{_CONTROL}{_DIRECTION}{_SURROGATE}]")
_LINES: Final = re.compile("[\t\n\r\u2028\u2029]")
_SEEN_AS_LITTLE: Final = re.compile(
    f"[{_CONTROL}{_DIRECTION}{_MARK}{_JOINER}{_SELECTOR}{_INVISIBLE}{_SURROGATE}\r\u2028\u2029]"
)
_UNSTORABLE: Final = re.compile(f"[\x00{_SURROGATE}]")
_RIGHT_TO_LEFT: Final = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
# The flags of England, Scotland and Wales: a black flag, invisible letters, a cancel tag.
_TAGS: Final = str.maketrans({chr(letter): chr(0xE0000 + letter) for letter in range(0x61, 0x7B)})
_FLAGS: Final = re.compile(
    "|".join(
        f"\U0001f3f4{region.translate(_TAGS)}\U000e007f" for region in ("gbeng", "gbsct", "gbwls")
    )
)
# What terminals act on (ECMA-48), with what belongs to it: colours, the cursor, titles, links.
_TERMINAL: Final = re.compile(
    "(?:\x1b\\[|\x9b)[0-?]*+[ -/]*+[@-~]"
    "|(?:\x1b[\\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*+(?:\x07|\x1b\\\\|\x9c)"
    "|\x1b[ -/]*+[0-~]"
)
_ENDS_A_SYMBOL: Final = {"So", "Sk", "Sm", "Po", "Pd", "Nd"}


class Hidden(NamedTuple):
    """A hidden character: where it stands in its text, and what it is, for a sentence."""

    at: int
    what: str


def first_hidden(text: str) -> Hidden | None:
    """Return the first character that hides something; None for text as people write it."""
    if not _HIDDEN.search(text):
        return None
    flags = {at for flag in _FLAGS.finditer(text) for at in range(*flag.span())}
    marks_allowed = bool(_RIGHT_TO_LEFT.search(text))
    for found in _HIDDEN.finditer(text):
        at = found.start()
        if at not in flags and not _belongs(text, at, marks_allowed=marks_allowed):
            return Hidden(at, _what(text[at]))
    return None


def has_hidden(text: str) -> bool:
    """Say whether a text has any character that could hide something."""
    return _HIDDEN.search(text) is not None


def first_illegal(name: str) -> Hidden | None:
    """Return the first character that no name of a tool may have."""
    found = _HIDDEN.search(name) or _LINES.search(name)
    return Hidden(found.start(), _what(found.group())) if found else None


def first_acting(name: str) -> Hidden | None:
    """Return the first control, direction or surrogate character of a name."""
    found = _NEVER.search(name) or _LINES.search(name)
    return Hidden(found.start(), _what(found.group())) if found else None


def is_storable(text: str) -> bool:
    """Say whether the record can keep a text: neither NUL nor lone surrogates."""
    return not _UNSTORABLE.search(text)


def hidden_places(text: str) -> set[int]:
    """Return where characters stand that could hide something, those among them that belong."""
    if not _HIDDEN.search(text):
        return set()
    return {found.start() for found in _HIDDEN.finditer(text)}


def without_hiding(text: str) -> str:
    """Return a text as people write it: terminal sequences and what `first_hidden` finds left out.

    Returns the very text when there is nothing of the kind.
    """
    if not _HIDDEN.search(text):
        return text
    text = _TERMINAL.sub("", text)
    flags = {at for flag in _FLAGS.finditer(text) for at in range(*flag.span())}
    marks_allowed = bool(_RIGHT_TO_LEFT.search(text))
    hiding = {
        found.start()
        for found in _HIDDEN.finditer(text)
        if found.start() not in flags
        and not _belongs(text, found.start(), marks_allowed=marks_allowed)
    }
    return "".join(character for at, character in enumerate(text) if at not in hiding)


def pieces(text: str) -> list[tuple[str, bool]]:
    """Return a text in pieces for people who review it, each with whether it stands for a code.

    Every character that is seen as nothing, or moves others, is given as its code: ``U+200B``;
    those that belong as well, for two texts that look alike may differ in nothing else.
    """
    found, end = [], 0
    for hidden in _SEEN_AS_LITTLE.finditer(text):
        found += [(text[end : hidden.start()], False)] if hidden.start() > end else []
        found.append((f"U+{ord(hidden.group()):04X}", True))
        end = hidden.end()
    return found + ([(text[end:], False)] if end < len(text) else [])


def without_hidden(text: str) -> str:
    """Return what is left of a text when nothing in it is hidden."""
    return _HIDDEN.sub("", text)


def _belongs(text: str, at: int, *, marks_allowed: bool) -> bool:
    """Say whether a character that could hide something is part of ordinary writing there."""
    character, previous, following = text[at], text[at - 1 : at], text[at + 1 : at + 2]
    if not previous or _NEVER.match(character):
        return character in "\u200e\u200f\u061c" and marks_allowed and not _HIDDEN.match(following)
    if character in "\ufe0e\ufe0f":  # as text, or as a picture
        return _ends_a_symbol(previous)
    if "\ufe00" <= character <= "\ufe02" or "\U000e0100" <= character <= "\U000e011f":
        return _is_ideograph(previous)
    if character == "\u200d" and _is_pictograph(following):
        return _is_pictograph(previous) or previous == "\ufe0f"
    if _HIDDEN.match(following):
        return False
    if character in "\u200e\u200f\u061c":
        return marks_allowed
    if character == "\xad":
        return previous.isalpha() and following.isalpha()
    if character in "\u200c\u200d\u034f":
        return "\u0590" <= previous < "\u1900"  # from Hebrew to Mongolian: scripts that join
    if character == "\u200b":  # between words, in scripts without spaces
        return "\u0e00" <= previous < "\u1900" and "\u0e00" <= following < "\u1900"
    return character in "\u115f\u1160" and "\u1100" <= following < "\u1200"


def _is_pictograph(character: str) -> bool:
    if not character:
        return False
    return "\U0001f000" <= character <= "\U0001faff" or unicodedata.category(character) == "So"


def _ends_a_symbol(character: str) -> bool:
    """Say whether a character can be shown as a picture: symbols, digits of keycaps."""
    return (
        unicodedata.category(character) in _ENDS_A_SYMBOL
        or character == "\N{INFORMATION SOURCE}"
        or _is_pictograph(character)
    )


def _is_ideograph(character: str) -> bool:
    return "\u3400" <= character <= "\u9fff" or "\U00020000" <= character <= "\U0003ffff"


def _what(character: str) -> str:
    code = f"U+{ord(character):04X}"
    if re.match(f"[{_CONTROL}\t\n\r]", character):
        return f"a control character ({code})"
    if re.match(f"[{_DIRECTION}]", character):
        return f"an override of the writing direction ({code})"
    if re.match(f"[{_SURROGATE}]", character):
        return f"half a character ({code})"
    if "\U000e0000" <= character <= "\U000e007f":
        return f"an invisible tag character ({code})"
    return f"an invisible character ({code})"
