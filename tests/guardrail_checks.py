"""Guardrails for tests: what users plug in by name."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from workers.guardrails import Direction, Guarded, Refused

seen: list[tuple[Guarded, dict[str, Any]]] = []
released = threading.Event()


def note(call: Guarded, payload: dict[str, Any]) -> None:
    """See a call, and have nothing against it."""
    seen.append((call, payload))


def no_bombs(call: Guarded, payload: dict[str, Any]) -> None:
    """Refuse what speaks of bombs."""
    if "bomb" in str(payload):
        raise Refused("it speaks of bombs")


def sign(call: Guarded, payload: dict[str, Any]) -> dict[str, Any] | None:
    """Add a text to results, with somebody's address in it; print to where it must not matter."""
    if call.direction is Direction.BEFORE:
        return None
    print("signed")
    signature = {"type": "text", "text": "seen by guard@example.com"}
    return {**payload, "content": [*payload["content"], signature]}


async def later(call: Guarded, payload: dict[str, Any]) -> dict[str, Any]:
    """Return what it was given, later."""
    await asyncio.sleep(0)
    return payload


def meddle(call: Guarded, payload: dict[str, Any]) -> dict[str, Any]:
    """Change whatever it sees, in place too."""
    payload["meddled"] = True
    return payload


def fail(call: Guarded, payload: dict[str, Any]) -> None:
    """Fail."""
    raise KeyError("jane@example.com")


def babble(call: Guarded, payload: dict[str, Any]) -> object:
    """Return what is no result."""
    return {"content": object()}


def agree(call: Guarded, payload: dict[str, Any]) -> bool:
    """Return a verdict in the place of a result."""
    return True


def hang(call: Guarded, payload: dict[str, Any]) -> None:
    """Take until it is released."""
    released.wait(20)


async def linger(call: Guarded, payload: dict[str, Any]) -> None:
    """Take for ever."""
    await asyncio.Event().wait()


def after_only(call: Guarded, payload: dict[str, Any]) -> None:
    """Fail at results."""
    if call.direction is Direction.AFTER:
        raise KeyError("jane@example.com")


NOT_CALLABLE = 7
