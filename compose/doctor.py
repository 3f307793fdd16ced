"""`toolfleet doctor`: check the fleet from here, and say what to do."""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Final

import typer

from compose.printing import AsJson, printable

_COLOURS: Final = {"ok": "green", "warning": "yellow", "failed": "red"}


def add_to(app: typer.Typer) -> None:
    """Add this command to the `toolfleet` command."""
    app.command("doctor")(doctor)


def doctor(as_json: AsJson = False) -> None:
    """Check database, broker, steward, clocks, workers, queues and servers; status 1 if ill."""
    findings = examine()
    if as_json:
        sys.stdout.write(json.dumps({"findings": findings}, indent=2) + "\n")
    else:
        _print(findings)
    if any(finding["state"] == "failed" for finding in findings):
        raise typer.Exit(1)


def examine() -> list[dict[str, Any]]:
    """Return what is well and what is not, from the API's answer to what this machine sees."""
    from compose.api_client import AskError, find_fleet

    try:
        now_s = time.time()  # noqa: TID251 - it is this machine's clock that is checked
        with find_fleet() as fleet:
            answer = fleet.ask("GET", "checkup", query={"time_s": now_s})
    except AskError as error:
        finding = {"check": "API", "state": "failed", "what": error.message, "advice": error.hint}
        return [finding]
    found: list[dict[str, Any]] = answer["findings"]
    return [
        {"check": "API", "state": "ok", "what": "it answers", "advice": ""},
        *found,
        _schema(found),
    ]


def _schema(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Say whether the database has the shape that this release needs."""
    from compose.migrate import newest_revision

    wanted = newest_revision()
    said = next((it["what"] for it in found if it["check"] == "database"), "")
    if said.endswith(f"revision {wanted}"):
        return {"check": "schema", "state": "ok", "what": f"revision {wanted}", "advice": ""}
    return {
        "check": "schema",
        "state": "failed",
        "what": f"the database is not at revision {wanted}, which this release needs ({said})",
        "advice": "run `toolfleet migrate`, or use the release that the fleet runs",
    }


def _print(findings: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for finding in findings:
        line = Text(f"{finding['state']:<8}", style=_COLOURS[finding["state"]])
        console.print(line + Text(printable(f"{finding['check']}: {finding['what']}")))
        if finding["advice"] and finding["state"] != "ok":
            console.print(Text(printable(f"        {finding['advice']}"), style="dim"))
