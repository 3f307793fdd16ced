"""How a command line is read: options up to what is to be run, and what is wrong with one. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


class RefusedCommand(ValueError):
    """Say what is wrong with a command line; ``at`` is the number of the argument, None for it."""

    def __init__(self, problem: str, at: int | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.at = at

    @property
    def place(self) -> str:
        """Return the field of a definition that it is about."""
        return "command" if self.at is None else f"args/{self.at}"

    def after(self, count: int) -> RefusedCommand:
        """Return it with its argument counted from the beginning of the whole command line."""
        return RefusedCommand(self.problem, count - 1 if self.at is None else self.at + count)


@dataclass(frozen=True)
class Options:
    """The options that a program may be given before what it is to run."""

    alone: str = r"(?!)"
    """A pattern for those without a value of their own, or with one after ``=``."""
    with_value: dict[str, str] | None = None
    """Those whose value is the next argument, or after ``=``, and a pattern for that value."""

    def first_other(self, args: Sequence[str], start: int = 0) -> int:
        """Return where the options end; raise `RefusedCommand` for one that is not known."""
        at = start
        while at < len(args) and args[at].startswith("-") and args[at] != "-":
            if args[at] == "--":
                return at + 1
            option, equals, value = args[at].partition("=")
            pattern = (self.with_value or {}).get(option)
            if pattern is None:
                if not re.fullmatch(self.alone, args[at]):
                    raise RefusedCommand(
                        "is an option that may make it run code, or is not known not to: run a "
                        "program of its own, or allow this one in TOOLFLEET_COMMANDS_FILE",
                        at,
                    )
            else:
                if not equals:
                    at += 1
                    value = args[at] if at < len(args) else ""
                if not re.fullmatch(pattern, value):
                    raise RefusedCommand("is no value that this option may have here", at)
            at += 1
        return at
