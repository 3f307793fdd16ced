"""A `toolfleet` command whose figures count nothing, where `UNWATCHED` is set: what they cost."""

from __future__ import annotations

import os
import sys

from prometheus_client import Counter, Gauge, Histogram

UNWATCHED = "TOOLFLEET_BENCH_UNWATCHED"


def command(*arguments: str) -> list[str]:
    """Return the command line of a `toolfleet` subcommand that goes through here."""
    return [sys.executable, "-P", __file__, *arguments]


def count_nothing() -> None:
    """Leave every figure as it is from now on."""

    def nothing(*_: object) -> None:
        pass

    figures = ((Counter, ("inc",)), (Histogram, ("observe",)), (Gauge, ("inc", "dec", "set")))
    for kind, methods in figures:
        for method in methods:
            setattr(kind, method, nothing)


if __name__ == "__main__":
    if os.environ.get(UNWATCHED):
        count_nothing()
    from compose.cli import main

    main()
