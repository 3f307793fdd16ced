"""Files that hold secrets: private to their owner, and read again when they change."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

_OTHERS: Final = 0o077


class UnusableError(Exception):
    """A file that cannot be used; its text tells nothing of the contents."""


class PrivateFile:
    """A file of secrets, at most ``largest`` bytes long."""

    def __init__(self, path: Path, *, largest: int | None = None) -> None:
        self.path = path
        self._largest = largest
        self._state: tuple[int, ...] | None = None

    def read_if_changed(self) -> bytes | None:
        """Return the contents if they may differ from those returned last, else None.

        Raises `UnusableError` once for each state of the file that cannot be used.
        """
        if (state := _state(self.path)) == self._state:
            return None
        # The state from before the reading: a change during it is another state afterwards.
        self._state = state
        return self._read()

    def _read(self) -> bytes:
        try:
            # A file that is none, such as a pipe, would keep its reader waiting.
            with os.fdopen(os.open(self.path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
                found = os.fstat(file.fileno())
                if not stat.S_ISREG(found.st_mode):
                    raise UnusableError("it is no regular file")
                if found.st_mode & _OTHERS:
                    raise UnusableError("others than its owner may read it (chmod 600 mends that)")
                if self._largest is not None and found.st_size > self._largest:
                    raise UnusableError(f"it has more than {self._largest:,} bytes")
                return file.read()
        except OSError as error:
            raise UnusableError(f"it cannot be read ({type(error).__name__})") from None


def _state(path: Path) -> tuple[int, ...]:
    """Return what differs when the file was written, replaced, or opened to others."""
    try:
        now = path.stat()
    except OSError:
        return ()
    return (now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns)
