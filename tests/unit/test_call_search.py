"""What a text may name, and places in lists."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from registry.call_search import ids_beginning, trace_named
from registry.errors import Code, FleetError
from registry.newest import Cursor
from tests.requirements import requirement

ID = "1e240a5c-89ab-4def-8123-456789abcdef"
ZEROES, EFFS = (f"-{digit * 4}-{digit * 4}-{digit * 4}-{digit * 12}" for digit in "0f")
TRACE = "0af7651916cd43dd8448eb211c80319c"


@requirement("console:find")
@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        (ID, ID, ID),
        (ID.replace("-", ""), ID, ID),
        ("1e24", f"1e240000{ZEROES}", f"1e24ffff{EFFS}"),
        ("1e240a5c-", f"1e240a5c{ZEROES}", f"1e240a5c{EFFS}"),
    ],
)
def test_the_beginning_of_an_id_is_all_the_ids_between_two(
    text: str, first: str, last: str
) -> None:
    assert ids_beginning(text) == (first, last)


@requirement("console:find")
@pytest.mark.parametrize("text", ["", "1e2", "order-17", "1e24g", "--1e24", "1e24%", "a" * 33])
def test_what_begins_no_id_is_looked_for_as_none(text: str) -> None:
    assert ids_beginning(text) is None


@requirement("console:find")
def test_a_trace_is_named_by_its_id_or_its_whole_context() -> None:
    assert trace_named(TRACE) == trace_named(f"00-{TRACE}-b7ad6b7169203331-01") == TRACE
    assert [trace_named(it) for it in ("", TRACE[:31], "0" * 32, f"{TRACE}-", ID)] == [None] * 5


@requirement("console:newest")
def test_a_place_in_a_list_is_read_as_it_was_written() -> None:
    place = Cursor(datetime(2026, 11, 26, 3, 4, 5, 123457, tzinfo=UTC), ID)
    assert Cursor.parse(str(place)) == place


@requirement("console:newest")
@pytest.mark.parametrize(
    "text", ["12", "x.y", "-1.a", "9" * 40 + ".a", "1.\x00", "\u0661.a", "1e3."]
)
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(FleetError) as refused:
        Cursor.parse(text)
    assert refused.value.code is Code.INVALID_REQUEST
