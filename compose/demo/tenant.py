"""Those who ask the demo's fleet over HTTP: an operator, and tenants with a run each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

import httpx2

WAIT_S = 55
LOOK_EVERY_S = 0.05

T = TypeVar("T")


@dataclass(frozen=True)
class Made:
    """One call that was made: by whom, how it ended, and how long its caller waited."""

    tenant: str
    title: str
    body: dict[str, Any]
    total_s: float

    @property
    def state(self) -> str:
        """Return the call's state."""
        return str(self.body["state"])

    @property
    def timings(self) -> dict[str, Any]:
        """Return what the worker measured."""
        return self.body.get("timings") or {}

    @property
    def text(self) -> str:
        """Return the text that the tool answered."""
        content = (self.body.get("result") or {}).get("content", [])
        return "".join(part.get("text", "") for part in content)


@dataclass(frozen=True)
class Wanted:
    """One call to be made."""

    tool: str
    arguments: dict[str, Any] = field(default_factory=dict)
    title: str = ""


class Caller:
    """The API, asked with one key."""

    def __init__(self, url: str, key: str) -> None:
        self._http = httpx2.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=WAIT_S + 10,
            limits=httpx2.Limits(max_connections=None),
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def ask(
        self, method: str, path: str, body: Any = None, *, wait_s: int | None = None
    ) -> tuple[int, Any]:
        """Return status and JSON of one request."""
        headers = {} if wait_s is None else {"Prefer": f"wait={wait_s}"}
        answer = await self._http.request(method, f"/v1/{path}", json=body, headers=headers)
        return answer.status_code, answer.json()

    async def get(
        self, method: str, path: str, body: Any = None, *, wait_s: int | None = None
    ) -> Any:
        """Return the JSON of one request; raise `RuntimeError` for a problem."""
        status, answer = await self.ask(method, path, body, wait_s=wait_s)
        if status >= 400:
            raise RuntimeError(f"{method} /v1/{path} answered {status}: {answer}")
        return answer


class Tenant(Caller):
    """A tenant with its own key and one open run; every call it made is kept in ``made``."""

    def __init__(self, url: str, name: str, key: str) -> None:
        super().__init__(url, key)
        self.name = name
        self.run_id = ""
        self.run_token = ""
        self.tools: list[str] = []
        self.made: list[Made] = []

    async def open_run(self) -> None:
        """Start the run that every call belongs to."""
        run = await self.get("POST", "runs", {})
        self.run_id, self.run_token = run["id"], run["run_token"]
        self.tools = [tool["name"] for tool in run["tools"]]

    async def call(self, wanted: Wanted) -> Made:
        """Make one call and wait for its end."""
        started = time.perf_counter()
        body = await self._submit(wanted, WAIT_S)
        return self.keep(wanted, body, time.perf_counter() - started)

    async def submit(self, wanted: Wanted) -> str:
        """Submit one call without waiting for it; return its id."""
        return str((await self._submit(wanted, None))["id"])

    async def see(self, call_id: str, *, wait_s: int = 0) -> dict[str, Any]:
        """Return a call as it is now, or at its end."""
        body: dict[str, Any] = await self.get("GET", f"calls/{call_id}?wait={wait_s}")
        return body

    async def end_of(self, wanted: Wanted, call_id: str, started: float) -> Made:
        """Wait for the end of a call that was submitted at ``started`` (`time.perf_counter`)."""
        body = await self.see(call_id, wait_s=WAIT_S)
        return self.keep(wanted, body, time.perf_counter() - started)

    async def until_running(self, call_id: str, timeout_s: float = 20) -> None:
        """Return when a worker runs the call; raise `TimeoutError`."""
        await until(lambda: self.see(call_id), lambda call: call["state"] == "running", timeout_s)

    def keep(self, wanted: Wanted, body: dict[str, Any], total_s: float) -> Made:
        """Note a call that has been made."""
        made = Made(self.name, wanted.title or wanted.tool, body, total_s)
        self.made.append(made)
        return made

    async def _submit(self, wanted: Wanted, wait_s: int | None) -> dict[str, Any]:
        body: dict[str, Any] = await self.get(
            "POST",
            f"runs/{self.run_id}/calls",
            {"tool": wanted.tool, "arguments": wanted.arguments},
            wait_s=wait_s,
        )
        return body


async def until(
    look: Callable[[], Awaitable[T]], wanted: Callable[[T], bool], timeout_s: float
) -> T:
    """Look again and again; return what was seen once it is as wanted; raise `TimeoutError`."""
    async with asyncio.timeout(timeout_s):
        while not wanted(seen := await look()):
            await asyncio.sleep(LOOK_EVERY_S)
        return seen


async def at_most(callers: int, work: Iterable[Callable[[], Awaitable[T]]]) -> list[T]:
    """Do all the work, at most ``callers`` at a time; return the answers in order."""
    free = asyncio.Semaphore(callers)

    async def one(task: Callable[[], Awaitable[T]]) -> T:
        async with free:
            return await task()

    return list(await asyncio.gather(*(one(task) for task in work)))
