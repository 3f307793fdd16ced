"""Rounds: each measures every way in every mode once, so that noise hits all of them alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from compose.bench.cpu import PARTS, Spent, between
from compose.bench.rig import HTTP, STDIO, Rig

RATE: Final = 50.0
WAIT_S: Final = 30
WARM_UP: Final = 30


@dataclass(frozen=True)
class Plan:
    """How long each part of a round takes, and how many rounds there are."""

    rounds: int
    closed_s: float
    open_s: float
    spawning_s: float
    spawn_many_in: int | None
    """In which round processes are spawned at 16 callers too."""
    deep_calls: int
    deep_noops: int


FULL: Final = Plan(
    rounds=3,
    closed_s=1.5,
    open_s=3.0,
    spawning_s=1.5,
    spawn_many_in=1,
    deep_calls=2000,
    deep_noops=4000,
)
QUICK: Final = Plan(
    rounds=1,
    closed_s=0.8,
    open_s=2.0,
    spawning_s=0.8,
    spawn_many_in=None,
    deep_calls=1000,
    deep_noops=2000,
)


@dataclass(frozen=True)
class Mode:
    """How callers behave."""

    name: str
    kind: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """A way a call can go, its name in the tables, and whether it is too slow for the open loop."""

    name: str
    kind: str
    options: dict[str, Any]
    slow: bool = False


@dataclass
class Measured:
    """What one subject did in one mode, over all rounds."""

    subject: str
    mode: str
    latencies_s: list[list[float]] = field(default_factory=list)
    """By round."""
    elapsed_s: float = 0.0
    spent_s: Spent = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    errors: list[str] = field(default_factory=list)

    @property
    def all_s(self) -> list[float]:
        """Return every latency."""
        return [one for latencies in self.latencies_s for one in latencies]

    def add(self, answer: dict[str, Any], spent: Spent) -> None:
        """Add one segment."""
        self.latencies_s.append(answer["latencies_s"])
        self.errors += answer["errors"]
        self.elapsed_s += answer["elapsed_s"]
        for part, seconds in spent.items():
            self.spent_s[part] += seconds


async def subjects(rig: Rig) -> list[Subject]:
    """Return every way, the fleet's with a run of their own."""
    run_id = await rig.start_run()
    common = {"url": rig.fleet.api_url, "key": rig.fleet.operator_key, "wait_s": WAIT_S}
    found = []
    for server, transport in ((STDIO, "stdio"), (HTTP, "HTTP")):
        definition = {"definition": rig.definitions[server]}
        tool = server.replace("-", "_") + "_echo"
        found += [
            Subject(f"direct, {transport}", "direct", definition),
            Subject(f"fleet, {transport}", "fleet", {**common, "run_id": run_id, "tool": tool}),
        ]
    found += [
        Subject("Celery no-op, threads", "noop", {}),
        Subject(
            "process per call, stdio", "per-call", {"definition": rig.definitions[STDIO]}, True
        ),
        Subject("session per call, HTTP", "per-call", {"definition": rig.definitions[HTTP]}, True),
    ]
    return found


def modes(plan: Plan, number: int, subject: Subject) -> Iterator[Mode]:
    """Return the modes of a subject in one round."""
    seconds = plan.spawning_s if subject.slow else plan.closed_s
    # Sixteen spawned at once take their time; once is enough to see it.
    for callers in (1,) if subject.slow and number != plan.spawn_many_in else (1, 16):
        options = {"callers": callers, "seconds": seconds}
        yield Mode("1 caller" if callers == 1 else f"{callers} callers", "closed", options)
    if not subject.slow:
        options = {"rate": RATE, "seconds": plan.open_s, "seed": number}
        yield Mode(f"{RATE:.0f}/s open", "open", options)


async def open_all(rig: Rig, found: list[Subject]) -> None:
    """Open every way and make a few calls that do not count."""
    for subject in found:
        await rig.caller.do("open", subject.name, kind=subject.kind, options=subject.options)
        count = {"count": 1 if subject.slow else WARM_UP}
        answer = await rig.caller.do("call", subject.name, mode="count", options=count)
        if answer["errors"]:
            raise RuntimeError(f"{subject.name} does not work: {answer['errors'][0]}")


async def play_round(
    rig: Rig, plan: Plan, number: int, found: list[Subject], into: dict[tuple[str, str], Measured]
) -> None:
    """Measure each subject in each mode once; the order turns from round to round."""
    turned = found[number % len(found) :] + found[: number % len(found)]
    by_mode: dict[str, list[tuple[Subject, Mode]]] = {}
    for subject in turned:
        for mode in modes(plan, number, subject):
            by_mode.setdefault(mode.name, []).append((subject, mode))
    for pairs in by_mode.values():
        for subject, mode in pairs:
            key = (subject.name, mode.name)
            measured = into.setdefault(key, Measured(*key))
            before = rig.meter.read()
            answer = await rig.caller.do("call", subject.name, mode=mode.kind, options=mode.options)
            measured.add(answer, between(before, rig.meter.read()))
