"""The offline verifier: whatever is done to an export is found, and nothing else is."""

from __future__ import annotations

import random

import pytest

from tests.audit_log import TAMPERINGS, Log, make
from tests.requirements import requirement


def tampered(seed: int) -> tuple[str, Log, Log]:
    draw = random.Random(seed)
    log = make(draw)
    changed = log.copy()
    how = draw.choice(TAMPERINGS)
    how(changed, draw)
    return how.__name__, log, changed


def missed(seeds: range) -> list[tuple[int, str]]:
    """Return the tamperings that changed an export and were not found."""
    found = []
    for seed in seeds:
        how, log, changed = tampered(seed)
        if [*log.lines()] != [*changed.lines()] and changed.verdict().sound:
            found.append((seed, how))
    return found


@requirement("audit:tampering-found")
def test_every_tampering_is_found() -> None:
    assert missed(range(120)) == []


@requirement("audit:tampering-found")
@pytest.mark.long
@pytest.mark.timeout(600)
def test_every_one_of_ten_thousand_tamperings_is_found() -> None:
    assert missed(range(1_000, 11_000)) == []


@requirement("audit:no-false-alarm")
def test_an_untouched_log_raises_no_alarm() -> None:
    verdicts = [make(random.Random(seed)).verdict() for seed in range(200)]
    assert [verdict.problems for verdict in verdicts if not verdict.sound] == []
