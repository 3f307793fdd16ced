"""A text as it is meant, whatever characters it is written with: digits, at signs and dashes.

Pure, in time with the length of a text. Full-width forms, digits of other scripts, dashes and
spaces of every width become the plain ones; characters that nobody sees are left out.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final, NamedTuple

from registry.hidden_text import hidden_places

# What has no plain form that matters here: Latin, Greek, Cyrillic, Armenian and Hebrew letters,
# kana, ideographs, Hangul.
_UNUSUAL: Final = re.compile(
    "[^\x00-\x9f\xa1-\xac\xae-\xb1\xb4-\xb8\xba-\u024f\u0370-\u05ff\u3041-\u3243\u3400-\ua4cf"
    "\uac00-\ud7a3]"
)


def mentions(text: str, words: tuple[str, ...]) -> bool:
    """Say whether a text has any of some words in it."""
    for word in words:  # noqa: SIM110 `any` takes twice as long, and this is asked of every text
        if word in text:
            return True
    return False


class Plain(NamedTuple):
    """A text in plain form, and where in the text itself each of its characters stands."""

    text: str
    places: list[int] | None
    """None where each stands in its own place."""

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Return where a part of the plain text lies in the text itself."""
        if self.places is None:
            return start, end
        return self.places[start], self.places[end - 1] + 1


def plain(text: str) -> Plain:
    """Return a text in plain form."""
    if text.isascii() and text.isprintable():
        return Plain(text, None)
    places: list[int] | None = None
    if hidden := hidden_places(text):
        places = [at for at in range(len(text)) if at not in hidden]
        text = "".join(text[at] for at in places)
    if not text.isascii() and _UNUSUAL.search(text):
        text = text.translate(_FORMS)
    return Plain(text, places)


class _Forms(dict[int, int]):
    """Characters by those they are read as; each is looked up once."""

    def __missing__(self, code: int) -> int:
        self[code] = meant = _meant(chr(code), code)
        return meant


_FORMS: Final = _Forms()


def _meant(character: str, code: int) -> int:
    category = unicodedata.category(character)
    if category == "Nd":
        return ord("0") + unicodedata.decimal(character)
    if category == "Pd" or code == 0x2212:
        return ord("-")
    if category == "Zs":
        return ord(" ")
    folded = unicodedata.normalize("NFKC", character)
    return ord(folded) if len(folded) == 1 else code
