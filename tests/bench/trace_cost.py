"""What traces and figures cost: throughput and latency of the same fleet with them and without.

``make trace-bench`` prints it. There is a fleet for each manner, all up at once, and each round has
every one of them drain a deep queue of real stdio calls, and answer 16 callers over HTTP. Rounds
are short and each has its own order, so that whatever else goes on meets all alike.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import statistics
import sys
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from compose.bench.cpu import between
from compose.bench.deep import submit, until_ended
from compose.bench.rig import SESSIONS, STDIO, Rig, running
from registry.database import Database
from tests.bench import unwatched
from tests.receiving import Receiver, receiving

ROUNDS = 7
DEEP_CALLS = 600
CALLERS, SECONDS = 16, 2.0
WARM_UP = 200
PATIENT = {"TOOLFLEET_WORKER_LEASE": "300", "TOOLFLEET_DEFAULT_DEADLINE": "3600"}
"""A worker that is stopped where it stands is not dead, and its calls are not too late."""
GOAL = 0.95
NOTHING = "neither traces nor figures"
EVERY = {"TOOLFLEET_TRACES_PER_S": "1000000"}


@dataclass
class Measured:
    """What one manner did, by round."""

    drained: list[float] = field(default_factory=list)
    """Calls a second of one worker."""
    drain_cpu: list[float] = field(default_factory=list)
    """Milliseconds of the worker's CPU for each call."""
    called: list[float] = field(default_factory=list)
    """Calls a second over HTTP."""
    call_cpu: list[float] = field(default_factory=list)
    """Milliseconds of the API's and the worker's CPU for each call."""
    p50: list[float] = field(default_factory=list)
    """Milliseconds."""


def manners(collector: Receiver) -> dict[str, dict[str, str]]:
    """Return what is measured: the environment of a fleet by its name."""
    exporting = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.port}"}
    return {
        NOTHING: {"OTEL_SDK_DISABLED": "true", unwatched.UNWATCHED: "1"},
        "figures alone": {"OTEL_SDK_DISABLED": "true"},
        "the default": {},
        "the default, exported": exporting,
        "every call recorded": EVERY,
        "every call exported": EVERY | exporting,
    }


async def drain(rig: Rig, count: int, into: Measured) -> None:
    """Submit calls while the worker is stopped where it stands, then let it go on."""
    (worker,) = rig.fleet.workers()[STDIO]
    run_id = await rig.start_run()
    database = Database(rig.fleet.database_url, pool_size=1, application="toolfleet bench")
    os.kill(worker, signal.SIGSTOP)
    try:
        await submit(rig, run_id, count)
        before = rig.meter.read()
        os.kill(worker, signal.SIGCONT)
        last = await until_ended(database, run_id, count)
        spent = between(before, rig.meter.read())
    finally:
        os.kill(worker, signal.SIGCONT)
        await database.close()
    if last["succeeded"] != count:
        raise RuntimeError(f"{count - last['succeeded']} of {count} queued calls did not succeed")
    into.drained.append(count / last["seconds"])
    into.drain_cpu.append(spent["worker"] / count * 1000)


async def call(rig: Rig, into: Measured) -> None:
    """Have callers call over HTTP for a while."""
    way = {"url": rig.fleet.api_url, "key": rig.fleet.operator_key, "wait_s": 30}
    run_id = await rig.start_run()
    options = {**way, "run_id": run_id, "tool": f"{STDIO}_echo"}
    await rig.caller.do("open", run_id, kind="fleet", options=options)
    await rig.caller.do("call", run_id, mode="count", options={"count": WARM_UP})
    before = rig.meter.read()
    job = {"callers": CALLERS, "seconds": SECONDS}
    answer = await rig.caller.do("call", run_id, mode="closed", options=job)
    spent = between(before, rig.meter.read())
    await rig.caller.do("close", run_id)
    if answer["errors"]:
        raise RuntimeError(answer["errors"][0])
    took: list[float] = answer["latencies_s"]
    into.called.append(len(took) / answer["elapsed_s"])
    into.call_cpu.append((spent["api"] + spent["worker"]) / len(took) * 1000)
    into.p50.append(statistics.median(took) * 1000)


def report(measured: dict[str, Measured]) -> None:
    """Print what each manner did, beside nothing at all; ratios are medians over the rounds."""
    bare = measured[NOTHING]
    head = ("deep queue", "of it", "CPU ms", "HTTP, 16", "of it", "CPU ms", "p50 ms")
    print(f"{'':28}" + "".join(f"{it:>11}" for it in head))
    for name, it in measured.items():
        drained = statistics.median(a / b for a, b in zip(it.drained, bare.drained, strict=True))
        called = statistics.median(a / b for a, b in zip(it.called, bare.called, strict=True))
        figures = (
            f"{statistics.median(it.drained):,.0f}/s",
            f"{drained:.1%}",
            f"{statistics.median(it.drain_cpu):.3f}",
            f"{statistics.median(it.called):,.0f}/s",
            f"{called:.1%}",
            f"{statistics.median(it.call_cpu):.3f}",
            f"{statistics.median(it.p50):.2f}",
        )
        print(f"{name:28}" + "".join(f"{it:>11}" for it in figures))
    print("by round, calls/s: deep queue, HTTP")
    for name, it in measured.items():
        rounds = [f"{d:,.0f} {c:,.0f}" for d, c in zip(it.drained, it.called, strict=True)]
        print(f"{name:28}" + "".join(f"{pair:>11}" for pair in rounds))
    print(f"goal: the default at {GOAL:.0%} or more of what there is with {NOTHING}")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--deep", type=int, default=DEEP_CALLS, help="calls in the deep queue")
    parser.add_argument("--only", nargs="*", default=[], help="names of manners beside the first")
    parser.add_argument("--sessions", type=int, default=SESSIONS, help="warm sessions per server")
    options = parser.parse_args()
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="toolfleet-bench-")))
        collector = await stack.enter_async_context(receiving())
        rigs: dict[str, Rig] = {}
        for number, (name, environment) in enumerate(manners(collector).items()):
            if name == NOTHING or not options.only or name in options.only:
                (folder / str(number)).mkdir()
                fleet = {
                    "command": unwatched.command,
                    "flower": False,
                    "environment": {**environment, **PATIENT},
                }
                rig = running(folder / str(number), options.sessions, **fleet)
                rigs[name] = await stack.enter_async_context(rig)
        measured = {name: Measured() for name in rigs}
        names = list(rigs)
        for number in range(options.rounds + 1):
            order = random.Random(number)
            for name in order.sample(names, len(names)):
                into = measured[name] if number else Measured()  # the first is to warm up
                await drain(rigs[name], options.deep, into)
                await call(rigs[name], into)
            collector.got.clear()
            load = os.getloadavg()[0]
            print(f"round {number} of {options.rounds}, load {load:.1f}", flush=True)
    report(measured)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
