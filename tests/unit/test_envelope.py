"""Secrets at rest: sealed for one place, under keys that can be changed at any time."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.envelope import SealedError, Wrapped, new_key, place_of, seal, unseal
from registry.errors import Code, FleetError
from registry.key_file import KeyFile, parse
from registry.private_files import UnusableError
from registry.stored_credential import TRANSITIONS, CredentialState
from tests.brokering import Keys
from tests.requirements import requirement

pytestmark = pytest.mark.anyio

HERE, ELSEWHERE = place_of("credential", "acme", "crm", 3), place_of("credential", "acme", "erp", 3)
KEY = "k1 " + base64.b64encode(b"k" * 32).decode()


@requirement("broker:sealed")
@given(st.binary(max_size=200), st.integers(0, 10_000), st.integers(1, 255))
def test_what_is_sealed_opens_whole_or_not_at_all(plain: bytes, at: int, bits: int) -> None:
    key = new_key()
    sealed = seal(key, plain, HERE)
    assert unseal(key, sealed, HERE) == plain
    changed = bytearray(sealed)
    changed[at % len(sealed)] ^= bits
    for wrong in (bytes(changed), sealed[: at % len(sealed)]):
        with pytest.raises(SealedError):
            unseal(key, wrong, HERE)


@requirement("broker:sealed")
def test_what_is_sealed_opens_in_its_own_place_and_with_its_own_key_alone() -> None:
    key = new_key()
    sealed = seal(key, b"a secret", HERE)
    for other, place in ((key, ELSEWHERE), (new_key(), HERE)):
        with pytest.raises(SealedError):
            unseal(other, sealed, place)


@requirement("broker:sealed")
def test_no_two_seals_of_a_secret_look_alike() -> None:
    key = new_key()
    assert len({seal(key, b"a secret", HERE) for _ in range(100)}) == 100


@requirement("broker:sealed")
def test_places_are_told_apart_however_their_names_are_cut() -> None:
    assert place_of("a", "bc") != place_of("ab", "c")
    assert place_of("a|b", "c") != place_of("a", "b|c")
    assert place_of({"x": 1, "y": 2}) == place_of({"y": 2, "x": 1})


@requirement("broker:key-rotation")
async def test_a_new_key_wraps_and_the_old_one_goes_on_reading(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys")
    data_key = new_key()
    before = await keys.file.wrap(data_key, HERE)
    keys.put("second", "first")
    assert await keys.file.unwrap(before, HERE) == data_key
    after = await keys.file.rewrap(before, HERE)
    assert (before.by, after.by) == ("file:first", "file:second")
    assert await keys.file.rewrap(after, HERE) is after
    keys.put("second")
    assert await keys.file.unwrap(after, HERE) == data_key
    with pytest.raises(FleetError, match="no encryption key 'first'") as refused:
        await keys.file.unwrap(before, HERE)
    assert refused.value.code is Code.CREDENTIAL_UNAVAILABLE


@requirement("broker:key-rotation")
async def test_a_file_of_keys_that_goes_bad_takes_no_key_away(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys")
    wrapped = await keys.file.wrap(new_key(), HERE)
    keys.path.write_text("half of a li")
    await keys.file.unwrap(wrapped, HERE)
    keys.path.unlink()
    await keys.file.unwrap(wrapped, HERE)


@requirement("broker:private-keys")
async def test_keys_that_others_may_read_are_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(KEY)
    path.chmod(0o644)
    for _ in range(2):
        with pytest.raises(FleetError, match="chmod 600"):
            await KeyFile(path).wrap(new_key(), HERE)


@requirement("broker:private-keys")
async def test_without_keys_nothing_is_kept(tmp_path: Path) -> None:
    for file in (KeyFile(None), KeyFile(tmp_path / "there-is-none")):
        for _ in range(2):
            with pytest.raises(FleetError) as refused:
                await file.wrap(new_key(), HERE)
            assert refused.value.code is Code.CREDENTIAL_UNAVAILABLE
            assert "TOOLFLEET_ENCRYPTION_KEYS_FILE" in refused.value.hint


@requirement("broker:private-keys")
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "holds no key"),
        ("# only a word about it\n\n", "holds no key"),
        ("k1", "line 1 is not an id and a key"),
        (f"{KEY}\nk 2 {KEY}", "line 2 is not an id and a key"),
        (f"{KEY}\n{KEY}", "line 2 has the id of another line"),
        ("k1 c2hvcnQ=", "line 1 holds no 32 bytes"),
        ("k1 not-base64-at-all!", "line 1 holds no 32 bytes"),
    ],
)
def test_a_line_that_is_no_key_is_named_and_not_quoted(content: str, problem: str) -> None:
    with pytest.raises(UnusableError, match=problem) as refused:
        parse(content.encode())
    assert "c2hvcnQ" not in str(refused.value)


@requirement("broker:secret")
def test_what_is_sealed_and_wrapped_does_not_show_itself() -> None:
    assert "blob" not in repr(Wrapped("file:k1", b"blob"))


@requirement("broker:states")
def test_no_state_of_a_credential_is_a_dead_end() -> None:
    assert set(TRANSITIONS) == set(CredentialState)
    assert all(after and state not in after for state, after in TRANSITIONS.items())
