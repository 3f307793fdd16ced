"""What operators say about results: whose rules hold, and which patterns may run at all."""

from __future__ import annotations

from typing import Any

import pytest

from registry.errors import Code, FleetError
from registry.output_rules import (
    LONGEST_PATTERN,
    MOST_PATTERNS,
    ControlReaction,
    OutputRules,
    Reaction,
)
from registry.policy import TenantPolicy
from registry.redaction import redactor
from registry.spans import Kind
from registry.tiers import parse_tenant, parse_tier
from tests.loop_time import grows_by_less
from tests.requirements import requirement

TICKET = {"name": "ticket", "pattern": r"\bTKT-\d+"}
BADGE = {"name": "badge", "pattern": "B[0-9]{6}"}


def rules(tier: dict[str, Any] | None = None, tenant: dict[str, Any] | None = None) -> OutputRules:
    return TenantPolicy(
        parse_tenant({"name": "acme", **(tenant or {})}),
        parse_tier({"name": "default", **(tier or {})}),
        1,
    ).output


@requirement("rules:of-tenants")
def test_without_a_word_every_type_is_masked_and_hostile_text_flagged() -> None:
    assert rules() == OutputRules()
    assert (rules().types, rules().patterns) == (frozenset(Kind), ())
    assert (rules().instructions, rules().control) == (Reaction.FLAG, ControlReaction.FLAG)


@requirement("rules:of-tenants")
@pytest.mark.parametrize(
    ("tier", "tenant", "types"),
    [
        (None, ["card"], {Kind.CARD}),
        (["card"], None, {Kind.CARD}),
        (["card"], ["email", "ip"], {Kind.EMAIL, Kind.IP}),
        (["card"], [], set()),
    ],
)
def test_a_tenants_types_go_before_its_tiers(
    tier: list[str] | None, tenant: list[str] | None, types: set[Kind]
) -> None:
    said = rules({"redaction": {"types": tier}}, {"redaction": {"types": tenant}})
    assert said.types == types


@requirement("rules:of-tenants")
def test_patterns_of_tier_and_tenant_add_up() -> None:
    said = rules(
        {"redaction": {"patterns": [TICKET]}}, {"redaction": {"patterns": [BADGE, TICKET]}}
    )
    assert [it.name for it in said.patterns] == ["ticket", "badge"]
    assert redactor(said).text("TKT-17 of B123456 at a@example.com") == (
        "[ticket] of [badge] at [email]"
    )


@requirement("rules:of-tenants")
def test_a_tenants_reactions_go_before_its_tiers() -> None:
    said = rules(
        {"results": {"instructions": "block", "control": "flag"}}, {"results": {"control": "block"}}
    )
    assert (said.instructions, said.control) == (Reaction.BLOCK, ControlReaction.BLOCK)


@requirement("rules:of-tenants")
def test_what_is_not_named_is_left_alone() -> None:
    text = "4111111111111111 of jane@example.com, password=hunter2"
    assert redactor(OutputRules(types=frozenset({Kind.EMAIL}))).text(text) == (
        "4111111111111111 of [email], password=hunter2"
    )
    assert redactor(OutputRules(types=frozenset())).result({"a": text}) == {"a": text}


@requirement("rules:linear-patterns")
@pytest.mark.parametrize(
    ("redaction", "path"),
    [
        ({"patterns": [{"name": "a", "pattern": r"(a+)+$(?=b)"}]}, "patterns/0/pattern"),
        ({"patterns": [{"name": "a", "pattern": r"(.)\1"}]}, "patterns/0/pattern"),
        ({"patterns": [{"name": "a", "pattern": "a*"}]}, "patterns/0/pattern"),
        ({"patterns": [{"name": "a", "pattern": "("}]}, "patterns/0/pattern"),
        ({"patterns": [{"name": "a", "pattern": r"(?:\pL{1,900}){50}"}]}, "patterns/0/pattern"),
        ({"patterns": [{"name": "a", "pattern": "a" * (LONGEST_PATTERN + 1)}]}, "patterns/0"),
        ({"patterns": [{"name": "A b", "pattern": "a"}]}, "patterns/0/name"),
        ({"patterns": [TICKET] * (MOST_PATTERNS + 1)}, "patterns"),
        ({"types": ["name"]}, "types/0"),
        ({"type": ["card"]}, "type"),
    ],
)
@pytest.mark.parametrize("parse", [parse_tier, parse_tenant])
def test_rules_that_cannot_be_kept_are_refused_with_their_path(
    parse: Any, redaction: dict[str, Any], path: str
) -> None:
    with pytest.raises(FleetError) as refused:
        parse({"name": "acme", "redaction": redaction})
    assert refused.value.code is Code.INVALID_DEFINITION
    assert f"redaction/{path}" in str(refused.value.as_dict())


@requirement("rules:linear-patterns")
@pytest.mark.parametrize("pattern", [r"(a+)+$", "(a|a)+b", "b(?:a?){200}a{200}"])
def test_a_pattern_that_would_stall_others_takes_linear_time(pattern: str) -> None:
    said = {"redaction": {"types": [], "patterns": [{"name": "it", "pattern": pattern}]}}

    def read(length: int) -> None:
        redactor(rules(said)).text("a" * length + "!")

    # 8 times as long for 8 times the text; a square would be 64.
    assert grows_by_less(24, read, 10_000, 80_000)
