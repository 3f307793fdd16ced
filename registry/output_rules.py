"""What operators say about results: what is masked in them, and what becomes of hostile text.

Pure. A pattern of their own is run by RE2, whose time grows with the length of the text alone,
and is refused where RE2 cannot run it (look-around, references back, too large when compiled).
"""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any, Final, Self

import re2
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from registry.spans import Kind

MOST_PATTERNS: Final = 20
LONGEST_PATTERN: Final = 256
_COMPILED_BYTES: Final = 1_000_000


class Reaction(StrEnum):
    """What becomes of a result with words that are meant for a model and against its user."""

    IGNORE = "ignore"
    FLAG = "flag"
    BLOCK = "block"


class ControlReaction(StrEnum):
    """What becomes of a result with characters that act on terminals, or that nobody sees."""

    FLAG = "flag"
    STRIP = "strip"
    BLOCK = "block"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


@lru_cache(maxsize=1024)
def compiled(expression: str) -> Any:
    """Return a pattern made ready; raise ``ValueError`` for one that cannot be run in linear time.

    What it returns has the methods of `re.Pattern`.
    """
    options = re2.Options()
    options.max_mem = _COMPILED_BYTES
    options.log_errors = False
    try:
        pattern = re2.compile(expression, options)
    except re2.error as error:
        said = error.args[0] if error.args else error
        reason = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
        raise ValueError(f"it is no pattern that runs in linear time (RE2): {reason}") from None
    if pattern.search(""):
        raise ValueError("it fits the empty text, and so every place of a text")
    return pattern


def _check(expression: str) -> str:
    compiled(expression)
    return expression


class CustomPattern(_Strict):
    """What is masked besides the built-in types; ``[name]`` takes its place."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]
    pattern: Annotated[
        str, StringConstraints(min_length=1, max_length=LONGEST_PATTERN), AfterValidator(_check)
    ]


class RedactionRules(_Strict):
    """What is masked in results; what is not said is as the tier says, in a tier as built in."""

    types: tuple[Kind, ...] | None = None
    """Built-in types; None means all of them, an empty list none."""
    patterns: tuple[CustomPattern, ...] = Field(default=(), max_length=MOST_PATTERNS)
    """Patterns of its own; a tenant's are added to its tier's."""


class ResultRules(_Strict):
    """What becomes of hostile text in results."""

    instructions: Reaction | None = None
    """None means as the tier says, in a tier `flag`."""
    control: ControlReaction | None = None
    """None means as the tier says, in a tier `flag`: a result is what its server said."""


class OutputRules(_Strict):
    """What holds for the results of one tenant."""

    types: frozenset[Kind] = frozenset(Kind)
    patterns: tuple[CustomPattern, ...] = ()
    instructions: Reaction = Reaction.FLAG
    control: ControlReaction = ControlReaction.FLAG

    @classmethod
    def of(
        cls, tier: tuple[RedactionRules, ResultRules], tenant: tuple[RedactionRules, ResultRules]
    ) -> Self:
        """Return what a tier and a tenant of it say together: the tenant's own goes first."""
        said: dict[str, Any] = {
            "patterns": tuple(dict.fromkeys((*tier[0].patterns, *tenant[0].patterns)))
        }
        for redaction, results in (tier, tenant):
            if redaction.types is not None:
                said["types"] = frozenset(redaction.types)
            said |= results.model_dump(exclude_none=True)
        return cls(**said)

    def as_dict(self) -> dict[str, Any]:
        """Return them JSON-ready, equal rules alike."""
        return {**self.model_dump(mode="json"), "types": sorted(self.types)}


DEFAULT_RULES: Final = OutputRules()
