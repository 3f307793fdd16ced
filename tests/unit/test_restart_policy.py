"""When a child that died is started again."""

from __future__ import annotations

from compose.supervisor import TRANSITIONS, State, deaths_in_a_row, restart_delay_s
from tests.requirements import requirement


@requirement("local:restarts")
def test_each_death_in_a_row_doubles_the_delay_up_to_a_bound() -> None:
    delays = [restart_delay_s(deaths) for deaths in (1, 2, 3, 4, 5, 6, 7, 8, 1_000)]
    assert delays == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


@requirement("local:restarts")
def test_a_child_that_dies_young_counts_one_death_more() -> None:
    assert deaths_in_a_row(3, lived_s=4.9, status=1) == 4


@requirement("local:restarts")
def test_a_child_that_does_not_start_counts_one_death_more() -> None:
    assert deaths_in_a_row(3, lived_s=0.1, status=None) == 4


@requirement("local:restarts")
def test_a_child_that_ended_because_it_was_asked_to_is_no_crash() -> None:
    assert deaths_in_a_row(3, lived_s=0.1, status=0) == 1


@requirement("local:restarts")
def test_a_child_that_lived_long_enough_starts_counting_anew() -> None:
    assert deaths_in_a_row(3, lived_s=5.0, status=-9) == 1


@requirement("local:restarts")
def test_a_child_can_be_stopped_whatever_it_is_doing() -> None:
    alive = {State.STARTING, State.RUNNING, State.BACKING_OFF}
    assert {state for state in State if State.STOPPING in TRANSITIONS[state]} == alive
