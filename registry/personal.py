"""Where personal data of a structured kind stands in a text.

Pure, and in time with the length of a text: one pass finds runs of digits, and only those are
looked at closely.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

from registry.account_numbers import (
    CARD_WORDS,
    IBAN_HINT,
    SHORTEST_CARD,
    SHORTEST_SSN,
    SSN_WORDS,
    find_cards,
    find_ibans,
    find_ssns,
)
from registry.online_addresses import (
    IPV4_HINT,
    IPV6_HINT,
    find_emails,
    find_ipv4,
    find_ipv6,
)
from registry.spans import Kind, Place, Span
from registry.telephones import NOUNS, find_phones, may_tell

# A pattern that begins with a class of characters is searched for several times as fast.
_RUN: Final = re.compile(r"[0-9](?:[ ().\-/+]{0,3}+[0-9]){6,}+")
_RUN_BEFORE: Final = 2  # a plus sign, a bracket
# A time, or a decimal fraction; no telephone number has one dot.
_HARMLESS: Final = re.compile(
    r"(?:19|20)[0-9]{2}-(?:0[1-9]|1[0-2])-[0-3][0-9](?: [0-2][0-9])?|1[67][0-9]{8}"
    r"|[0-9]{1,3}\.[0-9]+|[0-9]+\.[0-9]{1,3}"
)
_NUMBERS: Final = frozenset((Kind.CARD, Kind.SSN, Kind.PHONE))
# RFC 9562, section 4, also without its dashes; all in digits it would be a number.
_UUID: Final = re.compile(
    r"(?<![0-9A-Za-z])(?=[0-9-]{0,35}[a-fA-F])[0-9a-fA-F]{8}(-?)[0-9a-fA-F]{4}\1[1-8][0-9a-fA-F]{3}"
    r"\1[89abAB][0-9a-fA-F]{3}\1[0-9a-fA-F]{12}(?![0-9A-Za-z])"
)
_PHONE_NAME: Final = re.compile(rf"(?<![a-z])(?:{NOUNS})(?![a-z])")


def find(text: str, kinds: frozenset[Kind], named: Kind | None = None) -> Iterator[Span]:
    """Yield where values of some kinds stand in a text, in any order, perhaps one in another.

    ``text`` is in plain form (see `registry.plain_text`); ``named`` is what the member that holds
    it is called after, if anything. What stands in a UUID is a part of that: one in 2,600 of them
    has what looks like a card or an IBAN.
    """
    ids: list[tuple[int, int]] | None = None
    for span in _find(text, kinds, named):
        if ids is None:
            ids = [found.span() for found in _UUID.finditer(text)]
        before = bisect_right(ids, (span.start, len(text)))
        if not before or span.end > ids[before - 1][1]:
            yield span


def _find(text: str, kinds: frozenset[Kind], named: Kind | None) -> Iterator[Span]:
    if Kind.EMAIL in kinds and ("@" in text or "%40" in text):
        yield from find_emails(text)
    if Kind.IP in kinds:
        if IPV4_HINT.search(text):
            yield from find_ipv4(text)
        if IPV6_HINT.search(text):
            yield from find_ipv6(text)
    if Kind.IBAN in kinds and IBAN_HINT.search(text):
        yield from find_ibans(text)
    if not kinds.isdisjoint(_NUMBERS):
        place: Place | None = None
        for run in _RUN.finditer(text):
            place = place or _place(text, named)
            yield from _numbers(place, run, kinds)


@lru_cache(maxsize=4096)
def kind_of_name(name: str) -> Kind | None:
    """Return what the values of a member with such a name are, where it says so."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])|[_-]", " ", name[:80]).lower()
    if _PHONE_NAME.search(apart):
        return Kind.PHONE
    if SSN_WORDS.search(apart):
        return Kind.SSN
    return Kind.CARD if CARD_WORDS.search(apart) else None


def _place(text: str, named: Kind | None) -> Place:
    lower = text.lower()
    if len(lower) != len(text):  # a letter became two: nothing is where it was
        lower = text
    return Place(text, lower, named, named is Kind.PHONE or may_tell(lower))


def _numbers(place: Place, run: re.Match[str], kinds: frozenset[Kind]) -> Iterator[Span]:
    """Yield what is found in a run of digits and what stands between them."""
    written = run.group()
    if _HARMLESS.fullmatch(written):
        return
    start, end = max(0, run.start() - _RUN_BEFORE), run.end()
    if Kind.CARD in kinds and len(written) >= SHORTEST_CARD:
        for span in find_cards(place, start, end):
            yield span
            if span.end - span.start >= len(written):
                return  # it is nothing else
    if Kind.SSN in kinds and len(written) >= SHORTEST_SSN:
        yield from find_ssns(place, start, end)
    if Kind.PHONE in kinds:
        yield from find_phones(place, start, end)
