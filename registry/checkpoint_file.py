"""The file outside the database that has every checkpoint, one a line, and is only added to.

What the database cannot prove against whoever may change all of it, this file does: that nothing
was cut off its end, and that it was not written anew as a whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import IO, Final

from registry.attestations import Checkpoint
from registry.chain import read
from registry.errors import Code, FleetError

_WINDOW: Final = 65_536


class CheckpointFile:
    """The file at ``path``; several stewards may share it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def last_number(self) -> int:
        """Return the newest number in it, 0 where there is none; raise `internal` if unreadable."""
        try:
            with self.path.open("rb") as file:
                return _end(file)[1]
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise self._unusable(error) from error

    def append(self, lines: Iterable[str]) -> None:
        """Add the checkpoints that are newer than all in it, and see them onto the disk."""
        try:
            with self.path.open("ab+") as file:
                flock(file, LOCK_EX)
                end, last = _end(file)
                file.truncate(end)  # a power cut may have left half a line, which comes again
                for line in lines:
                    if Checkpoint.parse(read(line)).number > last:
                        file.write(line.encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._unusable(error) from error

    def lines(self) -> Iterator[bytes]:
        """Yield its lines; none where there is no such file."""
        try:
            with self.path.open("rb") as file:
                yield from file
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> FleetError:
        return FleetError(
            Code.INTERNAL,
            f"the audit's checkpoints in {self.path} cannot be used: {error.strerror}",
            hint="TOOLFLEET_AUDIT_CHECKPOINTS says where they are",
        )


def _end(file: IO[bytes]) -> tuple[int, int]:
    """Return where the last whole line ends, and the newest checkpoint's number; reads the tail."""
    size = file.seek(0, os.SEEK_END)
    window = _WINDOW
    while True:
        begin = max(0, size - window)
        file.seek(begin)
        content = file.read()
        whole = content.rfind(b"\n") + 1
        lines = content[:whole].splitlines()
        number = _newest(lines[1:] if begin else lines)
        if number or not begin:
            return begin + whole, number
        window *= 8


def _newest(lines: list[bytes]) -> int:
    for line in reversed(lines):
        try:
            return Checkpoint.parse(read(line)).number
        except (ValueError, AttributeError):
            continue  # it is no checkpoint; the verifier tells of it
    return 0
