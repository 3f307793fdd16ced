"""What is fair among those who share a server, and how near to it they came: pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def fair_shares(capacity: float, wants: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Return what each may have of a capacity, given its weight and what it asks for.

    Weighted max-min: nobody gets more than they ask for, and what one leaves is shared among the
    others by weight.
    """
    shares = dict.fromkeys(wants, 0.0)
    open_ = {name for name, (_, wanted) in wants.items() if wanted > 0}
    left = capacity
    while open_ and left > 1e-9:
        weight = sum(wants[name][0] for name in open_)
        sated = {name for name in open_ if wants[name][1] <= wants[name][0] * left / weight + 1e-9}
        if not sated:
            shares |= {name: wants[name][0] * left / weight for name in open_}
            break
        for name in sated:
            shares[name] = wants[name][1]
            left -= wants[name][1]
        open_ -= sated
    return shares


def jain(values: Sequence[float]) -> float:
    """Return Jain's index: 1 where all are alike, 1/n where one has everything."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0
