"""The verbs that every face shares: submit a call, stop it, end a run.

The record is changed first; only then are the workers told. What they are told is a hint (D1): it
leaves in the background, and a broker that is away neither fails nor delays a caller.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Container, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final, TypeVar

from api import tracing
from api.following import Followed
from api.waiting import Hint, Row, WaitingRoom
from registry import approvals, calls, questions, runs, submission
from registry.answers import Answers
from registry.approvals import Verdict
from registry.bindings import Sealer
from registry.calls import CallState, NewCall, StopAnswer, Submitted, is_id
from registry.database import Database, GroupCommit
from registry.discovery import best_fitting
from registry.errors import Code, FleetError
from registry.offer import Offer, Offers
from registry.offerings import Offerings, Visible, visible
from registry.policies import Policies
from registry.questions import Question
from registry.runs import Exposure, Run
from registry.settings import Settings
from registry.snapshots import Shelf, Snapshot, differences, shown
from registry.submission import Wish
from registry.tenants import Actor
from workers.client import FleetClient, Message, Standing

RUN_KEPT_S: Final = 5.0
OFFER_EVERY_S: Final = 1.0
MOST_RUNS: Final = 4096
MOST_UNTOLD: Final = 10_000
TELL_GRACE_S: Final = 2.0
Kept = TypeVar("Kept")

logger = logging.getLogger("toolfleet.api")


class Operations:
    """What callers can do with runs and calls, whichever face they come through."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        client: FleetClient,
        room: WaitingRoom,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.database = database
        self.client = client
        self.room = room
        self.offers = Offers(database)
        self.offerings = Offerings(database)
        self.policies = Policies(database, clock=clock)
        self.sealer = Sealer(settings.secret_key.get_secret_value())
        self._shelf = Shelf(database)
        self._offer_asked_at = float("-inf")
        self._clock = clock
        self._runs: dict[str, tuple[float, Run]] = {}
        self._submissions: GroupCommit[NewCall, Submitted | FleetError] = GroupCommit(
            self._submit_batch
        )
        self._telling: set[asyncio.Task[Any]] = set()

    async def close(self) -> None:
        """Give the workers a moment to be told of everything, then stop."""
        if self._telling:
            _, late = await asyncio.wait(self._telling, timeout=TELL_GRACE_S)
            for task in late:
                task.cancel()

    # -- runs -------------------------------------------------------------------------------

    async def start_run(
        self,
        actor: Actor,
        *,
        tenant: str | None,
        servers: Sequence[str] | None,
        intent: str | None = None,
        limit: int | None = None,
        exposure: Exposure = Exposure.ALL,
    ) -> Run:
        """Start a run; raise `forbidden` when a tenant's key names another tenant.

        A key that is narrowed to servers starts runs with those; raises `out_of_scope` for others.
        """
        if actor.tenant is not None and tenant not in (None, actor.tenant):
            raise FleetError(
                Code.FORBIDDEN,
                f"the key {actor.name!r} acts for tenant {actor.tenant!r}, not for {tenant!r}",
                hint="leave tenant out, or use that tenant's key",
            )
        if actor.scopes is not None:
            servers = actor.scopes.narrow(servers)
        return await runs.start_run(
            self.database,
            tenant=actor.tenant or tenant or "default",
            actor=label(actor),
            lifetime=self.settings.run_lifetime,
            servers=servers,
            intent=intent,
            limit=limit,
            exposure=exposure,
            offers=self.offers,
            shelf=self._shelf,
        )

    async def offered(
        self, actor: Actor, tenant: str, servers: Sequence[str] | None, *, now: bool = False
    ) -> Snapshot:
        """Return what a run of a tenant would see that is started ``now``, or a second ago.

        Raises what `start_run` raises for a tenant that is known.
        """
        if actor.scopes is not None:
            servers = actor.scopes.narrow(servers)
        if now:
            await self.policies.catch_up()
        policy = await self.policies.of(tenant)
        offer = await self._offer(now=now)
        return await self.offers.snapshot(policy, servers, of=offer)

    async def beside_tools(
        self,
        actor: Actor,
        run: Run,
        *,
        server: str | None = None,
        prefixed: bool,
        now: bool = False,
    ) -> list[Visible]:
        """Return what a run may use beside its tools, by server; of one only, if it is named.

        It is as of ``now``, or a second ago, and not pinned as the run's tools are.
        """
        if now:
            await self.policies.catch_up()
        policy = await self.policies.of(run.tenant)
        offer = await self._offer(now=now)
        versions = [
            it.version_for(policy)
            for it in offer.servers.values()
            if server in (None, it.name) and (run.servers is None or it.name in run.servers)
        ]
        allowed = [it for it in versions if policy.may_use(it.definition)]
        offered = await self.offerings.of(offer.generation, [it.id for it in allowed])
        return visible(policy, actor.scopes, allowed, offered, prefixed=prefixed)

    async def get_run(self, actor: Actor, run_id: str) -> Run:
        """Return a run as the record has it; raise `unknown_run`."""
        return await runs.get_run(
            self.database, _run_id(run_id), tenant=actor.tenant, shelf=self._shelf
        )

    async def open_run(self, actor: Actor, run_id: str) -> Run:
        """Return a run that was open a moment ago: the insert itself asks whether it still is."""
        kept_until, run = self._runs.get(run_id, (0.0, None))
        if run is None or kept_until <= self._clock():
            run = await runs.get_run(self.database, _run_id(run_id), shelf=self._shelf)
            if len(self._runs) >= MOST_RUNS:
                self._runs.clear()
            if run.state == "open" and not run.expired:
                self._runs[run_id] = (self._clock() + RUN_KEPT_S, run)
        if actor.tenant not in (None, run.tenant):
            raise _unknown_run(run_id)
        return run

    def note_open(self, run_id: str) -> None:
        """Take a run for open as of now: whoever says so has just read that it is."""
        _, run = self._runs.get(run_id, (0.0, None))
        if run is not None:
            self._runs[run_id] = (self._clock() + RUN_KEPT_S, run)

    async def find_tools(self, run: Run, query: str, limit: int) -> list[dict[str, Any]]:
        """Return the tools of a run that fit a task best, as its model is shown them."""
        async with self.database.transaction() as connection:
            names = await best_fitting(connection, run.manifest, query, limit)
        return [shown(run.tools[name]) for name in names]

    async def end_run(self, actor: Actor, run_id: str, *, cancel: bool) -> dict[StopAnswer, int]:
        """Close a run, or cancel it with its unfinished calls; return how those took it."""
        _, unfinished = await runs.end_run(
            self.database, _run_id(run_id), cancel=cancel, actor=label(actor), tenant=actor.tenant
        )
        self._runs.pop(run_id, None)
        if not cancel:
            return {}
        answers = await calls.stop(
            self.database, unfinished, actor=label(actor), reason="run_cancelled"
        )
        self._tell_stopped(answers)
        if StopAnswer.STOP_REQUESTED in answers.values():
            self._tell(self.client.revoke_run(run_id))
        return Counter(answers.values())

    async def compare_snapshots(self, before: str, after: str) -> list[dict[str, Any]]:
        """Return how the tools of two snapshots differ; raise `not_found`."""
        return differences(await self._shelf.get(before), await self._shelf.get(after))

    # -- calls ------------------------------------------------------------------------------

    async def submit(
        self,
        actor: Actor,
        run_id: str,
        wish: Wish,
        *,
        wait_s: float = 0,
        on_standing: Callable[[list[Standing]], None] | None = None,
        until: Callable[[Row], bool] | None = None,
    ) -> Row:
        """Commit a call and send it; return its row when it has ended or ``wait_s`` is over.

        ``until`` says what else is worth returning for (`api.waiting.needs_attention`).
        A known idempotency key gives the earlier call. ``on_standing`` is told where the tenant
        stands with its rates, if it has any. Raises what `submission.prepare`, `submit_within`
        and `registry.calls.submit` raise; once the call is committed nothing is raised any more.
        """
        call = await self._new_call(actor, run_id, wish)
        with self.room.expect(call.id) as hint:
            submitted = await self._commit(call, on_standing)
            if submitted.created and call.state is CallState.QUEUED:
                self._tell(self._send(call))
            try:
                if not submitted.created:
                    row = await self.room.wait(submitted.id, wait_s, until)
                elif wait_s > 0 and not call.state.final:
                    row = await self.room.wait_for(call.id, hint, wait_s, until)
                else:
                    row = await self.room.read(call.id)
            except FleetError as error:
                # Saying "try again" now would make two calls of one.
                logger.warning("call %s is committed and cannot be read: %s", call.id, error)
                row = None
        row = row or _as_committed(call, submitted)
        tracing.saw(row)
        return row

    @asynccontextmanager
    async def begin(
        self,
        actor: Actor,
        run_id: str,
        wish: Wish,
        *,
        reports: bool = False,
        leaving_stops: bool = False,
    ) -> AsyncIterator[Followed]:
        """Commit a call and send it, and yield it to be followed; with its ``reports`` if wanted.

        The call goes on when the context ends, or is cancelled; with ``leaving_stops`` to be
        cancelled stops it. Raises as `submit` does.
        """
        call = await self._new_call(actor, run_id, wish)
        async with self._listening(call.id, reports=reports) as hint:
            committing = self._keep(self._commit_and_send(call))
            with self._leaving(actor, committing, stops=leaving_stops):
                # Whoever leaves now leaves a call that is committed and sent, not half of one.
                submitted = await asyncio.shield(committing)
                if submitted.created:
                    yield Followed(self.room, hint, _as_committed(call, submitted))
        if not submitted.created:
            async with self.follow(actor, submitted.id, reports=reports) as earlier:
                yield earlier

    @asynccontextmanager
    async def follow(
        self, actor: Actor, call_id: str, *, reports: bool = False, leaving_stops: bool = False
    ) -> AsyncIterator[Followed]:
        """Yield a call to be followed, as `begin` does; raise `unknown_call`."""
        async with self._listening(call_id, reports=reports) as hint:
            row = await self.get_call(actor, call_id)
            with self._leaving(actor, call_id, stops=leaving_stops):
                yield Followed(self.room, hint, row)

    async def get_call(
        self,
        actor: Actor,
        call_id: str,
        *,
        wait_s: float = 0,
        until: Callable[[Row], bool] | None = None,
    ) -> Row:
        """Return a call's row, awaiting its end, or ``until``, for ``wait_s``.

        Raises `unknown_call`.
        """
        row = await self.room.read(call_id) if is_id(call_id) else None
        if row is None or actor.tenant not in (None, row["tenant_id"]):
            raise _unknown_call(call_id)
        if wait_s > 0 and not CallState(row["state"]).final:
            row = await self.room.wait(call_id, wait_s, until) or row
        return row

    async def stop_call(self, actor: Actor, call_id: str) -> tuple[StopAnswer, Row]:
        """Ask a call to stop; return what that means and its row after it."""
        if not is_id(call_id):
            raise _unknown_call(call_id)
        answers = await calls.stop(
            self.database, [call_id], actor=label(actor), tenant=actor.tenant
        )
        if call_id not in answers:
            raise _unknown_call(call_id)
        self._tell_stopped(answers)
        if answers[call_id] is StopAnswer.STOP_REQUESTED:
            self._tell(self.client.revoke([call_id]))
        return answers[call_id], await self.get_call(actor, call_id)

    # -- questions --------------------------------------------------------------------------

    async def questions(self, actor: Actor, call_id: str) -> list[Question]:
        """Return what a call's server asks its caller now; raise `unknown_call`."""
        if not is_id(call_id):
            raise _unknown_call(call_id)
        return await questions.open_questions(self.database, call_id, tenant=actor.tenant)

    async def with_questions(self, actor: Actor, row: Row) -> Row:
        """Return a call's row with what its server asks now under ``questions``, if it does."""
        if not row.get("open_questions"):
            return row
        asked = await self.questions(actor, row["id"])
        shown = [{"key": it.key, "method": it.method, "params": it.params} for it in asked]
        return {**row, "questions": shown}

    async def answer(self, actor: Actor, call_id: str, answers: Answers) -> set[str]:
        """Answer questions of a call by their keys, or numbers; return the keys that were taken.

        Raises what `registry.questions.answer` raises.
        """
        if not is_id(call_id):
            raise _unknown_call(call_id)
        taken = await questions.answer(
            self.database, call_id, answers, actor=label(actor), tenant=actor.tenant
        )
        if taken:
            self._tell(self.client.signals.answered(call_id))
        return taken

    # -- approvals --------------------------------------------------------------------------

    async def decide(self, actor: Actor, verdict: Verdict) -> dict[str, Any]:
        """Approve or deny a call that waits; return it as its approvers see it.

        Raises what `registry.approvals.decide` raises.
        """
        if not is_id(verdict.call):
            raise _unknown_call(verdict.call)
        decided = await approvals.decide(
            self.database,
            self.sealer,
            verdict,
            actor=label(actor),
            holds=self.settings.approval_holds,
            tenant=actor.tenant,
        )
        if decided.unsent is not None:
            self._tell(self._send_message(Message(**vars(decided.unsent))))
        elif decided.state.final:
            self._tell(self.client.signals.ended([verdict.call]))
        return await self.approval(actor, verdict.call)

    async def approval(self, actor: Actor, call_id: str) -> dict[str, Any]:
        """Return a call as its approvers see it; raise `unknown_call`."""
        if not is_id(call_id):
            raise _unknown_call(call_id)
        return await approvals.shown(self.database, self.sealer, call_id, tenant=actor.tenant)

    # -- inside -----------------------------------------------------------------------------

    def _blocked(self) -> Container[tuple[int, str]]:
        """Return what may not be called, as of a second ago: the worker asks again."""
        now = self._clock()
        if now - self._offer_asked_at >= OFFER_EVERY_S:
            self._offer_asked_at = now
            self._tell(self._look_at_offer())
        return self.offers.latest.blocked if self.offers.latest is not None else ()

    async def _offer(self, *, now: bool) -> Offer:
        """Return what is offered now, or was a second ago."""
        asked_at, latest = self._clock(), self.offers.latest
        if latest is None or now or asked_at - self._offer_asked_at >= OFFER_EVERY_S:
            self._offer_asked_at = asked_at
            latest = await self.offers.current()
        return latest

    async def _look_at_offer(self) -> None:
        with suppress(FleetError):
            await self.offers.current()

    async def _new_call(self, actor: Actor, run_id: str, wish: Wish) -> NewCall:
        with tracing.submitting(self.client.tracer, wish.traceparent) as trace:
            run = await self.open_run(actor, run_id)
            policy = await self.policies.of(run.tenant)
            wish = replace(wish, traceparent=trace.traceparent)
            call = await submission.make_call(
                self.database, run, wish, self.settings, policy, self._blocked()
            )
            tracing.describe(trace, call)
        return call

    @asynccontextmanager
    async def _listening(self, call_id: str, *, reports: bool) -> AsyncIterator[Hint]:
        with self.room.expect(call_id) as hint:
            if not reports:
                yield hint
                return
            async with self.room.progress_into(call_id, hint):
                yield hint

    async def _commit_and_send(self, call: NewCall) -> Submitted:
        submitted = await self._commit(call, None)
        if submitted.created and call.state is CallState.QUEUED:
            self._tell(self._send(call))
        return submitted

    @contextmanager
    def _leaving(
        self, actor: Actor, call: str | asyncio.Task[Submitted], *, stops: bool
    ) -> Iterator[None]:
        """Stop a call, or the one that a submission becomes, when its caller is cancelled."""
        try:
            yield
        except asyncio.CancelledError:
            if stops:
                self._tell(self._stop_left(actor, call))
            raise

    async def _stop_left(self, actor: Actor, call: str | asyncio.Task[Submitted]) -> None:
        with suppress(FleetError):
            if not isinstance(call, str):
                submitted = await call
                if not submitted.created:
                    return  # it is another request's
                call = submitted.id
            await self.stop_call(actor, call)

    async def _commit(
        self, call: NewCall, on_standing: Callable[[list[Standing]], None] | None
    ) -> Submitted:
        admission = self.client.admission.telling(on_standing)
        try:
            with tracing.committing(self.client.tracer):
                outcome = await submission.submit_within(
                    self.database, call, admission, self._submissions.add
                )
        except FleetError as error:
            if error.code is not Code.STORE_UNAVAILABLE:
                raise
            # The connection may have gone between the commit and its confirmation.
            raise FleetError(
                error.code,
                error.message,
                hint=f"before you send it again, ask GET /v1/calls/{call.id} whether it is stored, "
                "or send an idempotency key",
                retry_after_s=error.retry_after_s,
                details={"call_id": call.id},
            ) from error
        if isinstance(outcome, FleetError):
            self._runs.pop(call.run_id, None)
            raise outcome
        return outcome

    async def _submit_batch(self, batch: Sequence[NewCall]) -> Sequence[Submitted | FleetError]:
        return await calls.submit(self.database, batch)

    async def _send(self, call: NewCall) -> None:
        await self._send_message(Message(**submission.message_of(call, call.id)))

    async def _send_message(self, message: Message) -> None:
        await self.client.send(message)

    def _tell_stopped(self, answers: dict[str, StopAnswer]) -> None:
        stopped = [
            id_ for id_, answer in answers.items() if answer is StopAnswer.STOPPED_BEFORE_DISPATCH
        ]
        if stopped:
            self._tell(self.client.signals.ended(stopped))

    def _tell(self, telling: Coroutine[Any, Any, None]) -> None:
        """Tell the workers in the background; when too much is untold, the steward will."""
        if len(self._telling) >= MOST_UNTOLD:
            telling.close()
            return
        task = self._keep(telling)
        task.add_done_callback(_told)

    def _keep(self, work: Coroutine[Any, Any, Kept]) -> asyncio.Task[Kept]:
        """Run something that goes on when whoever waits for it leaves."""
        task = asyncio.create_task(work)
        self._telling.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._telling.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited for it has it, or has left


def _told(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("the workers could not be told", exc_info=error)


def label(actor: Actor) -> str:
    """Return how the audit names who asked."""
    return actor.label


def _run_id(text: str) -> str:
    if not is_id(text):
        raise _unknown_run(text)
    return text


def _unknown_run(run_id: str) -> FleetError:
    return FleetError(Code.UNKNOWN_RUN, f"there is no run {run_id}", hint="start a run first")


def _unknown_call(call_id: str) -> FleetError:
    return FleetError(
        Code.UNKNOWN_CALL,
        f"there is no call {call_id}",
        hint="use the id that the submission returned",
    )


def _as_committed(call: NewCall, submitted: Submitted) -> Row:
    """Return what is known of a call that is committed while its row cannot be read."""
    lasts_s = call.deadline_s if call.approval_s is None else call.approval_s
    return {
        "id": submitted.id,
        "run_id": call.run_id,
        "tenant_id": call.tenant_id,
        "tool": call.tool,
        "server_name": call.server_name,
        "state": call.state.value,
        "result": call.result,
        "delivery": call.delivery.value,
        "attempts": 0,
        "created_at": submitted.deadline_at - timedelta(seconds=lasts_s),
        "deadline_at": submitted.deadline_at,
    }
