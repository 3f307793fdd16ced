"""The commands that write the whole registry to one file, and make such a file so."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from compose.printing import AsJson, asking, read_file, show

registry = typer.Typer(help="The whole registry as one file.", no_args_is_help=True)

_STEPS = ("action", "kind", "name", "detail")
_MARKS = {"add": "+", "change": "~", "serve": "~", "reset": "~", "remove": "-"}


def add_to(app: typer.Typer) -> None:
    """Add these commands to the `toolfleet` command."""
    app.add_typer(registry, name="registry")


@registry.command("export")
def export(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write it, if not to stdout.")
    ] = None,
) -> None:
    """Write the registry as YAML: equal registries give equal bytes.

    Values of `env` and `headers` are in it, so a file is made readable by its owner alone.
    """
    with asking() as fleet:
        text = to_yaml(fleet.ask("GET", "registry"))
    if output is None:
        sys.stdout.write(text)
        return
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)


@registry.command("apply")
def apply(
    file: Annotated[Path, typer.Argument(help="YAML or JSON, as `export` writes it; - for stdin.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the plan.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a file so, in one step: what it does not name is removed. Prints the plan first."""
    document = read_file(file)
    if not isinstance(document, dict):
        raise typer.BadParameter(f"{file} holds no registry document")
    with asking() as fleet:
        plan = fleet.ask("PUT", "registry", body=document, query={"dry_run": True})
        if not as_json:
            show_plan(plan["steps"])
        if plan["steps"] and not dry_run:
            if not yes and sys.stdin.isatty() and str(file) != "-":
                typer.confirm("Do this?", abort=True)
            plan = fleet.ask("PUT", "registry", body=document)
        if as_json:
            show(plan, as_json)
        elif plan["applied"]:
            typer.echo(f"{len(plan['steps'])} steps done")


def to_yaml(document: Any) -> str:
    """Return a document as YAML text, its keys in their order."""
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100)


def show_plan(steps: list[dict[str, str]]) -> None:
    """Print what is to be done, a line a step."""
    if not steps:
        typer.echo("nothing to do: the registry is so already")
    for step in steps:
        detail = f" {step['detail']}" if step["detail"] else ""
        mark = _MARKS[step["action"]]
        typer.echo(f"{mark} {step['action']} {step['kind']} {step['name']}{detail}")
