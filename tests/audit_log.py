"""Exports of audits, made up, and what somebody who may change everything could do to them.

Whoever tampers here knows the format: they may number, hash and chain anew what they changed, and
rewrite the export's checkpoints. They have neither the signing key nor the file outside.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from registry import chain
from registry.attestations import Checkpoint, Cut
from registry.database import to_json
from registry.findings import Verdict
from registry.signing import PublicKeys, Signer, _id_of, _raw
from registry.verification import FORMAT, Verifier, digest

BEGUN = datetime(2026, 1, 1, tzinfo=UTC)
EVENTS = ("call.queued", "call.running", "call.succeeded", "run.started", "key.created")


def new_signer() -> Signer:
    key = Ed25519PrivateKey.generate()
    return Signer(_id_of(_raw(key.public_key())), key)


SIGNER, FORGER = new_signer(), new_signer()
KEYS = PublicKeys.parse([SIGNER.public_line])


def instant(number: int) -> str:
    return (BEGUN + timedelta(seconds=number)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass
class Log:
    """An export in parts, and the checkpoints outside."""

    entries: list[dict[str, Any]] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)
    outside: list[Checkpoint] = field(default_factory=list)

    def lines(self) -> Iterator[bytes]:
        """Yield the export as whoever tampers would write it: its last line agrees with it."""
        header = {"kind": "export", "format": FORMAT, "at": instant(100_000)} | {
            "tenant": None,
            "since": None,
        }
        body = [it.as_line() for it in (*self.checkpoints, *self.cuts)]
        ordered = sorted(range(len(self.entries)), key=lambda n: self.entries[n]["chain"])
        body += [to_json({"kind": "entry", **self.entries[n]}) for n in ordered]
        end = {"kind": "end", "lines": len(body) + 2, "header": digest(header)}
        return (line.encode() for line in (to_json(header), *body, to_json(end)))

    def verdict(self) -> Verdict:
        verifier = Verifier(KEYS, (it.as_line().encode() for it in self.outside))
        verifier.feed(self.lines())
        return verifier.finish()

    def copy(self) -> Log:
        return Log(
            json.loads(json.dumps(self.entries)), [*self.checkpoints], [*self.cuts], [*self.outside]
        )

    def of(self, name: str) -> list[dict[str, Any]]:
        return [it for it in self.entries if it["chain"] == name]

    def begin(self, name: str) -> tuple[int, bytes]:
        for cut in self.cuts:
            if cut.chain == name:
                return cut.to_seq, bytes.fromhex(cut.hash)
        return 0, chain.genesis(name)


def details(draw: random.Random) -> dict[str, Any]:
    return {
        "tool": draw.choice(["demo_look", "ünïcode\n\u2028", "a/b\\c"]),
        "attempt": draw.randrange(1, 5),
        "timings": {"call_s": draw.random(), "borrow_s": draw.random() / 1e6, "whole": 2.0},
        "changes": [None, True, {"path": "x", "maximum": 10 ** draw.randrange(30)}],
    }


def make(draw: random.Random, *, entries: int = 30, every: int = 6) -> Log:
    """Return an untouched log of several tenants, perhaps cut, its last entry vouched for."""
    log = Log()
    heads: dict[str, tuple[int, bytes]] = {}
    told: dict[str, int] = {}
    for number in range(1, entries + 1):
        name = draw.choice(["", "acme", "zeta"])
        seq, before = heads.get(name, (0, chain.genesis(name)))
        entry = {
            "id": number,
            "at": instant(number),
            "tenant_id": name or None,
            "actor": draw.choice(["key:1", "steward", "worker-1"]),
            "event": draw.choice(EVENTS),
            "run_id": draw.choice([None, "run-1"]),
            "call_id": draw.choice([None, "call-1", "call-2"]),
            "details": details(draw),
        }
        hash_ = chain.link(before, chain.read(to_json(entry)))
        heads[name] = seq + 1, hash_
        log.entries.append({"chain": name, "seq": seq + 1, "hash": hash_.hex(), "entry": entry})
        if number % every == 0 or number == entries:
            log.checkpoints.append(signed(len(log.checkpoints) + 1, number, heads, told))
            told = {it: head[0] for it, head in heads.items()}
    log.outside = [*log.checkpoints]
    if draw.random() < 0.5:
        cut(log, draw)
    return log


def signed(
    number: int,
    at: int,
    heads: dict[str, tuple[int, bytes]],
    told: dict[str, int],
    signer: Signer = SIGNER,
) -> Checkpoint:
    leaves = [chain.leaf(name, seq, head) for name, (seq, head) in heads.items()]
    changed = {it: (seq, head.hex()) for it, (seq, head) in heads.items() if told.get(it) != seq}
    total = sum(seq for seq, _ in heads.values())
    root = chain.root(leaves).hex()
    return Checkpoint(number, instant(at), signer.id, total, root, changed).signed(signer)


def cut(log: Log, draw: random.Random) -> None:
    """Remove the beginning of a chain, as retention does."""
    name = draw.choice([it for it in ("", "acme", "zeta") if len(log.of(it)) > 3])
    last = draw.choice(log.of(name)[:-2])
    log.cuts.append(
        Cut(name, 1, last["seq"], last["hash"], instant(99_000), SIGNER.id).signed(SIGNER)
    )
    log.entries = [it for it in log.entries if it["chain"] != name or it["seq"] > last["seq"]]


# -- what is done to them


def rehash(log: Log, name: str) -> None:
    """Number and chain a chain's entries anew, as they stand."""
    seq, before = log.begin(name)
    for it in log.of(name):
        seq += 1
        before = chain.link(before, chain.read(to_json(it["entry"])))
        it["seq"], it["hash"] = seq, before.hex()


def renumber(log: Log, name: str) -> None:
    """Number a chain's entries anew, and leave their hashes."""
    for seq, it in enumerate(log.of(name), log.begin(name)[0] + 1):
        it["seq"] = seq


def forge_checkpoints(log: Log, draw: random.Random) -> None:
    """Make the export's checkpoints agree with its entries, or do away with them."""
    heads = dict.fromkeys(("", "acme", "zeta"), (0, b""))
    for it in log.entries:
        heads[it["chain"]] = it["seq"], bytes.fromhex(it["hash"])
    heads = {name: head for name, head in heads.items() if head[0]}
    log.checkpoints = [] if draw.random() < 0.5 else [signed(1, 30, heads, {}, FORGER)]


EDITS: tuple[Callable[[dict[str, Any]], object], ...] = (
    lambda entry: entry.update(actor=entry["actor"] + "x"),
    lambda entry: entry.update(event="call.denied"),
    lambda entry: entry.update(at=entry["at"].replace("Z", "1Z")),
    lambda entry: entry.update(call_id="another"),
    lambda entry: entry.update(id=entry["id"] + 1_000),
    lambda entry: entry.update(tenant_id="another"),
    lambda entry: entry["details"].pop("tool"),
    lambda entry: entry["details"]["timings"].update(call_s=1e-9),
    lambda entry: entry["details"]["changes"].reverse(),
    lambda entry: entry["details"]["changes"][2].update(maximum=2**70),
)


def edit(log: Log, draw: random.Random) -> str:
    it = draw.choice(log.entries)
    name = it["chain"]
    draw.choice(EDITS)(it["entry"])
    if draw.random() < 0.3:
        hashes = {e["seq"]: bytes.fromhex(e["hash"]) for e in log.of(name)}
        before = hashes.get(it["seq"] - 1, log.begin(name)[1])
        it["hash"] = chain.link(before, chain.read(to_json(it["entry"]))).hex()
    elif draw.random() < 0.5:
        rehash(log, name)
    return name


def edit_seal(log: Log, draw: random.Random) -> str:
    it = draw.choice(log.entries)
    name = it["chain"]
    match draw.randrange(4):
        case 0:
            it["hash"] = draw.randbytes(32).hex()
        case 1:
            it["seq"] += draw.choice([-1, 1, 7])
        case 2:
            it["chain"] = {"": "acme", "acme": "zeta", "zeta": ""}[name]
        case 3:
            it["entry"] = None
    return name


def delete(log: Log, draw: random.Random) -> str:
    it = draw.choice(log.entries)
    gone = [e for e in log.of(it["chain"]) if 0 <= e["seq"] - it["seq"] < draw.randrange(1, 6)]
    log.entries = [e for e in log.entries if not any(e is g for g in gone)]
    repair(log, draw, it["chain"])
    return it["chain"]


def insert(log: Log, draw: random.Random) -> str:
    it = draw.choice(log.entries)
    forged = copy.deepcopy(it)
    if draw.random() < 0.7:
        forged["entry"]["id"] = 5_000
        forged["entry"]["details"] = details(draw)
    log.entries.insert(log.entries.index(it) + draw.randrange(2), forged)
    repair(log, draw, it["chain"])
    return it["chain"]


def reorder(log: Log, draw: random.Random) -> str:
    names = [name for name in ("", "acme", "zeta") if len(log.of(name)) > 1]
    first, second = draw.sample(log.of(draw.choice(names)), 2)
    if draw.random() < 0.5:
        a, b = log.entries.index(first), log.entries.index(second)
        log.entries[a], log.entries[b] = log.entries[b], log.entries[a]
        repair(log, draw, first["chain"])
    else:
        first["entry"], second["entry"] = second["entry"], first["entry"]
        if draw.random() < 0.5:
            first["hash"], second["hash"] = second["hash"], first["hash"]
        elif draw.random() < 0.5:
            rehash(log, first["chain"])
    return first["chain"]


def truncate(log: Log, draw: random.Random) -> str:
    name = draw.choice([name for name in ("", "acme", "zeta") if log.of(name)])
    mine = log.of(name)
    count = draw.randrange(1, len(mine) + 1)
    gone = mine[-count:] if draw.random() < 0.7 else mine[:count]
    log.entries = [e for e in log.entries if not any(e is g for g in gone)]
    if draw.random() < 0.3:
        rehash(log, name)
    return name


def rewrite(log: Log, draw: random.Random) -> str:
    """Change something, chain all of it anew, and the checkpoints with it."""
    name = draw.choice([edit, delete, insert, reorder])(log, draw)
    for it in ("", "acme", "zeta"):
        rehash(log, it)
    forge_checkpoints(log, draw)
    return name


def tamper_with_checkpoints(log: Log, draw: random.Random) -> str:
    place = draw.randrange(len(log.checkpoints))
    it = log.checkpoints[place]
    match draw.randrange(5):
        case 0:
            del log.checkpoints[place]
        case 1:
            log.checkpoints[place] = replace(it, total=it.total + 1)
        case 2:
            log.checkpoints[place] = replace(it, signature=FORGER.sign(b"x"))
        case 3:
            chains = {k: (seq + 1, head) for k, (seq, head) in it.chains.items()}
            log.checkpoints[place] = replace(it, chains=chains)
        case 4:
            log.checkpoints = []
    return ""


def tamper_with_cuts(log: Log, draw: random.Random) -> str:
    if not log.cuts:
        return edit(log, draw)
    it = log.cuts[0]
    match draw.randrange(3):
        case 0:
            log.cuts = []
        case 1:
            log.cuts = [replace(it, hash=draw.randbytes(32).hex())]
        case 2:
            later = log.of(it.chain)[0]
            forged = replace(it, to_seq=later["seq"], hash=later["hash"], key=FORGER.id)
            log.cuts = [forged.signed(FORGER)]
            log.entries = [e for e in log.entries if e is not later]
    return it.chain


def repair(log: Log, draw: random.Random, name: str) -> None:
    """Hide a change of a chain: not at all, by new numbers, or by new hashes as well."""
    draw.choice([lambda *_: None, renumber, rehash])(log, name)


TAMPERINGS: tuple[Callable[[Log, random.Random], str], ...] = (
    edit,
    edit_seal,
    delete,
    insert,
    reorder,
    truncate,
    rewrite,
    tamper_with_checkpoints,
    tamper_with_cuts,
)
