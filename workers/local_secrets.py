"""Secrets that are not in the record: a file or a variable of the worker, a field of a Vault's.

What cannot be read just now takes nothing away: what was read before goes on being used.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from registry.credential_kinds import FromEnvironment, FromFile, FromVault
from registry.errors import Code, FleetError
from registry.private_files import PrivateFile, UnusableError
from workers.vault import Vault, VaultMissingError

logger = logging.getLogger("toolfleet.credentials")

READ_AGAIN_S: Final = 60.0
"""How long a secret of Vault's holds that Vault gave no lease for."""
TRY_AGAIN_S: Final = 5.0
LEASE_PART: Final = 0.8
_LARGEST_FILE: Final = 65_536
_MOST_KEPT: Final = 10_000

Local = FromFile | FromEnvironment | FromVault


@dataclass
class _Kept:
    """What Vault answered last: ``value`` is None where it said that there is nothing."""

    value: str | None = field(repr=False)
    read_again_at: float


class LocalSecrets:
    """What this worker can read of its own; ``folder`` holds the files that it may."""

    def __init__(
        self,
        folder: Path,
        vault: Vault | None,
        *,
        environment: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._vault = vault
        self._environment = environment
        self._clock = clock
        self._files: dict[str, tuple[PrivateFile, list[str]]] = {}
        self._kept: dict[FromVault, _Kept] = {}

    async def read(self, source: Local, *, again: bool = False) -> str | None:
        """Return a secret, None where there certainly is none.

        ``again`` asks Vault whatever it said a moment ago. Raises `credential_unavailable` where
        nobody can say and nothing was read before.
        """
        if isinstance(source, FromFile):
            return self._of_file(source.path)
        if isinstance(source, FromEnvironment):
            return self._environment.get(source.variable) or None
        return await self._of_vault(source, again=again)

    async def look_after(self) -> None:
        """Stay logged in to Vault; to be called every second or so."""
        if self._vault is not None:
            with suppress(FleetError):  # who reads next is told
                await self._vault.stay_logged_in()

    def _of_file(self, name: str) -> str | None:
        path = Path(name)
        if not path.resolve().is_relative_to(self._folder.resolve()):
            raise _unavailable(
                f"the file {name} is not in {self._folder}",
                "TOOLFLEET_CREDENTIAL_FOLDER names the folder of files that may be credentials",
            )
        if name not in self._files:
            if len(self._files) >= _MOST_KEPT:
                self._files.clear()
            self._files[name] = (PrivateFile(path, largest=_LARGEST_FILE), [])
        file, last = self._files[name]
        try:
            if (data := file.read_if_changed()) is not None:
                last[:] = [data.decode().removesuffix("\n").removesuffix("\r")]
        except (UnusableError, UnicodeDecodeError) as error:
            problem = str(error) if isinstance(error, UnusableError) else "it is not UTF-8"
            logger.warning("the credential in %s cannot be read: %s", name, problem)
        if not last:
            raise _unavailable(f"the file {name} cannot be used on this worker", "see its log")
        return last[0]

    async def _of_vault(self, source: FromVault, *, again: bool) -> str | None:
        kept = self._kept.get(source)
        if kept is not None and not again and self._clock() < kept.read_again_at:
            return kept.value
        try:
            value, holds_s = await self._ask_vault(source)
        except FleetError as error:
            if kept is None:
                raise
            logger.warning("the credential in Vault at %s stays: %s", source.path, error.message)
            kept.read_again_at = self._clock() + TRY_AGAIN_S
            return kept.value
        if len(self._kept) >= _MOST_KEPT:
            self._kept.clear()
        self._kept[source] = _Kept(value, self._clock() + holds_s)
        return value

    async def _ask_vault(self, source: FromVault) -> tuple[str | None, float]:
        if self._vault is None:
            raise _unavailable("no Vault is named", "set TOOLFLEET_VAULT_ADDRESS on the workers")
        try:
            fields, lease_s = await self._vault.read(source.mount, source.path, source.version)
        except VaultMissingError:
            return None, TRY_AGAIN_S
        value = fields.get(source.field)
        if not isinstance(value, str) or not value:
            return None, TRY_AGAIN_S
        return value, lease_s * LEASE_PART or READ_AGAIN_S


def _unavailable(problem: str, hint: str) -> FleetError:
    return FleetError(Code.CREDENTIAL_UNAVAILABLE, problem, hint=hint, retry_after_s=5)
