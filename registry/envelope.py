"""Encryption at rest: a secret sealed by a data key, the data key wrapped by a key of the operator.

The one home of AES-GCM. Pure: where keys come from is in `registry.key_file` and `workers.vault`.

1. What is sealed opens only in its own place: `place_of` a secret (whose, for which server, which
   version of the row) and of a data key (whose, which one) are authenticated with it.
2. Nothing here tells why something does not open: a wrong key, place or byte all look the same.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_FORMAT: Final = b"\x01"
"""The first byte of everything sealed: AES-256-GCM, then 12 bytes of nonce."""


class SealedError(Exception):
    """Something that does not open with this key in this place; its text tells nothing of it."""


@dataclass(frozen=True)
class Wrapped:
    """A data key as it is stored: encrypted by the key of the operator that ``by`` names."""

    by: str
    blob: bytes = field(repr=False)


class KeyWrapper(Protocol):
    """The keys of the operator, which encrypt data keys and nothing else.

    Each method raises `credential_unavailable` where the key that it needs cannot be used now.
    """

    async def wrap(self, key: bytes, place: bytes) -> Wrapped:
        """Return a data key encrypted by the current key."""

    async def unwrap(self, wrapped: Wrapped, place: bytes) -> bytes:
        """Return a data key; by whichever of the known keys it was encrypted."""

    async def rewrap(self, wrapped: Wrapped, place: bytes) -> Wrapped:
        """Return the same data key encrypted by the current key, as it is if it was so already."""


def new_key() -> bytes:
    """Return a random data key."""
    return AESGCM.generate_key(KEY_BYTES * 8)


def place_of(*parts: Any) -> bytes:
    """Return what names a place unambiguously: the JSON list of its parts."""
    return json.dumps(parts, sort_keys=True).encode()


def seal(key: bytes, plaintext: bytes, place: bytes) -> bytes:
    """Return a secret encrypted for a place, each time with a nonce of its own."""
    nonce = os.urandom(_NONCE_BYTES)
    return _FORMAT + nonce + AESGCM(key).encrypt(nonce, plaintext, place)


def unseal(key: bytes, sealed: bytes, place: bytes) -> bytes:
    """Return what was sealed for a place; raise `SealedError` for anything else."""
    nonce, rest = sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
    if sealed[:1] != _FORMAT or len(nonce) != _NONCE_BYTES:
        raise SealedError("it is not sealed as this release does it")
    try:
        return AESGCM(key).decrypt(nonce, rest, place)
    except InvalidTag:
        raise SealedError("it does not open with this key, or not in this place") from None
