"""What calls have asked, erased by the statement that has them ended.

What stays of a question is that it was asked: its number, its method and where it ended.
"""

from __future__ import annotations

from typing import Final, LiteralString

from registry.audit import CALL_FACTS


def forget(actor: LiteralString) -> LiteralString:
    """Return CTEs that erase the questions of the calls in the CTE ``ended``, but for queued ones.

    ``actor`` is SQL: who withdraws those that are open.
    """
    return f"""
    kept_questions AS (
        SELECT q.call_id, q.number, q.state FROM questions q JOIN ended e ON e.id = q.call_id
        WHERE q.key IS NOT NULL AND e.state <> 'queued' FOR UPDATE OF q SKIP LOCKED
    ), forgotten AS (
        UPDATE questions q SET key = NULL, params = NULL, answer = NULL,
            state = CASE q.state WHEN 'open' THEN 'withdrawn' ELSE q.state END
        FROM kept_questions k WHERE q.call_id = k.call_id AND q.number = k.number
        RETURNING q.call_id, q.number, q.method, k.state AS was
    ), withdrawn AS (
        INSERT INTO audit (tenant_id, actor, event, run_id, call_id, details)
        SELECT tenant_id, {actor}, 'call.question_withdrawn', run_id, id,
            jsonb_build_object({CALL_FACTS}, 'question', f.number, 'method', f.method)
        FROM ended JOIN forgotten f ON f.call_id = ended.id WHERE f.was = 'open'
    )
    """  # noqa: S608 - constants


FORGOTTEN_FACTS: Final = """
    id, state, tenant_id, run_id, tool, server_name, server_version_id, tool_version_id,
    arguments_digest
"""
"""What the CTE ``ended`` needs of a call."""
