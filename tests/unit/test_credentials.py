"""The file of tenants' credentials, and what keeps a secret out of results, errors and logs."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.credentials import FileProvider, Grant
from registry.definitions import ServerDefinition, parse_definition
from registry.errors import Code, FleetError
from tests.requirements import requirement
from workers.keyring import Keyring
from workers.pool import SessionKey
from workers.scrub import REPLACEMENT, Scrubber

pytestmark = pytest.mark.anyio

ALICE, BOB, SHARED = "alice-secret-1", "bob-secret-1", "shared-secret-1"


def server(name: str = "crm", **credentials: Any) -> ServerDefinition:
    how = {"inject": "env", "name": "TOKEN", "required": True, **credentials}
    where = {"transport": "stdio", "command": "true"}
    if how["inject"] == "header":
        where = {"transport": "http", "url": "https://crm.example/mcp"}
    return parse_definition({"name": name, **where, "credentials": how})


class Credentials:
    """A credentials file and its reader."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.provider = FileProvider(path)

    def write(self, document: Any, mode: int = 0o600) -> None:
        """Replace the file's content, as an editor does."""
        fresh = self.path.with_suffix(".new")
        fresh.write_text(document if isinstance(document, str) else json.dumps(document))
        fresh.chmod(mode)
        fresh.replace(self.path)

    async def grant(self, tenant: str, definition: ServerDefinition | None = None) -> Grant:
        grant = await self.provider.resolve(tenant, definition or server())
        assert grant is not None
        return grant

    async def secret(self, tenant: str, definition: ServerDefinition | None = None) -> str:
        return (await self.grant(tenant, definition)).secret

    async def refused(self, tenant: str, definition: ServerDefinition | None = None) -> FleetError:
        with pytest.raises(FleetError) as caught:
            await self.provider.resolve(tenant, definition or server())
        assert caught.value.code is Code.CREDENTIAL_MISSING
        return caught.value


@pytest.fixture
def file(tmp_path: Path) -> Credentials:
    return Credentials(tmp_path / "credentials.json")


# -- whose credential


@requirement("credentials:own")
async def test_each_tenant_gets_its_own_secret_for_that_server(file: Credentials) -> None:
    file.write({"alice": {"crm": ALICE, "erp": "alice-at-erp"}, "bob": {"crm": BOB}})
    assert await file.secret("alice") == ALICE
    assert await file.secret("alice", server("erp")) == "alice-at-erp"
    grant = await file.grant("bob")
    assert (grant.identity, grant.inject, grant.name, grant.secret) == ("bob", "env", "TOKEN", BOB)


@requirement("credentials:shared")
async def test_tenants_without_a_secret_of_their_own_share_the_stars(file: Credentials) -> None:
    file.write({"*": {"crm": SHARED}, "alice": {"crm": ALICE}})
    bob, carol, alice = [await file.grant(tenant) for tenant in ("bob", "carol", "alice")]
    assert bob == carol
    assert (bob.identity, bob.secret) == ("*", SHARED)
    assert (alice.identity, alice.secret) == ("alice", ALICE)


@requirement("credentials:missing")
async def test_a_required_credential_that_is_not_there_is_named(file: Credentials) -> None:
    file.write({"alice": {"crm": ALICE}, "bob": {"erp": "bob-at-erp"}})
    error = await file.refused("bob")
    assert "'bob'" in error.message
    assert "crm" in error.message
    assert "TOOLFLEET_CREDENTIALS_FILE" in error.hint


@requirement("credentials:missing")
async def test_a_server_that_can_do_without_gets_none(file: Credentials) -> None:
    file.write({"alice": {"crm": ALICE}})
    assert await file.provider.resolve("bob", server(required=False)) is None


@requirement("credentials:missing")
async def test_without_a_file_nobody_has_a_credential() -> None:
    provider = FileProvider(None)
    assert await provider.resolve("alice", server(required=False)) is None
    with pytest.raises(FleetError, match="no usable credential of tenant 'alice' for server crm"):
        await provider.resolve("alice", server())


@requirement("credentials:missing")
@pytest.mark.parametrize(
    ("inject", "secret", "why"),
    [
        ("env", "short", "fewer than 8 characters"),
        ("env", "a-secret\0with-nul", "NUL"),
        ("header", "Bearer with-line-end\n", "line end"),
        ("header", "Bearer caf\N{LATIN SMALL LETTER E WITH ACUTE}-token", "line end or another"),
        ("header", "Bearer a-space-at-the-end ", "space"),
    ],
)
async def test_a_secret_that_cannot_be_used_is_refused_for_its_tenant_alone(
    file: Credentials, inject: str, secret: str, why: str
) -> None:
    file.write({"alice": {"crm": secret}, "bob": {"crm": BOB}})
    definition = server(inject=inject)
    error = await file.refused("alice", definition)
    assert why in error.message
    assert secret not in json.dumps(error.as_dict(), ensure_ascii=False)
    assert await file.secret("bob", definition) == BOB


@requirement("credentials:secret")
async def test_a_grant_does_not_show_its_secret(file: Credentials) -> None:
    file.write({"alice": {"crm": ALICE}})
    assert ALICE not in repr(await file.grant("alice"))


@requirement("credentials:missing")
@pytest.mark.parametrize(
    ("where", "inject"),
    [
        ({"transport": "stdio", "command": "true"}, "header"),
        ({"transport": "http", "url": "https://crm.example/mcp"}, "env"),
    ],
)
def test_a_definition_whose_transport_cannot_carry_its_credential_is_refused(
    where: dict[str, str], inject: str
) -> None:
    credentials = {"inject": inject, "name": "TOKEN"}
    with pytest.raises(FleetError, match=f"inject: {inject} does not fit") as caught:
        parse_definition({"name": "crm", **where, "credentials": credentials})
    assert caught.value.code is Code.INVALID_DEFINITION


# -- listing tools


@requirement("credentials:listing")
async def test_tools_are_listed_with_the_shared_credential_if_there_is_one(
    file: Credentials,
) -> None:
    file.write({"alice": {"crm": ALICE}, "*": {"crm": SHARED}})
    grant = await file.provider.resolve_listing(server())
    assert grant is not None
    assert grant.identity == "*"


@requirement("credentials:listing")
async def test_tools_are_listed_with_the_first_tenants_that_may_use_the_server(
    file: Credentials,
) -> None:
    file.write({"zoe": {"crm": "zoes-secret"}, "bob": {"crm": BOB}, "alice": {"crm": ALICE}})
    definition = server().model_copy(update={"tenants": ("zoe", "bob")})
    grant = await file.provider.resolve_listing(definition)
    assert grant is not None
    assert (grant.identity, grant.secret) == ("bob", BOB)


@requirement("credentials:listing")
async def test_no_tenants_credential_lists_the_tools_of_a_server_that_can_do_without(
    file: Credentials,
) -> None:
    file.write({"alice": {"crm": ALICE}})
    assert await file.provider.resolve_listing(server(required=False)) is None


@requirement("credentials:listing")
async def test_tools_that_nobody_has_a_credential_for_cannot_be_listed(file: Credentials) -> None:
    file.write({"alice": {"erp": "alice-at-erp"}})
    with pytest.raises(FleetError) as caught:
        await file.provider.resolve_listing(server())
    assert caught.value.code is Code.CREDENTIAL_MISSING


# -- changes


@requirement("credentials:rotation")
async def test_a_changed_secret_is_the_next_generation_of_that_tenant_and_server_alone(
    file: Credentials,
) -> None:
    erp = server("erp")
    everyone = {"alice": {"crm": ALICE, "erp": "alice-at-erp"}, "bob": {"crm": BOB}}
    file.write(everyone)
    before = [
        await file.grant("alice"),
        await file.grant("alice", erp),
        await file.grant("bob"),
    ]
    file.write(everyone | {"alice": {"crm": "alice-secret-2", "erp": "alice-at-erp"}})
    after = [
        await file.grant("alice"),
        await file.grant("alice", erp),
        await file.grant("bob"),
    ]
    assert after[0].secret == "alice-secret-2"
    assert after[0].generation == before[0].generation + 1
    assert after[1:] == before[1:]


@requirement("credentials:rotation")
async def test_a_file_rewritten_with_the_same_secrets_changes_no_generation(
    file: Credentials,
) -> None:
    file.write({"alice": {"crm": ALICE}})
    before = await file.grant("alice")
    file.write({"alice": {"crm": ALICE}})
    assert await file.grant("alice") == before


@requirement("credentials:rotation")
async def test_a_secret_written_in_place_with_the_same_length_is_seen(file: Credentials) -> None:
    file.write({"alice": {"crm": ALICE}})
    before = await file.grant("alice")
    times = file.path.stat()
    file.path.write_text(json.dumps({"alice": {"crm": ALICE[::-1]}}))
    os.utime(file.path, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = await file.grant("alice")
    assert (after.secret, after.generation) == (ALICE[::-1], before.generation + 1)


@requirement("credentials:rotation")
async def test_a_secret_taken_away_and_given_again_is_a_later_generation(
    file: Credentials,
) -> None:
    file.write({"alice": {"crm": ALICE}})
    first = await file.grant("alice")
    file.write({})
    await file.refused("alice")
    file.write({"alice": {"crm": ALICE}})
    assert (await file.grant("alice")).generation > first.generation + 1


# -- files that cannot be used


@requirement("credentials:private-file")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
async def test_a_file_open_to_others_is_refused_with_what_to_do(
    file: Credentials, mode: int
) -> None:
    file.write({"alice": {"crm": ALICE}}, mode=mode)
    error = await file.refused("alice")
    assert "chmod 600" in error.message
    file.path.chmod(0o600)
    assert await file.secret("alice") == ALICE


@requirement("credentials:last-good")
@pytest.mark.parametrize(
    "bad",
    [
        "",
        '{"alice": {"crm": "alice-sec',
        '["alice"]',
        '{"alice": "alice-secret-9"}',
        '{"alice": {"crm": 12345678}}',
        '{"": {"crm": "nobodys-secret"}}',
        "[" * 100_000,
    ],
)
async def test_a_bad_file_takes_nothing_away_and_is_reported_once_without_its_contents(
    file: Credentials, bad: str, caplog: pytest.LogCaptureFixture
) -> None:
    file.write({"alice": {"crm": ALICE}})
    good = await file.grant("alice")
    file.write(bad)
    assert [await file.grant("alice") for _ in range(3)] == [good] * 3
    (warning,) = caplog.records
    assert warning.levelno == logging.WARNING
    told = warning.getMessage()
    assert not [word for word in ("alice", "12345678", "nobody") if word in told]
    file.write({"alice": {"crm": "alice-secret-2"}})
    assert await file.secret("alice") == "alice-secret-2"


@requirement("credentials:last-good")
async def test_a_file_that_is_gone_or_opened_to_others_takes_nothing_away(
    file: Credentials,
) -> None:
    file.write({"alice": {"crm": ALICE}})
    good = await file.grant("alice")
    file.path.chmod(0o644)
    assert await file.grant("alice") == good
    file.path.unlink()
    assert await file.grant("alice") == good


@requirement("credentials:last-good")
async def test_before_any_good_file_no_session_goes_without_its_credential(
    file: Credentials,
) -> None:
    error = await file.refused("alice", server(required=False))
    assert "cannot be used" in error.message


# -- the keys of sessions


@requirement("credentials:scope")
async def test_a_session_is_keyed_by_identity_and_generation(file: Credentials) -> None:
    file.write({"alice": {"crm": ALICE}, "*": {"crm": SHARED}})
    ring = Keyring(7, server(), file.provider)
    assert await ring.key_of("alice") == SessionKey(7, "alice", 1)
    assert await ring.key_of("bob") == await ring.key_of("carol") == SessionKey(7, "*", 1)
    assert await ring.warm_key() == SessionKey(7, "*", 1)


@requirement("credentials:scope")
async def test_a_server_that_takes_no_credential_never_asks_for_one(tmp_path: Path) -> None:
    provider = FileProvider(tmp_path / "there-is-no-such-file")
    ring = Keyring(7, server(inject="none", required=False), provider)
    assert await ring.key_of("alice") == await ring.warm_key() == SessionKey(7)


@requirement("credentials:listing")
async def test_sessions_of_a_single_tenant_are_not_kept_warm(file: Credentials) -> None:
    file.write({"alice": {"crm": ALICE}})
    ring = Keyring(7, server(), file.provider)
    assert await ring.listing_key() == SessionKey(7, "alice", 1)
    assert await ring.warm_key() is None


@requirement("credentials:rotation")
async def test_no_session_is_opened_for_an_older_generation(file: Credentials) -> None:
    file.write({"alice": {"crm": ALICE}})
    ring = Keyring(7, server(), file.provider)
    key = await ring.key_of("alice")
    file.write({"alice": {"crm": "alice-secret-2"}})
    with pytest.raises(FleetError) as caught:
        await ring.credential(key)
    assert caught.value.code is Code.CREDENTIAL_ROTATED
    credential = await ring.credential(await ring.key_of("alice"))
    assert credential is not None
    assert credential.secret == "alice-secret-2"


# -- scrubbing


TOKEN = 'ab"c/d\\e+f g\N{LATIN SMALL LETTER E WITH ACUTE}'


@requirement("credentials:scrubbed")
@pytest.mark.parametrize(
    "spelled",
    [
        TOKEN,
        json.dumps(TOKEN)[1:-1],
        json.dumps(TOKEN, ensure_ascii=False)[1:-1],
        json.dumps(TOKEN)[1:-1].replace("/", "\\/"),
        json.dumps(json.dumps(TOKEN))[3:-3],
        "ab%22c%2Fd%5Ce%2Bf%20g%C3%A9",
    ],
)
def test_a_secret_is_found_however_json_or_a_url_spells_it(spelled: str) -> None:
    scrubber = Scrubber(TOKEN)
    assert scrubber.text(f"a {spelled} b") == f"a {REPLACEMENT} b"
    body = {"content": [{"type": "text", "text": f"<{spelled}>"}], spelled: {"x": [spelled]}}
    clean = {
        "content": [{"type": "text", "text": f"<{REPLACEMENT}>"}],
        REPLACEMENT: {"x": [REPLACEMENT]},
    }
    assert scrubber.json(body) == clean


@requirement("credentials:scrubbed")
def test_a_header_is_found_without_its_scheme() -> None:
    assert Scrubber("Bearer tok-123456").text("used tok-123456") == f"used {REPLACEMENT}"


@requirement("credentials:scrubbed")
def test_a_secret_of_digits_is_found_as_a_number() -> None:
    assert Scrubber("12345678").json({"pin": 12345678}) == {"pin": REPLACEMENT}


@requirement("credentials:scrubbed")
def test_a_result_without_the_secret_is_passed_on_untouched() -> None:
    body = {"content": [{"type": "text", "text": "all is well"}]}
    assert Scrubber(ALICE).json(body) is body


@requirement("credentials:scrubbed")
@given(cut=st.integers(1, len(ALICE) - 4), after=st.text(alphabet="xyz \n", max_size=8))
def test_no_long_piece_of_a_cut_secret_stays_in_an_excerpt(cut: int, after: str) -> None:
    scrubber = Scrubber(ALICE)
    assert ALICE[cut:] not in scrubber.excerpt(ALICE[cut:] + after)
    assert ALICE[: len(ALICE) - cut] not in scrubber.excerpt(after + ALICE[: len(ALICE) - cut])


@requirement("credentials:scrubbed")
def test_an_error_is_scrubbed_in_its_message_hint_and_details() -> None:
    error = FleetError(
        Code.TOOL_REFUSED, f"no {ALICE}", hint=f"not {ALICE}", details={"stderr": f"bad {ALICE}"}
    )
    Scrubber(ALICE).error(error)
    assert (
        error.as_dict()
        == FleetError(
            Code.TOOL_REFUSED,
            f"no {REPLACEMENT}",
            hint=f"not {REPLACEMENT}",
            details={"stderr": f"bad {REPLACEMENT}"},
        ).as_dict()
    )
    assert str(error) == f"no {REPLACEMENT}"


LOG = f"""
import logging
from workers.scrub import Scrubber, set_up_logging

set_up_logging()
scrubber = Scrubber("{ALICE}")
try:
    raise ValueError("{ALICE} is no token")
except ValueError:
    logging.getLogger("toolfleet.test").exception("refused %s", "{ALICE}")
"""


@requirement("credentials:scrubbed")
def test_a_log_line_and_its_traceback_tell_no_secret_of_an_open_session() -> None:
    said = subprocess.run(
        [sys.executable, "-c", LOG], capture_output=True, text=True, check=True
    ).stderr
    assert f"refused {REPLACEMENT}" in said
    assert f"ValueError: {REPLACEMENT} is no token" in said
    assert ALICE not in said
