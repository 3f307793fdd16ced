"""The operator's encryption keys as the settings name them: a file, a key of a Vault, or both.

Where a key of Vault's is named it is the current one, and the file's are there to read with; where
none is, it is the other way round. So data keys move from one to the other by `rewrap`, while every
process goes on reading.
"""

from __future__ import annotations

from collections.abc import Sequence

from registry.addresses import Network, parse_network
from registry.envelope import Wrapped
from registry.key_file import KeyFile
from registry.settings import Settings
from workers.outbound import open_client
from workers.request import OpenClient
from workers.vault import TransitKeys, Vault


class EncryptionKeys:
    """A `KeyWrapper` of all that the settings name."""

    def __init__(
        self, file: KeyFile, transit: TransitKeys | None = None, *, by_transit: bool = False
    ) -> None:
        self._file = file
        self._transit = transit
        self._current = transit if transit is not None and by_transit else file

    async def wrap(self, key: bytes, place: bytes) -> Wrapped:
        """See `KeyWrapper`."""
        return await self._current.wrap(key, place)

    async def unwrap(self, wrapped: Wrapped, place: bytes) -> bytes:
        """See `KeyWrapper`."""
        if self._transit is not None and self._transit.knows(wrapped):
            return await self._transit.unwrap(wrapped, place)
        return await self._file.unwrap(wrapped, place)

    async def rewrap(self, wrapped: Wrapped, place: bytes) -> Wrapped:
        """See `KeyWrapper`."""
        if self._current.knows(wrapped):
            return await self._current.rewrap(wrapped, place)
        return await self._current.wrap(await self.unwrap(wrapped, place), place)


def open_vault(settings: Settings, client: OpenClient = open_client) -> Vault | None:
    """Return the Vault of the settings, if they name one."""
    if not settings.vault_address:
        return None
    return Vault(settings, client, own_networks(settings))


def open_keys(settings: Settings, vault: Vault | None = None) -> EncryptionKeys:
    """Return the keys that the settings name; ``vault`` is the one that is open already."""
    key = settings.vault_transit_key
    vault = vault or open_vault(settings)
    transit = TransitKeys(vault, key) if vault is not None else None
    return EncryptionKeys(KeyFile(settings.encryption_keys_file), transit, by_transit=bool(key))


def own_networks(settings: Settings) -> Sequence[Network]:
    """Return the networks that the fleet's own requests may go into."""
    return tuple(parse_network(text) for text in settings.outbound_networks)
