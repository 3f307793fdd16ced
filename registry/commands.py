"""The policy of commands: which programs a definition may name, and with which arguments.

An operator's file (`TOOLFLEET_COMMANDS_FILE`, YAML or JSON) lists what may be started. Without one,
every program may be that `registry.programs` does not know for a way around naming it.

1. The policy is asked when a definition is registered, and again before each start: what came into
   the record in some other way, or before a policy, is not started either.
2. Asking it starts nothing and looks at no program. Only a worker compares a file with its hash.
3. A file that cannot be read, or that others may write, allows nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Final

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from registry.command_options import RefusedCommand
from registry.errors import Code, FleetError
from registry.problems import validated
from registry.programs import refuse_code
from registry.settings import get_settings

_OTHERS_WRITE: Final = 0o022
_SETTING: Final = "TOOLFLEET_COMMANDS_FILE"


def _is_absolute(program: str) -> str:
    if not program.startswith("/"):
        raise ValueError("has to be a whole path, which starts with /")
    return program


def _is_pattern(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from error
    return pattern


class AllowedProgram(BaseModel):
    """A program that may be started, or with ``/`` at its end all that are in a folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    program: Annotated[str, AfterValidator(_is_absolute)]
    args: tuple[Annotated[str, AfterValidator(_is_pattern)], ...] | None = None
    """Patterns; each argument has to match one of them from end to end. None allows all."""
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """What the file has to be, as its worker finds it right before it starts it."""
    any_code: bool = False
    """Also what `registry.programs` refuses: shells, launchers, code in arguments."""

    def names(self, command: str) -> bool:
        """Say whether a command is this program, or in this folder."""
        if self.program.endswith("/"):
            return command.startswith(self.program)
        return command == self.program


class CommandPolicy(BaseModel):
    """What may be started: the programs it lists, and with ``others`` those it does not."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    programs: tuple[AllowedProgram, ...] = ()
    others: bool = False

    def refuse(self, command: str, args: Sequence[str]) -> AllowedProgram | None:
        """Raise `RefusedCommand` for what may not be started; return what allows the rest."""
        allowed = [it for it in self.programs if it.names(command)]
        if not allowed:
            if not self.others:
                raise RefusedCommand(f"is none of the programs that {_SETTING} allows")
            refuse_code(command, args)
            return None
        problems: list[RefusedCommand] = []
        for it in allowed:
            try:
                _refuse_arguments(it, command, args)
            except RefusedCommand as problem:
                problems.append(problem)
            else:
                return it
        raise problems[0]


DEFAULT: Final = CommandPolicy(others=True)


def _refuse_arguments(allowed: AllowedProgram, command: str, args: Sequence[str]) -> None:
    if allowed.program.endswith("/") and ".." in command.split("/"):
        raise RefusedCommand("leads out of the folder that is allowed")
    if not allowed.any_code:
        refuse_code(command, args)
    if allowed.args is None:
        return
    for at, arg in enumerate(args):
        if not any(re.fullmatch(pattern, arg) for pattern in allowed.args):
            raise RefusedCommand(f"is none of the arguments that {_SETTING} allows", at)


def current_policy() -> CommandPolicy:
    """Return the policy that is in force, as its file is now.

    Raises `policy_denied` when there is a file and it cannot be used.
    """
    path = get_settings().commands_file
    if path is None:
        return DEFAULT
    try:
        state = path.stat()
        if state.st_mode & _OTHERS_WRITE:
            raise _unusable("others than its owner may write it")
        return _read(path, state.st_mtime_ns, state.st_size, state.st_ino)
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise _unusable(str(error).partition("\n")[0]) from error


@lru_cache(maxsize=4)
def _read(path: Path, *_state: int) -> CommandPolicy:
    body: Any = yaml.safe_load(path.read_text())
    return validated(
        CommandPolicy,
        body,
        "policy of commands",
        code=Code.POLICY_DENIED,
        hint=f"correct the file that {_SETTING} names; nothing is started until then",
    )


def _unusable(why: str) -> FleetError:
    return FleetError(
        Code.POLICY_DENIED,
        f"the policy of commands cannot be used: {why}",
        hint=f"see to the file that {_SETTING} names; nothing is started until then",
    )
