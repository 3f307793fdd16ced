"""Where telephone numbers stand in a text.

Pure. Some ways of writing are those of telephone numbers alone; any other number of seven digits
or more is one where a word beside it, or the name of its member, says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from registry.plain_text import mentions
from registry.spans import AROUND, CLOSED, OPEN, Kind, Place, Span

_AFTER: Final = 12  # characters beyond a run of digits: an extension
_BEFORE: Final = 2  # and before it: a plus sign, a bracket
# Each is a way in which telephone numbers are written, and hardly anything else is.
_EXTENSION: Final = r"(?: ?(?:x|ext\.?|extension) ?[0-9]{1,6})?"
_APART: Final = r"(?<![0-9][ .-])"  # no more digits before it
_PHONE: Final = re.compile(
    rf"{OPEN}(?:"
    r"\+ ?\(?[1-9](?:[ .\-/()]{0,2}[0-9]){6,14}"
    r"|\(\+?[0-9]{1,5}\)[ .-]?[0-9](?:[ .\-/]?[0-9]){4,10}"
    rf"|{_APART}(?:00[1-9](?:[0-9]{{0,2}}[ .-])(?:[ .\-()]{{0,2}}[0-9]){{6,13}}"
    r"|(?:1[ .-])?[0-9]{3}([ .-])[0-9]{3}\1[0-9]{4}|[0-9]{3}-[0-9]{7}"
    r"|0[1-9][0-9]{0,3}([ .-])[0-9]{2,4}(?:\2[0-9]{2,4}){1,3}|0[1-9][0-9]{1,3}[ /-][0-9]{6,8})"
    rf"){_EXTENSION}{CLOSED}(?![ .-]?[0-9])"
)
_NUMBER: Final = re.compile(
    rf"{OPEN}(?<![$€£¥#])\(?[0-9](?:\)?(?:[ .-]|/ ?)?\(?[0-9]){{6,13}}"
    rf"{_EXTENSION}{CLOSED}(?![%-]?[0-9%])"
)
NOUNS: Final = (
    r"(?:tele)?phones?|tel|t[eé]l[eé]fon\w{0,3}|telefax|mobiles?|mobil|m[oó]vil|handy|cell(?:ular"
    r"|phone)?|(?:tele)?fax|desk|office|landline|hotline|helpline|voicemail|pager|whatsapp|sms"
    r"|direct|switchboard|home|work"
)
_VERBS: Final = (
    r"call(?:s|ed|ing)?(?: back)?|dial(?:led|ing)?|ring|reach(?:ed|able)?|contact(?:ed)?"
    r"|text(?:s|ed|ing)?|messag(?:e|es|ed|ing)|answer(?:s|ing)?|phon(?:ed|ing)"
)
# A word, what may stand between, and the number; or the number, and what it is.
_PHONE_WORDS: Final = re.compile(
    rf"(?<![\[a-z])(?:(?:{NOUNS})(?![a-z(])[^0-9+(\]]{{0,24}}"
    rf"|(?:{_VERBS})(?![a-z(])[^0-9+(\].\n]{{0,36}}?(?<![a-z])"
    r"(?:at|on|to|is|via|with|registered|number|no\.?|me|us|him|her|them|#|:)\s{1,2}"
    rf"|(?<!tool )(?<!function )(?<!the )(?<!this )(?:{_VERBS})\s{{1,2}})\Z"
)
_TELLS_AFTER: Final = re.compile(
    r"[\s,(\-]{1,3}(?:office|fax|mobile|cell|home|work|desk|phone|tel|landline)(?![a-z])"
)
_MORE: Final = re.compile(r"\s*(?:,|;|/|\||or|and|und|et|y)\s*(?=[0-9(])")
_DATE: Final = re.compile(
    r"(?:19|20)[0-9]{2}([-./ ]?)(?:0[1-9]|1[0-2])\1[0-3][0-9]|[0-3]?[0-9]([-./])[01]?[0-9]\2"
    r"(?:19|20)[0-9]{2}|1[67][0-9]{8}"
)
_PHONE_HINTS: Final = (
    *("phon", "tel", "téléfon", "mob", "móvil", "handy", "cell", "fax", "desk", "office", "land"),
    *("line", "voicemail", "pager", "whatsapp", "sms", "direct", "switch", "home", "work", "call"),
    *("dial", "ring", "reach", "contact", "text", "messag", "answer"),
)
"""Each of the words that tell of telephone numbers has one of these in it."""


def may_tell(lower: str) -> bool:
    """Say whether any word of a text in small letters may tell of telephone numbers."""
    return mentions(lower, _PHONE_HINTS)


def find_phones(place: Place, start: int, end: int) -> Iterator[Span]:
    """Yield the telephone numbers in a run of digits and separators."""
    sure = False
    for found in _PHONE.finditer(place.text, start, end + _AFTER):
        if not _DATE.match(found.group()):
            yield Span(*found.span(), Kind.PHONE)
            sure = found.start() <= start + _BEFORE and found.end() >= end
    if place.tells and not sure:
        yield from _told(place, start, end)


def _told(place: Place, run_start: int, run_end: int) -> Iterator[Span]:
    """Yield numbers that words, or the name of the member, say to be telephone numbers."""
    text, lower = place.text, place.lower
    told_until = -1  # where a number may stand that belongs to one that was told before it
    for found in _NUMBER.finditer(text, run_start, run_end + _AFTER):
        start, end = found.span()
        told = (
            place.named is Kind.PHONE
            or start == told_until
            or _PHONE_WORDS.search(lower, max(0, start - AROUND), start)
            or _TELLS_AFTER.match(lower, end)
        )
        if told and not _DATE.fullmatch(found.group()):
            yield Span(start, end, Kind.PHONE)
            more = _MORE.match(lower, end, end + 12)
            told_until = more.end() if more else -1
