"""A server that grows with each call is replaced between two calls."""

from __future__ import annotations

from typing import Any

import pytest

from registry.definitions import parse_definition
from tests.process_trees import LIMIT_S, ask, light, open_session
from tests.requirements import requirement
from workers.census import outgrown, take_census
from workers.pool import SessionKey, SessionPool
from workers.session import Session

pytestmark = pytest.mark.anyio

KEY = SessionKey(1)


@requirement("pool:retires-the-grown")
@pytest.mark.parametrize(
    ("limits", "tool", "arguments", "reason"),
    [
        ({"max_rss_mb": 100}, "grow", {"megabytes": 90, "processes": 2}, "max_rss"),
        ({"max_open_fds": 60}, "open", {"files": 60}, "max_open_fds"),
    ],
)
async def test_a_session_whose_tree_has_outgrown_its_pool_is_not_lent_again(
    limits: dict[str, int], tool: str, arguments: dict[str, Any], reason: str
) -> None:
    document = light(pool={"min_idle": 0, "max_size": 1, **limits})
    config = parse_definition(document).pool

    async def open_light(key: SessionKey) -> Session:
        return await open_session(document)

    pool = SessionPool("light", config, open_light)

    async def use(tool: str, **arguments: Any) -> int | None:
        async with pool.borrow(KEY, LIMIT_S) as lease:
            await ask(lease.session, tool, **arguments)
            return lease.session.pid

    def look() -> None:
        census = take_census()
        pool.retire(lambda session: outgrown(census.trees.get(session.pid or 0), config))

    small = await use("pid")
    look()
    assert await use(tool, **arguments) == small, "it was within its limits"
    look()
    assert await use("pid") != small
    assert pool.stats().closed_total == {reason: 1}
    await pool.close()
