"""`toolfleet top`: its frames at several widths, and what it does while the API is away."""

from __future__ import annotations

import io
import os
import pty
import termios
from collections.abc import Mapping
from typing import Any

import pytest
from rich.console import Console

from compose import top
from compose.api_client import AskError
from compose.top_frame import frame
from tests.requirements import requirement

IDLE = dict.fromkeys(
    ("opening", "idle", "reserved", "validating", "in_use", "resetting", "closing"), 0
)


def server(name: str = "crm", **rest: Any) -> dict[str, Any]:
    beat = {"submitted": 50, "ended": 50, "failed": 5, "p50_s": 0.02, "p95_s": 1.5}
    return {
        "name": name,
        "breaker": "closed",
        "queued": 7,
        "oldest_queued_s": 12.0,
        "sessions": {**IDLE, "in_use": 3, "idle": 2},
        "max_sessions": 8,
        "waiting": 4,
        "workers": [{"zombies": 0}, {"zombies": 1}],
        "beats": [beat] * 6,
        **rest,
    }


def state(*servers: dict[str, Any]) -> dict[str, Any]:
    return {"servers": list(servers), "beat_s": 10, "away": [], "unfinished": {}}


def printed(shown: Mapping[str, Any], width: int, problem: str = "") -> list[str]:
    console = Console(width=width, file=(told := io.StringIO()))
    console.print(frame(shown, width, problem))
    return told.getvalue().splitlines()


@requirement("top:live")
def test_a_row_says_how_a_server_is() -> None:
    text = "\n".join(printed(state(server(), server("idle", beats=[], workers=[])), 160))
    assert "2 servers  2 workers  5.0 calls/s  14 queued  6 of 16 sessions in use" in text
    row = next(line for line in text.splitlines() if line.startswith("crm"))
    assert row.split() == [
        *("crm", "closed", "5.0", "█████", "10", "%", "20", "ms", "1.5", "s", "7", "12.0", "s"),
        *("███▒▒···", "3/5/8", "4", "2", "1"),
    ]


@requirement("top:live")
@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 132, 200])
def test_no_line_is_wider_than_the_terminal_and_the_breaker_is_always_there(width: int) -> None:
    lines = printed(
        state(server(), server("a-server-with-quite-a-long-name", breaker="open")), width
    )
    assert max(map(len, lines)) <= width
    rows = [line for line in lines if {"closed", "open"} & set(line.split())]
    assert len(rows) == 2, "one line for each server"
    assert ("zombies" in "".join(lines)) is (width > 150)


@requirement("top:live")
def test_many_sessions_are_shown_as_shares() -> None:
    many = server(max_sessions=64, sessions={**IDLE, "in_use": 32, "idle": 1})
    assert "█" * 8 + "▒" + "·" * 7 in "".join(printed(state(many), 160))


@requirement("top:goes-on")
def test_the_last_frame_stays_while_the_api_is_away_and_says_for_how_long() -> None:
    now = [100.0]
    answers: list[Any] = [state(server())]

    def ask() -> Mapping[str, Any]:
        if isinstance(answers[-1], AskError):
            raise answers[-1]
        return answers[-1]  # type: ignore[no-any-return]

    watched = top.Watched(ask, lambda: now[0])
    assert watched.problem == ""
    answers.append(AskError("unreachable", "no answer from http://fleet"))
    watched.look()
    now[0] += 9
    watched.look()
    assert watched.problem.startswith("no answer from http://fleet for 9 s: ")
    assert "crm" in "".join(printed(watched.state, 80, watched.problem))
    answers.append(state(server("erp")))
    watched.look()
    assert watched.problem == ""
    assert "erp" in "".join(printed(watched.state, 80))
    answers.append(AskError("unauthenticated", "the key is not valid"))
    with pytest.raises(AskError):
        watched.look()


@requirement("top:live")
def test_q_ends_it_and_leaves_the_terminal_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, terminal = pty.openpty()
    before = termios.tcgetattr(terminal)
    asked = []

    def ask() -> Mapping[str, Any]:
        asked.append(1)
        os.write(mine, b"q" if len(asked) > 1 else b"x")
        return state(server())

    with os.fdopen(terminal) as keyboard:
        monkeypatch.setattr("sys.stdin", keyboard)
        drawn = io.StringIO()
        top.run_top(Console(file=drawn, force_terminal=True, width=80), ask=ask, every_s=0.05)
        assert len(asked) >= 2
        assert "crm" in drawn.getvalue()
        assert termios.tcgetattr(terminal) == before
    os.close(mine)
