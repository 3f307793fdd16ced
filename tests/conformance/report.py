"""What a run of the suite came to: counts, what is missing, a table, and the suite's own words.

Pure. A leg is one run of the suite: its scenarios in order, each with the checks that it made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

TASKS = "tasks-"


@dataclass(frozen=True)
class Check:
    """One check of a scenario, as the suite wrote it down."""

    id: str
    status: str
    description: str
    message: str = ""

    @property
    def passed(self) -> bool:
        """Say whether it counts as passed; what was skipped or only noted counts as nothing."""
        return self.status == "SUCCESS"

    @property
    def failed(self) -> bool:
        """Say whether it counts against the scenario."""
        return self.status == "FAILURE"


Leg = Mapping[str, Sequence[Check]]


def scenario_passed(checks: Iterable[Check]) -> bool:
    """Say whether a scenario passed, by the suite's own rule: nothing failed."""
    return not any(check.failed for check in checks)


def part(leg: Leg, scenarios: Iterable[str]) -> Leg:
    """Return the leg with these scenarios alone."""
    return {name: leg[name] for name in scenarios if name in leg}


def summary(leg: Leg) -> str:
    """Return a leg's counts in a few words."""
    if not leg:
        return "-"
    checks = [check for made in leg.values() for check in made]
    passed = sum(check.passed for check in checks)
    failed = sum(check.failed for check in checks)
    warned = sum(check.status == "WARNING" for check in checks)
    whole = sum(scenario_passed(made) for made in leg.values())
    warnings = f", {warned} warned" if warned else ""
    return f"{whole}/{len(leg)} scenarios, {passed} checks passed, {failed} failed{warnings}"


def missing(direct: Leg, fleet: Leg) -> list[str]:
    """Return, in words, every check that passes directly and does not through the fleet."""
    said = []
    for name, checks in direct.items():
        there = Counter(check.id for check in checks if check.passed)
        here = Counter(check.id for check in fleet.get(name, ()) if check.passed)
        for id_, times in sorted((there - here).items()):
            said.append(f"{name}: {id_}" + (f" ({times} times)" if times > 1 else ""))
    return said


def words(title: str, leg: Leg) -> list[str]:
    """Return what failed, or was warned of, in the suite's own words; nothing if nothing did."""
    lines = []
    for name, checks in leg.items():
        bad = [check for check in checks if check.failed or check.status == "WARNING"]
        lines += [f"  {name}"] if bad else []
        for check in bad:
            lines.append(f"    {check.status.lower()}: {check.id}: {check.description}")
            lines += [f"      {line}" for line in check.message.splitlines()]
    return ["", f"{title}:", *lines] if lines else []


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table, its columns as wide as they have to be."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
