"""Charts as SVG text: lines and stacked bars over steps, with axes, units and a legend."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 12, 46
INNER_W, INNER_H = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
MOST_LABELS = 12
MOST_DOTS = 20


@dataclass(frozen=True)
class Series:
    """Values over the labels of a chart; None where there is none."""

    name: str
    colour: str
    values: Sequence[float | None]
    dashed: bool = False


@dataclass(frozen=True)
class Scale:
    """Where a value stands on the vertical axis, which ones are written beside it, and how."""

    at: Callable[[float], float]
    ticks: Sequence[float]
    written: Callable[[float], str]


def linear(most: float, written: Callable[[float], str] = "{:g}".format) -> Scale:
    """Return an axis from 0 to a round number that is no less than ``most``."""
    rough = max(most, 1e-9) / 4
    unit = 10 ** math.floor(math.log10(rough))
    step = unit * next(it for it in (1, 2, 2.5, 5, 10) if it * unit >= rough)
    count = math.ceil(max(most, 1e-9) / step - 1e-9)
    ticks = [step * number for number in range(count + 1)]
    return Scale(lambda value: TOP + INNER_H * (1 - value / ticks[-1]), ticks, written)


def logarithmic(least: float, most: float, written: Callable[[float], str]) -> Scale:
    """Return an axis of powers of ten; what is below ``least`` stands at its foot."""
    low, high = math.floor(math.log10(least)), math.ceil(math.log10(max(most, least * 10)))

    def at(value: float) -> float:
        share = (math.log10(max(value, 10**low)) - low) / (high - low)
        return TOP + INNER_H * (1 - share)

    return Scale(at, [10.0**power for power in range(low, high + 1)], written)


def lines(
    title: str,
    x_title: str,
    labels: Sequence[str],
    series: Sequence[Series],
    scale: Scale,
    *,
    rule: tuple[float, str] | None = None,
) -> str:
    """Return a chart of lines; ``rule`` is a value to compare with, and its name."""
    parts = _axes(labels, x_title, scale)
    if rule is not None:
        parts.append(_line(LEFT, WIDTH - RIGHT, scale.at(rule[0]), "rule"))
    for one in series:
        points = [
            (f"{_middle(number, len(labels)):.1f}", f"{scale.at(value):.1f}")
            for number, value in enumerate(one.values)
            if value is not None
        ]
        path = " ".join(f"{x},{y}" for x, y in points)
        how = f'fill="none" stroke="{one.colour}" stroke-width="2"{_dash(one)}'
        parts.append(f'<polyline points="{path}" {how}/>')
        if len(points) <= MOST_DOTS:
            dots = [f'<circle cx="{x}" cy="{y}" r="3" fill="{one.colour}"/>' for x, y in points]
            parts += dots
    keys = [_key(it.name, f'stroke="{it.colour}"{_dash(it)}') for it in series]
    return _figure(title, parts, [*keys, _key(rule[1], 'class="rule"')] if rule else keys)


def bars(
    title: str,
    x_title: str,
    labels: Sequence[str],
    stacks: Sequence[Sequence[Series]],
    scale: Scale,
    *,
    marks: Sequence[Series] = (),
    heads: Sequence[str] = (),
) -> str:
    """Return a chart of bars: at each label one beside the other, each a stack of its series.

    ``marks`` are lines across the bars, one series for each; ``heads`` are written over the labels.
    """
    parts = _axes(labels, x_title, scale)
    slot = INNER_W / len(labels)
    width = slot * 0.78 / len(stacks)
    for number in range(len(labels)):
        for place, stack in enumerate(stacks):
            x = LEFT + slot * (number + 0.11) + width * place
            parts += _stack(x, width - 1, scale, [(it.values[number], it.colour) for it in stack])
            mark = marks[place].values[number] if marks else None
            if mark is not None:
                parts.append(_line(x - 1, x + width, scale.at(mark), "mark"))
        if heads:
            parts.append(_text(_middle(number, len(labels)), TOP + 10, heads[number], "note"))
    shown = {one.name: f'stroke="{one.colour}"' for stack in stacks for one in stack}
    keys = [_key(name, how) for name, how in shown.items()]
    return _figure(title, parts, [*keys, _key(marks[0].name, 'class="mark"')] if marks else keys)


def _stack(
    x: float, width: float, scale: Scale, values: Sequence[tuple[float | None, str]]
) -> list[str]:
    found, below = [], 0.0
    for value, colour in values:
        if value:
            top, foot = scale.at(below + value), scale.at(below)
            place = f'x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" height="{foot - top:.1f}"'
            found.append(f'<rect {place} fill="{colour}"/>')
            below += value
    return found


def _middle(number: int, count: int) -> float:
    return LEFT + INNER_W * (number + 0.5) / count


def _axes(labels: Sequence[str], x_title: str, scale: Scale) -> list[str]:
    parts = []
    for tick in scale.ticks:
        parts.append(_line(LEFT, WIDTH - RIGHT, scale.at(tick), "grid"))
        parts.append(_text(LEFT - 6, scale.at(tick) + 4, scale.written(tick), anchor="end"))
    every = math.ceil(len(labels) / MOST_LABELS)
    for number in range(0, len(labels), every):
        x = _middle(number, len(labels))
        parts.append(_text(x, HEIGHT - BOTTOM + 18, labels[number]))
    return [*parts, _text(LEFT + INNER_W / 2, HEIGHT - 8, x_title)]


def _text(x: float, y: float, text: str, kind: str = "axis", anchor: str = "middle") -> str:
    place = f'text-anchor="{anchor}" x="{x:.1f}" y="{y:.1f}"'
    return f'<text class="{kind}" {place}>{escape(text)}</text>'


def _line(x1: float, x2: float, y: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'


def _dash(series: Series) -> str:
    return ' stroke-dasharray="5 4"' if series.dashed else ""


def _key(name: str, how: str) -> str:
    line = f'<line x1="0" x2="18" y1="5" y2="5" stroke-width="3" {how}/>'
    return f'<span><svg viewBox="0 0 18 10" aria-hidden="true">{line}</svg>{escape(name)}</span>'


def _figure(title: str, parts: Sequence[str], keys: Sequence[str]) -> str:
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><div class="legend">{"".join(keys)}</div>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg></figure>"
    )
