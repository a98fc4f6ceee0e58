"""The output error of every quantized layer over depth, as an SVG of its own.

One line for each kind of layer, on a log scale; the thin line of the same colour is what rounding to nearest would have
given. A picture that stands alone: it carries its colours, for light and dark surroundings, and a description for those who
do not see it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from plr.bases.modules import Module
from plr.report.figures.gain import ticks
from plr.report.figures.svg import SERIES, svg_style

__all__ = ["error_figure"]

WIDTH, HEIGHT = 760, 430
LEFT, RIGHT, TOP, BOTTOM = 66, 150, 56, 52
ENTRY = 22
"""Height of one entry of the key."""


def error_figure(modules: Sequence[Module], title: str) -> str | None:
    """A whole SVG document, or None where no layer has a measured error above zero.

    Args:
        modules: the layers of one base; see `plr.bases.modules.modules_of`.
        title: what stands above the picture.
    """
    lines = {kind: [m for m in modules if m.kind == kind] for kind in dict.fromkeys(m.kind for m in modules)}
    solved = {kind: points for kind, of in lines.items() if (points := _points(of, "error"))}
    if not solved:
        return None
    rounded = {kind: points for kind in solved if (points := _points(lines[kind], "rtn_error"))}
    if all(rounded.get(kind) == points for kind, points in solved.items()):
        rounded = {}  # the base was rounded: there is nothing to set beside it
    order = sorted(solved, key=lambda kind: -_mean(solved[kind]))
    values = [value for points in (*solved.values(), *rounded.values()) for _, value in points]
    blocks = [block for points in solved.values() for block, _ in points]
    marks = _log_ticks(min(values), max(values))
    low, high = math.log10(marks[0]), math.log10(marks[-1])
    first, last = min(blocks), max(blocks)
    height = max(HEIGHT, TOP + BOTTOM + ENTRY * (len(order) + 2))

    def x(block: float) -> float:
        return LEFT + (block - first + 0.5) / (last - first + 1) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return TOP + (high - math.log10(value)) / (high - low) * (height - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'role="img" aria-labelledby="t d">',
        f'<title id="t">{escape(title)}</title>',
        f'<desc id="d">{escape(_described(order, solved, rounded))}</desc>',
        svg_style(),
        f'<rect class="page" width="{WIDTH}" height="{height}"/>',
        f'<text class="head" x="{LEFT}" y="26">{escape(title)}</text>',
        f'<text class="soft" x="{LEFT}" y="44">relative output error of each quantized layer, log scale</text>',
    ]
    for mark in marks:
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(mark):.1f}" y2="{y(mark):.1f}"/>')
        parts.append(f'<text class="soft" x="{LEFT - 8}" y="{y(mark) + 4:.1f}" text-anchor="end">{mark:g}</text>')
    for block in _block_ticks(first, last):
        parts.append(
            f'<text class="soft" x="{x(block):.1f}" y="{height - BOTTOM + 19}" text-anchor="middle">{block}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="soft" x="{middle:.1f}" y="{height - 12}" text-anchor="middle">block</text>')
    for index, kind in enumerate(order):
        style = f"s{index % SERIES}"
        parts.append(f'<g class="{style}">')
        if kind in rounded:
            parts.append(f'<polyline class="thin" points="{_path(rounded[kind], x, y)}"/>')
        parts.append(f'<polyline class="line" points="{_path(solved[kind], x, y)}"/>')
        parts += [f'<circle class="dot" cx="{x(b):.1f}" cy="{y(v):.1f}" r="2.4"/>' for b, v in solved[kind]]
        parts.append("</g>")
    parts += _key(order, bool(rounded))
    return "\n".join([*parts, "</svg>", ""])


def _points(modules: Sequence[Module], key: str) -> list[tuple[int, float]]:
    """(block, value) of the layers of one kind; several in a block (experts) are their mean. Zero has no place on a log scale."""
    of: dict[int, list[float]] = {}
    for module in modules:
        value = module.number(key)
        if value is not None and math.isfinite(value) and value > 0:
            of.setdefault(module.block, []).append(value)
    return [(block, sum(values) / len(values)) for block, values in sorted(of.items())]


def _mean(points: Sequence[tuple[int, float]]) -> float:
    return sum(value for _, value in points) / len(points)


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers (1, 2, 5 times a power of ten; powers of ten alone over three decades) that enclose low..high.

    >>> _log_ticks(0.013, 0.4)
    [0.01, 0.02, 0.05, 0.1, 0.2, 0.5]
    >>> _log_ticks(3e-6, 0.4)
    [1e-06, 1e-05, 0.0001, 0.001, 0.01, 0.1, 1.0]
    """
    wide = high / low > 1000
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    marks = [float(f"{m}e{power}") for power in powers for m in ((1,) if wide else (1, 2, 5))]
    start = max(i for i, mark in enumerate(marks) if mark <= low)
    end = min(i for i, mark in enumerate(marks) if mark >= high)
    return marks[start : max(end, start + 1) + 1]


def _block_ticks(first: int, last: int) -> list[int]:
    if last - first < 10:
        return list(range(first, last + 1))
    return [int(t) for t in ticks(first, last, 10) if t == int(t) and first <= t <= last]


def _path(points: Sequence[tuple[int, float]], x, y) -> str:
    return " ".join(f"{x(block):.1f},{y(value):.1f}" for block, value in points)


def _key(order: Sequence[str], rounded: bool) -> list[str]:
    left = WIDTH - RIGHT + 16
    parts = []
    for index, kind in enumerate(order):
        at = TOP + 6 + ENTRY * index
        parts.append(
            f'<g class="s{index % SERIES}"><path class="line" d="M{left} {at}h26"/>'
            f'<circle class="dot" cx="{left + 13}" cy="{at}" r="2.4"/>'
            f'<text class="ink" x="{left + 34}" y="{at + 4}">{escape(_shortened(kind))}</text></g>'
        )
    if rounded:
        at = TOP + 6 + ENTRY * len(order) + 8
        parts.append(f'<path class="thin neutral" d="M{left} {at}h26"/>')
        parts.append(f'<text class="soft" x="{left + 34}" y="{at + 4}">rounding</text>')
    return parts


def _shortened(kind: str, most: int = 15) -> str:
    return kind if len(kind) <= most else "\u2026" + kind[-most + 1 :]


def _described(order, solved, rounded) -> str:
    def one(kind: str) -> str:
        beside = f", rounding {_mean(rounded[kind]):.3g}" if kind in rounded else ""
        worst = max(solved[kind], key=lambda point: point[1])
        return f"{kind}: mean {_mean(solved[kind]):.3g}{beside}, largest {worst[1]:.3g} in block {worst[0]}"

    return "Relative output error by kind of layer. " + "; ".join(map(one, order)) + "."
