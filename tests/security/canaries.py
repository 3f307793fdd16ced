"""Planted secrets: what each of them is, where alone it may lie, and how it is searched for."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch


@dataclass(frozen=True)
class Canary:
    """One secret: its kind, its value, and the sinks in which it may be (patterns)."""

    kind: str
    value: str = field(repr=False)
    allowed: frozenset[str] = frozenset()

    @property
    def pieces(self) -> tuple[str, ...]:
        """Return its beginning and its end without a scheme, so that a cut one is found too."""
        bare = self.value.rpartition(" ")[2]
        return (bare[:14], bare[-12:]) if bare.startswith("kanari") else (bare[-16:],)


@dataclass
class Canaries:
    """Every secret that was planted."""

    all: list[Canary] = field(default_factory=list)

    def plant(
        self, kind: str, value: str = "", *, scheme: str = "", allowed: Iterable[str] = ()
    ) -> str:
        """Make a secret, or take note of one that was made elsewhere; return it."""
        value = value or scheme + "kanari" + secrets.token_hex(20)
        self.all.append(Canary(kind, value, frozenset(allowed)))
        return value

    def found(self, sinks: Mapping[str, bytes], *, everywhere: bool = False) -> set[str]:
        """Return ``kind in sink`` for each secret in a sink where it may not be (or may be)."""
        by_piece = {piece: canary for canary in self.all for piece in canary.pieces}
        pattern = re.compile("|".join(map(re.escape, by_piece)).encode())
        return {
            f"{canary.kind} in {sink}"
            for sink, contents in sinks.items()
            for piece in set(pattern.findall(contents))
            if (canary := by_piece[piece.decode()])
            and (everywhere or not any(fnmatch(sink, where) for where in canary.allowed))
        }
