"""Small pictures of figures over time: the geometry of their SVG, worked out from the values.

Pure. A step without a value is a gap, not a zero; the newest is on the right. Everything is within
`WIDTH` by `HEIGHT`, which the page stretches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

WIDTH: Final = 120.0
HEIGHT: Final = 28.0
ROOM: Final = 2.0
"""Between the highest value and the upper edge, so that a line is not cut."""
LEAST_BAR: Final = 1.5
"""How high what happened at all is drawn: one failure among a thousand calls has to be seen."""


@dataclass(frozen=True)
class Line:
    """One line of figures: the data of its SVG path, and of the area below it."""

    path: str
    area: str


def line(values: Sequence[float | None], top: float) -> Line:
    """Return the line of some values; ``top`` is what the upper edge stands for."""
    step = WIDTH / max(len(values) - 1, 1)
    strokes, areas = [], []
    for stretch in _stretches(values):
        points = [(round(at * step, 1), _y(value, top)) for at, value in stretch]
        first, last = points[0][0], points[-1][0]
        # A single value is a line without length: round caps make it a dot.
        joined = " ".join(f"L{x} {y}" for x, y in points[1:]) or "h0"
        start = f"M{first} {points[0][1]}"
        strokes.append(f"{start}{joined}")
        if len(points) > 1:
            areas.append(f"{start}{joined}L{last} {HEIGHT}L{first} {HEIGHT}Z")
    return Line("".join(strokes), "".join(areas))


def bars(values: Sequence[int], most: int) -> str:
    """Return the path of a bar for each step that has anything; ``most`` fills the height."""
    width = WIDTH / max(len(values), 1)
    drawn = []
    for at, value in enumerate(values):
        if value:
            height = round(max((HEIGHT - ROOM) * value / most, LEAST_BAR), 1)
            x, wide = round(at * width + 0.5, 1), round(width - 1, 1)
            drawn.append(f"M{x} {HEIGHT}v-{height}h{wide}v{height}Z")
    return "".join(drawn)


def highest(values: Sequence[float | None]) -> float:
    """Return the highest value; 0 where there is none."""
    return max((value for value in values if value), default=0.0)


def _y(value: float, top: float) -> float:
    share = value / top if top else 0.0
    return round(HEIGHT - 1 - (HEIGHT - 1 - ROOM) * share, 1)


def _stretches(values: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    """Return the runs of values between gaps, each value with its place."""
    found: list[list[tuple[int, float]]] = [[]]
    for at, value in enumerate(values):
        if value is not None:
            found[-1].append((at, value))
        elif found[-1]:
            found.append([])
    return [stretch for stretch in found if stretch]
