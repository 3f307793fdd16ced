"""What the MCP face adds to a call, with 500 MCP clients on one API process.

``make mcp-bench`` prints it. A whole fleet with a pool of echo servers; half of the clients have
sessions of 2025-11-25 and listen by GET, half ask by 2026-07-28 and listen by
``subscriptions/listen``; each has connections of its own. Calls arrive independently of each other
at one rate, and go by turns over the face and over ``POST /v1/runs/{id}/calls``, for which there
are as many callers: whatever else goes on meets both alike.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx2
import psutil

from api.mcp.asked import META
from compose.bench.rig import ECHO, NEVER_RECYCLE
from compose.local import LocalFleet
from registry.settings import Settings

LEGACY, MODERN = "2025-11-25", "2026-07-28"
ABOUT = {"name": "bench", "version": "1"}
BOTH_KINDS = "application/json, text/event-stream"
TEXT = "What does one more face cost?"
SESSIONS = 4
WARM_UP = 200
GOAL_MS = 2.0
AT_ONCE = 25
"""How many clients connect at once."""


@dataclass
class Tally:
    """What became of calls, by the way they went."""

    latencies_s: dict[str, list[float]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    async def make(self, way: str, call: Callable[[], Awaitable[None]], since: float) -> None:
        """Make a call; note how long it took since its arrival."""
        try:
            await call()
        except Exception as error:  # noqa: BLE001 - a failed call is a figure here
            self.errors.append(f"{way}: {type(error).__name__}: {error}"[:300])
        else:
            self.latencies_s.setdefault(way, []).append(time.perf_counter() - since)


class Client:
    """One client with connections of its own."""

    def __init__(self, url: str, key: str) -> None:
        self.http = httpx2.AsyncClient(
            base_url=url,
            headers={"authorization": f"Bearer {key}"},
            transport=httpx2.AsyncHTTPTransport(verify=False),
            trust_env=False,
            timeout=60,
        )
        self.ids = count(1)
        self.listening: asyncio.Task[None] | None = None
        self.heard = asyncio.Event()
        self.lost = ""

    async def open(self) -> None:
        """Connect, and listen."""

    async def call(self) -> None:
        """Make one call; raise unless it is answered as it has to be."""
        raise NotImplementedError

    async def close(self) -> None:
        """Leave."""
        if self.listening is not None:
            self.listening.cancel()
            await asyncio.wait([self.listening])
        await self.http.aclose()

    async def listen(self, method: str, headers: dict[str, str], body: Any) -> None:
        """Keep a stream open; it is not to end before its client leaves."""
        self.listening = asyncio.create_task(self._listen(method, headers, body))
        await asyncio.wait_for(self.heard.wait(), 60)

    async def _listen(self, method: str, headers: dict[str, str], body: Any) -> None:
        async with self.http.stream(method, "/mcp", headers=headers, json=body, timeout=90) as it:
            it.raise_for_status()
            async for _ in it.aiter_raw():
                self.heard.set()
        self.lost = f"a stream of {type(self).__name__} ended"


class OverHttp(Client):
    """A caller of the HTTP face, with a run of its own."""

    async def open(self) -> None:
        """Start a run."""
        answer = await self.http.post("/v1/runs", json={})
        self.path = f"/v1/runs/{answer.raise_for_status().json()['id']}/calls"

    async def call(self) -> None:
        """Submit and wait."""
        answer = await self.http.post(
            self.path,
            json={"tool": "echo_echo", "arguments": {"text": TEXT}},
            headers={"prefer": "wait=30"},
        )
        body = answer.raise_for_status().json()
        assert body["result"]["content"][0]["text"] == TEXT, body


class WithSession(Client):
    """An MCP client of 2025-11-25."""

    async def open(self) -> None:
        """Begin a session, as the specification has it."""
        self.headers = {"accept": BOTH_KINDS}
        about = {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": ABOUT}
        answer = await self._post({"id": 0, "method": "initialize", "params": about})
        self.headers |= {
            "mcp-session-id": answer.headers["mcp-session-id"],
            "mcp-protocol-version": LEGACY,
        }
        await self._post({"method": "notifications/initialized"})
        await self.listen("GET", {**self.headers, "accept": "text/event-stream"}, None)

    async def call(self) -> None:
        """Call the tool."""
        params = {"name": "echo_echo", "arguments": {"text": TEXT}}
        _check(await self._post({"id": next(self.ids), "method": "tools/call", "params": params}))

    async def close(self) -> None:
        """End the session."""
        await self.http.delete("/mcp", headers=self.headers)
        await super().close()

    async def _post(self, body: dict[str, Any]) -> httpx2.Response:
        said = {"jsonrpc": "2.0", **body}
        return (await self.http.post("/mcp", json=said, headers=self.headers)).raise_for_status()


class Stateless(Client):
    """An MCP client of 2026-07-28."""

    async def open(self) -> None:
        """Listen to changes."""
        params = {"notifications": {"toolsListChanged": True}}
        body, headers = self._request("subscriptions/listen", params)
        await self.listen("POST", headers, body)

    async def call(self) -> None:
        """Call the tool."""
        params = {"name": "echo_echo", "arguments": {"text": TEXT}}
        body, headers = self._request("tools/call", params)
        _check(await self.http.post("/mcp", json=body, headers=headers))

    def _request(self, method: str, params: dict[str, Any]) -> tuple[Any, dict[str, str]]:
        meta = {
            META + "protocolVersion": MODERN,
            META + "clientInfo": ABOUT,
            META + "clientCapabilities": {},
        }
        headers = {"accept": BOTH_KINDS, "mcp-protocol-version": MODERN, "mcp-method": method}
        if "name" in params:
            headers["mcp-name"] = params["name"]
        said = {"method": method, "params": {**params, "_meta": meta}}
        return {"jsonrpc": "2.0", "id": next(self.ids), **said}, headers


def _check(answer: httpx2.Response) -> None:
    text = answer.raise_for_status().text
    if answer.headers["content-type"] == "text/event-stream":
        text = next(it for it in reversed(text.splitlines()) if it.startswith("data: {"))[6:]
    body = json.loads(text)
    assert body.get("result", {}).get("content", [{}])[0].get("text") == TEXT, body


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[tuple[LocalFleet, str]]:
    """Run a fleet with an echo server; yield it and a tenant's key."""
    settings = Settings(data_dir=folder / "data", database_url="", redis_url="")
    async with LocalFleet(settings, free_ports=True) as fleet:
        headers = {"authorization": f"Bearer {fleet.operator_key}"}
        async with httpx2.AsyncClient(base_url=fleet.api_url, headers=headers) as http:
            pool = {"min_idle": SESSIONS, "max_size": SESSIONS, "max_calls": NEVER_RECYCLE}
            definition = {
                "name": "echo",
                "transport": "stdio",
                "command": ECHO[0],
                "args": list(ECHO[1:]),
                "annotations": "trusted",
                "pool": pool,
            }
            (await http.post("/v1/servers", json=definition)).raise_for_status()
            await fleet.wait_ready(["echo"], 120)
            wish = {"name": "bench", "role": "tenant", "tenant": "acme"}
            made = (await http.post("/v1/keys", json=wish)).raise_for_status().json()
        yield fleet, made["key"]


async def arrive(
    tally: Tally, by_way: dict[str, list[Client]], turns: list[str], rate: float, calls: int
) -> None:
    """Let calls arrive as a Poisson process, each by the next way and the next client of it."""
    chance, arrival = random.Random(7), time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(calls):
            way = turns[number % len(turns)]
            clients = by_way[way]
            client = clients[number // len(turns) % len(clients)]
            arrival += chance.expovariate(rate)
            await asyncio.sleep(max(0.0, arrival - time.perf_counter()))
            group.create_task(tally.make(way, client.call, arrival))


async def measure(options: argparse.Namespace, folder: Path) -> int:
    """Run the bench; return the exit status."""
    async with serving(folder) as (fleet, key), AsyncExitStack() as stack:
        half = options.clients // 2
        by_way: dict[str, list[Client]] = {
            way: [kind(fleet.api_url, key) for _ in range(number)]
            for way, kind, number in (
                ("HTTP", OverHttp, options.clients),
                (LEGACY, WithSession, half),
                (MODERN, Stateless, options.clients - half),
            )
        }
        every = [client for clients in by_way.values() for client in clients]
        gate = asyncio.Semaphore(AT_ONCE)

        async def each(verb: Callable[[Client], Awaitable[None]]) -> None:
            async def one(client: Client) -> None:
                async with gate:
                    await verb(client)

            await asyncio.gather(*map(one, every))

        stack.push_async_callback(each, lambda client: client.close())
        began = time.perf_counter()
        await each(lambda client: client.open())
        print(f"{len(every)} clients connected in {time.perf_counter() - began:.1f} s")
        turns = ["HTTP", LEGACY, "HTTP", MODERN]
        await arrive(Tally(), by_way, turns, options.rate, WARM_UP)
        tally, api = Tally(), psutil.Process(fleet.children["api"].program.pid)
        busy, spent, began = psutil.cpu_times(), api.cpu_times(), time.perf_counter()
        print(f"API process {api.pid}: {api.num_fds()} files, {options.rate:g} calls/s", flush=True)
        await arrive(tally, by_way, turns, options.rate, options.calls)
        took, after, used = time.perf_counter() - began, psutil.cpu_times(), api.cpu_times()
        cores = (after.user + after.system - busy.user - busy.system) / took
        own = (used.user + used.system - spent.user - spent.system) / took
        tally.errors += [client.lost for client in every if client.lost]
        print(f"machine: {cores:.2f} of {psutil.cpu_count()} cores busy, the API {own:.2f}")
        return report(tally, options)


def report(tally: Tally, options: argparse.Namespace) -> int:
    """Print the figures; return the exit status."""
    print(f"errors                    {len(tally.errors)}  (goal: 0)")
    for error in sorted(set(tally.errors))[:10]:
        print(f"  {error}")
    by_way = {way: sorted(taken) for way, taken in sorted(tally.latencies_s.items())}
    p50 = {way: statistics.median(taken) * 1000 for way, taken in by_way.items()}
    for way, taken in by_way.items():
        p99 = taken[int(len(taken) * 0.99)] * 1000
        print(f"{way:<25} p50 {p50[way]:6.2f} ms  p99 {p99:7.2f} ms  ({len(taken)} calls)")
    added = {way: p50[way] - p50["HTTP"] for way in (LEGACY, MODERN)}
    for way, more_ms in added.items():
        print(f"added by the face, {way}  p50 {more_ms:5.2f} ms  (goal: at most {GOAL_MS:g})")
    return bool(tally.errors or max(added.values()) > GOAL_MS)


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--rate", type=float, default=40.0, help="calls per second, in all")
    parser.add_argument("--calls", type=int, default=4000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="toolfleet-bench-") as folder:
        return asyncio.run(measure(options, Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
