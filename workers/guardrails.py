"""Checks that users plug in: each sees every call before it is dispatched, and its result after.

`TOOLFLEET_GUARDRAILS` names them, ``package.module:callable``. One is called with what call it is
about (`Guarded`) and, before it, its arguments, after it, its result (MCP's ``CallToolResult`` as
JSON). It returns None if there is nothing to object to, after the call also the result as it is to
be; it raises `Refused` with its reason to refuse. It may be a coroutine function; any other runs
in a thread.

1. Whatever else a check does refuses the call (`guardrail_failed`): an exception, an answer that is
   no result, no answer in time, too many that did not end.
2. Arguments are checked, never changed: what was approved and recorded is what is sent.
3. What a check adds to a result is redacted like the rest.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from typing import Any, Final

from registry.database import to_json
from registry.errors import Code, FleetError

MOST_RUNNING: Final = 32
"""Checks in threads at once, those included that were given up and did not end."""


class Direction(StrEnum):
    """Whether a check sees the arguments of a call or its result."""

    BEFORE = "before"
    AFTER = "after"


@dataclass(frozen=True)
class Guarded:
    """What a check is told of a call; ``tool`` is named as the server does."""

    direction: Direction
    tenant: str
    server: str
    tool: str


class Refused(Exception):
    """Raised by a check: the call, or its result, is not let through. The reason is told."""


Check = Callable[[Guarded, dict[str, Any]], Any]


class Guardrails:
    """The checks of one process, in their order; without any they cost nothing."""

    def __init__(self, names: Iterable[str] = (), *, limit_s: float = 2.0) -> None:
        """Import the checks; raise ``ValueError`` for a name that leads to none."""
        self.names = tuple(names)
        self.limit_s = limit_s
        self._checks = [(name, _imported(name)) for name in self.names]
        self._free = threading.BoundedSemaphore(MOST_RUNNING)

    async def before(self, tenant: str, server: str, tool: str, arguments: dict[str, Any]) -> None:
        """Have a call checked; raise `guardrail_refused` or `guardrail_failed`."""
        for name, check in self._checks:
            call = Guarded(Direction.BEFORE, tenant, server, tool)
            answer = await self._ask(name, check, call, arguments)
            if answer is not None and answer != arguments:
                raise _failed(name, call, "returned other arguments, which it may only refuse")

    async def after(
        self, tenant: str, server: str, tool: str, result: dict[str, Any]
    ) -> dict[str, Any]:
        """Return a result as the checks leave it; raise as `before` does."""
        for name, check in self._checks:
            call = Guarded(Direction.AFTER, tenant, server, tool)
            answer = await self._ask(name, check, call, result)
            if answer is not None:
                if not _is_result(answer):
                    raise _failed(name, call, "returned what is no result")
                result = answer
        return result

    async def _ask(self, name: str, check: Check, call: Guarded, payload: dict[str, Any]) -> Any:
        try:
            async with asyncio.timeout(self.limit_s):
                if inspect.iscoroutinefunction(check):
                    return await check(call, deepcopy(payload))
                return await self._in_thread(check, call, deepcopy(payload))
        except Refused as error:
            reason = str(error) or "it gave no reason"
            raise FleetError(
                Code.GUARDRAIL_REFUSED,
                f"guardrail {name} refused {_what(call)}: {reason}",
                hint=_RAN[call.direction],
            ) from error
        except TimeoutError as error:
            raise _failed(name, call, f"took longer than {self.limit_s:.3g} s") from error
        except FleetError:
            raise
        except Exception as error:
            raise _failed(name, call, f"raised {type(error).__name__}") from error

    async def _in_thread(self, check: Check, call: Guarded, payload: dict[str, Any]) -> Any:
        """Run a check in a thread of its own, which ends with the process if it never does."""
        if not self._free.acquire(blocking=False):
            raise RuntimeError(f"{MOST_RUNNING} checks have not ended")
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Any] = loop.create_future()

        def tell(answer: Any, error: Exception | None) -> None:
            if not answered.done():
                answered.set_exception(error) if error else answered.set_result(answer)

        def run() -> None:
            answer, error = None, None
            try:
                answer = check(call, payload)
            except Exception as raised:  # noqa: BLE001 it is raised again where it is awaited
                error = raised
            finally:
                self._free.release()
            if not loop.is_closed():
                loop.call_soon_threadsafe(tell, answer, error)

        threading.Thread(target=run, name="guardrail", daemon=True).start()
        answer = await answered
        return await answer if inspect.isawaitable(answer) else answer


_RAN: Final = {
    Direction.BEFORE: "nothing was dispatched; an operator chooses the guardrails",
    Direction.AFTER: "the call itself did run; an operator chooses the guardrails",
}


def _imported(name: str) -> Check:
    module_name, _, attribute = name.partition(":")
    try:
        check = import_module(module_name)
        for part in attribute.split("."):
            check = getattr(check, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise _unusable(name, f"cannot be imported ({error})") from error
    if not callable(check):
        raise _unusable(name, "cannot be called")
    return check


def _unusable(name: str, why: str) -> ValueError:
    return ValueError(
        f"TOOLFLEET_GUARDRAILS names {name!r}, which {why}; write package.module:callable, and "
        "install the package beside Toolfleet"
    )


def _is_result(answer: Any) -> bool:
    if not isinstance(answer, dict) or not isinstance(answer.get("content"), list):
        return False
    try:
        to_json(answer)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _what(call: Guarded) -> str:
    part = "the call" if call.direction is Direction.BEFORE else "the result"
    return f"{part} of {call.tool} on server {call.server}"


def _failed(name: str, call: Guarded, how: str) -> FleetError:
    return FleetError(
        Code.GUARDRAIL_FAILED,
        f"guardrail {name} {how}; {_what(call)} is withheld",
        hint=_RAN[call.direction],
    )
