"""The real tools and intents of tests/data/tool_search, and how well a ranking answers them."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from sqlalchemy import text

from registry.database import Database
from tests.ledger import definition, register

DATA = Path(__file__).parent / "data/tool_search"


@dataclass(frozen=True)
class Intent:
    """What a user wants, and the tools (``server/tool``) each of which answers it."""

    split: str
    text: str
    tools: frozenset[str]


@dataclass(frozen=True)
class Answer:
    """A ranking's answer to an intent: where each right tool stands, from 1."""

    intent: Intent
    found: tuple[str, ...]

    @property
    def places(self) -> list[int]:
        """Return the places of the right tools that were found, in order."""
        return sorted(self.found.index(tool) + 1 for tool in self.intent.tools & {*self.found})

    def recall(self, k: int) -> float:
        """Return the share of the right tools, or of ``k`` of them, among the first ``k``."""
        return sum(place <= k for place in self.places) / min(k, len(self.intent.tools))


def intents(split: str | None = None) -> list[Intent]:
    """Return the intents of a split, or all of them."""
    lines = (json.loads(line) for line in (DATA / "queries.jsonl").read_text().splitlines())
    every = [Intent(it["split"], it["intent"], frozenset(it["tools"])) for it in lines]
    return [it for it in every if split in {None, it.split}]


def listings() -> dict[str, list[dict[str, Any]]]:
    """Return the tools of each server, as it listed them."""
    lines = (json.loads(line) for line in (DATA / "tools.jsonl").read_text().splitlines())
    grouped = groupby(lines, key=lambda line: line["server"])
    return {server: [line["tool"] for line in of_server] for server, of_server in grouped}


async def load(database: Database) -> dict[int, str]:
    """Register every server with its tools; return ``server/tool`` by tool version id."""
    for server, tools in listings().items():
        await register(database, definition(server), *tools)
    return await names(database)


async def names(database: Database) -> dict[int, str]:
    """Return ``server/tool`` of every tool version."""
    async with database.transaction() as connection:
        rows = await connection.execute(
            text("SELECT id, server_name || '/' || name AS name FROM tool_versions ORDER BY id")
        )
        return {row.id: row.name for row in rows}


async def answers(
    search: Callable[[str], Awaitable[Sequence[int]]],
    named: dict[int, str],
    asked: Sequence[Intent],
) -> list[Answer]:
    """Ask a ranking for each intent."""
    return [
        Answer(intent, tuple(named[id_] for id_ in await search(intent.text))) for intent in asked
    ]


def recall(given: Sequence[Answer], k: int) -> float:
    """Return the mean share of right tools among the first ``k``."""
    return sum(answer.recall(k) for answer in given) / len(given)


def hits(given: Sequence[Answer], k: int) -> float:
    """Return the share of intents with at least one right tool among the first ``k``."""
    return sum(any(place <= k for place in answer.places) for answer in given) / len(given)


def mean_reciprocal_rank(given: Sequence[Answer]) -> float:
    """Return the mean of one by the place of the first right tool, 0 where none was found."""
    return sum(1 / answer.places[0] for answer in given if answer.places) / len(given)
