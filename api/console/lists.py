"""What the long lists of the console have in common: what was chosen of them, and where one is."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final
from urllib.parse import urlencode

from fastapi import Request

from registry.errors import Code, FleetError
from registry.newest import Cursor, Page

LONGEST: Final = 255


def texts_of(request: Request, *names: str) -> dict[str, str]:
    """Return what was chosen of these parameters; raise `invalid_request` for what nobody typed."""
    chosen = {name: request.query_params.get(name, "").strip() for name in names}
    for name, value in chosen.items():
        if len(value) > LONGEST or not value.isprintable():
            raise FleetError(
                Code.INVALID_REQUEST,
                f"{name} is longer than {LONGEST} characters, or has characters that do not print",
            )
    return {name: value for name, value in chosen.items() if value}


def one_of(name: str, value: str | None, allowed: Collection[str]) -> str | None:
    """Return a value, if there is one, that is allowed; raise `invalid_request`."""
    if value is not None and value not in allowed:
        raise FleetError(
            Code.INVALID_REQUEST,
            f"{name} is {value!r}, which is none of {', '.join(allowed)}",
        )
    return value


def cursor_of(request: Request) -> Cursor | None:
    """Return the place in a list that is asked for; None for its beginning."""
    text = request.query_params.get("after")
    return Cursor.parse(text) if text else None


def address(path: str, chosen: dict[str, str], after: Cursor | None) -> str:
    """Return the address of a list with what was chosen, from a place on."""
    query = {**chosen, **({"after": str(after)} if after else {})}
    return f"{path}?{urlencode(query)}" if query else path


def older(path: str, chosen: dict[str, str], found: Page) -> str | None:
    """Return the address of the page after one; None where there is none."""
    return address(path, chosen, found.next) if found.next else None
