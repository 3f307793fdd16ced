"""Signatures of the audit's checkpoints and cuts: Ed25519, by a key that the database never sees.

The private key is in a file that only its owner may read. Beside it, in a file with the suffix
`.pub`, are the public keys, the ones of before among them: one line `ed25519 ID KEY` each. A key's
id is made of the key, so that no other key can bear it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from registry.errors import Code, FleetError

_KIND: Final = "ed25519"
_OTHERS: Final = 0o077


@dataclass(frozen=True)
class Signer:
    """A private key that signs."""

    id: str
    _key: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the key of a PEM file; raise `internal` where it cannot be used, saying why."""
        try:
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_mode & _OTHERS:
                    raise _unusable(path, "others than its owner may read it (chmod 600)")
                key = load_pem_private_key(file.read(), password=None)
        except OSError as error:
            raise _unusable(path, f"it cannot be read ({type(error).__name__})") from None
        except (ValueError, TypeError):
            raise _unusable(path, "it is no private key in PEM") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise _unusable(path, "it is no Ed25519 key")
        return cls(_id_of(_raw(key.public_key())), key)

    def sign(self, message: bytes) -> str:
        """Return the signature of a message, in base64."""
        return base64.b64encode(self._key.sign(message)).decode()

    @property
    def public_line(self) -> str:
        """Return the line that tells others the public key."""
        return _line(_raw(self._key.public_key()))


@dataclass(frozen=True)
class PublicKeys:
    """The keys whose signatures count, by id."""

    keys: Mapping[str, Ed25519PublicKey]

    @classmethod
    def parse(cls, lines: Iterable[str]) -> Self:
        """Read lines `ed25519 ID KEY`; raise ValueError for another, or an id of another key."""
        found = {}
        for line in lines:
            if not (words := line.split()) or line.startswith("#"):
                continue
            try:
                kind, key_id, encoded = words
                raw = base64.b64decode(encoded, validate=True)
                if kind != _KIND or key_id != _id_of(raw):
                    raise ValueError
                found[key_id] = Ed25519PublicKey.from_public_bytes(raw)
            except (ValueError, binascii.Error):
                raise ValueError(f"{line.strip()!r} is no line `{_KIND} ID KEY`") from None
        return cls(found)

    def verifies(self, key_id: str, message: bytes, signature: str) -> bool:
        """Say whether a signature of a message is by the key of that id, which has to be known."""
        try:
            self.keys[key_id].verify(base64.b64decode(signature, validate=True), message)
        except (KeyError, ValueError, InvalidSignature):
            return False
        return True


def public_file(path: Path) -> Path:
    """Return the file of the public keys that belongs to a private key's file."""
    return path.with_suffix(".pub")


def read_public_keys(path: Path) -> PublicKeys:
    """Return the keys of a public file; none where there is no such file."""
    try:
        return PublicKeys.parse(path.read_text().splitlines())
    except FileNotFoundError:
        return PublicKeys({})


def make_key(path: Path) -> Signer:
    """Make a private key in ``path`` in place of the one there; the public file keeps both.

    The public key is on disk first: nothing is ever signed that it cannot verify.
    """
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with public_file(path).open("a") as file:
        file.write(_line(_raw(key.public_key())) + "\n")
        file.flush()
        os.fsync(file.fileno())
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as private:
        private.write(pem)
        private.flush()
        os.fsync(private.fileno())
    fresh.replace(path)
    return Signer.load(path)


def _raw(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def _id_of(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()[:16]


def _line(raw: bytes) -> str:
    return f"{_KIND} {_id_of(raw)} {base64.b64encode(raw).decode()}"


def _unusable(path: Path, problem: str) -> FleetError:
    return FleetError(
        Code.INTERNAL,
        f"the audit's key in {path} cannot be used: {problem}",
        hint="`toolfleet audit key --new` makes one; TOOLFLEET_AUDIT_KEY_FILE says where it is",
    )
