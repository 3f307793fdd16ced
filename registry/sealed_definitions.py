"""The secrets within a server definition: which they are, and how the record keeps them. Pure.

Which they are is told by their names (`registry.discretion`): values of ``env`` and ``headers``,
and of the query of ``url``. A body here is a definition as a JSON object, name and version in it.

1. A sealed value is text that may stand where the secret stood, so whoever only looks at a
   definition reads it as any other: ``toolfleet-sealed.``, its data key's id, ``.``, base64url.
2. It opens only under its own name, in its own version of its own server, beside the very command
   or address that it was given to: whoever can write to the database, but has no key, cannot have
   it sent elsewhere.
3. No definition is registered with a value that begins so (`registry.fields`): what looks sealed
   in the record is.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import unquote_plus

from registry import envelope
from registry.discretion import holds_secret
from registry.envelope import SealedError
from registry.fields import SEALED

HIDDEN: Final = "***"
_VALUE: Final = re.compile(re.escape(SEALED) + r"([0-9a-f]{32})\.([A-Za-z0-9_-]+)")
_TO_QUERY: Final = re.compile(r"([^?#]*\?)([^#]*)(.*)", re.DOTALL)

Body = Mapping[str, Any]
Change = Callable[[str, str, str], str]
"""Returns what to have in place of a secret: where it is, its name there, and its value."""


def secrets_in(body: Body) -> list[str]:
    """Return the paths of a definition's secrets, those that are sealed too."""
    found: list[str] = []

    def note(where: str, name: str, value: str) -> str:
        found.append(f"{where}/{name}")
        return value

    _changed(body, note)
    return found


def unsealed_in(body: Body) -> list[str]:
    """Return the paths of the secrets that lie in the clear."""
    found: list[str] = []

    def note(where: str, name: str, value: str) -> str:
        if not value.startswith(SEALED):
            found.append(f"{where}/{name}")
        return value

    _changed(body, note)
    return found


def keys_in(body: Body) -> set[str]:
    """Return the ids of the data keys that a definition's secrets were sealed with."""
    found: set[str] = set()

    def note(_where: str, _name: str, value: str) -> str:
        if sealed := _VALUE.fullmatch(value):
            found.add(sealed[1])
        return value

    _changed(body, note)
    return found


def hidden(body: Body) -> dict[str, Any]:
    """Return a definition with each of its secrets, sealed or not, replaced by `HIDDEN`."""
    return _changed(body, lambda _where, _name, _value: HIDDEN)


def seal(body: Body, key_id: str, key: bytes) -> dict[str, Any]:
    """Return a definition with its secrets sealed; those that are so already stay as they are."""

    def sealed(where: str, name: str, value: str) -> str:
        if value.startswith(SEALED):
            return value
        plain = value.encode("utf-8", "surrogatepass")
        blob = envelope.seal(key, plain, _place(body, where, name))
        return f"{SEALED}{key_id}.{base64.urlsafe_b64encode(blob).decode().rstrip('=')}"

    return _changed(body, sealed)


def unseal(body: Body, keys: Mapping[str, bytes]) -> dict[str, Any]:
    """Return a definition with its secrets in the clear; raise `SealedError` if one does not open.

    ``keys`` are data keys by id.
    """

    def opened(where: str, name: str, value: str) -> str:
        if not value.startswith(SEALED):
            return value
        sealed = _VALUE.fullmatch(value)
        if sealed is None:
            raise SealedError("it is not sealed as this release does it")
        if sealed[1] not in keys:
            raise SealedError("its data key is not on record")
        try:
            blob = base64.urlsafe_b64decode(sealed[2] + "=" * (-len(sealed[2]) % 4))
        except binascii.Error:
            raise SealedError("it is not whole") from None
        plain = envelope.unseal(keys[sealed[1]], blob, _place(body, where, name))
        return plain.decode("utf-8", "surrogatepass")

    return _changed(body, opened)


def _changed(body: Body, change: Change) -> dict[str, Any]:
    changed = dict(body)
    for where in ("env", "headers"):
        if values := body.get(where):
            changed[where] = {
                name: change(where, name, value) if _is_secret(name, value) else value
                for name, value in values.items()
            }
    if parts := _TO_QUERY.fullmatch(body.get("url") or ""):
        before, query, after = parts.groups()
        pairs = [_pair_changed(pair, change) for pair in query.split("&")]
        changed["url"] = before + "&".join(pairs) + after
    return changed


def _pair_changed(pair: str, change: Change) -> str:
    """Return a part of a query; what stands for a value is its text there, escapes and all."""
    name, is_, value = pair.partition("=")
    told = unquote_plus(name)
    return (
        name + is_ + change("url", told, value) if _is_secret(told, unquote_plus(value)) else pair
    )


def _is_secret(name: str, value: str) -> bool:
    return value.startswith(SEALED) or holds_secret(name, value)


def _place(body: Body, where: str, name: str) -> bytes:
    address = re.split("[?#]", body.get("url") or "")[0]
    target = (body["transport"], body.get("command"), body.get("args") or [], address)
    return envelope.place_of(
        "server definition", body["name"], body["version"], target, where, name
    )
