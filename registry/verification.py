"""The verifier: reads an export of the audit and says exactly what is wrong with it.

Pure, and it needs nothing but the export, the public keys and, to see what only the outside can
show, the checkpoints kept there. It reads an export once, line by line; what it remembers is what
checkpoints vouch for, and one head per chain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from registry import chain
from registry.attestations import Checkpoint, Cut
from registry.findings import MOST, Findings, Problem, Verdict
from registry.signing import PublicKeys
from registry.vouching import Vouchers, unsigned

FORMAT: Final = 1
UNSEALED_AFTER: Final = timedelta(seconds=60)
AHEAD: Final = timedelta(seconds=60)
"""How much younger than the export what it reads may be."""


@dataclass
class _Chain:
    """Where the verifier is in a chain."""

    name: str
    seq: int
    hash: bytes
    begun: bool = False
    unsigned: bool = False
    missing: dict[int, Problem] = field(default_factory=dict)
    breaks: list[Problem] = field(default_factory=list)
    """What does not follow, since the last entry that a checkpoint vouched for."""


class Verifier:
    """Takes an export's lines by `feed` and gives its verdict by `finish`.

    ``outside`` are the lines of the checkpoints that were kept outside the database, without which
    neither a cut-off end nor a rewriting of everything can be told from the truth.
    """

    def __init__(
        self,
        keys: PublicKeys,
        outside: Iterable[bytes] = (),
        *,
        unsealed_after: timedelta = UNSEALED_AFTER,
    ) -> None:
        self._keys = keys
        self._unsealed_after = unsealed_after
        self._findings = Findings()
        self._wrong = self._findings.wrong
        self._vouchers = Vouchers(keys, self._findings, outside)
        self._header: Mapping[str, Any] = {}
        self._latest = ""
        self._cuts: dict[str, Cut] = {}
        self._starts: dict[str, tuple[int, bytes]] = {}
        self._chains: dict[str, _Chain] = {}
        self._now: _Chain | None = None
        self._among_entries = False
        self._ended = False
        self._lines = self._unsealed = 0
        self.entries = 0
        """How many sealed entries it has read."""

    def feed(self, lines: Iterable[bytes]) -> None:
        """Read the next lines of the export."""
        for line in lines:
            self._lines += 1
            try:
                body = chain.read(line)
                if body["kind"] == "entry":
                    self._entry(body)
                else:
                    self._other(body["kind"], body)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                self._wrong("unreadable", "", None, f"line {self._lines}: {error!s:.200}")

    def finish(self) -> Verdict:
        """Return the verdict, once every line was read."""
        self._begin_entries()
        if not self._ended:
            self._wrong("truncated", "", None, "the export breaks off before its last line")
        for name in self._vouchers.names():
            last, number = self._vouchers.last(name)
            known = self._chains.get(name)
            seq = known.seq if known else self._beginning(name)[0]
            if last > seq:
                what = f"the end is missing: checkpoint {number} vouches for entries up to {last}"
                self._wrong("truncated", name, seq + 1, what)
        return Verdict(
            as_of=str(self._header.get("at", "")),
            entries=self.entries,
            unsealed=self._unsealed,
            chains=len(self._chains),
            checkpoints=self._vouchers.count,
            problems=self._findings.problems,
            left_out=self._findings.left_out,
            notes=self._findings.notes,
        )

    # -- lines that are no entries ----------------------------------------------------------

    def _other(self, kind: str, body: Mapping[str, Any]) -> None:
        if self._ended or (self._among_entries and kind != "end"):
            self._wrong("reordered", "", None, f"line {self._lines}: it cannot stand here")
        match kind:
            case "export":
                self._take_header(body)
            case "checkpoint":
                self._vouchers.add(Checkpoint.parse(body))
            case "cut":
                self._take_cut(Cut.parse(body))
            case "start":
                self._take_start(body)
            case "end":
                self._take_end(body)
            case _:
                raise ValueError(f"no line is of kind {kind!r}")

    def _take_header(self, header: Mapping[str, Any]) -> None:
        if self._lines != 1:
            raise ValueError("an export begins once, with its first line")
        if header["format"] != FORMAT:
            raise ValueError(f"exports of format {header['format']!r} cannot be read")
        self._latest = (_instant(header["at"]) + AHEAD).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        self._header = header

    def _take_cut(self, cut: Cut) -> None:
        if not cut.is_signed(self._keys):
            self._wrong("signature", cut.chain, cut.to_seq, unsigned("cut", cut.key))
        elif cut.chain not in self._cuts or self._cuts[cut.chain].to_seq < cut.to_seq:
            self._cuts[cut.chain] = cut

    def _take_start(self, start: Mapping[str, Any]) -> None:
        if not self._header.get("since"):
            raise ValueError("a whole export has its chains' beginnings")
        self._starts[start["chain"]] = int(start["seq"]), bytes.fromhex(start["hash"])

    def _take_end(self, end: Mapping[str, Any]) -> None:
        self._ended = True
        if end["lines"] != self._lines:
            self._wrong("truncated", "", None, "lines of the export are missing, or too many")
        if end["header"] != digest(self._header):
            self._wrong("edited", "", None, "the first line is not the one that was written")

    def _begin_entries(self) -> None:
        if self._among_entries:
            return
        self._among_entries = True
        notes = self._findings.notes
        if not self._header:
            self._wrong("unreadable", "", None, "it does not begin as an export of the audit does")
        if self._header.get("since"):
            notes.append(f"it begins about {self._header['since']}, not at the beginning")
        if not self._keys.keys:
            notes.append("no public key is known: no signature counts")
        self._vouchers.settle(self._header, self._beginning)

    # -- entries ----------------------------------------------------------------------------

    def _entry(self, body: Mapping[str, Any]) -> None:
        self._begin_entries()
        name, seq, entry = body["chain"], body["seq"], body["entry"]
        if self._ended:
            self._wrong("inserted", name, seq, "it stands behind the end of the export")
        if seq is None:
            self._not_sealed(name, entry)
        elif type(seq) is int and type(name) is str:
            self._sealed(name, seq, bytes.fromhex(body["hash"]), entry)
        else:
            raise ValueError("it does not say where in a chain it stands")

    def _sealed(self, name: str, seq: int, stated: bytes, entry: Mapping[str, Any] | None) -> None:
        self.entries += 1
        now = self._now
        if now is None or now.name != name:
            now = self._now = self._turn_to(name)
        if seq <= now.seq:
            self._out_of_order(now, seq)
            return
        if seq > now.seq + 1:
            self._skip(now, seq)
        elif entry is None:
            self._wrong("deleted", name, seq, "its seal is there, the entry is not")
        elif (entry["tenant_id"] or chain.NO_TENANT) != name:
            self._wrong("edited", name, seq, "it is another tenant's than its chain")
        elif chain.link(now.hash, entry) != stated:
            what = "entry and hash do not follow from the entry before"
            now.breaks.append(self._wrong("edited", name, seq, what))
        now.seq, now.hash, now.begun = seq, stated, True
        self._compare(now)
        if entry is not None:
            self._in_time(now, entry["at"])

    def _turn_to(self, name: str) -> _Chain:
        if name in self._chains:
            self._wrong("reordered", name, None, "the chain's entries do not stand together")
            return self._chains[name]
        if self._header.get("tenant") not in {None, name}:
            self._wrong("inserted", name, None, "the export is said to be another tenant's")
        return self._chains.setdefault(name, _Chain(name, *self._beginning(name)))

    def _beginning(self, name: str) -> tuple[int, bytes]:
        """Return the number and the hash that a chain's first entry follows."""
        if name in self._starts:
            return self._starts[name]
        if (cut := self._cuts.get(name)) is not None:
            return cut.to_seq, bytes.fromhex(cut.hash)
        return 0, chain.genesis(name)

    def _skip(self, now: _Chain, seq: int) -> None:
        what = f"entries {now.seq + 1} to {seq - 1} are missing"
        kind = "deleted" if now.begun else "truncated"
        problem = self._wrong(kind, now.name, now.seq + 1, what)
        now.missing |= dict.fromkeys(range(now.seq + 1, min(seq, now.seq + MOST)), problem)

    def _out_of_order(self, now: _Chain, seq: int) -> None:
        if (missed := now.missing.pop(seq, None)) is not None:
            missed.kind, missed.what = "reordered", f"entry {seq} stands behind entry {now.seq}"
        else:
            what = f"it stands behind entry {now.seq}, and that number was there already"
            self._wrong("inserted", now.name, seq, what)

    def _compare(self, now: _Chain) -> None:
        """Compare where a chain is with what checkpoints vouch for."""
        promised = self._vouchers.promised(now.name, now.seq)
        if promised is not None and promised[0] == now.hash:
            now.breaks.clear()
            return
        if promised is not None and not now.breaks:
            what = f"checkpoint {promised[1]} vouches for another entry here"
            now.breaks.append(self._wrong("rewritten", now.name, now.seq, what))
        place = self._vouchers.place(now.name, now.hash) if now.breaks else None
        if place is None:
            return
        if now.breaks[-1].seq == now.seq:
            now.breaks[-1].kind = "reordered"
            now.breaks[-1].what = f"what stands here was sealed as entry {place}"
            return
        # It follows from those before, under another number: so much is missing, or too much.
        kind = "deleted" if place > now.seq else "inserted"
        for problem in now.breaks:
            problem.kind = kind
            problem.what = f"{abs(place - now.seq)} entries were {kind}, the others renumbered"
        now.breaks.clear()

    def _in_time(self, now: _Chain, at: str) -> None:
        """See whether an entry has the age that it can have where it stands."""
        if at > self._latest:
            self._latest = at
            what = "it is younger than the export is said to be"
            self._wrong("edited", now.name, now.seq, what)
        beyond = now.seq > self._vouchers.last(now.name)[0] and bool(self._keys.keys)
        if beyond and not now.unsigned and self._age(at) > self._unsealed_after:
            now.unsigned = True
            what = f"no checkpoint vouches for it, nor for what follows; it is of {at}"
            self._wrong("unsigned", now.name, now.seq, what)

    def _age(self, at: Any) -> timedelta:
        return _instant(self._header.get("at")) - _instant(at)

    def _not_sealed(self, name: str, entry: Mapping[str, Any]) -> None:
        self._unsealed += 1
        if self._age(entry["at"]) > self._unsealed_after:
            what = f"the entry with id {entry['id']} of {entry['at']} has no place in its chain"
            self._wrong("unsealed", name, None, what)


def digest(header: Mapping[str, Any]) -> str:
    """Return what an export's last line tells of its first."""
    return hashlib.sha256(chain.canonical(header)).hexdigest()


def _instant(text: Any) -> datetime:
    return datetime.fromisoformat(str(text))
