"""The last look at a program, right before it is started: that the policy allows this very file."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path

from registry.command_options import RefusedCommand
from registry.commands import current_policy
from registry.definitions import ServerDefinition
from registry.errors import Code, FleetError
from registry.programs import refuse_code


def refuse_start(definition: ServerDefinition, program: str) -> None:
    """Raise `policy_denied` for a program that may not be started; ``program`` is its whole path.

    Links are followed: a shell by another name is one. A pinned program is read (blocks).
    """
    command, args = definition.command or "", definition.args
    try:
        allowed = current_policy().refuse(command, args)
        if allowed is None or not allowed.any_code:
            refuse_code(os.path.realpath(program), args)
    except RefusedCommand as error:
        # The calls that wait for it are tenants': its arguments are none of their business.
        raise _refused(
            definition.name, f"the policy of commands refuses its {error.place}"
        ) from error
    if allowed is not None and allowed.sha256 not in {None, sha256_of(Path(program))}:
        raise _refused(definition.name, "its program is not the one that the policy pins")


def sha256_of(path: Path) -> str:
    """Return the digest of a file's content; one that has not changed is not read again."""
    state = path.stat()
    return _sha256(
        path, state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns
    )


@lru_cache(maxsize=64)
def _sha256(path: Path, *_state: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refused(server: str, why: str) -> FleetError:
    return FleetError(
        Code.POLICY_DENIED,
        f"server {server} is not started: {why}",
        hint="an operator may allow it in the file that TOOLFLEET_COMMANDS_FILE names",
    )
