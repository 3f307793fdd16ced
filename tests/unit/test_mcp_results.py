"""How a call's end is written for MCP clients: results, errors, tasks, and our own tools."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp.shared.exceptions import MCPError

from api.mcp.asked import FLEET_ERROR, INVALID_PARAMS, MISSING_CAPABILITY, Revision
from api.mcp.own_tools import CALL_RESULT, CALL_STATUS, meant, own_tools
from api.mcp.results import ERROR, result_of, result_of_error
from api.mcp.tasks import created, detailed
from registry.calls import CallState
from registry.definitions import content_digest, digest, parse_definition
from registry.errors import Code, FleetError
from registry.questions import Question
from registry.snapshots import Entry, Snapshot, differences
from registry.tools import SnapshotTool, snapshot_tools, tool_version
from tests.asking import LEGACY, NEWEST, refused, text_of
from tests.requirements import requirement
from workers.exchange import Exchange
from workers.judge import Facts, judge

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SERVER = {"name": "demo", "transport": "stdio", "command": "true"}
STATUS = {
    CallState.AWAITING_APPROVAL: "working",
    CallState.QUEUED: "working",
    CallState.RUNNING: "working",
    CallState.SUCCEEDED: "completed",
    CallState.FAILED: "failed",
    CallState.STOPPED: "cancelled",
    CallState.EXPIRED: "failed",
    CallState.OUTCOME_UNKNOWN: "failed",
    CallState.DENIED: "failed",
}


def row(state: CallState, **rest: Any) -> dict[str, Any]:
    error = FleetError(Code.WORKER_LOST, "it is gone").as_dict()
    failed = state.final and state is not CallState.SUCCEEDED
    return {
        "id": "1",
        "state": state.value,
        "created_at": NOON,
        "ended_at": NOON + timedelta(seconds=1.5) if state.final else None,
        "result": {"content": []} if state is CallState.SUCCEEDED else None,
        "error": error if failed else None,
        **rest,
    }


# -- results and errors


@requirement("mcp:results-as-recorded")
def test_only_the_newest_revision_says_which_kind_of_result_it_is() -> None:
    modern = row(CallState.SUCCEEDED, result={"content": [], "resultType": "complete"})
    assert result_of(modern, LEGACY) == {"content": []}
    assert result_of(modern, NEWEST) == modern["result"]


@requirement("mcp:errors")
@pytest.mark.parametrize(
    ("code", "since"),
    [
        (Code.INVALID_ARGUMENTS, Revision.NOVEMBER_2025),
        (Code.REQUEST_TOO_LARGE, Revision.NOVEMBER_2025),
        (Code.UPSTREAM_NOT_FOUND, Revision.MARCH_2025),
    ],
)
def test_what_a_model_can_put_right_is_shown_to_it(code: Code, since: Revision) -> None:
    problems = [{"path": f"$.{name}", "problem": "wrong"} for name in "ab"]
    error = FleetError(code, "no: $.a: wrong", details={"problems": problems})
    for revision in Revision:
        if revision < since:
            with refused(INVALID_PARAMS if code is Code.INVALID_ARGUMENTS else FLEET_ERROR):
                result_of_error(error, revision)
        else:
            shown = result_of_error(error, revision)
            assert (shown["isError"], shown["_meta"]) == (True, {ERROR: error.as_dict()})
            assert text_of(shown) == "no: $.a: wrong\n$.b: wrong"


@requirement("mcp:errors")
@pytest.mark.parametrize("code", [Code.SESSION_LOST, Code.UNKNOWN_TOOL, Code.POLICY_DENIED])
def test_what_a_model_cannot_put_right_is_an_error_in_every_revision(code: Code) -> None:
    for revision in Revision:
        with refused(INVALID_PARAMS if code is Code.UNKNOWN_TOOL else FLEET_ERROR) as errors:
            result_of_error(FleetError(code, "no"), revision)
        assert errors[0].data["code"] == code.code


@requirement("mcp:errors")
def test_a_server_that_needs_another_client_says_what_that_has_to_answer() -> None:
    details = {"jsonrpc_code": MISSING_CAPABILITY, "required_capabilities": ["sampling"]}
    with refused(MISSING_CAPABILITY) as errors:
        result_of_error(FleetError(Code.TOOL_REFUSED, "no", details=details), NEWEST)
    assert errors[0].data["requiredCapabilities"] == {"sampling": {}}
    assert errors[0].data["code"] == "tool_refused"


@requirement("mcp:errors")
@pytest.mark.parametrize(
    ("code", "data", "needed"),
    [
        (MISSING_CAPABILITY, {"requiredCapabilities": {"roots": 1, "other": {}}}, ["roots"]),
        (MISSING_CAPABILITY, {"requiredCapabilities": "all"}, None),
        (MISSING_CAPABILITY, None, None),
        (-32603, {"requiredCapabilities": {"roots": {}}}, None),
    ],
)
def test_what_a_server_says_that_its_client_needs_is_kept_with_its_refusal(
    code: int, data: Any, needed: list[str] | None
) -> None:
    facts = Facts(
        server="s", what="t", seen=Exchange(), stdio=True, api=False, era="modern",
        protocol_version="2026-07-28", max_result_bytes=1_000, endless_line=False, unread=None,
        evidence={}, scrub=str,
    )  # fmt: skip
    error = judge(MCPError(code=code, message="no", data=data), facts).tell(facts)
    assert error.code is Code.TOOL_REFUSED
    assert error.details.get("required_capabilities") == needed


# -- tasks


@requirement("mcp:tasks-are-rows")
@pytest.mark.parametrize("state", CallState)
def test_every_state_of_a_call_is_a_status_of_its_task(state: CallState) -> None:
    task = detailed(row(state), [], NEWEST)
    assert (task["status"], task["ttlMs"]) == (STATUS[state], None)
    assert task["createdAt"] == "2026-01-01T12:00:00.000Z"
    assert task["lastUpdatedAt"] == f"2026-01-01T12:00:0{'1.500' if state.final else '0.000'}Z"
    said = {"completed": {"result"}, "failed": {"error"}}.get(task["status"], set())
    assert {"result", "error", "inputRequests"} & set(task) == said
    handle = created(row(state), NEWEST)
    assert (handle["resultType"], handle["status"]) == ("task", task["status"])
    assert not {"result", "error", "inputRequests"} & set(handle)


@requirement("mcp:tasks-are-rows")
def test_open_questions_are_the_input_that_a_task_requires() -> None:
    questions = [
        Question("q1", 1, "roots/list", {}),
        Question("q2", 2, "sampling/createMessage", {"a": 1}),
    ]
    task = detailed(row(CallState.RUNNING), questions, NEWEST)
    assert task["status"] == "input_required"
    assert task["inputRequests"] == {
        "q1": {"method": "roots/list", "params": {}},
        "q2": {"method": "sampling/createMessage", "params": {"a": 1}},
    }


# -- the rule of a tool


@requirement("mcp:task-rule")
def test_a_definition_that_says_nothing_of_tasks_keeps_its_digest() -> None:
    plain = parse_definition({**SERVER, "tools": {"a": {"hidden": True}}})
    later = {"quota", "openapi", "questions", "cost_tag"}
    body = plain.model_dump(mode="json", exclude=later)
    del body["tools"]["a"]["task"]
    assert content_digest(plain) == digest(body)
    always = parse_definition({**SERVER, "tools": {"a": {"hidden": True, "task": "always"}}})
    assert content_digest(always) != content_digest(plain)


@requirement("mcp:task-rule")
def test_a_snapshot_holds_the_rule_and_says_that_it_changed() -> None:
    def snapshot(task: str) -> Snapshot:
        definition = parse_definition({**SERVER, "tools": {"a": {"task": task}}})
        version = tool_version({"name": "a", "inputSchema": {}})
        return Snapshot(map(Entry, snapshot_tools(definition, 1, [(1, version)])))

    plain, always = snapshot("when_slow"), snapshot("always")
    assert "task" not in plain.tools["demo_a"].as_dict()
    for it in (plain, always):
        tool = it.tools["demo_a"]
        assert SnapshotTool.from_dict(tool.as_dict()) == tool
    changed = [{"tool": "demo_a", "change": "changed", "fields": ["task"]}]
    assert differences(plain, always) == differences(always, plain) == changed


# -- the fleet's own tools


@requirement("mcp:own-tools-collide-with-none")
@given(
    st.sets(
        st.builds("{}{}".format, st.sampled_from(["", "toolfleet_", "toolfleet_toolfleet_"]),
                  st.sampled_from([CALL_STATUS["name"], CALL_RESULT["name"], "find_tools"]))
    )
)  # fmt: skip
def test_the_fleets_own_tools_have_names_that_are_free(taken: set[str]) -> None:
    names = [tool["name"] for tool in own_tools(taken)]
    assert len(set(names)) == 2
    assert not taken & set(names)
    assert [meant(name, taken) for name in names] == [CALL_STATUS, CALL_RESULT]
    assert not any(meant(name, taken) for name in taken)
