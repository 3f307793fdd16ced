"""What the console shows of rollouts, and its buttons: promote, roll back, another percentage.

Each button names the rollout that it was shown for: where that has ended meanwhile, nothing is done
to the one that took its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from api.administration import visible_server
from api.auth import actor_of, operators_only
from api.console.page import ConsoleRoute, back_to, form_of
from api.operations import label
from api.rest import operations_of
from registry import judgement, rollouts
from registry.database import Database
from registry.errors import Code, FleetError
from registry.holds import Hold, HoldState
from registry.rollouts import Rollout, RolloutState, parse_plan

DECISIONS: Final = {
    "wait": "There is not enough to judge by yet.",
    "promote": "The canary is fit to be promoted.",
    "roll_back": "The canary does worse than the stable version.",
}
_OPERATORS: Final = [Depends(operators_only)]
_LEAST_SCALE: Final = 0.05
"""The share of errors that fills a bar where all shares are smaller."""

router = APIRouter(route_class=ConsoleRoute)


@dataclass(frozen=True)
class Measure:
    """A figure of both versions as words and as bars; a bar is 100 at most."""

    name: str
    stable: str
    canary: str
    stable_bar: float
    canary_bar: float
    worse: bool


@dataclass(frozen=True)
class ShownRollout:
    """An active rollout with its canary's health as it was known seconds ago."""

    rollout: Rollout
    report: dict[str, Any]
    measures: list[Measure]
    held: list[str]
    """Tools of the canary of which a change has to be decided about first."""

    @property
    def decision(self) -> str:
        """Return what the figures say, in words."""
        return DECISIONS[self.report["decision"]]


async def shown_rollouts(
    database: Database, active: Iterable[Rollout], held: Sequence[Hold]
) -> list[ShownRollout]:
    """Return active rollouts with their reports: the steward's, or one of now where it has none."""
    found = []
    for rollout in active:
        report = rollout.report or (await judgement.report_on(database, rollout))[1]
        waiting = [
            hold.tool
            for hold in held
            if hold.server_version_id == rollout.canary_version_id and hold.state is HoldState.OPEN
        ]
        found.append(ShownRollout(rollout, report, measures(rollout, report), waiting))
    return found


def measures(rollout: Rollout, report: dict[str, Any]) -> list[Measure]:
    """Return the figures of a report that are compared with the stable version's."""
    rule = rollout.plan.verdict
    calls = report["calls"]
    most = max(*calls.values(), 1)
    found = [
        Measure(
            "Calls",
            f"{calls['stable']:,}",
            f"{calls['canary']:,}",
            100 * calls["stable"] / most,
            100 * calls["canary"] / most,
            worse=False,
        )
    ]
    for name, title in (("transport_errors", "Transport errors"), ("tool_errors", "Tool errors")):
        stable, canary = report[name]["stable"], report[name]["canary"]
        scale = max(stable, canary, _LEAST_SCALE)
        found.append(
            Measure(
                title,
                f"{stable:.1%}",
                f"{canary:.1%}",
                100 * stable / scale,
                100 * canary / scale,
                worse=canary > stable + rule.error_increase,
            )
        )
    ratio = report["latency_ratio"]
    if ratio is not None:
        scale = max(ratio, 1.0)
        worse = ratio > rule.latency_ratio
        bars = 100 / scale, 100 * ratio / scale
        found.append(Measure("Latency (p95), relative", "1.00", f"{ratio:.2f}", *bars, worse=worse))
    shapes = report["result_shapes"]
    if shapes["judged"]:
        share = shapes["unseen"] / shapes["judged"]
        worse = share > rule.shape_change
        found.append(Measure("Unseen result shapes", "0.0%", f"{share:.1%}", 0, 100 * share, worse))
    return found


@router.post("/servers/{name}/rollout", tags=["rollouts"], dependencies=_OPERATORS)
async def change_percentage(request: Request, name: str) -> Response:
    """Have more tenants, or fewer, see the canary; the plan's rest stays as it is."""
    running, form = await _meant(request, name)
    try:
        percent = float(form.get("percent", ""))
    except ValueError:
        raise FleetError(
            Code.INVALID_REQUEST, "the percentage is a number from 0 to 100, such as 12.5"
        ) from None
    plan = parse_plan({**running.plan.model_dump(mode="json"), "percent": percent})
    actor = label(actor_of(request))
    database = operations_of(request).database
    await rollouts.put_rollout(database, running.server, plan, actor=actor, only=running.id)
    return back_to("/console/changes")


@router.post("/servers/{name}/rollout/promote", tags=["rollouts"], dependencies=_OPERATORS)
async def promote(request: Request, name: str) -> Response:
    """Make the canary the version that all new runs see."""
    return await _end(request, name, rollouts.promote)


@router.post("/servers/{name}/rollout/rollback", tags=["rollouts"], dependencies=_OPERATORS)
async def roll_back(request: Request, name: str) -> Response:
    """Have all new runs see the stable version."""
    return await _end(request, name, rollouts.roll_back)


async def _end(request: Request, name: str, end: Any) -> Response:
    running, _ = await _meant(request, name)
    database = operations_of(request).database
    _, report = await judgement.report_on(database, running)
    actor = label(actor_of(request))
    await end(database, running.server, actor=actor, report=report, only=running.id)
    return back_to("/console/changes")


async def _meant(request: Request, name: str) -> tuple[Rollout, Any]:
    """Return the active rollout that a form was shown for, and the form."""
    server = await visible_server(request, name)
    form = await form_of(request)
    running = await rollouts.get_rollout(operations_of(request).database, server.definition.name)
    if running.state is not RolloutState.ACTIVE or str(running.id) != form.get("rollout"):
        raise FleetError(
            Code.ROLLOUT_CONFLICT,
            f"the rollout of server {name!r} that was shown has ended",
            hint="somebody was quicker: look at the rollouts again",
        )
    return running, form
