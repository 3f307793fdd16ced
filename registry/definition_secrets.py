"""The record's side of the secrets within definitions: their data keys, and those of older rows.

Who adds versions has `DefinitionSecrets` prepared before the transaction, because the operator's
keys may be far away, in a Vault. Who only looks at definitions has no use for this module: what is
sealed stays so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Final, NoReturn

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from registry import audit, data_keys
from registry.credentials import SHARED
from registry.data_keys import NewKey, place_of_key
from registry.database import Database, to_json
from registry.definitions import ServerDefinition, content_digest
from registry.envelope import KeyWrapper, SealedError, Wrapped
from registry.errors import Code, FleetError
from registry.key_file import KeyFile
from registry.sealed_definitions import keys_in, seal, secrets_in, unseal, unsealed_in

NO_KEYS: Final = KeyFile(None)
"""The keys of who has none: they refuse whatever needs one."""
_PARTS: Final = ("env", "headers", "url")
_PERHAPS: Final = text(
    "SELECT id FROM server_versions WHERE definition -> 'env' <> '{}'"
    " OR definition -> 'headers' <> '{}' OR definition ->> 'url' LIKE '%?%' ORDER BY id"
)
_BODY: Final = text("SELECT definition FROM server_versions WHERE id = :id FOR UPDATE")
_BODIES: Final = text(
    "SELECT definition - 'openapi' AS definition FROM server_versions WHERE id = ANY(:ids)"
    " ORDER BY id"
)
# The states are spelled as in an index of `calls`.
_APPROVALS: Final = text(
    "SELECT 1 FROM calls WHERE state IN ('queued', 'running', 'awaiting_approval')"
    " AND server_version_id = :id AND (state = 'awaiting_approval' OR decided_by IS NOT NULL)"
    " LIMIT 1"
)


class DefinitionSecrets:
    """The data keys of definitions' secrets, as one change or one look needs them.

    Whatever asks for a key raises `credential_unavailable`, naming the server.
    """

    def __init__(self, keys: KeyWrapper) -> None:
        self._wrapper = keys
        self._new: dict[tuple[str, str], NewKey] = {}
        self._known: dict[str, bytes] = {}

    @classmethod
    async def prepared(
        cls, database: Database, keys: KeyWrapper, definitions: Iterable[ServerDefinition]
    ) -> DefinitionSecrets:
        """Get what it takes to put these versions into the record, or to compare them with it."""
        prepared = cls(keys)
        bodies = {
            (it.name, it.version): it.model_dump(mode="json", exclude={"openapi"})
            for it in definitions
        }
        wanted = {name: body for name, body in bodies.items() if secrets_in(body)}
        if not wanted:
            return prepared
        names, versions = zip(*wanted, strict=True)
        async with database.transaction() as connection:
            result = await connection.execute(
                text(
                    "SELECT v.server_name, v.version, v.definition - 'openapi' AS definition"
                    " FROM server_versions v"
                    " JOIN unnest(CAST(:names AS text[]), CAST(:versions AS text[]))"
                    " AS w (name, version) ON (w.name, w.version) = (v.server_name, v.version)"
                ),
                {"names": list(names), "versions": list(versions)},
            )
            there = {(row.server_name, row.version): row.definition for row in result}
        with suppress(FleetError):  # who compares with them is told
            await prepared.learn(database, there.values())
        # A version that is there stays there, so it takes no key of its own any more.
        for name in wanted.keys() - there.keys():
            prepared._new[name] = await prepared._made(wanted[name])
        return prepared

    async def learn(self, database: Database, bodies: Iterable[Mapping[str, Any]]) -> None:
        """Get the data keys of definitions of the record, outside of any transaction."""
        whose = self._unknown(bodies)
        if whose:
            async with database.transaction() as connection:
                found = await data_keys.find(connection, whose, SHARED)
            await self._unwrap(whose, found)

    async def learn_within(
        self, connection: AsyncConnection, bodies: Iterable[Mapping[str, Any]]
    ) -> None:
        """Get those that were not known before the transaction: somebody was quicker."""
        whose = self._unknown(bodies)
        if whose:
            await self._unwrap(whose, await data_keys.find(connection, whose, SHARED))

    def opened(self, body: Mapping[str, Any]) -> ServerDefinition:
        """Return a definition of the record, whose data keys are known, with its secrets."""
        try:
            return ServerDefinition.model_validate(unseal(body, self._known))
        except SealedError as error:
            hint = (
                "its row or its keys are not those it was registered with: "
                "register the server under a new version"
            )
            _cannot_open(body, FleetError(Code.CREDENTIAL_UNAVAILABLE, str(error), hint=hint))

    def sealed(self, definition: ServerDefinition) -> dict[str, Any]:
        """Return a definition as its version is to be put into the record."""
        body = definition.model_dump(mode="json")
        if not secrets_in(body):
            return body
        new = self._new[definition.name, definition.version]
        return seal(body, new.id, new.key)

    async def keep(self, connection: AsyncConnection, definition: ServerDefinition) -> None:
        """Put the data key of what `sealed` returns into the record, together with that."""
        new = self._new.get((definition.name, definition.version))
        if new is not None:
            await data_keys.add(connection, new)

    def _unknown(self, bodies: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
        found = {key_id: body for body in bodies for key_id in keys_in(body)}
        return {key_id: body for key_id, body in found.items() if key_id not in self._known}

    async def _unwrap(
        self, whose: Mapping[str, Mapping[str, Any]], found: Mapping[str, Wrapped]
    ) -> None:
        for key_id, wrapped in found.items():
            try:
                key = await self._wrapper.unwrap(wrapped, place_of_key(SHARED, key_id))
            except FleetError as error:
                _cannot_open(whose[key_id], error)
            self._known[key_id] = key

    async def _made(self, body: Mapping[str, Any]) -> NewKey:
        try:
            return await data_keys.make(self._wrapper, SHARED)
        except FleetError as error:
            raise FleetError(
                error.code,
                f"the secrets of server {body['name']!r} cannot be kept: {error.message}",
                hint=error.hint,
                details={"server": body["name"], "secrets": secrets_in(body)},
                retry_after_s=error.retry_after_s,
            ) from error


async def in_the_clear(database: Database) -> list[str]:
    """Return the versions (``server@version``) whose secrets an earlier release left unsealed."""
    async with database.transaction() as connection:
        ids = [row.id for row in await connection.execute(_PERHAPS)]
        result = await connection.execute(_BODIES, {"ids": ids})
        bodies = [row.definition for row in result]
    return [f"{it['name']}@{it['version']}" for it in bodies if unsealed_in(it)]


async def seal_older(database: Database, keys: KeyWrapper, *, actor: str) -> dict[str, int]:
    """Seal what versions of an earlier release have in the clear; say how many were, and are left.

    One is left for the next time while a call of it waits for its approval or has one: approvals
    are bound to the digest, which is another one without the secrets. What is interrupted goes on
    when it is asked for again. Raises `credential_unavailable`, having done a part.
    """
    async with database.transaction() as connection:
        ids = [row.id for row in await connection.execute(_PERHAPS)]
    done = [await _seal_one(database, keys, id_, actor) for id_ in ids]
    return {"sealed": done.count(True), "left": done.count(False)}


async def _seal_one(
    database: Database, keys: KeyWrapper, version_id: int, actor: str
) -> bool | None:
    """Return whether a version's secrets were sealed; None if there was nothing to seal."""
    async with database.transaction() as connection:
        body = (await connection.execute(_BODY, {"id": version_id})).scalar_one()
    names = unsealed_in(body)
    if not names:
        return None
    new = await data_keys.make(keys, SHARED)
    sealed = seal(body, new.id, new.key)
    async with database.transaction() as connection:
        now = (await connection.execute(_BODY, {"id": version_id})).scalar_one()
        if now != body:  # somebody else did it meanwhile
            return None
        if (await connection.execute(_APPROVALS, {"id": version_id})).first() is not None:
            return False
        await data_keys.add(connection, new)
        await connection.execute(
            text(
                "UPDATE server_versions SET digest = :digest,"
                " definition = definition || CAST(:parts AS jsonb) WHERE id = :id"
            ),
            {
                "id": version_id,
                "parts": to_json({part: sealed[part] for part in _PARTS if part in sealed}),
                "digest": content_digest(ServerDefinition.model_validate(sealed)),
            },
        )
        details = {"server": body["name"], "version": body["version"], "secrets": names}
        await audit.record(connection, actor, "server.secrets_sealed", details)
    return True


def _cannot_open(body: Mapping[str, Any], error: FleetError) -> NoReturn:
    raise FleetError(
        error.code,
        f"the secrets of version {body['version']} of server {body['name']!r} cannot be opened: "
        + error.message,
        hint=error.hint,
        details={"server": body["name"], "version": body["version"]},
        retry_after_s=error.retry_after_s,
    ) from error
