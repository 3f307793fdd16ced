"""By which keys a call's questions go, and which of them it has asked before; pure.

A key is its server's own, where it gave one, else ``q1``, ``q2`` and so on; what the call has used
for another question gets a number behind it. What an earlier attempt asked alike under a key is the
same question: nobody is asked it twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, NamedTuple

from registry.answers import NewQuestion

LONGEST_KEY: Final = 255


@dataclass(frozen=True)
class Earlier:
    """A question of the call; with its ``params`` only if it may be asked again as the same."""

    number: int
    key: str
    method: str
    params: dict[str, Any] | None


class Place(NamedTuple):
    """Where a question is to be among its call's; ``known`` says that it is there already."""

    key: str
    number: int
    known: bool


def places(asked: Sequence[NewQuestion], earlier: Sequence[Earlier]) -> list[Place]:
    """Return the place of each of these questions, in order."""
    by_key = {it.key: it for it in earlier}
    number = max((it.number for it in earlier), default=0)
    found: dict[str, Place] = {}
    for new in asked:
        for key in _keys(new.key):
            before = by_key.get(key)
            if key in found or (before is not None and not _alike(new, before)):
                continue
            if before is None:
                number += 1
            found[key] = Place(key, before.number if before else number, before is not None)
            break
    return list(found.values())


def _keys(given: str | None) -> Iterator[str]:
    """Yield the keys that a question may have, the best first."""
    if not given or len(given) > LONGEST_KEY or not given.isprintable():
        yield from (f"q{number}" for number in count(1))
    else:
        yield given
        for number in count(2):
            end = f"-{number}"
            yield given[: LONGEST_KEY - len(end)] + end


def _alike(new: NewQuestion, before: Earlier) -> bool:
    if before.params is None or before.method != new.method:
        return False
    return _said(before.params) == _said(new.params)


def _said(params: dict[str, Any]) -> dict[str, Any]:
    """Return what is asked, without what is only about this request."""
    return {name: it for name, it in params.items() if name != "_meta"}
