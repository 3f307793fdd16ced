"""How commands that ask a fleet speak to people and to programs: tables, JSON, problems, files.

A problem is printed as code, message and hint, and ends the command with status 1.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

if TYPE_CHECKING:
    from compose.api_client import ApiClient

AsJson = Annotated[bool, typer.Option("--json", help="Print the API's JSON.")]
WIDTH_OF_A_PIPE = 200
_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all controls but a tab and a line's end


class _Plain(yaml.SafeLoader):
    """YAML of what JSON has: a version such as 2025-06-18 is no date."""


_Plain.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


@contextmanager
def asking() -> Iterator[ApiClient]:
    """Reach the fleet; print what it refuses, and end with status 1."""
    from compose.api_client import AskError, find_fleet

    try:
        with find_fleet() as fleet:
            yield fleet
    except AskError as error:
        from rich.console import Console

        console = Console(stderr=True, highlight=False)
        console.print(printable(f"{error.code}: {error.message}"), style="red", markup=False)
        if error.hint:
            console.print(printable(error.hint), markup=False)
        raise typer.Exit(1) from None


def show(answer: Any, as_json: bool, columns: Sequence[str] = ()) -> None:
    """Print an answer: JSON for programs; a table of ``columns``, or of its fields, for people."""
    if as_json:
        sys.stdout.write(json.dumps(answer, indent=2) + "\n")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=bool(columns))
    if columns:
        for column in columns:
            table.add_column(column.replace("_", " "), overflow="fold")
        for row in _rows(answer):
            table.add_row(*(_cell(row.get(column)) for column in columns))
    else:
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in (answer or {"done": True}).items():
            table.add_row(str(name).replace("_", " "), _cell(value))
    # A pipe has no width of its own, and what is cut there is lost.
    console = Console(highlight=False)
    console.width = console.width if console.is_terminal else WIDTH_OF_A_PIPE
    console.print(table)


def names_of_servers(incomplete: str) -> list[str]:
    """Return the servers whose names begin so, for the shell's completion; none when in doubt."""
    from compose.api_client import AskError, find_fleet

    try:
        with find_fleet() as fleet:
            known = fleet.ask("GET", "servers")["servers"]
    except AskError:
        return []
    return [server["name"] for server in known if server["name"].startswith(incomplete)]


def printable(text: str) -> str:
    """Return a text in which nothing acts on a terminal: servers' words are among what is shown."""
    return _ACTING.sub(lambda found: repr(found.group())[1:-1], text)


def _rows(answer: Any) -> list[Mapping[str, Any]]:
    """Return the rows of a listing, whether it is bare or wrapped with a cursor."""
    if isinstance(answer, Mapping):
        return next((list(value) for value in answer.values() if isinstance(value, list)), [])
    return list(answer)


def _cell(value: Any) -> Any:
    from rich.text import Text

    if value is None:
        return Text("-", style="dim")
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return Text(printable(", ".join(value)))
    if isinstance(value, list) and all(isinstance(item, dict) and "name" in item for item in value):
        return Text(printable(", ".join(item["name"] for item in value)))
    if isinstance(value, list | dict):
        return Text(json.dumps(value, indent=2))
    return Text(printable(str(value)))


def read_file(file: Path) -> Any:
    """Return what a file of JSON or YAML holds (``-``: stdin); refuse what is neither."""
    content = read_text(file)
    with suppress(ValueError):
        return json.loads(content)  # YAML as well, but for tabs
    try:
        return yaml.load(content, Loader=_Plain)  # noqa: S506 - a safe loader, and less
    except yaml.YAMLError as error:
        raise typer.BadParameter(f"{file} is neither JSON nor YAML: {error}") from error


def read_text(file: Path) -> str:
    """Return the text of a file (``-``: stdin)."""
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise typer.BadParameter(f"{file} cannot be read: {reason}") from error


def parse_json(content: str, what: str) -> Any:
    """Return what a text of JSON says; refuse what is none."""
    try:
        return json.loads(content)
    except ValueError as error:
        raise typer.BadParameter(f"{what} is not JSON: {error}") from error


Server = Annotated[str, typer.Argument(help="The server's name.", autocompletion=names_of_servers)]
