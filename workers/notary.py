"""What the steward does for the audit: seals entries, signs checkpoints, removes what is too old.

All of it may be done by several stewards at once, and is taken up where a killed one left it.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from registry import sealing
from registry.checkpoint_file import CheckpointFile
from registry.database import Database
from registry.retention import prune
from registry.settings import Settings
from registry.signing import Signer, public_file, read_public_keys

SEAL_EVERY_S: Final = 1.0
SIGN_EVERY_S: Final = 2.0
PRUNE_EVERY_S: Final = 600.0

logger = logging.getLogger("toolfleet.audit")


class Notary:
    """The audit's sweeps over one database."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._file = CheckpointFile(settings.audit_checkpoints_path)
        self._said = ""

    async def seal_audit(self) -> None:
        """Give every committed entry its place in its chain."""
        while await sealing.seal(self._database) == sealing.BATCH:
            pass

    async def sign_audit(self) -> None:
        """Sign where the chains are, if they moved, and keep that in the database and outside."""
        if (signer := await self._signer()) is None:
            return
        known = await asyncio.to_thread(self._file.last_number)
        newest = await sealing.newest_checkpoint(self._database)
        if known > newest:
            self._say(
                f"checkpoint {known} of the audit is in {self._file.path} and not in the database, "
                "which was put back or written anew: `toolfleet audit verify` says what is missing"
            )
        await sealing.sign_checkpoint(self._database, signer, after=known)
        while lines := await sealing.unpublished(self._database, known):
            await asyncio.to_thread(self._file.append, lines)
            known = await asyncio.to_thread(self._file.last_number)

    async def prune_audit(self) -> None:
        """Remove entries that are older than they are to be kept."""
        retention = self._settings.audit_retention
        if retention is None or (signer := await self._signer()) is None:
            return
        keys = await asyncio.to_thread(read_public_keys, public_file(self._key))
        before = datetime.now(UTC) - retention
        removed = await prune(self._database, signer, keys, before, actor=sealing.STEWARD)
        if removed:
            logger.info("removed %d old entries of the audit", sum(removed.values()))

    @property
    def _key(self) -> Path:
        return self._settings.audit_key_path

    async def _signer(self) -> Signer | None:
        """Return the key as it is now: it may be changed at any time. None where there is none."""
        if self._settings.audit_key_file is None and not self._key.exists():
            self._say(f"the audit's checkpoints are not signed: there is no key in {self._key}")
            return None
        return await asyncio.to_thread(Signer.load, self._key)

    def _say(self, problem: str) -> None:
        if problem != self._said:
            self._said = problem
            logger.error(problem)
