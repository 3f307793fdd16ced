"""The steward: keeps the record's promises when messages, workers or schedules fail.

It re-sends what was committed and never claimed, ends what is too late, closes the calls of dead
workers, asks for tool lists anew, tells approvers what waits, answers raw Celery clients, and seals
the audit. Every sweep is safe to run in several stewards at once: rows are taken with SKIP LOCKED
and every change is guarded.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from celery import states
from celery.exceptions import BackendError
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from registry import (
    approval_gate,
    artifacts,
    calls,
    judgement,
    leases,
    notices,
    questions,
    rollouts,
    submission,
)
from registry.calls import CallState, Submitted
from registry.database import Database
from registry.ended import read_ended
from registry.errors import Code, FleetError
from registry.exposition import OTHERS
from registry.ingest import schedule_refresh
from registry.policies import Policies
from registry.runs import read_run_token
from registry.settings import Settings
from registry.snapshots import Shelf
from registry.telemetry import CALL_ID, Kind, code_of, work_on
from registry.telemetry_metrics import open_outlet
from registry.trace import trace_of, traceparent_of
from registry.verdict import Decision
from workers.background import Background
from workers.celery_app import SUBMIT_TASK, app
from workers.client import Message, make_client
from workers.end_figures import StewardFigures
from workers.exporting import Exporting
from workers.heartbeat import beat
from workers.notary import PRUNE_EVERY_S, SEAL_EVERY_S, SIGN_EVERY_S, Notary
from workers.notify import Notifier
from workers.signals import STEWARD

logger = logging.getLogger("toolfleet.steward")

SWEEP_EVERY_S: Final = 0.5
REPLY_EVERY_S: Final = 0.25
REPLY_PATIENCE: Final = timedelta(minutes=5)
SCHEDULE_EVERY_S: Final = 5.0
JUDGE_EVERY_S: Final = 5.0
APPROVALS_EVERY_S: Final = 2.0
TIDY_EVERY_S: Final = 300.0
UNKEPT_AGE: Final = timedelta(hours=1)
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
RESEND_LIMIT: Final = 500
IN_FLIGHT: Final = 64
IN_FLIGHT_PATIENCE: Final = 10


class CallFailed(Exception):
    """What `AsyncResult.get` raises for a call that did not succeed; its argument is the error."""


@dataclass
class _Askers:
    """The tasks that wait for the end of an earlier task's call, and how long they may."""

    until: datetime
    tasks: set[str] = field(default_factory=set)


_GONE: Final = {
    "state": CallState.FAILED.value,
    "error": FleetError(
        Code.UNKNOWN_CALL, "the call is no longer on record", hint="look in the audit for its end"
    ).as_dict(),
}


class StewardRuntime:
    """The residents of the steward process (see `workers.aio_pool.Residents`)."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.id = f"{STEWARD}{OTHERS}{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.figures = StewardFigures()
        self.database = Database(settings.database_url, pool_size=3, application="steward")
        self.client = make_client("toolfleet-steward", settings)
        self._notary = Notary(settings, self.database)
        self._policies = Policies(self.database)
        self._shelf = Shelf(self.database)
        self._askers: dict[str, _Askers] = {}
        self._notifier = Notifier(settings, self.database)
        self._exporting = self._export_where_wanted()
        self._background = Background()

    async def open(self) -> None:
        """Start the sweeps."""
        await self.database.check()
        for sweep, every_s in (
            (self.close_dead, SWEEP_EVERY_S),
            (self.expire, SWEEP_EVERY_S),
            (self.resend, SWEEP_EVERY_S),
            (self.send_parked, SWEEP_EVERY_S),
            (self.reply, REPLY_EVERY_S),
            (self.reply_again, REPLY_EVERY_S),
            (self.tell_approvers, SWEEP_EVERY_S),
            (self.expire_approvals, APPROVALS_EVERY_S),
            (self.schedule, SCHEDULE_EVERY_S),
            (self.say_alive, SCHEDULE_EVERY_S),
            (self.judge_canaries, JUDGE_EVERY_S),
            (self.tidy, TIDY_EVERY_S),
            (self._notary.seal_audit, SEAL_EVERY_S),
            (self._notary.sign_audit, SIGN_EVERY_S),
            (self._notary.prune_audit, PRUNE_EVERY_S),
        ):
            self._background.start(self._every(every_s, sweep))
        if self._exporting is not None:
            every_s = self._exporting.every_s
            self._background.start(self._every(every_s, self._exporting.export_metrics))

    async def drain(self) -> None:
        """Nothing to wait for: submissions are short."""

    async def close(self) -> None:
        """Stop the sweeps and close connections."""
        await self._background.end()
        await self._notifier.close()
        if self._exporting is not None:
            self._exporting.close()
        await self.client.close()
        await self.database.close()

    def info(self) -> dict[str, Any]:
        """Return nothing: the steward holds no sessions."""
        return {"server": "steward"}

    # -- sweeps -----------------------------------------------------------------------------

    async def close_dead(self) -> None:
        """Close the calls of dead workers by delivery class; send again what may run again."""
        ended, again = await leases.close_dead(self.database, self.settings.max_attempts)
        await self._tell_ended(ended)
        await self._send(again)
        await questions.forget_left(self.database)
        if ended or again:
            logger.warning("dead workers: %d calls ended, %d run again", len(ended), len(again))

    async def expire(self) -> None:
        """End queued calls whose deadline has passed or whose run was cancelled."""
        await self._tell_ended(await leases.expire(self.database))

    async def expire_approvals(self) -> None:
        """End queued calls whose approval was not used in time."""
        await self._tell_ended(await approval_gate.expire(self.database))

    async def tell_approvers(self) -> None:
        """Tell approvers of the calls that wait and that they have not heard of."""
        await self._notifier.tell()

    async def resend(self) -> None:
        """Send again what is queued in the record and missing from the broker.

        Rows beyond the number of waiting messages have lost theirs. A message too many is
        harmless: its claim finds the call taken.
        """
        age = self.settings.resend_after
        overdue = await leases.overdue(self.database, age)
        if not overdue:
            return
        waiting = await self.client.queue_lengths(list(overdue))
        for server, queued in overdue.items():
            missing = min(queued - waiting[server], RESEND_LIMIT)
            # A few are always between queue and claim; while others wait, those get more time.
            in_flight = waiting[server] > 0 and missing <= IN_FLIGHT
            late = age * IN_FLIGHT_PATIENCE if in_flight else age
            if missing > 0:
                lost = await leases.take_overdue(self.database, server, late, missing)
                await self._send(lost)
                if lost:
                    self.figures.resent.labels(server).inc(len(lost))
                    logger.warning("sent %d calls of %s again", len(lost), server)

    async def send_parked(self) -> None:
        """Send the calls that had to wait and whose time has come."""
        await self._send(await leases.take_due(self.database, RESEND_LIMIT))

    async def reply(self) -> None:
        """Store the end of calls that raw Celery clients submitted as their tasks' results."""
        for row in await submission.unreplied(self.database):
            await self._store(row)
            await submission.mark_replied(self.database, row["id"])

    async def reply_again(self) -> None:
        """Store the ends of known calls as the results of the other tasks that asked for them.

        However many tasks ask, one statement looks. A task whose call has not ended long after
        its deadline, or whose reply cannot be stored for as long, gets none.
        """
        wanted = list(self._askers)
        rows = await calls.read(self.database, wanted) if wanted else {}
        for call_id in wanted:
            row, askers = rows.get(call_id, _GONE), self._askers[call_id]
            if datetime.now(UTC) > askers.until:
                logger.error("no reply about call %s to %s", call_id, sorted(askers.tasks))
                askers.tasks.clear()
            elif CallState(row["state"]).final:
                for task_id in list(askers.tasks):
                    await self._store({**row, "reply_to": task_id})
                    askers.tasks.discard(task_id)
            if not askers.tasks:
                del self._askers[call_id]

    async def _store(self, row: dict[str, Any]) -> None:
        await asyncio.get_running_loop().run_in_executor(None, _store_result, row)

    async def schedule(self) -> None:
        """Mark the servers whose tools were not listed for a while: their workers list them."""
        await schedule_refresh(self.database, self.settings.refresh_every)

    async def say_alive(self) -> None:
        """Leave a sign of life: nothing else shows that no steward runs; and what it counted."""
        await beat(self.settings.heartbeat_file)
        await self.client.signals.alive(STEWARD)
        await self.client.signals.figures(self.id, self.figures.exposition())

    async def judge_canaries(self) -> None:
        """Judge each canary by its calls so far; promote or roll back where that was asked for."""
        for rollout in await rollouts.active_rollouts(self.database):
            verdict = await judgement.judge_rollout(self.database, rollout)
            if verdict is not Decision.WAIT:
                logger.warning("rollout of %s: %s", rollout.server, verdict.value)

    async def tidy(self) -> None:
        """Remove results that no call kept, and notices of calls that wait no more."""
        await artifacts.sweep(self.database, UNKEPT_AGE)
        await notices.sweep(self.database)

    # -- raw clients ------------------------------------------------------------------------

    async def submit(
        self,
        task_id: str,
        run_token: str,
        tool: str,
        arguments: dict[str, Any],
        idempotency_key: str | None,
        timeout_s: float | None,
        carrier: Mapping[str, Any] | None = None,
    ) -> None:
        """Commit and send a raw client's call under its task's id, which so can revoke it.

        A second delivery of the message is the same call; a known idempotency key gives the
        earlier call, whose end becomes this task's result too. ``carrier`` has the trace context
        of whoever sent the task, among its headers.
        """
        carrier = carrier or {}
        trace = self.client.tracer.begin(SUBMIT_TASK, Kind.CONSUMER, traceparent_of(carrier))
        work_on(trace)
        try:
            with trace.step("submit"):
                submitted, message = await self._commit(
                    task_id,
                    run_token,
                    traceparent=trace.traceparent,
                    trace=trace_of(carrier),
                    tool=tool,
                    arguments=arguments,
                    idempotency_key=idempotency_key or f"celery:{task_id}",
                    timeout_s=timeout_s,
                )
            trace.attributes |= {CALL_ID: submitted.id}
            if not submitted.created:
                self._reply_too(submitted, task_id)
            elif message is not None:
                await self.client.send(Message(**message))
        except BaseException as error:
            trace.error = code_of(error)
            raise
        finally:
            self.client.tracer.end(trace)

    async def _commit(
        self, task_id: str, run_token: str, **wish: Any
    ) -> tuple[Submitted, dict[str, Any] | None]:
        """Commit a raw client's call; return its row, and its message if one is to be sent."""
        run_id, tenant = read_run_token(run_token, self.settings.secret_key.get_secret_value())
        return await submission.submit_one(
            self.database,
            self.settings,
            run_id=run_id,
            tenant=tenant,
            policies=self._policies,
            shelf=self._shelf,
            admission=self.client.admission,
            actor=f"celery:{tenant}",
            reply_to=task_id,
            call_id=task_id if _UUID.fullmatch(task_id) else None,
            **wish,
        )

    def _reply_too(self, submitted: Submitted, task_id: str) -> None:
        """Have an earlier call's end stored for one more task (see `reply_again`)."""
        until = max(submitted.deadline_at, datetime.now(UTC)) + REPLY_PATIENCE
        askers = self._askers.setdefault(submitted.id, _Askers(until))
        askers.until = until
        askers.tasks.add(task_id)

    def _export_where_wanted(self) -> Exporting | None:
        outlet = open_outlet()
        if outlet is None:
            return None
        return Exporting(self.database, self.client, outlet, process=self.id, clock_ns=time.time_ns)

    async def _tell_ended(self, ids: Sequence[str]) -> None:
        """Tell whoever waits that calls have ended, and count them."""
        await self.client.signals.ended(ids)
        if ids:
            for call in await read_ended(self.database, ids):
                self.figures.ends.ended(call)

    async def _send(self, unsent: list[leases.Unsent]) -> None:
        await asyncio.gather(*(self.client.send(Message(**vars(call))) for call in unsent))

    async def _every(self, every_s: float, sweep: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await sweep()
            except (FleetError, BackendError, KombuError, RedisError, OSError) as error:
                logger.warning("%s: %s", getattr(sweep, "__name__", "sweep"), error)
            except Exception:  # a sweep that ended would leave its promise unkept for good
                logger.exception("%s failed", getattr(sweep, "__name__", "sweep"))
            await asyncio.sleep(every_s)


def _store_result(row: dict[str, Any]) -> None:
    if row["state"] == "succeeded":
        app.backend.store_result(row["reply_to"], row["result"], states.SUCCESS)
    else:
        error = CallFailed(row["error"] or {"code": row["state"]})
        state = states.REVOKED if row["state"] == "stopped" else states.FAILURE
        app.backend.store_result(row["reply_to"], error, state)
