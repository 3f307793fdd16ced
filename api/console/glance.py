"""The fleet at a glance: how servers and pools are, in words, and what is to be done. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from api.checkup import LONGEST_QUEUED_S, Finding
from api.console.trends import LATELY, Trends
from api.fleet import FleetState, Pool, Server

MOST_FAILING: Final = 0.05
MOST_SQUARES: Final = 40


@dataclass(frozen=True)
class Standing:
    """How a server is: a tone (``good``, ``wait``, ``bad``, ``idle``), and words."""

    tone: str
    words: str


@dataclass(frozen=True)
class Need:
    """Something that a person has to look at now: what, since when, and what to do."""

    tone: str
    title: str
    what: str
    advice: str
    href: str = ""
    since_s: float | None = None


@dataclass(frozen=True)
class Cell:
    """A square of a strip: one session, or the share of several where there are too many."""

    kind: str
    x: float
    width: float


def standing(server: Server, trends: Trends) -> Standing:
    """Say how a server is, by the worst that is true of it."""
    version, workers = server.version, server.workers
    failed, of = trends.failing
    waiting = sum(pool.waiting for it in workers for pool in it.pools.values())
    rules = (
        (not workers, "bad", "No worker"),
        (server.breaker == "open", "bad", "Not called: its breaker is open"),
        (version.refresh_error is not None, "bad", "Cannot list its tools"),
        (server.breaker == "half_open", "wait", "Being tried again"),
        (failed > MOST_FAILING * of, "bad", f"{failed} of {of} calls failed in {LATELY} min"),
        (server.oldest_queued_s > LONGEST_QUEUED_S, "wait", "Falls behind"),
        (waiting, "wait", "Every session is busy"),
        (all(it.drain_requested_at for it in workers), "wait", "Its worker drains"),
        (server.sessions("in_use"), "good", "Working"),
        (version.stale and version.refreshed_at is None, "idle", "Starting"),
    )
    said = (Standing(tone, words) for holds, tone, words in rules if holds)
    return next(said, Standing("good", "Ready"))


def strip(pool: Pool) -> list[Cell]:
    """Return the squares of a pool: in use, changing, opening, idle, and what may be opened."""
    counts = occupancy(pool)
    every = [kind for kind, count in counts.items() for _ in range(count)]
    if len(every) <= MOST_SQUARES:
        return [Cell(kind, at, 1) for at, kind in enumerate(every)]
    share, cells, x = MOST_SQUARES / len(every), [], 0.0
    for kind, count in counts.items():
        cells.append(Cell(kind, round(x, 2), round(count * share, 2)))
        x += count * share
    return [cell for cell in cells if cell.width]


def occupancy(pool: Pool) -> dict[str, int]:
    """Return how many sessions of a pool are in each state that matters to people."""
    held = pool.sessions
    changing = held["reserved"] + held["validating"] + held["resetting"] + held["closing"]
    known = {
        "in_use": held["in_use"],
        "changing": changing,
        "opening": held["opening"],
        "idle": held["idle"],
    }
    return {**known, "free": max(0, pool.max_size - sum(known.values()))}


def in_words(pool: Pool) -> str:
    """Say how occupied a pool is: what its strip shows."""
    counts = occupancy(pool)
    said = [f"{counts['in_use']} of {pool.max_size} sessions in use"]
    said += [f"{counts[kind]} {kind}" for kind in ("changing", "opening", "idle") if counts[kind]]
    if counts["free"]:
        said.append(f"{counts['free']} more may be opened")
    if pool.waiting:
        said.append(f"{pool.waiting} calls wait for one")
    return ", ".join(said)


def needs(
    state: FleetState,
    findings: Iterable[Finding],
    gone_s: Mapping[str, float],
    trends: Mapping[str, Trends],
) -> list[Need]:
    """Return what a person has to look at now, the worst first.

    ``gone_s`` says of servers without a worker for how long the last one has been gone.
    """
    found = [need for server in state.servers for need in _needs_of(server, gone_s)]
    found += [need for it in state.servers if it.name in trends for need in _fails(it, trends)]
    waiting = state.unfinished.get("awaiting_approval", 0)
    if waiting:
        found.append(
            Need(
                "wait",
                f"{waiting} {'call waits' if waiting == 1 else 'calls wait'} for an approval",
                "Nobody has approved or denied them yet; they end when their time is over.",
                "Look at what they would do, and decide.",
                "/console/approvals",
            )
        )
    for finding in findings:
        if finding.state != "ok":
            tone = "bad" if finding.state == "failed" else "wait"
            title = finding.check[:1].upper() + finding.check[1:]
            found.append(Need(tone, title, finding.what, finding.advice))
    return sorted(found, key=lambda it: it.tone != "bad")


def _needs_of(server: Server, gone_s: Mapping[str, float]) -> Iterator[Need]:
    name = server.name
    href = f"/console/servers/{quote(name)}"
    queue = f" {server.queued} calls wait." if server.queued else ""
    if not server.workers:
        yield Need(
            "bad", f"{name}: no worker serves its queue", f"Nothing is called.{queue}",
            f"Start `toolfleet worker {name}`; `toolfleet up` does so by itself: look at its log.",
            href, gone_s.get(name),
        )  # fmt: skip
    if server.breaker != "closed":
        yield _not_called(server, href)
    canary = server.canary_breaker
    if server.rollout is not None and canary is not None and canary.state.value == "open":
        yield Need(
            "bad", f"{name}: the breaker of its canary {server.rollout.canary} is open",
            f"{f'Why: {canary.why}. ' if canary.why else ''}Its tenants' calls fail at once.",
            f"Roll it back (`toolfleet servers rollout {name} --rollback`), or mend it.",
            href, canary.open_s,
        )  # fmt: skip
    if server.version.refresh_error is not None:
        error = server.version.refresh_error
        yield Need(
            "bad", f"{name}: its tools cannot be listed", str(error.get("message", "")),
            str(error.get("hint", "")), href,
        )  # fmt: skip
    if server.workers and server.oldest_queued_s > LONGEST_QUEUED_S:
        yield Need(
            "wait", f"{name}: its queue falls behind", f"{server.queued} calls wait.",
            f"Add workers (`toolfleet worker {name}`), or raise pool.max_size.",
            href, server.oldest_queued_s,
        )  # fmt: skip
    if server.held:
        what = "change of its tools is" if server.held == 1 else "changes of its tools are"
        yield Need(
            "wait", f"{name}: {server.held} {what} held",
            "Those tools are not offered, and calls of them are refused.",
            "Accept or reject what the server changed.", f"{href}/changes",
        )  # fmt: skip


def _fails(server: Server, trends: Mapping[str, Trends]) -> Iterator[Need]:
    """Yield the need of a server that is called, and fails too many of its calls."""
    failed, of = trends[server.name].failing
    if server.breaker == "closed" and failed > MOST_FAILING * of:
        yield Need(
            "bad", f"{server.name}: {failed} of {of} calls failed in {LATELY} min",
            "Its breaker opens if more do.", "See its last failures, and whether the server is up.",
            f"/console/servers/{quote(server.name)}",
        )  # fmt: skip


def _not_called(server: Server, href: str) -> Need:
    """Return the need of a server whose breaker is not closed."""
    breaker = server.shared_breaker
    why = f"Why: {breaker.why}. " if breaker is not None and breaker.why else ""
    since_s = breaker.open_s if breaker is not None else None
    if server.breaker == "half_open":
        return Need(
            "wait", f"{server.name}: its breaker is half-open",
            f"{why}One call at a time tries whether it answers again, the others fail at once.",
            "It closes by itself once a try succeeds; without calls nothing tries it.",
            href, since_s,
        )  # fmt: skip
    next_s = f" It is tried again in {breaker.retry_after_s:.0f} s." if breaker is not None else ""
    return Need(
        "bad", f"{server.name}: its breaker is open", f"{why}Its calls fail at once.{next_s}",
        "See its last failures, and whether the server is up; it closes by itself once a try "
        "succeeds.",
        href, since_s,
    )  # fmt: skip
