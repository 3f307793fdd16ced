"""Where secrets stand in a text: tokens of well-known make, keys, and what is given as a secret.

Pure, and in time with the length of a text: a pattern is tried only where a text has the words
that it cannot do without, and repeats nothing without a bound unless possessively.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

from registry.plain_text import mentions
from registry.spans import Kind, Span

# Makers mark their tokens at the front: by the mark one is found, by the rest it is told. What all
# marks of a line have in common is looked for first.
_TOKENS: Final = tuple(
    (
        shared,
        tuple(
            (marks, re.compile(rf"(?<![A-Za-z0-9])(?:{expression})")) for marks, expression in makes
        ),
    )
    for shared, makes in (
        (
            "_",
            (
                (("ghp_", "gho_", "ghu_", "ghs_", "ghr_"), r"gh[pousr]_[A-Za-z0-9]{36,}+"),
                (("github_pat_",), r"github_pat_[A-Za-z0-9_]{22,}+"),
                (("k_live_", "k_test_"), r"[prs]k_(?:live|test)_[A-Za-z0-9]{16,}+"),
                (("whsec_",), r"whsec_[A-Za-z0-9+/=]{24,}+"),
                (("npm_",), r"npm_[A-Za-z0-9]{36}"),
                (("hf_",), r"hf_[A-Za-z0-9]{30,}+"),
                (("dop_v1_",), r"dop_v1_[a-f0-9]{64}"),
                (("shpat_", "shpca_", "shppa_", "shpss_"), r"shp(?:at|ca|pa|ss)_[A-Fa-f0-9]{32}"),
                (("tf_",), r"tf_[\w-]{43}(?![\w-])"),
            ),
        ),
        (
            "-",
            (
                (("glpat-",), r"glpat-[\w-]{20,}+"),
                (("xox", "xapp-"), r"(?:xox[abeoprs]|xapp)-[A-Za-z0-9-]{10,}+"),
                (("GOCSPX-",), r"GOCSPX-[\w-]{20,}+"),
                (("sk-",), r"sk-[\w-]{20,}+"),
                (("pypi-",), r"pypi-[\w-]{50,}+"),
            ),
        ),
        (
            ".",
            (
                (("hooks.slack.com/",), r"hooks\.slack\.com/services/[A-Za-z0-9/]{20,}+"),
                (("ya29.",), r"ya29\.[\w-]{20,}+"),
                (("SG.",), r"SG\.[\w-]{16,}+\.[\w-]{16,}+"),
                (("hvs.", "hvb."), r"hv[sb]\.[\w-]{24,}+"),
            ),
        ),
        (
            "A",
            (
                (("AKIA", "ASIA", "ABIA", "ACCA"), r"A(?:KI|SI|BI|CC)A[0-9A-Z]{16}(?![A-Za-z0-9])"),
                (("AIza",), r"AIza[\w-]{35}"),
                ((":AA",), r"[0-9]{8,10}:AA[\w-]{33}"),
            ),
        ),
        ("dapi", ((("dapi",), r"dapi[a-f0-9]{32}"),)),
    )
)
# A token goes with what is joined to its front.
_JWT: Final = re.compile(
    r"(?<![\w-])(?=[\w-]++\.[\w-]{10,}+\.[\w-]{10})"
    r"[\w-]*?\beyJ[\w-]{10,}+\.[\w-]{10,}+\.[\w-]{10,}+",
    re.ASCII,
)
_BEGIN: Final = r"-----BEGIN [A-Z ]*+(?<=PRIVATE KEY)(?: BLOCK)?-----"
_PRIVATE_KEY: Final = re.compile(
    rf"{_BEGIN}[^-]*+(?:-(?!----)[^-]*+)*+-----END [A-Z ]*+(?<=PRIVATE KEY)(?: BLOCK)?-----"
    rf"|{_BEGIN}[A-Za-z0-9+/=\\\s]*+"  # cut off
)
_LOGIN: Final = re.compile(r"(?<=://)[^\s/:@\"'<>]{0,128}:([^\s/@\"'<>]{1,256})@")

_SHORTEST_TOKEN: Final = 15  # characters

_SCHEMES: Final = re.compile(
    r"(?<![a-z])(?:bearer|authorization[\"']?\s{0,2}[:=]\s{0,2}[\"']?(?:basic|digest|token|apikey))"
    r"\s{1,2}([\w.~+/-]{8,}+=*)"
)
_NAMES: Final = (
    r"(?:pass(?:word|wd|phrase|code)?|pwd|secret|token|credential|cookie"
    r"|(?:api|access|private|secret|account|auth|encryption|signing|shared)[ _-]?key)"
)
# Found by the last letter of a name and what follows: a class of characters is searched for fast.
_ASSIGNED: Final = re.compile(r"[dstnley][\"']?\s{0,2}(?:=>|:=|[:=])\s{0,2}")
_NAME: Final = re.compile(rf"{_NAMES}\Z")
_VALUE: Final = re.compile(
    r"\"([^\"\n]{1,512})\"|'([^'\n]{1,512})'"
    r"|((?:[^\s\"',;&<>()\[\]{}|`]|&(?![\w.-]{1,40}=)){4,512})"
)
_FLAG: Final = re.compile(rf"--(?:[a-z]{{1,20}}-)?({_NAMES}) ([^\s\"'<$-]\S{{3,512}})")
_LONGEST_NAME: Final = 24
_GIVEN_HINTS: Final = ("pass", "pwd", "secret", "token", "credential", "cookie", "key")
_NAMED: Final = re.compile(rf"(?<![a-z]){_NAMES}\Z|(?<![a-z])authorization\Z")
# Tokens that say where to go on, and are no secrets.
_PLACES: Final = re.compile(
    r"(?:page|next|previous|continuation|cont|cursor|sync|resume|progress|change|start|sort|scroll"
    r"|cancel|csrf|design|stop|pad|eos|bos|unk|special)[ _-]?(?:token|key)\Z"
)
_PLACEHOLDS: Final = frozenset("$%{<[*(")  # as the first of a value
_PLACEHOLDER: Final = re.compile(
    r"[$%{<\[*(].*|.*[.…]{3}|x+|X+|\*+|-+|(?:null|none|nil|true|false|undefined|required|optional"
    r"|string|str|redacted|hidden|changeme|example|todo|yes|no|empty|missing|invalid|expired)\W*"
    r"|(?:[A-Za-z_]\w*[.(])+[A-Za-z_]?\w*\(?.*",
    re.IGNORECASE | re.DOTALL,
)
_VARIABLE: Final = re.compile(
    r"_?[A-Za-z]+_[A-Za-z_]*|_[A-Za-z_]+|[A-Z][a-z]+[A-Z][A-Za-z]+"
    r"|(?i:(?:auth|api)?(?:pass(?:word)?|key|token|secret|pwd))"
)
_WORD: Final = re.compile(r"[a-z]+[.!?]?|[A-Z][a-z]+[.!?]?")


def find_secrets(text: str) -> Iterator[Span]:
    """Yield where secrets stand in a text, in any order, perhaps one in another."""
    for expression in _tried(text):
        for found in expression.finditer(text):
            yield Span(*found.span(), Kind.SECRET)
    if "://" in text and "@" in text:
        for found in _LOGIN.finditer(text):
            if not _PLACEHOLDER.fullmatch(found[1]):
                yield Span(*found.span(1), Kind.SECRET)
    yield from _given(text)


def _tried(text: str) -> Iterator[re.Pattern[str]]:
    """Yield the patterns whose words a text has."""
    if len(text) < _SHORTEST_TOKEN:
        return
    for shared, makes in _TOKENS:
        if shared in text:
            for marks, expression in makes:
                if mentions(text, marks):
                    yield expression
    if "eyJ" in text:
        yield _JWT
    if "-----BEGIN " in text and "PRIVATE KEY" in text:
        yield _PRIVATE_KEY


@lru_cache(maxsize=4096)
def names_secret(name: str) -> bool:
    """Say whether the value of a member with such a name is a secret."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name[:80]).lower()
    return bool(_NAMED.search(words)) and not _PLACES.search(words)


def is_secret(name: str, value: str) -> bool:
    """Say whether the whole value of a member that is named after a secret is one."""
    if _PLACEHOLDER.fullmatch(value) or not value.strip():
        return False
    if name[-5:].lower() in ("token", "ookie"):  # words of a text are called tokens too
        return len(value) >= 12 and " " not in value
    return len(value) >= 3


def _given(text: str) -> Iterator[Span]:
    lower = text.lower()
    if len(lower) != len(text):
        lower = text
    if "bearer" in lower or "authorization" in lower:
        for found in _SCHEMES.finditer(lower):
            if not _WORD.fullmatch(text, *found.span(1)):
                yield Span(*found.span(1), Kind.SECRET)
    if mentions(lower, _GIVEN_HINTS):
        yield from _assigned(text, lower)


def _assigned(text: str, lower: str) -> Iterator[Span]:
    until = 0
    for found in _ASSIGNED.finditer(lower):
        name_end = found.start() + 1
        if found.start() < until or text[found.end() : found.end() + 1] in _PLACEHOLDS:
            continue
        before = lower[max(0, name_end - _LONGEST_NAME) : name_end]
        name = _NAME.search(before)
        value = _VALUE.match(text, found.end()) if name and not _PLACES.search(before) else None
        if name and value:
            group = value.lastindex or 0
            sure = group < 3 or "=" in found.group()
            if _looks_given(name.group(), value[group], quoted=group < 3, sure=sure):
                yield Span(*value.span(group), Kind.SECRET)
                until = value.end()
    if "--" in lower:
        for flag in _FLAG.finditer(lower):
            if _looks_given(flag[1], text[slice(*flag.span(2))], quoted=False, sure=True):
                yield Span(*flag.span(2), Kind.SECRET)


def _looks_given(name: str, value: str, *, quoted: bool, sure: bool) -> bool:
    """Say whether what follows a secret's name is one, and no word about it."""
    if _PLACEHOLDER.fullmatch(value) or (not quoted and _VARIABLE.fullmatch(value)):
        return False
    if name == "token":  # how many there are, and which word of a text
        return len(value) >= 12 and " " not in value and not _WORD.fullmatch(value)
    return sure or not _WORD.fullmatch(value)
