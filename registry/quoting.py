"""A server's words within ours: short, and with nothing in them that acts on who reads them."""

from __future__ import annotations

from typing import Final

MOST_QUOTED: Final = 60


def quoted(text: str) -> str:
    """Return at most `MOST_QUOTED` characters; control and invisible ones are escaped."""
    shown = repr(text[:MOST_QUOTED])[1:-1]
    if len(shown) <= MOST_QUOTED and len(text) <= MOST_QUOTED:
        return shown
    return shown[: MOST_QUOTED - 1] + "\N{HORIZONTAL ELLIPSIS}"


def pointer(*steps: str | int) -> str:
    """Return a JSON pointer for people to read: each step escaped and cut as by `quoted`."""
    return "/".join(quoted(str(step)).replace("~", "~0").replace("/", "~1") for step in steps)
