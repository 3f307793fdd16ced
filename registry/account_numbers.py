"""Where numbers of accounts stand in a text: cards, IBANs, US social security numbers.

Pure. What is found has its check digits right, or a word before it, or the name of its member,
says what it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from registry.spans import AROUND, CLOSED, OPEN, Kind, Place, Span

SHORTEST_CARD: Final = 12  # digits
SHORTEST_SSN: Final = 9
_CARD: Final = re.compile(
    rf"{OPEN}(?:[0-9]{{12,19}}"
    r"|[0-9]{4}(?:[ .-]{0,2}[0-9]{4}){2}[ .-]{0,2}[0-9]{1,4}(?:([ .-]{1,2})[0-9]{1,3})?"
    r"|[0-9]{4}[ .-]{0,2}[0-9]{6}[ .-]{0,2}[0-9]{4,5}"
    r"|[0-9](?: [0-9]){12,18}"
    rf"){CLOSED}"
)
_ISSUERS: Final = re.compile(
    r"4(?:.{12}|.{15}|.{18})"
    r"|(?:5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720).*(?<=^.{16})"
    r"|3[47].{13}|3(?:0[0-59]|[689]).{11,16}"
    r"|(?:2131|1800)\d{11}|35(?:2[89]|[3-8]).{13,16}"
    r"|(?:50|5[6-9]|6|0604|8[12]|220[0-4]|8600|9860|9792|2014|2149|1).*"
)
CARD_WORDS: Final = re.compile(
    r"(?<![\[a-z])(?:cards?|cc|credit|debit|visa|master ?card|maestro|amex|pan|payment|kreditkarte"
    r"|carte|carta|tarjeta|cart[aã]o)(?![a-z])"
)
_WITHOUT_SEPARATORS: Final = str.maketrans("", "", " .-")
_DOUBLED: Final = dict(zip("0123456789", (0, 2, 4, 6, 8, 1, 3, 5, 7, 9), strict=True))
_SHORT_CARD: Final = 13  # so many are other things more often than not

_SSN: Final = re.compile(
    rf"{OPEN}(?<![0-9]-)(?!000|666|9[0-9][0-9])[0-9]{{3}}([ -]?)"
    rf"(?!00)[0-9]{{2}}\1(?!0000)[0-9]{{4}}(?!-?[0-9]){CLOSED}"
)
SSN_WORDS: Final = re.compile(r"(?<![\[a-z])(?:ssn|social[ _-]?security|tin|itin|tax[ _-]?id)")

IBAN_HINT: Final = re.compile(
    "[0-9](?<=[A-Za-z][A-Za-z][0-9])[0-9](?= ?-?[A-Za-z0-9]{4}[A-Za-z0-9 -]{7})"
)
_IBAN: Final = re.compile(rf"{OPEN}[A-Za-z]{{2}}[0-9]{{2}}(?:[ -]?[A-Za-z0-9]{{1,4}}+){{3,9}}")
_SHORTEST_IBAN: Final = 12  # characters, where a word says that it is one
_ALPHANUMERIC: Final = re.compile("[A-Za-z0-9]{1,40}")
_IBAN_LENGTHS: Final = {
    country: length
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FI FO GL NL SD FK", 19: "MK SI", 20: "AT BA EE KZ LT LU MN XK",
        21: "CH HR LI LV", 22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL",
        24: "AD CZ DZ ES MD PK RO SA SE SK TN VG", 25: "AO CV GW LY MZ PT ST",
        26: "IS TR IR", 27: "BF BI BJ CF CG CI CM DJ FR GA GQ GR IT KM MC MG ML MR NE SM SN TD TG",
        28: "AL AZ BY CY DO GT HN HU LB MA NI PL SV", 29: "BR EG PS QA UA", 30: "JO KW MU YE",
        31: "MT SC", 32: "LC", 33: "RU",
    }.items()
    for country in countries.split()
}  # fmt: skip


def find_cards(place: Place, start: int, end: int) -> Iterator[Span]:
    """Yield the cards in a run of digits and separators."""
    for found in _CARD.finditer(place.text, start, end):
        yield from _card(found, place)


def find_ssns(place: Place, start: int, end: int) -> Iterator[Span]:
    """Yield the social security numbers in a run of digits and separators."""
    for found in _SSN.finditer(place.text, start, end):
        if found[1] == "-" or place.named is Kind.SSN or place.told(SSN_WORDS, found):
            yield Span(*found.span(), Kind.SSN)


def find_ibans(text: str) -> Iterator[Span]:
    """Yield the IBANs in a text."""
    for hint in IBAN_HINT.finditer(text):
        found = _IBAN.match(text, hint.start() - 2)
        if not found:
            continue
        places = [at for at in range(*found.span()) if text[at] not in " -"]
        length = _IBAN_LENGTHS.get(found.group()[:2].upper(), 0)
        if 0 < length <= len(places):
            end = places[length - 1] + 1
            compact = "".join(text[at] for at in places[:length]).upper()
            if not text[end : end + 1].isalnum() and _mod97(compact):
                yield Span(found.start(), end, Kind.IBAN)
                continue
        before = text[max(0, found.start() - AROUND) : found.start()].lower()
        whole = _ALPHANUMERIC.match(text, found.start())
        if "iban" in before and whole and len(whole.group()) >= _SHORTEST_IBAN:
            yield Span(*whole.span(), Kind.IBAN)  # told, whatever its check digits say


def _card(found: re.Match[str], place: Place) -> Iterator[Span]:
    text = found.group()
    wholes = [text]
    if found[1]:  # the last digits may be another number
        wholes.append(text[: text.rindex(found[1])])
    for whole in wholes:
        digits = whole.translate(_WITHOUT_SEPARATORS)
        if len(digits) >= SHORTEST_CARD and _luhn(digits):
            known = len(digits) > _SHORT_CARD and _ISSUERS.fullmatch(digits)
            if known or place.named is Kind.CARD or place.told(CARD_WORDS, found):
                yield Span(found.start(), found.start() + len(whole), Kind.CARD)
                return


def _luhn(digits: str) -> bool:
    if digits == digits[0] * len(digits):
        return False
    total = sum(map(int, digits[-1::-2])) + sum(map(_DOUBLED.__getitem__, digits[-2::-2]))
    return total % 10 == 0


def _mod97(compact: str) -> bool:
    number = "".join(str(int(character, 36)) for character in compact[4:] + compact[:4])
    return int(number) % 97 == 1
