"""What a verifier of the audit found out.

edited       an entry, its hash, or what a checkpoint lists is not what it was
deleted      an entry or a checkpoint is missing
inserted     an entry stands where none was, or is there twice
reordered    lines stand in another order than they were sealed in
truncated    the end, or without a cut the beginning, is missing
rewritten    it holds together, and is not what a checkpoint vouched for
signature    a checkpoint or a cut was not signed by a known key, or not this one
unsealed     an entry was not sealed in time
unsigned     an entry was sealed, and no checkpoint vouches for it in time
unreadable   a line is none of an export
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Final

MOST: Final = 1_000
CHECKPOINTS: Final = "(checkpoints)"
"""Where a problem is that is no chain's: no tenant can be named so."""


@dataclass
class Problem:
    """One thing that is wrong, and where: a chain and a number in it, as far as it has such."""

    kind: str
    chain: str
    seq: int | None
    what: str


@dataclass
class Findings:
    """What was found so far; of very many problems the first are kept, the others counted."""

    problems: list[Problem] = field(default_factory=list)
    left_out: int = 0
    notes: list[str] = field(default_factory=list)

    def wrong(self, kind: str, chain: str, seq: int | None, what: str) -> Problem:
        """Keep a problem, and return it: what comes later may show it in another light."""
        problem = Problem(kind, chain, seq, what)
        if len(self.problems) < MOST:
            self.problems.append(problem)
        else:
            self.left_out += 1
        return problem


@dataclass(frozen=True)
class Verdict:
    """What the verifier found out; it is ``sound`` when it found nothing wrong."""

    as_of: str
    entries: int
    unsealed: int
    chains: int
    checkpoints: int
    problems: list[Problem]
    left_out: int
    notes: list[str]

    @property
    def sound(self) -> bool:
        """Say whether nothing is wrong."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """Return it JSON-ready."""
        return {"sound": self.sound, **asdict(self)}
