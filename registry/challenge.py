"""What a server says is to be shown to it: the Bearer challenge of a refusal (RFC 6750, RFC 9728).

It is the server's own words, so only what a challenge can hold is taken of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from registry.oauth import SAID_CODE, scopes_of

_LONGEST: Final = 4096
_LONGEST_URL: Final = 1024
_SCHEME: Final = re.compile(r"(?:^|,)\s*bearer(?![^\s,])", re.IGNORECASE)
_PARAMETER: Final = re.compile(r'[\s,]*([\w-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",]+))', re.ASCII)
_URL: Final = re.compile(r"https?://[!-~]+", re.IGNORECASE)


@dataclass(frozen=True)
class Challenge:
    """What is wanted; what was not said is None."""

    scopes: tuple[str, ...] | None = None
    resource_metadata: str | None = None
    error: str | None = None

    @property
    def wants_more(self) -> bool:
        """Say whether a token was shown that is good, but not for this."""
        return self.error == "insufficient_scope"

    def as_dict(self) -> dict[str, Any]:
        """Return what was said, JSON-ready."""
        scope = None if self.scopes is None else " ".join(self.scopes)
        said = {
            "scope": scope,
            "resource_metadata": self.resource_metadata,
            "error": self.error,
        }
        return {name: value for name, value in said.items() if value is not None}

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Challenge:
        """Return the challenge of names and values; what none of them can be is left out."""
        scope, url, error = (said.get(it) for it in ("scope", "resource_metadata", "error"))
        return cls(
            scopes_of(scope) if isinstance(scope, str) else None,
            url if isinstance(url, str) and len(url) <= _LONGEST_URL and _URL.fullmatch(url)
            else None,
            error if isinstance(error, str) and SAID_CODE.fullmatch(error) else None,
        )  # fmt: skip


def read_challenge(header: str) -> Challenge | None:
    """Return the Bearer challenge of a WWW-Authenticate header; None where there is none."""
    header = header[:_LONGEST]
    scheme = _SCHEME.search(header)
    if scheme is None:
        return None
    said: dict[str, str] = {}
    place = scheme.end()
    while (found := _PARAMETER.match(header, place)) is not None:
        name, quoted, bare = found.groups()
        value = bare if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        said.setdefault(name.lower(), value)
        place = found.end()
    return Challenge.of(said)
