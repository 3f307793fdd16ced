"""`toolfleet servers import`: a file's servers are read, completed, and registered one by one.

A value for a placeholder comes from `--set`, the editor's own (folders), the environment, the
file's default, or is asked for on a terminal, in this order. What becomes of one server says
nothing about the others.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Final

import typer
import yaml
from dotenv import dotenv_values

from compose.api_client import ApiClient, AskError
from compose.client_files import read_document
from compose.importing import WORKSPACE, Imported, Need, import_servers, legal_name
from registry.errors import FleetError

_DOTTED: Final = ".mcp.json"
"""The file of Claude Code, which lies in the project's own folder."""


@dataclass(frozen=True)
class Wishes:
    """The options of the command."""

    given: Sequence[str]
    only: Sequence[str]
    networks: Sequence[str]
    version: str
    name: str | None
    url: str | None
    dry_run: bool


@dataclass(frozen=True)
class Row:
    """What became of one server of the file.

    ``outcome`` is `added`, `would be added`, `unchanged`, `skipped` or `refused`.
    """

    server: str
    name: str
    outcome: str
    reason: str = ""
    notes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the row as it is printed (JSON-ready)."""
        left_out = [f"ignored: {', '.join(self.ignored)}"] if self.ignored else []
        why = "; ".join(filter(None, [self.reason, *self.notes, *left_out]))
        ignored = [f"{self.server}/{path}" for path in self.ignored]
        return {
            "server": self.server,
            "name": self.name,
            "outcome": self.outcome,
            "why": why,
            "ignored": ignored,
        }


def import_file(
    fleet: ApiClient, file: Path, text: str, wishes: Wishes
) -> tuple[list[Row], AskError | None]:
    """Register a file's servers; return what became of each, and what is still missing.

    Raises `AskError` for a file that is none, `typer.BadParameter` for options that do not fit it.
    """
    try:
        document = _read(text)
        if isinstance(document, Mapping) and "openapi" in document:
            return [_import_openapi(fleet, document, wishes)], None
        servers = import_servers(document)
    except FleetError as error:
        raise AskError(error.code.code, f"{file}: {error.message}", error.hint) from error
    if wishes.name or wishes.url:
        raise typer.BadParameter("--name and --url are for OpenAPI documents")
    servers = _chosen(servers, wishes.only)
    values = _values(servers, file, wishes.given)
    missing = _missing(servers, values)
    if missing and sys.stdin.isatty() and str(file) != "-":
        values |= {need.name: _ask(need) for need in missing}
        missing = []
    rows = [_import_one(fleet, it, values, wishes) for it in servers]
    return rows, _not_given(missing) if missing else None


def _read(text: str) -> Any:
    """Return a client's JSON, or an OpenAPI document in JSON or YAML."""
    try:
        return read_document(text)
    except FleetError:
        try:
            document = yaml.safe_load(text)
        except (yaml.YAMLError, RecursionError):
            document = None
        if isinstance(document, Mapping) and "openapi" in document:
            return document
        raise


def _chosen(servers: list[Imported], only: Sequence[str]) -> list[Imported]:
    names = {name for it in servers for name in (it.label, it.name)}
    for name in only:
        if name not in names:
            known = ", ".join(it.label for it in servers) or "none"
            raise typer.BadParameter(f"the file has no server {name!r}: it has {known}")
    return [it for it in servers if not only or {it.label, it.name} & set(only)]


def _values(servers: list[Imported], file: Path, given: Sequence[str]) -> dict[str, str]:
    """Return what is known of the values that these servers need."""
    needs = {need.name for it in servers for need in it.needs}
    values: dict[str, str] = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals:
            raise typer.BadParameter(f"--set takes NAME=VALUE, not {name!r}")
        if name not in needs:
            known = ", ".join(sorted(needs)) or "none"
            raise typer.BadParameter(f"nothing in the file is named {name!r}; it has {known}")
        values[name] = value
    own = {**os.environ, **_of_the_editor(file, values.get(WORKSPACE))}
    return {name: own[name] for name in needs if name in own} | values


def _of_the_editor(file: Path, workspace: str | None) -> dict[str, str]:
    """Return what an editor's own placeholders stand for, the open folder as far as it is known."""
    values = {"userHome": str(Path.home()), "pathSeparator": os.sep, "/": os.sep}
    folder = file.absolute().parent
    if workspace is None and folder.name.startswith("."):  # .vscode, .cursor, .roo, .gemini
        workspace = str(folder.parent)
    elif workspace is None and file.name == _DOTTED:
        workspace = str(folder)
    if workspace is not None:
        values |= {WORKSPACE: workspace, "workspaceFolderBasename": Path(workspace).name}
    return values


def _missing(servers: Iterable[Imported], values: Mapping[str, str]) -> list[Need]:
    return list({need.name: need for it in servers for need in it.missing(values)}.values())


def _ask(need: Need) -> str:
    choice = f" ({', '.join(need.options)})" if need.options else ""

    def check(answer: str) -> str:
        if need.options and answer not in need.options:
            raise typer.BadParameter(f"it is one of {', '.join(need.options)}")
        return answer

    question = f"{need.name}: {need.description}{choice}"
    return str(typer.prompt(question, hide_input=need.secret, value_proc=check, err=True))


def _not_given(missing: Iterable[Need]) -> AskError:
    listed = "".join(f"\n  {need.name}: {need.description}" for need in missing)
    return AskError(
        "missing_values",
        f"nothing says what these names of the file stand for:{listed}",
        "give each with --set NAME=VALUE or in the environment; on a terminal they are asked for",
    )


def _import_one(
    fleet: ApiClient, imported: Imported, values: Mapping[str, str], wishes: Wishes
) -> Row:
    def row(outcome: str, reason: str = "") -> Row:
        return Row(imported.path, imported.name, outcome, reason, imported.notes, imported.ignored)

    if imported.reason:
        return row("skipped" if imported.skipped else "refused", imported.reason)
    if missing := imported.missing(values):
        return row("refused", f"no value for {', '.join(need.name for need in missing)}")
    for need in imported.needs:
        if need.options and values.get(need.name, need.options[0]) not in need.options:
            return row("refused", f"{need.name} is one of {', '.join(need.options)}")
    filled = imported.filled(values)
    definition = dict(filled.definition)
    try:
        if filled.env_file:
            definition["env"] = {**_read_env(filled.env_file), **definition.get("env", {})}
    except OSError as error:
        return row("refused", f"its envFile {filled.env_file} cannot be read: {error.strerror}")
    return row(*_register(fleet, definition, wishes))


def _read_env(path: str) -> dict[str, str]:
    found = dotenv_values(stream=StringIO(Path(path).read_text()), interpolate=False)
    return {name: value for name, value in found.items() if value is not None}


def _register(fleet: ApiClient, definition: Mapping[str, Any], wishes: Wishes) -> tuple[str, str]:
    """Return what became of a definition, and why."""
    body = {**definition, "version": wishes.version}
    if wishes.networks and "url" in body:
        body["networks"] = list(wishes.networks)
    query = {"dry_run": True} if wishes.dry_run else None
    try:
        fleet.ask("POST", "servers", body=body, query=query)
    except AskError as error:
        if error.details.get("same") is True:
            return "unchanged", ""
        problems = [f"{it['path']}: {it['problem']}" for it in error.details.get("problems", [])]
        told = "; ".join(problems) or f"{error.message}: {error.hint}".rstrip(": ")
        return "refused", told
    return ("would be added" if wishes.dry_run else "added"), ""


def _import_openapi(fleet: ApiClient, document: Mapping[str, Any], wishes: Wishes) -> Row:
    info = document.get("info")
    title = str(info.get("title", "")) if isinstance(info, Mapping) else ""
    from compose.openapi_import import definition_from_openapi

    definition = definition_from_openapi(
        document,
        name=wishes.name or legal_name(title),
        url=wishes.url,
        networks=list(wishes.networks),
    )
    outcome, why = _register(fleet, definition, wishes)
    return Row(title or "the document", str(definition["name"]), outcome, why)
