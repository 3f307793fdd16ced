"""`toolfleet audit`: show it, verify it, export it, remove what is old, and its key.

Showing, exporting and verifying a running fleet's audit ask its API. An export is verified without
a fleet; what is old is removed, and the key is made, by who has the database and the key's file.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from compose.printing import AsJson, asking, show

if TYPE_CHECKING:
    from registry.settings import Settings
    from registry.signing import PublicKeys

audit = typer.Typer(help="What was changed by whom, and whether that is all of it.")

_AUDIT = ("id", "at", "actor", "event", "tenant_id", "run_id", "call_id", "details")
_PROBLEMS = ("kind", "chain", "seq", "what")
_READ_AT_ONCE = 10_000

Tenant = Annotated[str | None, typer.Option(help="Only this tenant's.")]


@audit.callback(invoke_without_command=True)
def entries(
    context: typer.Context,
    tenant: Tenant = None,
    run: Annotated[str | None, typer.Option(help="Only this run's.")] = None,
    call: Annotated[str | None, typer.Option(help="Only this call's.")] = None,
    event: Annotated[str | None, typer.Option(help="Only this event, or family: call.*")] = None,
    before: Annotated[int | None, typer.Option(help="Only entries before this id.")] = None,
    limit: Annotated[int, typer.Option(help="How many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Show what was changed by whom, newest first."""
    if context.invoked_subcommand is not None:
        return
    wanted = {
        "tenant": tenant, "run": run, "call": call, "event": event, "before": before,
        "limit": limit,
    }  # fmt: skip
    query = {name: value for name, value in wanted.items() if value is not None}
    with asking() as fleet:
        show(fleet.ask("GET", "audit", query=query), as_json, _AUDIT)


@audit.command("export")
def export(
    output: Annotated[Path, typer.Option("--output", "-o", help="The file; - for stdout.")],
    how: Annotated[
        Literal["jsonl", "cef"], typer.Option("--format", help="jsonl can be verified.")
    ] = "jsonl",
    tenant: Tenant = None,
    since: Annotated[str | None, typer.Option(help="From this date or instant on.")] = None,
) -> None:
    """Write the audit, or a tenant's part of it, to a file."""
    query = {"format": how} | ({"tenant": tenant} if tenant else {})
    query |= {"since": _instant(since).isoformat()} if since else {}
    with asking() as fleet:
        content = fleet.download("audit", "export", query=query)
        if str(output) == "-":
            sys.stdout.buffer.writelines(content)
            return
        with output.open("wb") as file:
            file.writelines(content)


@audit.command("verify")
def verify(
    file: Annotated[
        Path | None,
        typer.Argument(help="An export; without one the fleet's own audit is verified."),
    ] = None,
    checkpoints: Annotated[
        list[Path] | None,
        typer.Option(help="Files of checkpoints kept outside; by default the data folder's."),
    ] = None,
    public_key: Annotated[
        list[Path] | None, typer.Option(help="Files of public keys; by default the data folder's.")
    ] = None,
    unsealed_after: Annotated[
        float, typer.Option(help="Seconds after which an entry has to be sealed.")
    ] = 60,
    tenant: Tenant = None,
    as_json: AsJson = False,
) -> None:
    """Say whether the audit is whole and unchanged, and if not, exactly what is wrong.

    Ends with status 1 when something is wrong.
    """
    if file is None:
        verdict = _verify_fleet(tenant)
    else:
        verdict = _verify_file(file, checkpoints, public_key, timedelta(seconds=unsealed_after))
    if as_json:
        show(verdict, as_json)
    else:
        facts = {k: v for k, v in verdict.items() if k not in {"problems", "notes"}}
        show(facts, as_json)
        for note in verdict["notes"]:
            typer.echo(f"note: {note}")
        if verdict["problems"]:
            show(verdict["problems"], as_json, _PROBLEMS)
    if not verdict["sound"]:
        raise typer.Exit(1)


@audit.command("prune")
def prune(
    before: Annotated[str, typer.Option(help="Remove what was written before this date.")],
    as_json: AsJson = False,
) -> None:
    """Remove old entries; a signed cut takes their place, so that the rest still verifies.

    Needs the database and the audit's key: on the machine of the fleet, or with the settings of
    its steward.
    """
    from registry.errors import FleetError

    try:
        removed = asyncio.run(_prune(_instant(before)))
    except FleetError as error:
        _refuse(error)
    show({"removed": sum(removed.values()), "chains": removed}, as_json)


@audit.command("key")
def key(
    new: Annotated[bool, typer.Option("--new", help="Make a new one, used from now on.")] = False,
) -> None:
    """Print the public keys by which the audit is verified, the newest last.

    With --new the old private key is gone; the public ones stay, for what was signed before.
    """
    from registry.signing import make_key, public_file

    path = _settings().audit_key_path
    if new:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        make_key(path)
    try:
        typer.echo(public_file(path).read_text(), nl=False)
    except OSError:
        typer.echo(
            f"there is no key beside {path}: `toolfleet audit key --new` makes one", err=True
        )
        raise typer.Exit(1) from None


def _verify_fleet(tenant: str | None) -> dict[str, Any]:
    from compose.api_client import AskError

    with asking() as fleet:
        query = {"tenant": tenant} if tenant else {}
        last: dict[str, Any] = {}
        for line in _lines(fleet.download("audit", "verify", query=query)):
            last = json.loads(line)
        if "problem" in last:
            problem = last["problem"]
            raise AskError(problem["code"], problem["message"], problem.get("hint", ""))
        if "verdict" not in last:
            raise AskError("internal", "the API broke off before its verdict", "see its log")
        verdict: dict[str, Any] = last["verdict"]
        return verdict


def _verify_file(
    file: Path, checkpoints: list[Path] | None, keys: list[Path] | None, unsealed_after: timedelta
) -> dict[str, Any]:
    from registry.verification import Verifier

    settings = _settings()
    outside = checkpoints or [path for path in [settings.audit_checkpoints_path] if path.exists()]
    try:
        verifier = Verifier(
            _public_keys(keys, settings),
            _lines_of(outside),
            unsealed_after=unsealed_after,
        )
        with file.open("rb") as lines:
            verifier.feed(lines)
    except OSError as error:
        raise typer.BadParameter(f"{error.filename} cannot be read: {error.strerror}") from error
    verdict = verifier.finish().as_dict()
    if not outside:
        verdict["notes"].append(
            "no checkpoints from outside: whether the end is missing, or all of it was written "
            "anew, cannot be seen"
        )
    return verdict


def _public_keys(files: list[Path] | None, settings: Settings) -> PublicKeys:
    from registry.signing import PublicKeys, public_file

    paths = files or [it for it in [public_file(settings.audit_key_path)] if it.exists()]
    try:
        return PublicKeys.parse(line for path in paths for line in path.read_text().splitlines())
    except ValueError as error:
        raise typer.BadParameter(f"a file of public keys cannot be used: {error}") from error


async def _prune(before: datetime) -> dict[str, int]:
    from registry import retention
    from registry.database import Database
    from registry.signing import Signer, public_file, read_public_keys
    from registry.tenants import LOCAL

    settings = _settings()
    signer = Signer.load(settings.audit_key_path)
    keys = read_public_keys(public_file(settings.audit_key_path))
    database = Database(_database_url(settings), pool_size=1, application="toolfleet audit")
    try:
        return await retention.prune(database, signer, keys, before, actor=LOCAL)
    finally:
        await database.close()


def _database_url(settings: Settings) -> str:
    from compose.data_folder import DataFolder

    facts = DataFolder(settings.data_dir).read_facts()
    url = settings.database_url or (facts.database_url if facts else "")
    if not url:
        raise typer.BadParameter(
            f"no fleet runs on {settings.data_dir}: start it, or set TOOLFLEET_DATABASE_URL"
        )
    return url


def _settings() -> Settings:
    from registry.settings import get_settings

    return get_settings()


def _instant(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no date: write 2026-01-31, or an instant") from error
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines of a stream of bytes."""
    left = b""
    for chunk in chunks:
        *whole, left = (left + chunk).split(b"\n")
        yield from whole
    if left:
        yield left


def _lines_of(paths: Iterable[Path]) -> Iterator[bytes]:
    for path in paths:
        with path.open("rb") as file:
            yield from file


def _refuse(error: Any) -> None:
    typer.echo(f"{error.code.code}: {error.message}", err=True)
    if error.hint:
        typer.echo(error.hint, err=True)
    raise typer.Exit(1)
