"""The whole registry as one document: what operators said, written out and made so.

It holds tiers, tenants, and servers with their versions and rollouts; not what the fleet found
out by itself (listings, calls), nor keys. Values of ``env`` and ``headers`` are in it, secrets in
the clear: keep it as you keep them. `apply` is one transaction: all of a plan, or nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, StrictInt
from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from registry import catalog, policies, rollouts
from registry.database import Database
from registry.definition_secrets import NO_KEYS, DefinitionSecrets
from registry.definitions import ServerDefinition, digest, parse_definition
from registry.envelope import KeyWrapper
from registry.errors import Code, FleetError
from registry.problems import validated
from registry.rollouts import RolloutPlan
from registry.tiers import TenantDefinition, TierDefinition

FORMAT: Final = 1


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TenantEntry(TenantDefinition):
    """A tenant with its place among tenants, on which its share in rollouts rests."""

    ordinal: StrictInt | None = None

    @property
    def definition(self) -> TenantDefinition:
        """Return the tenant without its place."""
        return TenantDefinition.model_validate(self.model_dump(exclude={"ordinal"}))


class ServerEntry(_Strict):
    """A server: its versions as they came, the one that is served, and a rollout."""

    name: str
    serve: str
    versions: tuple[dict[str, Any], ...]
    rollout: RolloutPlan | None = None

    def definitions(self, *, stored: bool = False) -> dict[str, ServerDefinition]:
        """Return its definitions by version; raise `invalid_definition`.

        Those that are ``stored`` were registered, and are not asked for today's rules again.
        """
        read = ServerDefinition.model_validate if stored else parse_definition
        found = [read({**body, "name": self.name}) for body in self.versions]
        return {definition.version: definition for definition in found}


class RegistryDocument(_Strict):
    """Everything that operators said."""

    toolfleet: Literal[1] = FORMAT
    tiers: tuple[TierDefinition, ...] = ()
    tenants: tuple[TenantEntry, ...] = ()
    servers: tuple[ServerEntry, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return it JSON-ready, defaults left out: equal registries, equal documents."""
        body = self.model_dump(mode="json", exclude_defaults=True)
        return {"toolfleet": FORMAT, **body}


@dataclass(frozen=True)
class Step:
    """One thing that has to be done to make a document so."""

    action: Literal["add", "change", "remove", "reset", "serve"]
    kind: Literal["tier", "tenant", "server", "version", "rollout"]
    name: str
    detail: str = ""


def parse_document(body: Any) -> RegistryDocument:
    """Validate a document, its servers' definitions too; raise `invalid_definition` with paths."""
    document = validated(
        RegistryDocument,
        body,
        "registry document",
        hint="`toolfleet registry export` shows what one looks like",
    )
    for number, server in enumerate(document.servers):
        _check_server(server, f"servers/{number}")
    for what, names in (
        ("tier", [tier.name for tier in document.tiers]),
        ("tenant", [tenant.name for tenant in document.tenants]),
        ("server", [server.name for server in document.servers]),
    ):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise _invalid(f"{what} {twice[0]!r} is in the document twice", f"{what}s")
    return document


async def export(database: Database, keys: KeyWrapper = NO_KEYS) -> RegistryDocument:
    """Return the registry as it is.

    Raises `credential_unavailable` where definitions have secrets and ``keys`` cannot be used.
    """
    secrets = DefinitionSecrets(keys)
    async with database.transaction() as connection:
        record = await _read(connection)
    await secrets.learn(database, [row.definition for row in record.servers])
    return _written(record, lambda row: secrets.opened(row.definition))


async def apply(
    database: Database,
    wanted: RegistryDocument,
    *,
    actor: str,
    keys: KeyWrapper = NO_KEYS,
    dry_run: bool = False,
) -> list[Step]:
    """Make a document so, or only say how; return the steps, none when it is so already.

    What the document does not name is removed; tenants stay, with nothing said about them. Raises
    what is wrong with a step, and then nothing was done; `credential_unavailable` where a wanted
    definition has secrets and ``keys`` cannot be used.
    """
    definitions = [it for server in wanted.servers for it in server.definitions().values()]
    named = {(it.name, it.version) for it in definitions}
    secrets = await DefinitionSecrets.prepared(database, keys, definitions)

    def read(row: Row[Any]) -> ServerDefinition:
        # What nobody compares stays sealed: a key that is lost keeps no server from being removed.
        if (row.name, row.version) in named:
            return secrets.opened(row.definition)
        return ServerDefinition.model_validate(row.definition)

    async with database.transaction() as connection:
        await catalog.lock(connection)
        record = await _read(connection)
        compared = [it.definition for it in record.servers if (it.name, it.version) in named]
        await secrets.learn_within(connection, compared)
        now = _written(record, read)
        steps = plan(now, wanted)
        if not dry_run:
            await _make_so(connection, now, wanted, secrets, actor)
    return steps


def plan(now: RegistryDocument, wanted: RegistryDocument) -> list[Step]:
    """Return what has to be done to come from one document to another.

    Raises `version_exists` for a version that is there with other content.
    """
    return [
        *_plan_named("tier", _by_name(now.tiers), _by_name(wanted.tiers), gone="remove"),
        *_plan_named("tenant", _tenants(now), _tenants(wanted), gone="reset"),
        *_plan_servers(_by_name(now.servers), _by_name(wanted.servers)),
    ]


def _plan_named(
    kind: Literal["tier", "tenant"],
    now: Mapping[str, Any],
    wanted: Mapping[str, Any],
    *,
    gone: Literal["remove", "reset"],
) -> Iterable[Step]:
    for name in sorted(now.keys() | wanted.keys()):
        if name not in now:
            yield Step("add", kind, name)
        elif name not in wanted:
            if gone == "remove" or now[name] != TenantDefinition(name=name):
                yield Step(gone, kind, name)
        elif now[name] != wanted[name]:
            yield Step("change", kind, name)


def _plan_servers(
    now: Mapping[str, ServerEntry], wanted: Mapping[str, ServerEntry]
) -> Iterable[Step]:
    for name in sorted(now.keys() | wanted.keys()):
        old, new = now.get(name), wanted.get(name)
        if new is None:
            yield Step("remove", "server", name)
        else:
            if old is None:
                yield Step("add", "server", name)
            yield from _plan_versions(old, new)
            yield from _plan_rollout(old.rollout if old else None, new)


def _plan_versions(old: ServerEntry | None, new: ServerEntry) -> Iterable[Step]:
    known = old.definitions(stored=True) if old else {}
    for version, definition in new.definitions().items():
        if version not in known:
            yield Step("add", "version", new.name, version)
        elif _content(known[version]) != _content(definition):
            raise FleetError(
                Code.VERSION_EXISTS,
                f"version {version} of server {new.name!r} is there with other content",
                hint="versions never change: give the new content a version of its own",
            )
    if old is not None and old.serve != new.serve:
        yield Step("serve", "version", new.name, new.serve)


def _plan_rollout(old: RolloutPlan | None, new: ServerEntry) -> Iterable[Step]:
    if new.rollout == old:
        return
    if new.rollout is None:
        yield Step("remove", "rollout", new.name)
    else:
        yield Step("change" if old else "add", "rollout", new.name, new.rollout.version)


@dataclass(frozen=True)
class _Record:
    """What of the record makes the document."""

    tiers: tuple[TierDefinition, ...]
    tenants: tuple[TenantEntry, ...]
    servers: Sequence[Row[Any]]
    """A row of `_SERVERS` for each version, its secrets sealed."""


async def _read(connection: AsyncConnection) -> _Record:
    written = await connection.execute(text("SELECT definition FROM tiers ORDER BY name"))
    tiers = tuple(TierDefinition.model_validate(row.definition) for row in written)
    known = await connection.execute(
        text("SELECT id, ordinal, definition FROM tenants ORDER BY ordinal")
    )
    tenants = tuple(
        TenantEntry.model_validate({**row.definition, "name": row.id, "ordinal": row.ordinal})
        for row in known
    )
    return _Record(tiers, tenants, (await connection.execute(_SERVERS)).all())


def _written(record: _Record, read: Callable[[Row[Any]], ServerDefinition]) -> RegistryDocument:
    servers: dict[str, dict[str, Any]] = {}
    for row in record.servers:
        definition = read(row)
        body = definition.model_dump(mode="json", exclude_defaults=True, exclude={"name"})
        entry = servers.setdefault(row.name, {"name": row.name, "versions": []})
        entry["versions"].append({"version": definition.version, **body})
        entry["rollout"] = row.plan
        if row.current:
            entry["serve"] = definition.version
    return RegistryDocument(
        tiers=record.tiers,
        tenants=record.tenants,
        servers=tuple(ServerEntry.model_validate(entry) for entry in servers.values()),
    )


_SERVERS: Final = text(
    "SELECT s.name, v.version, v.definition, v.id = s.current_version_id AS current, r.plan"
    " FROM servers s JOIN server_versions v ON v.server_name = s.name"
    " LEFT JOIN rollouts r ON r.server_name = s.name AND r.state = 'active'"
    " WHERE s.removed_at IS NULL ORDER BY s.name, v.id"
)


async def _make_so(
    connection: AsyncConnection,
    now: RegistryDocument,
    wanted: RegistryDocument,
    secrets: DefinitionSecrets,
    actor: str,
) -> None:
    tiers, known_tiers = _by_name(wanted.tiers), _by_name(now.tiers)
    for name, tier in tiers.items():
        if known_tiers.get(name) != tier:
            await policies.write_tier(connection, tier, actor=actor)
    await _make_tenants_so(connection, now, wanted, actor)
    for name in known_tiers.keys() - tiers.keys():
        await policies.delete_tier(connection, name, actor=actor)
    servers, known_servers = _by_name(wanted.servers), _by_name(now.servers)
    for name in known_servers.keys() - servers.keys():
        await catalog.delete_server(connection, name, actor=actor)
    for name, server in servers.items():
        await _make_server_so(connection, known_servers.get(name), server, secrets, actor)


async def _make_tenants_so(
    connection: AsyncConnection, now: RegistryDocument, wanted: RegistryDocument, actor: str
) -> None:
    tenants, known = _tenants(wanted), _tenants(now)
    changed = [entry for entry in wanted.tenants if known.get(entry.name) != entry.definition]
    taken = {entry.ordinal for entry in now.tenants}
    # Those whose place is taken come last: they must not take another's.
    for entry in sorted(changed, key=lambda it: it.ordinal in taken):
        ordinal = None if entry.ordinal in taken else entry.ordinal
        await policies.write_tenant(connection, entry.definition, actor=actor, ordinal=ordinal)
    for name in known.keys() - tenants.keys():
        if known[name] != TenantDefinition(name=name):
            await policies.write_tenant(connection, TenantDefinition(name=name), actor=actor)


async def _make_server_so(
    connection: AsyncConnection,
    now: ServerEntry | None,
    wanted: ServerEntry,
    secrets: DefinitionSecrets,
    actor: str,
) -> None:
    definitions = wanted.definitions()
    if now is None:
        await connection.execute(
            text("INSERT INTO servers (name) VALUES (:name) ON CONFLICT DO NOTHING"),
            {"name": wanted.name},
        )
    known = now.definitions(stored=True) if now else {}
    for version, definition in definitions.items():
        if version not in known:
            await catalog.refuse_prefix(connection, definition)
            await catalog.put_version(
                connection, definition, secrets,
                actor=actor, event="server.version_added", serve=False,
            )  # fmt: skip
    if now is None or now.serve != wanted.serve:
        await catalog.replace_rollout(connection, wanted.name, actor)
        id_ = await catalog.version_id(connection, wanted.name, wanted.serve)
        await catalog.switch(connection, wanted.name, id_)
        await catalog.announce(
            connection, wanted.name, actor, "server.applied", version=wanted.serve
        )
        now = None
    if (now.rollout if now else None) == wanted.rollout:
        return
    if wanted.rollout is None:
        await catalog.replace_rollout(connection, wanted.name, actor)
    else:
        await rollouts.write_rollout(connection, wanted.name, wanted.rollout, actor=actor)


def _check_server(server: ServerEntry, path: str) -> None:
    try:
        definitions = server.definitions()
    except FleetError as error:
        raise _invalid(f"server {server.name!r}: {error.message}", path, error) from error
    if len(definitions) != len(server.versions):
        raise _invalid(f"server {server.name!r} has a version twice", f"{path}/versions")
    wanted = {"serve": server.serve}
    if server.rollout is not None:
        wanted["rollout/version"] = server.rollout.version
    for field, version in wanted.items():
        if version not in definitions:
            raise _invalid(f"server {server.name!r} has no version {version!r}", f"{path}/{field}")
    prefixes = {definition.prefix for definition in definitions.values()}
    if len(prefixes) > 1:
        raise _invalid(
            f"the versions of server {server.name!r} differ in tool_prefix", f"{path}/versions"
        )


def _invalid(problem: str, path: str, cause: FleetError | None = None) -> FleetError:
    inner = cause.details.get("problems", []) if cause else []
    return FleetError(
        Code.INVALID_DEFINITION,
        f"the registry document is not valid: {path}: {problem}",
        hint="correct it and apply it again: nothing was done",
        details={"problems": [{"path": path, "problem": problem}, *inner]},
    )


def _by_name(entries: Iterable[Any]) -> dict[str, Any]:
    return {entry.name: entry for entry in entries}


def _tenants(document: RegistryDocument) -> dict[str, TenantDefinition]:
    return {entry.name: entry.definition for entry in document.tenants}


def _content(definition: ServerDefinition) -> str:
    return digest(definition.model_dump(mode="json"))
