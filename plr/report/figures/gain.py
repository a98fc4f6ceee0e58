"""The gain curve, drawn as inline SVG: what restoring to 16 bits gains over QLoRA at each k, with 95 % intervals.

Drawn by hand, not by a plotting library, so that it takes its colours from the page (light or dark) and stays small.
Series differ by colour, marker and dash; the numbers stand in the description, for those who do not see the picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from plr.report.metrics import show_signed, unit
from plr.report.results import Contrast

__all__ = ["Series", "gain_chart", "marker", "ticks"]

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 22, 34
STYLES = 6
"""Distinct series styles; the page's CSS defines s0 to s5."""


@dataclass(frozen=True)
class Series:
    name: str
    points: Sequence[Contrast]


def gain_chart(series: Sequence[Series], metric: str, label: str, ident: str) -> str:
    """An <svg>; ``ident`` is unique in the page (it names the title and description)."""
    series = [one for one in series if one.points]
    scale = 1 if unit(metric) != "points" else 100
    widths = sorted({p.train_bits for one in series for p in one.points}, reverse=True)
    values = [scale * v for one in series for p in one.points for v in (p.difference, p.low, p.high) if v is not None]
    steps = ticks(min([0.0, *values]), max([0.0, *values]))
    low, high = steps[0], steps[-1]

    def x(k: int, index: int) -> float:
        step = (WIDTH - LEFT - RIGHT) / len(widths)
        spread = min(16.0, 0.6 * step / max(1, len(series)))
        return LEFT + step * (widths.index(k) + 0.5) + spread * (index - (len(series) - 1) / 2)

    def y(value: float) -> float:
        return TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{ident}-t {ident}-d">',
        f'<title id="{ident}-t">{escape(label)}</title>',
        f'<desc id="{ident}-d">{escape(_described(series, metric))}</desc>',
    ]
    digits = max(0, -math.floor(math.log10(steps[1] - steps[0]) + 1e-9))
    for tick in steps:
        kind = "zero" if abs(tick) < 1e-12 else "rule"
        parts.append(f'<line class="{kind}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        text = f"{tick + 0.0:+.{digits}f}" if kind == "rule" else "0"
        parts.append(f'<text class="tick" x="{LEFT - 7}" y="{y(tick) + 4:.1f}" text-anchor="end">{_minus(text)}</text>')
    for k in widths:
        centre = LEFT + (WIDTH - LEFT - RIGHT) / len(widths) * (widths.index(k) + 0.5)
        parts.append(
            f'<text class="tick" x="{centre:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">k = {k}</text>'
        )
    for index, one in enumerate(series):
        style = f"s{index % STYLES}"
        places = [(x(p.train_bits, index), y(scale * p.difference)) for p in one.points]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in places)
        parts.append(f'<g class="series {style}"><polyline class="path" points="{path}"/>')
        for p, (px, py) in zip(one.points, places, strict=True):
            if p.low is not None and p.high is not None:
                top, bottom = y(scale * p.high), y(scale * p.low)
                ends = f"M{px - 4:.1f} {top:.1f}h8M{px - 4:.1f} {bottom:.1f}h8"
                parts.append(f'<path class="bar" d="M{px:.1f} {top:.1f}V{bottom:.1f}{ends}"/>')
            parts.append(marker(index, px, py))
            if len(series) == 1:
                text = _minus(show_signed(metric, p.difference))
                head = y(scale * p.high) if p.high is not None else py
                parts.append(f'<text class="value" x="{px:.1f}" y="{head - 7:.1f}" text-anchor="middle">{text}</text>')
        parts.append("</g>")
    return "\n".join([*parts, "</svg>"])


def marker(index: int, x: float, y: float) -> str:
    """The shape of a series at a point: circle, square, triangle, diamond, in turn."""
    shapes = (
        f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>',
        f'<rect class="dot" x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8"/>',
        f'<path class="dot" d="M{x:.1f} {y - 5.5:.1f}l5 9h-10z"/>',
        f'<path class="dot" d="M{x:.1f} {y - 6:.1f}l5.5 6l-5.5 6l-5.5 -6z"/>',
    )
    return shapes[index % len(shapes)]


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round steps (1, 2 or 5 times a power of ten) that cover low..high.

    >>> ticks(-3.2, 11.0)
    [-5.0, 0.0, 5.0, 10.0, 15.0]
    """
    if high <= low:
        low, high = low - 1, high + 1
    size = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(
        m * size for m in (1, 2, 5, 10, 20) if math.ceil(high / (m * size)) - math.floor(low / (m * size)) <= most
    )
    return [round(i * step, 12) for i in range(math.floor(low / step), math.ceil(high / step) + 1)]


def _described(series: Sequence[Series], metric: str) -> str:
    said = []
    for one in series:
        points = [
            f"k = {p.train_bits}: {show_signed(metric, p.difference)}"
            + ("" if p.low is None else f" ({show_signed(metric, p.low)} to {show_signed(metric, p.high)})")
            for p in one.points
        ]
        said.append(f"{one.name}: {', '.join(points)}")
    return f"Difference in {unit(metric)} with 95 % intervals. " + "; ".join(said) + "."


def _minus(text: str) -> str:
    return text.replace("-", "\u2212")
