"""The first operator's key of a fleet whose secrets were made before its database."""

from __future__ import annotations

import pytest

from registry import tenants
from registry.database import Database
from registry.errors import FleetError
from registry.tenants import Role, adopt_operator_key, authenticate, new_plaintext
from tests.requirements import requirement

pytestmark = pytest.mark.anyio


@requirement("containers:first-key")
async def test_a_key_made_before_is_an_operators_once(database: Database) -> None:
    key = new_plaintext()
    await adopt_operator_key(database, key)
    first = await authenticate(database, key)
    await adopt_operator_key(database, key)
    assert (await authenticate(database, key)).key_id == first.key_id
    assert first.role is Role.OPERATOR


@requirement("containers:first-key")
async def test_a_revoked_first_key_stays_so(database: Database) -> None:
    key = new_plaintext()
    await adopt_operator_key(database, key)
    await tenants.revoke_key(database, (await authenticate(database, key)).key_id)
    await adopt_operator_key(database, key)
    with pytest.raises(FleetError, match="not known"):
        await authenticate(database, key)


@requirement("containers:first-key")
@pytest.mark.parametrize("key", ["tf_short", "x" * 60])
async def test_a_key_that_might_be_guessed_is_refused(database: Database, key: str) -> None:
    with pytest.raises(ValueError, match="43 random characters"):
        await adopt_operator_key(database, key)
