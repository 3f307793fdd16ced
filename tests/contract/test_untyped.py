"""What is made of a result that does not say of what kind it is."""

from __future__ import annotations

import pytest

from tests.contract.test_sessions import LIMIT_S, open_session, stdio
from tests.requirements import requirement

pytestmark = pytest.mark.anyio


@requirement("session:untyped-results")
async def test_a_result_that_names_no_kind_is_complete() -> None:
    session = await open_session(stdio("untyped.py"))
    try:
        assert session.protocol_version == "2026-07-28"
        result = await session.call_tool("say", {}, timeout_s=LIMIT_S)
    finally:
        await session.close()
    assert result.body["content"] == [{"type": "text", "text": "said"}]
    assert result.body["resultType"] == "complete"
