"""What a run of the conformance suite is judged by."""

from __future__ import annotations

from tests.conformance.report import Check, missing, scenario_passed, summary, words
from tests.requirements import requirement


def check(id_: str, status: str = "SUCCESS", message: str = "") -> Check:
    return Check(id_, status, f"what {id_} wants", message)


@requirement("conformance:nothing-lost")
def test_a_check_that_passes_less_often_is_named() -> None:
    direct = {"ping": [check("a"), check("a"), check("b")], "list": [check("c", "FAILURE")]}
    fleet = {"ping": [check("a"), check("b", "INFO")], "list": [check("c")]}
    assert missing(direct, fleet) == ["ping: a", "ping: b"]


@requirement("conformance:nothing-lost")
def test_a_scenario_that_was_not_run_has_lost_all_its_checks() -> None:
    assert missing({"ping": [check("a"), check("a")]}, {}) == ["ping: a (2 times)"]


@requirement("conformance:nothing-lost")
def test_what_passes_through_the_fleet_alone_is_no_loss() -> None:
    assert missing({"ping": [check("a", "WARNING")]}, {"ping": [check("a"), check("b")]}) == []


@requirement("conformance:nothing-lost")
def test_what_failed_is_told_in_the_suites_own_words() -> None:
    leg = {"ping": [check("a"), check("b", "FAILURE", "no answer")]}
    assert not scenario_passed(leg["ping"])
    assert summary(leg) == "0/1 scenarios, 1 checks passed, 1 failed"
    said = words("directly", leg)
    assert said[1:] == ["directly:", "  ping", "    failure: b: what b wants", "      no answer"]
