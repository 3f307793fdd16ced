"""Personal data and secrets do not leave a worker; everything else does, unchanged."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import Code, FleetError
from registry.redaction import MAX_DEPTH, redact, redact_text
from tests.loop_time import grows_by_less
from tests.pii import PRECISION, RECALL, TYPES, load, measure
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
        ("2024-01-01 4111111111111111", "2024-01-01 [card]"),
        ("2026-03-01 10.20.30.40", "2026-03-01 [ip]"),
        ("amex 378282246310005", "amex [card]"),
        ("ssn 078-05-1120", "ssn [ssn]"),
        ("iban DE89 3704 0044 0532 0130 00 ok", "iban [iban] ok"),
        ("iban GB82WEST12345698765432", "iban [iban]"),
        ("my iban is gb82west12345698765432", "my iban is [iban]"),
        ("maestro card 501800000009", "maestro card [card]"),
        ("ssn: 078051120", "ssn: [ssn]"),
        ("call +41 (0)44 268 66 66 now", "call [phone] now"),
        ("call me at 467 3395 or 358 0594", "call me at [phone] or [phone]"),
        ("212-555-0187 ext. 12", "[phone]"),
        ("(037) 788-063-Office", "[phone]-Office"),
        ("Tel.:\n02 98 76 54 32", "Tel.:\n[phone]"),
        ("5550187 mobile", "[phone] mobile"),
        ("from 93.184.216.34:443", "from [ip]:443"),
        ("from 2606:2800:220:1:248:1893:25c8:1946", "from [ip]"),
        ("fe80::1ff:fe23:4567:890a%eth0", "[ip]%eth0"),
        ("in 'jane@example.com'", "in '[email]'"),
        ("?mail=jane%40example.com&x=1", "?mail=[email]&x=1"),
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
        "version 10.0.19.41",
        "127.0.0.1 and 0.0.0.0",
        "2026-11-25 21:00:00.123456789 +0000",
        "1764104400",
        "0.4111111111111111",
        "48.856613, 2.352222",
        "a sum of 1 234 567 at 467 3395",
        "call 1234567890123456",
        "std::vector<int> and a::b",
        "12:34:56",
        "3f2504e0-4f89-41d3-9a0c-0305e82c3301",
        "473927ce-5866-4634-8637-382e303eb007",
        "d1bb88ee-3241-40df-be16-f8dc7583479f, ee559e11-db11-40fe-b276-a6d530411888",
        "576221360897413fab1e5570758bb99b",
        "[card] [phone] [email] call [ip]",
        "max_tokens=4096, next_page_token: CAAQAAabcdef123456",
        "password: required",
        "password=<your password>",
        "postgres://user:$PASSWORD@host/db",
    ],
)
def test_what_only_looks_like_it_stays(text: str) -> None:
    assert redact_text(text) == text


@requirement("redaction:secrets")
@pytest.mark.parametrize(
    "secret",
    [
        "AKIAIOSFODNN7EXAMPLE",
        "github_pat_11ABCDEFG0abcdefghijkl_mnopqrstuvwxyz",
        "glpat-abcdefghij0123456789",
        "xoxb-123456789012-abcdefghijkl",
        "https://hooks.slack.com/services/T00000000/B00000000/abcdefghijkl0123",
        "AIzaSyA0123456789abcdefghijklmnopqrstuv",
        "GOCSPX-abcdefghijklmnopqrst0",
        "rk_live_abcdefghijklmnop0123",
        "sk-ant-api03-abcdefghijklmnopqrst",
        "npm_abcdefghijklmnopqrstuvwxyz0123456789",
        "hf_abcdefghijklmnopqrstuvwxyz0123",
        "hvs.CAESIabcdefghijklmnopqrst01",
        "SG.abcdefghijklmn01.abcdefghijklmnop",
    ],
)
def test_tokens_of_well_known_make_are_replaced_wherever_they_stand(secret: str) -> None:
    for before, after in (("", ""), ("x ", " y"), ("<", ">"), ('{"k":"', '"}')):
        assert secret.removeprefix("https://") not in redact_text(f"{before}{secret}{after}")


@requirement("redaction:secrets")
@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("password=hunter2", "password=[secret]"),
        ("DB_PASSWORD: 'Tr0ub4dor&3'", "DB_PASSWORD: '[secret]'"),
        ("api_key => abcd-1234", "api_key => [secret]"),
        ("AccountKey=abc123==;x", "AccountKey=[secret];x"),
        ("mysql --password hunter2 db", "mysql --password [secret] db"),
        ("?access_token=abcdefghijkl1&x=2", "?access_token=[secret]&x=2"),
        ("Authorization: Basic dXNlcjpwYXNz", "Authorization: Basic [secret]"),
        ("curl -H 'bearer abcdef123456'", "curl -H 'bearer [secret]'"),
        ("postgres://joe:s3cret@db:5432/x", "postgres://joe:[secret]@db:5432/x"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNz", "[secret]"),
    ],
)
def test_what_is_given_as_a_secret_is_replaced(text: str, redacted: str) -> None:
    assert redact_text(text) == redacted


@requirement("redaction:written-otherwise")
@pytest.mark.parametrize(
    "text",
    [
        "\uff14\uff11\uff11\uff11\u3000\uff11\uff11\uff11\uff11 1111 1111",
        "\u0664\u0661\u0661\u0661" + "\u0661" * 12,
        "4111\u2013" + "1111\u2013" * 2 + "1111",
        "4111\u00a01111\u202f1111 1111",
        "411\u200b1 1111 1\u2060111 1111",
        "jane\uff20example\uff0ecom",
        "ja\u00adne@exam\u200bple.com",
        "\\n4111111111111111\\t",
    ],
)
def test_other_digits_widths_and_hidden_characters_hide_nothing(text: str) -> None:
    assert redact_text(text).strip("\\nt") in ("[card]", "[email]")


@requirement("redaction:everywhere")
def test_every_string_of_a_result_is_read_whatever_its_place() -> None:
    mail = "a.person@example.com"
    body = {
        "content": [
            {"type": "text", "text": mail},
            {"type": "resource", "resource": {"text": mail}},
        ],
        "structuredContent": {"rows": [[mail, 1, None, True]], mail: {"4111111111111111": 1}},
        "isError": False,
        "_meta": {"about": mail},
    }
    assert mail not in str(redact(body))
    structured = redact(body)["structuredContent"]
    assert structured == {"rows": [["[email]", 1, None, True]], "[email]": {"[card]": 1}}


@requirement("redaction:everywhere")
@pytest.mark.parametrize("number", [4111111111111111, 4111111111111111.0])
def test_a_number_that_is_a_card_is_masked(number: float) -> None:
    assert redact({"structuredContent": {"n": number, "m": 7}}) == {
        "structuredContent": {"n": "[card]", "m": 7}
    }


@requirement("redaction:everywhere")
def test_names_of_members_that_become_alike_are_told_apart() -> None:
    clean = redact({"structuredContent": {"a@example.com": 1, "b@example.com": 2}})
    assert clean["structuredContent"] == {"[email]": 1, "[email] 2": 2}


@requirement("redaction:named")
@pytest.mark.parametrize(
    ("name", "value", "masked"),
    [
        ("phone", "467 3395", "[phone]"),
        ("mobileNumber", "4673395", "[phone]"),
        ("phones", ["467 3395", "x"], ["[phone]", "x"]),
        ("password", "correct horse", "[secret]"),
        ("clientSecret", "abc", "[secret]"),
        ("db_password", 12345678, "[secret]"),
        ("ssn", "078 05 1120", "[ssn]"),
        (
            "fields",
            [{"name": "phone", "value": "467 3395"}],
            [{"name": "phone", "value": "[phone]"}],
        ),
        ("nextPageToken", "CAAQAAabcdef123456", "CAAQAAabcdef123456"),
        ("total_tokens", 4096000, 4096000),
        ("password", None, None),
        ("order", "467 3395", "467 3395"),
    ],
)
def test_what_a_member_is_called_tells_what_its_value_is(
    name: str, value: Any, masked: Any
) -> None:
    assert redact({"structuredContent": {name: value}}) == {"structuredContent": {name: masked}}


@requirement("redaction:embedded")
def test_json_within_a_text_is_read_as_json_and_keeps_its_look() -> None:
    inside = {"mail": "jane@example.com", "card": 4111111111111111, "pin": {"password": "x1y"}}
    for indent in (None, 2):
        text = json.dumps(inside, indent=indent).replace("@", "\\u0040")
        (block,) = redact({"content": [{"type": "text", "text": text}]})["content"]
        masked = {"mail": "[email]", "card": "[card]", "pin": {"password": "[secret]"}}
        assert block["text"] == json.dumps(masked, indent=indent)


@requirement("redaction:embedded")
def test_of_two_members_with_one_name_both_are_read() -> None:
    text = '{"a": "jane@example.com", "a": "x"}'
    assert redact_text(text) == '{"a": "[email]", "a": "x"}'


@requirement("redaction:embedded")
def test_text_that_is_written_as_base64_is_read_and_bytes_are_not() -> None:
    def blob(content: bytes, **rest: str) -> dict[str, Any]:
        encoded = base64.b64encode(content).decode()
        return {"type": "resource", "resource": {"uri": "x", "blob": encoded, **rest}}

    text, data = b"mail jane@example.com", b"\xff\xfejane@example.com"
    body = {"content": [blob(text), blob(data), blob(text, mimeType="image/svg+xml")]}
    first, *others = redact(body)["content"]
    assert base64.b64decode(first["resource"]["blob"]) == b"mail [email]"
    assert others == body["content"][1:]


@requirement("redaction:split")
@pytest.mark.parametrize(
    "texts",
    [
        ["card 4111 1111", "1111 1111 ok"],
        ["card 4111 1111 ", "1111\n", "1111 ok"],
        ["card ", *"4111111111111111", " ok"],
        ["mail jane@exa", "mple.com ok"],
        ["-----BEGIN PRIVATE KEY-----\nabc", "def\n-----END PRIVATE KEY----- ok"],
    ],
)
def test_what_is_split_over_texts_that_follow_each_other_is_found(texts: list[str]) -> None:
    body = {"content": [{"type": "text", "text": text} for text in texts]}
    left = "".join(block["text"] for block in redact(body)["content"])
    assert not re.search("[0-9]|jane|abc|def", left)
    assert left.endswith(" ok")


@requirement("redaction:spares")
def test_the_bytes_of_a_picture_stay() -> None:
    picture = {"type": "image", "data": "AKIAIOSFODNN7EXAMPLE", "mimeType": "image/png"}
    assert redact({"content": [picture]}) == {"content": [picture]}


@requirement("redaction:everywhere")
def test_nothing_passes_for_the_bytes_of_a_picture() -> None:
    mail = "jane@example.com"
    picture = {"type": "image", "data": mail, "annotations": {"alt": mail}}
    assert mail not in str(redact({"content": [picture], "structuredContent": picture}))


@requirement("redaction:recall")
def test_of_labelled_sentences_enough_is_masked_and_little_else() -> None:
    figures = measure(load())
    assert figures.recall >= RECALL, figures.missed
    assert figures.precision >= PRECISION, figures.false
    assert set(figures.labelled) == set(TYPES)


@requirement("redaction:spares")
@given(JSON)
def test_the_shape_of_a_result_stays(value: Any) -> None:
    def shape(it: Any) -> Any:
        if isinstance(it, dict):
            return {key: shape(item) for key, item in it.items()}
        if isinstance(it, list):
            return [shape(item) for item in it]
        return "number" if it == "[card]" or type(it) in (int, float) else type(it)

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
        "+1 ", "((1", "1.1.1.1.", "::", "a:", "phone 1", "call me at ", "0490 75 ", "password=",
        "password='", "--password ", "://a:b@", "bearer ", "SG.aaaaaaaaaaaaaaaa.", "\uff11",
        "1234567, ", "phone 1234567,", "12345678901234,", "1.1.1.1, ", "ab::1, ", "a@b.cd, ",
        "d1bb88ee-3241-40df-be16-f8dc7583479f ",
        "1\u200b", "%40", '{"a":', "[1,", "123-456-7890 ", "4111 1111 1111 1111 ", "GB11 ",
    ],
)  # fmt: skip
def test_the_redactor_reads_any_text_in_time_with_its_length(unit: str) -> None:
    def read(length: int) -> None:
        redact_text((unit * length)[:length] + "@")

    # 8 times as long for 8 times the text; a square would be 64.
    assert grows_by_less(24, read, 8_192, 65_536)
