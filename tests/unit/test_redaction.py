"""Personal data and secrets do not leave a worker; everything else does, unchanged."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import Code, FleetError
from registry.redaction import MAX_DEPTH, redact, redact_text
from tests.requirements import requirement

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=20,
)


@requirement("redaction:finds")
@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("write to jane.doe+x@example.co.uk now", "write to [email] now"),
        ("card 4111 1111 1111 1111.", "card [card]."),
        ("card 4111-1111-1111-1111", "card [card]"),
        ("amex 378282246310005", "amex [card]"),
        ("ssn 078-05-1120", "ssn [ssn]"),
        ("iban DE89 3704 0044 0532 0130 00 ok", "iban [iban] ok"),
        ("iban GB82WEST12345698765432", "iban [iban]"),
        ("key AKIAIOSFODNN7EXAMPLE", "key [secret]"),
        ("token ghp_" + "a" * 36, "token [secret]"),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----", "[secret]"),
        ("-----BEGIN PRIVATE KEY-----\nA: 4,b-c\n\nabc=\n-----END PRIVATE KEY-----", "[secret]"),
        ("jwt eyJhbGciOiJIUz.eyJzdWIiOiIx.SflKxwRJSMeK", "jwt [secret]"),
        ("x=a-eyJhbGciOiJIUz.eyJzdWIiOiIx.SflKxwRJSMeK", "x=[secret]"),
    ],
)
def test_what_is_personal_or_secret_is_replaced(text: str, redacted: str) -> None:
    assert redact_text(text) == redacted


@requirement("redaction:spares")
@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112",
        "0000 0000 0000 0000",
        "order 1234567890123",
        "2026-07-28T12:00:00Z",
        "DE00 3704 0044 0532 0130 00",
        "000-12-3456",
        "a@b",
        "version 1.2.3-4",
    ],
)
def test_what_only_looks_like_it_stays(text: str) -> None:
    assert redact_text(text) == text


@requirement("redaction:everywhere")
def test_every_string_of_a_result_is_read_whatever_its_place() -> None:
    mail = "a.person@example.com"
    body = {
        "content": [
            {"type": "text", "text": mail},
            {"type": "resource", "resource": {"text": mail}},
        ],
        "structuredContent": {"rows": [[mail, 1, None, True]]},
        "isError": False,
    }
    assert mail not in str(redact(body))
    assert redact(body)["structuredContent"] == {"rows": [["[email]", 1, None, True]]}


@requirement("redaction:spares")
def test_the_bytes_of_a_picture_stay() -> None:
    picture = {"type": "image", "data": "AKIAIOSFODNN7EXAMPLE", "mimeType": "image/png"}
    assert redact({"content": [picture]}) == {"content": [picture]}


@requirement("redaction:spares")
@given(JSON)
def test_the_shape_of_a_result_stays(value: Any) -> None:
    def shape(it: Any) -> Any:
        if isinstance(it, dict):
            return {key: shape(item) for key, item in it.items()}
        return [shape(item) for item in it] if isinstance(it, list) else type(it)

    assert shape(redact(value)) == shape(value)


@requirement("redaction:everywhere")
@given(JSON)
def test_redacting_twice_changes_nothing_more(value: Any) -> None:
    assert redact(redact(value)) == redact(value)


@requirement("redaction:refuses")
def test_a_result_that_cannot_be_read_to_its_end_is_withheld() -> None:
    value: Any = "a.person@example.com"
    for _ in range(MAX_DEPTH + 1):
        value = [value]
    with pytest.raises(FleetError) as refused:
        redact(value)
    assert refused.value.code is Code.REDACTION_FAILED
    assert "a.person" not in str(refused.value.as_dict())


@requirement("redaction:refuses")
@pytest.mark.parametrize(
    "unit",
    [
        "a", "a@", "a.b@", "@a.", "1 ", "1", "12-", "A1", "DE12 ABCD 1234 ", "4222222222222 ",
        "-eyJ", "eyJaaaaaaaaaa.", "-----BEGIN PRIVATE KEY-----", "-----BEGIN A ", "sk-", "xoxb-a",
    ],
)  # fmt: skip
def test_the_redactor_reads_any_text_in_time_with_its_length(unit: str) -> None:
    def cpu_s(length: int) -> float:
        text = (unit * length)[:length]
        started = time.thread_time()
        redact_text(text + "@")
        return time.thread_time() - started

    # 16 times as long for 16 times the text; a square would be 256.
    cpu_s(16_384)
    assert cpu_s(262_144) < 64 * max(cpu_s(16_384), 0.0005)
