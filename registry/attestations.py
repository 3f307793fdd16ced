"""What is signed about the audit: checkpoints over all chains, and cuts of what was removed.

Pure. A checkpoint vouches for every chain's head at one instant by one root (`registry.chain`); it
lists the heads of the chains that grew since the checkpoint before it, so that all of them together
give every head. A copy for one tenant has that tenant's head and the others' leaves instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Self

from registry.chain import canonical
from registry.database import to_json
from registry.signing import PublicKeys, Signer

_CHECKPOINT: Final = b"toolfleet audit checkpoint\n"
_CUT: Final = b"toolfleet audit cut\n"
_HASH: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Checkpoint:
    """All chains at one instant; the signed root proves ``chains`` and ``leaves``."""

    number: int
    at: str
    key: str
    total: int
    """Entries in all chains, the ones of before a cut among them."""
    root: str
    chains: Mapping[str, tuple[int, str]]
    """Heads, as number and hash of the last entry, by chain."""
    leaves: tuple[str, ...] | None = None
    signature: str = ""

    def signed(self, signer: Signer) -> Self:
        """Return it with a signature."""
        return replace(self, signature=signer.sign(self._message()))

    def is_signed(self, keys: PublicKeys) -> bool:
        """Say whether one of these keys signed it."""
        return keys.verifies(self.key, self._message(), self.signature)

    def as_line(self) -> str:
        """Return it as a line of JSON."""
        leaves = {} if self.leaves is None else {"leaves": self.leaves}
        return to_json(
            {"kind": "checkpoint", **self._facts(), "signature": self.signature}
            | {"chains": self.chains, **leaves}
        )

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> Self:
        """Return the checkpoint of a line; raise ValueError for what is none."""
        leaves = body.get("leaves")
        chains = {
            _text(chain): (_number(head[0]), _hash(head[1]))
            for chain, head in _typed(body.get("chains"), dict).items()
            if len(_typed(head, list)) == 2 or _refuse(head)
        }
        return cls(
            _number(body.get("number")),
            _text(body.get("at")),
            _text(body.get("key")),
            _number(body.get("total")),
            _hash(body.get("root")),
            chains,
            None if leaves is None else tuple(_hash(leaf) for leaf in _typed(leaves, list)),
            _text(body.get("signature")),
        )

    def _facts(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "at": self.at,
            "key": self.key,
            "total": self.total,
            "root": self.root,
        }

    def _message(self) -> bytes:
        return _CHECKPOINT + canonical(self._facts())


@dataclass(frozen=True)
class Cut:
    """The removal of a chain's oldest entries: it goes on after ``to_seq``, from that hash."""

    chain: str
    from_seq: int
    to_seq: int
    hash: str
    at: str
    key: str
    signature: str = ""

    def signed(self, signer: Signer) -> Self:
        """Return it with a signature."""
        return replace(self, signature=signer.sign(self._message()))

    def is_signed(self, keys: PublicKeys) -> bool:
        """Say whether one of these keys signed it."""
        return keys.verifies(self.key, self._message(), self.signature)

    def as_line(self) -> str:
        """Return it as a line of JSON."""
        return to_json({"kind": "cut", **vars(self)})

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> Self:
        """Return the cut of a line; raise ValueError for what is none."""
        return cls(
            _text(body.get("chain")),
            _number(body.get("from_seq")),
            _number(body.get("to_seq")),
            _hash(body.get("hash")),
            _text(body.get("at")),
            _text(body.get("key")),
            _text(body.get("signature")),
        )

    def _message(self) -> bytes:
        return _CUT + canonical({k: v for k, v in vars(self).items() if k != "signature"})


def _typed(value: Any, kind: type) -> Any:
    return value if type(value) is kind else _refuse(value)


def _text(value: Any) -> str:
    return str(_typed(value, str))


def _hash(value: Any) -> str:
    return value if _HASH.fullmatch(_text(value)) else _text(_refuse(value))


def _number(value: Any) -> int:
    return int(_typed(value, int))


def _refuse(value: Any) -> Any:
    raise ValueError(f"{str(value)[:50]!r} is not what stands there in a checkpoint or a cut")
