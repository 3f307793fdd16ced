"""Errors as stored and sent: stable codes, and text that the record takes."""

from __future__ import annotations

import pytest

from registry.errors import BY_CODE, Code, FleetError
from tests.requirements import requirement


@requirement("errors:stable")
@pytest.mark.parametrize("code", list(Code))
def test_an_error_survives_being_stored(code: Code) -> None:
    error = FleetError(
        code, "what happened", hint="what to do", retry_after_s=1.5, details={"a": 1}
    )
    assert FleetError.from_dict(error.as_dict()).as_dict() == error.as_dict()


@requirement("errors:stable")
def test_every_code_is_one_word_with_a_status_of_an_error() -> None:
    assert len(BY_CODE) == len(Code)
    assert {code for code in Code if not 400 <= code.status < 600} == set()


@requirement("errors:stable")
def test_a_code_of_another_release_is_told_as_internal() -> None:
    assert FleetError.from_dict({"code": "from_the_future", "message": "m"}).code is Code.INTERNAL


@requirement("errors:storable")
def test_what_postgres_refuses_is_replaced_in_every_text_of_an_error() -> None:
    error = FleetError(Code.INTERNAL, "a\0b", details={"stderr": "c\0\ud800", "at": [1, "\0"]})
    body = error.as_dict()
    assert (body["message"], body["details"]) == (
        "a\ufffdb",
        {"stderr": "c\ufffd?", "at": [1, "\ufffd"]},
    )
