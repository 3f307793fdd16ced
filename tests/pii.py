"""How well redaction finds what is labelled: recall and precision by what is covered."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from registry.redaction import redactor

SENTENCES = Path(__file__).parent / "data" / "pii" / "synth_dataset_v2_first1000.json"
TYPES = (*("CREDIT_CARD", "PHONE_NUMBER", "EMAIL_ADDRESS", "US_SSN", "IP_ADDRESS", "IBAN_CODE"),)
RECALL = 0.95
PRECISION = 0.97

Sentence = dict[str, Any]


@dataclass
class Figures:
    """What was labelled and found, and which masked regions touch nothing that is labelled."""

    labelled: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    missed: list[tuple[str, str]] = field(default_factory=list)
    masked: int = 0
    false: list[tuple[str, str]] = field(default_factory=list)

    @property
    def recall(self) -> float:
        """Return the share of labelled spans that are masked to their last character."""
        return self.found.total() / max(1, self.labelled.total())

    @property
    def precision(self) -> float:
        """Return the share of masked regions that touch a labelled span of any type."""
        return 1 - len(self.false) / max(1, self.masked)


def load(path: Path = SENTENCES) -> list[Sentence]:
    """Return sentences with their labelled spans, as presidio-research writes them."""
    return json.loads(path.read_text())


def measure(sentences: list[Sentence]) -> Figures:
    """Return what the built-in rules find in sentences."""
    figures = Figures()
    for sentence in sentences:
        _count(sentence["full_text"], sentence["spans"], figures)
    return figures


def _count(text: str, labelled: list[dict[str, Any]], figures: Figures) -> None:
    masked = redactor().spans(text)
    assert redactor().text(text) == _applied(text, masked)
    covered = {at for start, end, _ in masked for at in range(start, end)}
    for span in labelled:
        kind, start, end = (
            span[name] for name in ("entity_type", "start_position", "end_position")
        )
        if kind not in TYPES:
            continue
        figures.labelled[kind] += 1
        if covered.issuperset(range(start, end)):
            figures.found[kind] += 1
        else:
            figures.missed.append((kind, text[start:end]))
    for start, end, word in masked:
        figures.masked += 1
        if not any(
            span["start_position"] < end and start < span["end_position"] for span in labelled
        ):
            figures.false.append((word, text[start:end]))


def _applied(text: str, masked: list[Any]) -> str:
    for start, end, word in reversed(masked):
        text = f"{text[:start]}[{word}]{text[end:]}"
    return text
