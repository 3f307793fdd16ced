"""What servers have beside their tools, and what they say of themselves, by server version.

1. A list is stored as its server wrote it last, without what `screened` leaves out.
2. What a tenant sees is of the versions that `Offer` offers it: rollouts and policies hold here.
3. A stored list that changes counts as a change of the offer (`registry_state.generation`).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import text

from registry.database import Database, to_json
from registry.errors import storable
from registry.hidden_text import first_hidden
from registry.instructions import suspicions
from registry.offer import OfferedVersion
from registry.policy import TenantPolicy
from registry.requests import PROMPTS_GET, RESOURCES_READ, may_ask
from registry.scopes import Scopes
from registry.tools import model_name

logger = logging.getLogger("toolfleet.offerings")

LONGEST_URI: Final = 4_096
_LONGEST_SCREENED: Final = 20_000  # characters of an item's own words; what is longer is left out


class Kind(StrEnum):
    """A kind of row: what a server says of itself, or one of its lists."""

    ABOUT = "about"
    PROMPTS = "prompts"
    RESOURCES = "resources"
    TEMPLATES = "templates"


_CAPABILITIES: Final = ("completions", "logging", "prompts", "resources", "tools")
_NAMED_BY: Final = {Kind.PROMPTS: "name", Kind.RESOURCES: "uri", Kind.TEMPLATES: "uriTemplate"}


def screened(kind: Kind, listed: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the items of a list that may be shown: named, once, and with no hostile description.

    What hides text or speaks to a model against its user is left out, as tools are held for it.
    """
    kept: dict[str, dict[str, Any]] = {}
    for item in listed:
        name = item.get(_NAMED_BY[kind])
        if not isinstance(name, str) or not 0 < len(name) <= LONGEST_URI or name in kept:
            continue
        if problem := _problem(item):
            logger.warning("%s %r is left out: %s", kind.value, name[:200], problem)
        else:
            kept[name] = storable(dict(item))
    return list(kept.values())


def screened_about(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a server says of itself as it may be shown: hostile instructions are left out."""
    able = about.get("capabilities") or {}
    kept: dict[str, Any] = {"capabilities": {it: able[it] for it in _CAPABILITIES if it in able}}
    for part in ("serverInfo", "instructions"):
        said = about.get(part)
        if said and not _hostile(to_json(said) if isinstance(said, dict) else str(said)):
            kept[part] = storable(said)
    return kept


def _problem(item: Mapping[str, Any]) -> str:
    """Say what is hostile in the words of an item, if anything."""
    said = [item.get(word) for word in ("name", "title", "description")]
    for argument in item.get("arguments") or ():
        if isinstance(argument, dict):
            said += [argument.get(word) for word in ("name", "title", "description")]
    return _hostile("\n".join(it for it in said if isinstance(it, str)))


def _hostile(words: str) -> str:
    """Say what is the matter with words that a model is shown, if anything."""
    if len(words) > _LONGEST_SCREENED:
        return f"it is longer than {_LONGEST_SCREENED} characters"
    if hidden := first_hidden(words):
        return f"it has {hidden.what}"
    return next((it.reason for it in suspicions(words)), "")


async def put_offerings(database: Database, version_id: int, found: Mapping[Kind, Any]) -> bool:
    """Store what a version was found to have; say whether any of it changed."""
    rows = []
    for kind, body in found.items():
        try:
            encoded = to_json(body)
        except ValueError:  # NaN is no JSON, and no list has a use for it
            logger.warning("the %s of version %d are no JSON", kind.value, version_id)
            continue
        digest = hashlib.sha256(encoded.encode()).hexdigest()
        rows.append({"version": version_id, "kind": kind.value, "body": encoded, "digest": digest})
    async with database.transaction() as connection:
        changed = 0
        for row in rows:
            result = await connection.execute(_PUT, row)
            changed += result.rowcount
        return changed > 0


_PUT: Final = text(
    "INSERT INTO offerings AS o (server_version_id, kind, body, digest)"
    " VALUES (:version, :kind, CAST(:body AS json), :digest)"
    " ON CONFLICT (server_version_id, kind) DO UPDATE SET body = EXCLUDED.body,"
    " digest = EXCLUDED.digest, listed_at = clock_timestamp() WHERE o.digest <> EXCLUDED.digest"
)


@dataclass(frozen=True)
class Offered:
    """What one server version has beside its tools."""

    about: Mapping[str, Any] = field(default_factory=dict)
    prompts: tuple[dict[str, Any], ...] = ()
    resources: tuple[dict[str, Any], ...] = ()
    templates: tuple[dict[str, Any], ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict)
    """Of each kind that is stored."""

    @property
    def capabilities(self) -> Mapping[str, Any]:
        """Return what the server said that it can do."""
        found = self.about.get("capabilities")
        return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class Visible:
    """What a caller may use of one server beside its tools."""

    version: OfferedVersion
    offered: Offered
    prompts: Mapping[str, dict[str, Any]]
    """By the names that the caller uses; as their server wrote them."""
    reads: bool
    """Whether it may read the server's resources."""

    @property
    def server(self) -> str:
        """Return the server's name."""
        return self.version.definition.name

    @property
    def resources(self) -> tuple[dict[str, Any], ...]:
        """Return the resources that it may see."""
        return self.offered.resources if self.reads else ()

    @property
    def templates(self) -> tuple[dict[str, Any], ...]:
        """Return the templates that it may see."""
        return self.offered.templates if self.reads else ()


class Offerings:
    """What versions have, kept until the record's generation moves on."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._generation = -1
        self._known: dict[int, Offered] = {}
        self._reading = asyncio.Lock()

    async def of(self, generation: int, versions: Iterable[int]) -> dict[int, Offered]:
        """Return what versions have, as of a generation of the record at least."""
        wanted = set(versions)
        async with self._reading:
            if generation > self._generation or wanted - self._known.keys():
                await self._catch_up(wanted | self._known.keys())
                self._generation = max(generation, self._generation)
        return {id_: self._known[id_] for id_ in wanted}

    async def _catch_up(self, ids: set[int]) -> None:
        rows = await self._database.statement(
            "SELECT server_version_id AS version, kind, digest FROM offerings"
            " WHERE server_version_id = ANY(%(ids)s)",
            ids=list(ids),
        )
        digests: dict[int, dict[str, str]] = {id_: {} for id_ in ids}
        for row in rows:
            digests[row["version"]][row["kind"]] = row["digest"]
        stale = [id_ for id_ in ids if self._known.get(id_, Offered()).digests != digests[id_]]
        for id_ in ids - self._known.keys():
            self._known[id_] = Offered()
        if stale:
            await self._read(stale)

    async def _read(self, ids: list[int]) -> None:
        rows = await self._database.statement(
            "SELECT server_version_id AS version, kind, digest, body FROM offerings"
            " WHERE server_version_id = ANY(%(ids)s)",
            ids=ids,
        )
        found: dict[int, dict[str, Any]] = {id_: {"digests": {}} for id_ in ids}
        for row in rows:
            body = row["body"]
            found[row["version"]][row["kind"]] = tuple(body) if isinstance(body, list) else body
            found[row["version"]]["digests"][row["kind"]] = row["digest"]
        self._known |= {id_: Offered(**parts) for id_, parts in found.items()}


def visible(
    policy: TenantPolicy,
    scopes: Scopes | None,
    versions: Iterable[OfferedVersion],
    offered: Mapping[int, Offered],
    *,
    prefixed: bool,
) -> list[Visible]:
    """Return what a tenant may use of some versions, by a key that is narrowed to some scopes.

    With ``prefixed`` prompts are named as tools are. Of two that would have one name, which only
    the same server's can, the second is left out.
    """
    found = []
    for version in versions:
        definition, has = version.definition, offered[version.id]
        prompts: dict[str, dict[str, Any]] = {}
        if may_ask(policy, definition, PROMPTS_GET, scopes):
            for prompt in has.prompts:
                name = prompt["name"]
                shown = model_name(definition.prefix, name) if prefixed else name
                prompts.setdefault(shown, prompt)
        able = "resources" in has.capabilities
        reads = able and may_ask(policy, definition, RESOURCES_READ, scopes)
        found.append(Visible(version, has, prompts, reads))
    return found
