"""What follows from a listing: which tools are taken in, which changes are held. Pure.

A listed tool is compared with the one that runs are offered now: by the listing before, or, for
the first listing of a new server version, by the version that was served before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from registry.definitions import ChangeReactions
from registry.diff import listing_changes
from registry.holds import SUSPICIOUS, UNUSABLE, Hold
from registry.screening import Finding, screen, suspicious, unusable
from registry.tools import ToolVersion

MOST_FINDINGS: Final = 20


@dataclass(frozen=True)
class Listed:
    """A tool as it was listed; what is wrong with it is looked for when somebody asks."""

    tool: ToolVersion
    raw: Mapping[str, Any]

    @cached_property
    def findings(self) -> Sequence[Finding]:
        """Return what was found wrong with it, the first things only."""
        return screen(self.raw)[:MOST_FINDINGS]

    @property
    def unusable(self) -> bool:
        """Say whether it cannot be offered at all."""
        return unusable(self.findings)

    @property
    def suspicious(self) -> bool:
        """Say whether an operator has to look at it first."""
        return suspicious(self.findings)


@dataclass(frozen=True)
class Standing:
    """What the record has of a server version before a listing."""

    offered: Mapping[str, ToolVersion]
    """The tools that were taken in, by name; blocked ones among them."""
    holds: Mapping[str, Hold]
    """The blocking holds by tool."""
    baseline: Mapping[str, ToolVersion]
    """The tools of the version before, for tools that this one never had accepted."""
    first: bool
    """Whether the version was never listed before."""


@dataclass
class Intake:
    """What is to be recorded of a listing."""

    offered: dict[str, str] = field(default_factory=dict)
    """The tools to be offered from now on: digest by name."""
    changes: list[dict[str, Any]] = field(default_factory=list)
    """What changed, each with its reaction."""
    held: list[dict[str, Any]] = field(default_factory=list)
    """The changes to be held."""
    withdrawn: list[Hold] = field(default_factory=list)
    superseded: list[Hold] = field(default_factory=list)

    @property
    def wanted(self) -> set[str]:
        """Return the digests of the tools that are offered, or may be once they are accepted."""
        held = (change["after"] for change in self.held if change["change"] != UNUSABLE)
        return {*self.offered.values(), *held} - {None}


def take_in(standing: Standing, listed: Iterable[Listed], reactions: ChangeReactions) -> Intake:
    """Return what follows from a listing."""
    live = {it.tool.name: it for it in listed}
    reference = {**standing.baseline, **standing.offered}
    changes = {
        change.tool: change.as_dict()
        for change in listing_changes(reference, [it.tool for it in live.values()])
    }
    brand_new = standing.first and not standing.baseline
    intake = Intake()
    for name in sorted(reference.keys() | live.keys() | standing.holds.keys()):
        now, hold, before = live.get(name), standing.holds.get(name), standing.offered.get(name)
        digest = now.tool.digest if now else None
        change = changes.get(name)
        if hold is not None and hold.pending == digest:
            _keep(intake, name, before.digest if before else None)
            continue
        if change is None:
            # What an operator accepted once, or the version before had, is not asked about again.
            _keep(intake, name, digest)
            intake.withdrawn += [hold] if hold else []
            continue
        change = _judged(now, change, reactions, brand_new=brand_new)
        intake.changes.append(change)
        intake.superseded += [hold] if hold else []
        if change["reaction"] == "hold":
            intake.held.append(change)
            _keep(intake, name, before.digest if before else None)
        else:
            _keep(intake, name, digest)
    return intake


def _keep(intake: Intake, name: str, digest: str | None) -> None:
    """Offer a tool as it was, or is; nothing where there is none."""
    if digest is not None:
        intake.offered[name] = digest


def _judged(
    now: Listed | None,
    change: dict[str, Any],
    reactions: ChangeReactions,
    *,
    brand_new: bool,
) -> dict[str, Any]:
    if now is not None and (now.unusable or now.suspicious):
        return {
            **change,
            "change": UNUSABLE if now.unusable else SUSPICIOUS,
            "security": True,
            "differences": [
                {"path": it.path, "kind": it.kind.value, "what": it.problem} for it in now.findings
            ],
            "reaction": "hold",
        }
    return {**change, "reaction": "accept" if brand_new else reactions.to(change["change"])}
