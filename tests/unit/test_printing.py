"""What commands print of servers' words does nothing to a terminal."""

from __future__ import annotations

import pytest

from compose.printing import printable, show
from tests.requirements import requirement


@requirement("command:harmless")
def test_what_would_act_on_a_terminal_is_spelled_out() -> None:
    assert printable("a\x1b[2Kb\x07\x9b\rc") == "a\\x1b[2Kb\\x07\\x9b\\rc"
    assert printable("two\nlines\tand ünïcode") == "two\nlines\tand ünïcode"


@requirement("command:harmless")
@pytest.mark.parametrize("columns", [("name", "said"), ()])
def test_no_cell_of_a_table_acts_on_a_terminal(
    capsys: pytest.CaptureFixture[str], columns: tuple[str, ...]
) -> None:
    row = {"name": ["a\x1b[2K"], "said": "\x1b]0;title\x07"}
    show([row] if columns else row, False, columns)
    assert "\x1b" not in (printed := capsys.readouterr().out)
    assert "\\x1b" in printed
