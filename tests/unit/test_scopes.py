"""What a key is narrowed to."""

from __future__ import annotations

from typing import Any

import pytest

from registry.errors import Code, FleetError
from registry.scopes import Scopes
from tests.requirements import requirement


def refused(ask: Any, *given: Any) -> bool:
    try:
        ask(*given)
    except FleetError as error:
        return error.code is Code.OUT_OF_SCOPE
    return False


@requirement("keys:scopes")
def test_a_verb_that_is_not_named_is_refused() -> None:
    scopes = Scopes.model_validate({"verbs": ["calls:read"]})
    assert not refused(scopes.refuse_verb, "calls:read")
    assert refused(scopes.refuse_verb, "calls:write")
    assert refused(Scopes(verbs=()).refuse_verb, "calls:read")
    assert not refused(Scopes().refuse_verb, "anything:else")


@requirement("keys:scopes")
@pytest.mark.parametrize(
    ("scopes", "server", "tool", "out"),
    [
        ({}, "git", "push", False),
        ({"servers": ["git"]}, "git", "push", False),
        ({"servers": ["git"]}, "mail", "send", True),
        ({"servers": []}, "git", "push", True),
        ({"tools": {"allow": ["git/log*"]}}, "git", "log_all", False),
        ({"tools": {"allow": ["git/log*"]}}, "git", "push", True),
        ({"tools": {"deny": ["*/push"]}}, "git", "push", True),
        ({"servers": ["mail"], "tools": {"allow": ["git/*"]}}, "git", "log", True),
    ],
)
def test_a_tool_has_to_be_within_servers_and_patterns(
    scopes: dict[str, Any], server: str, tool: str, out: bool
) -> None:
    assert refused(Scopes.model_validate(scopes).refuse_tool, server, tool) is out


@requirement("keys:scopes")
def test_a_run_has_the_keys_servers_and_no_others() -> None:
    scopes = Scopes(servers=("git", "mail"))
    assert scopes.narrow(None) == ["git", "mail"]
    assert scopes.narrow(["git"]) == ["git"]
    assert refused(scopes.narrow, ["git", "shell"])
    assert Scopes().narrow(None) is None


@requirement("keys:scopes")
@pytest.mark.parametrize(
    ("own", "new", "wider"),
    [
        ({"verbs": ["keys:write"]}, None, True),
        ({"verbs": ["keys:write"]}, {}, True),
        ({"verbs": ["keys:write"]}, {"verbs": ["keys:write"]}, False),
        ({"verbs": ["keys:write"]}, {"verbs": ["keys:write", "audit:read"]}, True),
        ({"servers": ["a", "b"]}, {"servers": ["a"]}, False),
        ({"servers": ["a"]}, {"servers": ["a", "b"]}, True),
        ({"tools": {"deny": ["*/x"]}}, {}, True),
        ({"tools": {"deny": ["*/x"]}}, {"tools": {"deny": ["*/x"]}}, False),
        ({}, None, False),
    ],
)
def test_a_narrowed_key_makes_no_wider_one(own: Any, new: Any, wider: bool) -> None:
    others = None if new is None else Scopes.model_validate(new)
    assert refused(Scopes.model_validate(own).refuse_wider, others) is wider
