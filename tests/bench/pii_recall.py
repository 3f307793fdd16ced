"""Measure redaction: what it finds among labelled sentences, what it masks besides, what it takes.

``make pii-eval``, or ``make pii-eval DATA=path`` for another file of presidio-research's form. A
span is found when all of its characters are masked; a masked region that touches no labelled span
of any type is false. Time is this process's own, the best of several rounds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from registry.redaction import redact_text
from registry.results import let_out
from tests.pii import PRECISION, RECALL, SENTENCES, TYPES, Figures, load, measure

ROUNDS = 5
ORDINARY = Path(__file__).parents[2] / "README.md"
MOST_MS_PER_KB = 0.2


def show(figures: Figures) -> None:
    for kind in TYPES:
        found, labelled = figures.found[kind], figures.labelled[kind]
        share = f"{found / labelled:6.3f}" if labelled else "     -"
        print(f"  {kind:14} {found:4} of {labelled:4}  recall {share}")
    print(
        f"  {'all':14} {figures.found.total():4} of {figures.labelled.total():4}"
        f"  recall {figures.recall:6.3f}  precision {figures.precision:.3f}"
        f"  ({len(figures.false)} of {figures.masked} masked regions are false)"
    )


def ms_per_kb(texts: list[str], read: Callable[[str], object]) -> float:
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.process_time()
        for text in texts:
            read(text)
        best = min(best, time.process_time() - started)
    return best * 1000 / (sum(len(text.encode()) for text in texts) / 1024)


def gate(text: str) -> object:
    return let_out("tool", None, {"content": [{"type": "text", "text": text}]})


def main() -> int:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else SENTENCES
    sentences = load(path)
    figures = measure(sentences)
    print(f"{len(sentences)} sentences of {path}")
    show(figures)
    half = len(sentences) // 2
    for name, part in (("first", sentences[:half]), ("second", sentences[half:])):
        of_part = measure(part)
        print(f"  {name} half: recall {of_part.recall:.3f}, precision {of_part.precision:.3f}")
    for kind, text in figures.missed:
        print(f"  missed {kind}: {text!r}")
    for word, text in figures.false:
        print(f"  false {word}: {text!r}")
    texts = [sentence["full_text"] for sentence in sentences]
    page = ORDINARY.read_text()
    pages = [page[at : at + 4096] for at in range(0, len(page), 4096)]
    slow = 0.0
    for name, some in (("these sentences", texts), ("pages of README.md", pages)):
        redacting = ms_per_kb(some, redact_text)
        print(f"  {name}: {redacting:.3f} ms per KB, {ms_per_kb(some, gate):.3f} with all checks")
        slow = max(slow, redacting)
    good = figures.recall >= RECALL and figures.precision >= PRECISION and slow <= MOST_MS_PER_KB
    print(
        f"  asked for: recall {RECALL}, precision {PRECISION}, {MOST_MS_PER_KB} ms per KB:",
        "met" if good else "not met",
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
