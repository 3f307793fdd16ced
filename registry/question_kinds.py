"""What servers may ask the caller of a call, by name; pure.

Three requests of MCP travel back: ``elicitation/create``, which is of two kinds, and
``sampling/createMessage`` and ``roots/list``.
"""

from __future__ import annotations

from typing import Any, Final

ELICITATION: Final = "elicitation"
ELICITATION_URL: Final = "elicitation.url"
SAMPLING: Final = "sampling"
ROOTS: Final = "roots"
KINDS: Final = (ELICITATION, ELICITATION_URL, SAMPLING, ROOTS)
_METHODS: Final = {"sampling/createMessage": SAMPLING, "roots/list": ROOTS}


def kind_of(method: str, params: dict[str, Any]) -> str | None:
    """Return what a caller has to answer for this to be asked; None for what nobody is asked."""
    if method == "elicitation/create":
        return ELICITATION_URL if params.get("mode") == "url" else ELICITATION
    return _METHODS.get(method)
