"""The audit's hash chains: what is hashed, and how each entry rests on the one before it.

Pure. There is a chain for each tenant, named as the tenant, and one named "" for what is no
tenant's. An entry's hash is SHA-256 over the hash before it and the entry's canonical form, which
is computed from a parsed entry alone, so that whoever has an export can compute it again: JSON as
RFC 8785 writes it (keys sorted, by code point; no spaces; no escapes but the needed ones), but no
number loses a digit. Numbers are compared by value, as Postgres' JSON keeps them: 1.0 is 1, and
what no double holds exactly is written as a string of NUL and its digits. No entry has such a
string of its own: Postgres stores no NUL.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, Final

NO_TENANT: Final = ""
"""The chain of the entries that are no tenant's."""
_LONGEST_INT: Final = 300


def link(before: bytes, entry: Mapping[str, Any]) -> bytes:
    """Return the hash of an entry (see `read`) that follows the hash ``before``."""
    return hashlib.sha256(before + canonical(entry)).digest()


def genesis(chain: str) -> bytes:
    """Return the hash that a chain's first entry follows."""
    return hashlib.sha256(b"toolfleet audit chain\0" + _utf8(chain)).digest()


def leaf(chain: str, seq: int, head: bytes) -> bytes:
    """Return the digest that stands for a chain's head; it tells nothing of the chain's name."""
    return hashlib.sha256(b"\0" + canonical([chain, seq, head.hex()])).digest()


def root(leaves: Iterable[bytes]) -> bytes:
    """Return the digest over all chains' leaves, in whatever order they come."""
    return hashlib.sha256(b"\1" + b"".join(sorted(leaves))).digest()


def canonical(value: Any) -> bytes:
    """Return the canonical form of JSON that `read` returned."""
    return _utf8(_ENCODER.encode(value))


def read(document: str | bytes) -> Any:
    """Return JSON with exact numbers; raise ValueError for what is none, or says a thing twice."""
    try:
        return _DECODER.decode(document if isinstance(document, str) else document.decode())
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # a forged export may hold lone surrogates


def _whole(digits: str) -> int | float | str:
    # Python refuses to read numbers of thousands of digits.
    return int(digits) if len(digits) <= _LONGEST_INT else _fraction(digits)


def _fraction(digits: str) -> int | float | str:
    number = float(digits)
    if repr(number) == digits and not number.is_integer():
        return number
    exact = Decimal(digits)
    if exact.is_zero():
        return 0
    if -_LONGEST_INT < exact.adjusted() < _LONGEST_INT and exact == exact.to_integral_value():
        return int(exact)
    if number not in {0.0, float("inf"), float("-inf")} and Decimal(repr(number)) == exact:
        return number
    sign, figures, exponent = exact.as_tuple()
    assert isinstance(exponent, int)
    significant = "".join(map(str, figures)).rstrip("0")
    exponent += len(figures) - len(significant)
    return f"\0{'-' if sign else ''}{significant}e{exponent}"


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has a key twice")
    return found


_ENCODER: Final = json.JSONEncoder(
    ensure_ascii=False, sort_keys=True, separators=(",", ":"), check_circular=False
)
_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_float=_fraction,
    parse_int=_whole,
    parse_constant=_no_constant,
)
