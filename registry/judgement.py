"""What becomes of a rollout: its report, and the verdict put into practice."""

from __future__ import annotations

from typing import Any, Final

from registry import ingest, rollouts
from registry.database import Database
from registry.errors import Code, FleetError
from registry.rollouts import Rollout
from registry.verdict import Decision, Verdict, judge, read_samples

VERDICT_ACTOR: Final = "verdict"


async def report_on(database: Database, rollout: Rollout) -> tuple[Verdict, dict[str, Any]]:
    """Return what the calls say of a rollout's canary, and the report that says it.

    The report has the verdict with its figures, and the ``changes`` that the canary's tools
    brought against the stable version's.
    """
    rule = rollout.plan.verdict
    stable, canary = await read_samples(
        database,
        stable_id=rollout.stable_version_id,
        canary_id=rollout.canary_version_id,
        since=rollout.started_at,
        rule=rule,
    )
    verdict = judge(rule, stable, canary)
    changes = await ingest.first_changes(database, rollout.canary_version_id)
    return verdict, {**verdict.as_dict(), "changes": changes}


async def judge_rollout(database: Database, rollout: Rollout) -> Decision:
    """Keep a rollout's report, and act on the verdict if the plan says so; return what was done.

    `WAIT` where nothing was: also while a canary that is fit has changes that are held, and when
    an operator was quicker.
    """
    verdict, report = await report_on(database, rollout)
    await rollouts.keep_report(database, rollout, report)
    if not rollout.plan.verdict.automatic or verdict.decision is Decision.WAIT:
        return Decision.WAIT
    end = rollouts.promote if verdict.decision is Decision.PROMOTE else rollouts.roll_back
    try:
        await end(database, rollout.server, actor=VERDICT_ACTOR, report=report, only=rollout.id)
    except FleetError as error:
        if error.code not in {Code.CHANGES_HELD, Code.NOT_FOUND, Code.UNKNOWN_SERVER}:
            raise
        return Decision.WAIT
    return verdict.decision
