"""The operator's encryption keys in a file, which only its owner may read.

One key a line, ``ID BASE64``; the first is the current one, the others are there to read with.
Empty lines and those that begin with ``#`` say nothing. The file is looked at each time it is
asked about and read when it has changed, so that a key is added or taken out without a restart;
where it cannot be used, the keys that were read before go on being used.
"""

from __future__ import annotations

import base64
import binascii
import logging
import re
from pathlib import Path
from typing import Final

from registry import envelope
from registry.envelope import KEY_BYTES, SealedError, Wrapped
from registry.errors import Code, FleetError
from registry.private_files import PrivateFile, UnusableError

logger = logging.getLogger("toolfleet.credentials")

_PREFIX: Final = "file:"
_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LARGEST: Final = 65_536
HINT: Final = (
    "TOOLFLEET_ENCRYPTION_KEYS_FILE names a file with a line `ID KEY` for each key, the current "
    "one first; `openssl rand -base64 32` makes a key"
)


class KeyFile:
    """A `KeyWrapper` of the keys in a file."""

    def __init__(self, path: Path | None) -> None:
        self._file = PrivateFile(path, largest=_LARGEST) if path else None
        self._keys: dict[str, bytes] = {}
        self._problem = ""

    def knows(self, wrapped: Wrapped) -> bool:
        """Say whether a data key was wrapped by a key of such a file."""
        return wrapped.by.startswith(_PREFIX)

    async def wrap(self, key: bytes, place: bytes) -> Wrapped:
        """See `KeyWrapper`."""
        keys = self._read()
        name = next(iter(keys))
        return Wrapped(_PREFIX + name, envelope.seal(keys[name], key, place))

    async def unwrap(self, wrapped: Wrapped, place: bytes) -> bytes:
        """See `KeyWrapper`."""
        name = wrapped.by.removeprefix(_PREFIX)
        key = self._read().get(name)
        if key is None:
            raise _unavailable(f"there is no encryption key {name!r} in the file of such keys")
        try:
            return envelope.unseal(key, wrapped.blob, place)
        except SealedError as error:
            raise _unavailable(
                f"a data key that encryption key {name!r} wrapped cannot be opened: {error}"
            ) from None

    async def rewrap(self, wrapped: Wrapped, place: bytes) -> Wrapped:
        """See `KeyWrapper`."""
        if wrapped.by == _PREFIX + next(iter(self._read())):
            return wrapped
        return await self.wrap(await self.unwrap(wrapped, place), place)

    def _read(self) -> dict[str, bytes]:
        if self._file is None:
            raise _unavailable("there is no encryption key to keep secrets with")
        try:
            if (data := self._file.read_if_changed()) is not None:
                self._keys = parse(data)
        except UnusableError as error:
            self._problem = str(error)
            logger.warning("TOOLFLEET_ENCRYPTION_KEYS_FILE cannot be used: %s", error)
        if not self._keys:
            raise _unavailable(f"the file of encryption keys cannot be used: {self._problem}")
        return self._keys


def parse(data: bytes) -> dict[str, bytes]:
    """Return the keys by id, the current one first; raise `UnusableError`, which tells no key."""
    keys: dict[str, bytes] = {}
    for number, line in enumerate(data.decode("ascii", "replace").splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2 or not _ID.fullmatch(words[0]):
            raise UnusableError(f"line {number} is not an id and a key")
        if words[0] in keys:
            raise UnusableError(f"line {number} has the id of another line")
        try:
            key = base64.b64decode(words[1], validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if len(key) != KEY_BYTES:
            raise UnusableError(f"line {number} holds no {KEY_BYTES} bytes in base64")
        keys[words[0]] = key
    if not keys:
        raise UnusableError("it holds no key")
    return keys


def _unavailable(problem: str) -> FleetError:
    return FleetError(Code.CREDENTIAL_UNAVAILABLE, problem, hint=HINT, retry_after_s=5)
