"""Kinds of what is masked, and where it stands in a text."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final, NamedTuple

AROUND: Final = 48
"""Characters in which a word says what a number is."""
# What may stand before a value: nothing that it would be a part of. The last two are a line's end
# and a tabulator as they are written within JSON and programs.
OPEN: Final = r"(?:(?<![^\W_])(?<![0-9][.])|(?<=\\n)|(?<=\\t)|(?<=\\r))"
CLOSED: Final = r"(?![^\W_])(?![.][0-9])"


class Kind(StrEnum):
    """What is masked; the value is the word in the mask."""

    CARD = "card"
    PHONE = "phone"
    EMAIL = "email"
    SSN = "ssn"
    IP = "ip"
    IBAN = "iban"
    SECRET = "secret"  # noqa: S105 a word, no password

    __hash__ = str.__hash__  # an enumeration's own is not native, and asked for at every text


class Span(NamedTuple):
    """A part of a text that is to be masked, and the word of its mask."""

    start: int
    end: int
    word: str


class Place(NamedTuple):
    """A text that numbers are looked for in, and what is asked of it once for all of them."""

    text: str
    lower: str
    """The text in small letters, each where it is in the text."""
    named: Kind | None
    """What the member that holds it is called after."""
    tells: bool
    """Whether any word in it may tell of telephone numbers."""

    def told(self, words: re.Pattern[str], found: re.Match[str]) -> bool:
        """Say whether there are such words before what was found."""
        start = found.start()
        return words.search(self.lower, max(0, start - AROUND), start) is not None
