"""Which hashes the checkpoints vouch for: those in an export, and those kept outside of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from registry import chain
from registry.attestations import Checkpoint
from registry.findings import CHECKPOINTS, Findings
from registry.signing import PublicKeys


class Vouchers:
    """The checkpoints that are known; `settle` proves them, before the first entry is looked at."""

    def __init__(self, keys: PublicKeys, findings: Findings, outside: Iterable[bytes]) -> None:
        self._keys = keys
        self._findings = findings
        self._inside: dict[int, Checkpoint] = {}
        self._outside: dict[int, Checkpoint] = {}
        self._expected: dict[str, dict[int, tuple[bytes, int]]] = {}
        self._places: dict[str, dict[bytes, int]] = {}
        self._last: dict[str, tuple[int, int]] = {}
        for place, line in enumerate(outside, 1):
            self._read(place, line)

    @property
    def count(self) -> int:
        """Return how many checkpoints are known."""
        return len(self._inside.keys() | self._outside.keys())

    def add(self, checkpoint: Checkpoint) -> None:
        """Take in a checkpoint of the export."""
        if checkpoint.number in self._inside:
            self._wrong("inserted", checkpoint.number, "it is in the export twice")
        self._inside[checkpoint.number] = checkpoint

    def settle(self, header: Mapping[str, Any], begin: Callable[[str], tuple[int, bytes]]) -> None:
        """Find out what is wrong with the checkpoints, and what they vouch for.

        ``begin`` tells the number and the hash that a chain's first entry follows.
        """
        as_of, tenant = str(header.get("at", "")), header.get("tenant")
        due = {it.number: it for it in self._outside.values() if it.at <= as_of}
        if younger := len(self._outside) - len(due):
            self._findings.notes.append(f"{younger} checkpoints are younger than the export")
        if tenant is None:
            self._compare(due)
        known = self._inside | due
        heads: dict[str, bytes] = {}
        before, whole = 0, True
        for number in sorted(known):
            checkpoint = known[number]
            if not checkpoint.is_signed(self._keys):
                self._wrong("signature", number, unsigned("checkpoint", checkpoint.key))
            if whole and checkpoint.leaves is None and number != before + 1:
                # A tenant's export has the newest alone, and a file outside may begin anywhere.
                whole = False
                if tenant is None:
                    what = f"those from {before + 1} on are missing before it"
                    self._wrong("deleted", number, what)
            before = number
            if whole or checkpoint.leaves is not None:
                self._prove(checkpoint, heads)
            for name, (seq, head) in checkpoint.chains.items():
                if tenant in {None, name}:
                    self._expect(name, seq, bytes.fromhex(head), number, begin(name))

    def promised(self, name: str, seq: int) -> tuple[bytes, int] | None:
        """Return the hash that an entry has to have and the checkpoint that says so, if any."""
        return self._expected.get(name, {}).get(seq)

    def place(self, name: str, hash_: bytes) -> int | None:
        """Return the number of the entry of a chain that is known to have a hash, if any."""
        return self._places.get(name, {}).get(hash_)

    def last(self, name: str) -> tuple[int, int]:
        """Return the last entry of a chain that is vouched for, and by which checkpoint; or 0."""
        return self._last.get(name, (0, 0))

    def names(self) -> Iterable[str]:
        """Return the chains that are vouched for."""
        return self._last.keys()

    def _read(self, place: int, line: bytes) -> None:
        try:
            checkpoint = Checkpoint.parse(chain.read(line))
        except (ValueError, AttributeError) as error:
            what = f"line {place} of the file outside: {error!s:.200}"
            self._findings.wrong("unreadable", CHECKPOINTS, None, what)
            return
        if self._outside.setdefault(checkpoint.number, checkpoint) != checkpoint:
            self._wrong("rewritten", checkpoint.number, "the file outside has two of this number")

    def _compare(self, due: Mapping[int, Checkpoint]) -> None:
        for number, outer in due.items():
            inner = self._inside.get(number)
            if inner is None:
                what = "it is in the file outside, and not in the database"
                self._wrong("deleted", number, what)
            elif inner != outer:
                self._wrong("rewritten", number, "it is another one in the file outside")

    def _prove(self, checkpoint: Checkpoint, heads: dict[str, bytes]) -> None:
        """See whether the heads that a checkpoint lists are those that its root was made of."""
        told = {
            name: chain.leaf(name, seq, bytes.fromhex(head))
            for name, (seq, head) in checkpoint.chains.items()
        }
        heads |= told
        leaves = list(heads.values())
        if checkpoint.leaves is not None:
            leaves = [bytes.fromhex(leaf) for leaf in checkpoint.leaves]
        if not set(told.values()) <= set(leaves) or chain.root(leaves).hex() != checkpoint.root:
            what = "the heads that it lists are not those that it was made of"
            self._wrong("edited", checkpoint.number, what)

    def _expect(
        self, name: str, seq: int, head: bytes, number: int, begin: tuple[int, bytes]
    ) -> None:
        first, before = begin
        if seq > first:
            earlier, by = self._expected.setdefault(name, {}).setdefault(seq, (head, number))
            if earlier != head:
                what = f"checkpoints {by} and {number} vouch for different entries here"
                self._findings.wrong("rewritten", name, seq, what)
            self._places.setdefault(name, {})[head] = seq
            self._last[name] = max(self.last(name), (seq, number))
        elif seq == first and seq and head != before:
            what = f"where the chain begins is not what checkpoint {number} vouches for"
            self._findings.wrong("rewritten", name, seq, what)

    def _wrong(self, kind: str, number: int, what: str) -> None:
        self._findings.wrong(kind, CHECKPOINTS, number, what)


def unsigned(what: str, key: str) -> str:
    """Return what is wrong with a checkpoint or a cut whose signature does not count."""
    return f"the {what} was not signed by key {key!r}, or that key is not known"
