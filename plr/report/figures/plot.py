"""Parts of a plot: scales, axes, series with error bars, a key, and labels that do not overlap.

How it works:
1. A `Scale` maps values to pixels: `linear` and `log` choose round marks that cover the values, `bands` gives each name a place.
2. `across` and `up` draw an axis, `series` a line with its marks and bars, `key` the names of the series.
3. `labels` puts a name near each point: the nearest free place that covers no point and no other name and lies inside the frame,
   joined to its point by a thin line where it is farther away.

It replaces a plotting library: a figure takes its colours from the page (light or dark), is read aloud by its description, and is a
few KB. It gives up everything that our figures do not need.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from plr.report.figures.shapes import Dot, Group, Line, Shape, Text
from plr.report.figures.style import FONTS, SERIES

__all__ = [
    "Box",
    "Scale",
    "across",
    "bands",
    "error_bar",
    "key",
    "key_mark",
    "labels",
    "linear",
    "log",
    "log_ticks",
    "mark",
    "minus",
    "series",
    "ticks",
    "up",
]

ADVANCE = 0.56
"""Mean width of a letter for its size."""
LINE = 13
"""Height of a label."""
REACH = 120
"""A name stands no farther from its point than this many pixels."""


@dataclass(frozen=True)
class Box:
    """A rectangle by its sides; `top` < `bottom`."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )

    def holds(self, other: Box) -> bool:
        return (
            self.left <= other.left
            and other.right <= self.right
            and self.top <= other.top
            and other.bottom <= self.bottom
        )


@dataclass(frozen=True)
class Scale:
    """A map from values to pixels: the first of `marks` lies at `start`, the last at `end`."""

    marks: Sequence[float]
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        low, high = self._transform(self.marks[0]), self._transform(self.marks[-1])
        return self.start + (self._transform(value) - low) / (high - low) * (self.end - self.start)

    def _transform(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value


def linear(values: Sequence[float], start: float, end: float, most: int = 6) -> Scale:
    """Build a scale whose round marks cover `values`."""
    return Scale(ticks(min(values), max(values), most), start, end)


def log(values: Sequence[float], start: float, end: float) -> Scale:
    """Build a logarithmic scale whose round marks cover `values`, all of them above zero."""
    return Scale(log_ticks(min(values), max(values)), start, end, logarithmic=True)


def bands(count: int, start: float, end: float) -> Scale:
    """Build a scale for `count` places side by side: 0, 1, ... lie in the middle of theirs."""
    return Scale((-0.5, count - 0.5), start, end)


def across(
    scale: Scale,
    foot: float,
    marks: Sequence[tuple[float, str]] | None = None,
    title: str = "",
    *,
    notches: bool = True,
) -> list[Shape]:
    """Draw the axis below a plot; `marks` are values with their texts, those of the scale if left out."""
    shapes: list[Shape] = []
    for value, text in [(mark, f"{mark:g}") for mark in scale.marks] if marks is None else marks:
        shapes += [Line([(scale(value), foot), (scale(value), foot + 4)], "rule")] if notches else []
        shapes.append(Text(scale(value), foot + 18, text, anchor="middle"))
    shapes += [Text((scale.start + scale.end) / 2, foot + 38, title, anchor="middle")] if title else []
    return shapes


def up(
    scale: Scale, left: float, right: float, text: Callable[[float], str] = "{:g}".format, *, zero: bool = False
) -> list[Shape]:
    """Draw a rule across the plot at each mark of the scale, its text on the left; `zero`: the rule at 0 is stronger."""
    shapes: list[Shape] = []
    for value in scale.marks:
        style = "zero" if zero and abs(value) < 1e-12 else "rule"
        shapes.append(Line([(left, scale(value)), (right, scale(value))], style))
        shapes.append(Text(left - 8, scale(value) + 4, minus(text(value)), anchor="end"))
    return shapes


def series(
    index: int,
    points: Sequence[tuple[float, float]],
    *,
    bars: Sequence[tuple[float, float] | None] = (),
    size: float = 4.5,
    thin: Sequence[tuple[float, float]] = (),
) -> Group:
    """Draw a line through `points` (pixels) with its marks; `bars` are the ends of each point's interval, `thin` a second line."""
    shapes: list[Shape] = [Line(thin, "thin")] if thin else []
    shapes.append(Line(points, "line"))
    for (x, _), ends in zip(points, bars, strict=False):
        shapes += [] if ends is None else error_bar(x, *ends)
    return Group([*shapes, *(mark(index, x, y, size) for x, y in points)], series=index)


def error_bar(x: float, low: float, high: float, style: str = "bar", wide: float = 4) -> list[Shape]:
    """Draw an interval from `low` to `high` (pixels) with a stroke of 2 `wide` at each end; 0 for none."""
    ends: list[Shape] = [Line([(x - wide, y), (x + wide, y)], style) for y in (low, high)] if wide else []
    return [Line([(x, low), (x, high)], style), *ends]


def mark(index: int, x: float, y: float, size: float = 4.5) -> Dot:
    """Draw the mark of series `index`: its shape differs from that of every other series of the same colour."""
    return Dot(x, y, (index + index // SERIES) % 4, size)


def key(
    names: Sequence[str],
    left: float,
    top: float,
    *,
    columns: int = 1,
    wide: float = 170,
    high: float = 22,
    lines: bool = True,
) -> list[Shape]:
    """Draw the names of the series beside their marks, row by row; `lines`: on a piece of their line."""
    shapes: list[Shape] = []
    for index, name in enumerate(names):
        x, y = left + wide * (index % columns), top + high * (index // columns)
        sign = key_mark(index, x, y, 26, 2.4) if lines else Group([mark(index, x + 5, y)], series=index)
        shapes += [sign, Text(x + (34 if lines else 16), y + 4, name, "ink")]
    return shapes


def key_mark(index: int, x: float, y: float, wide: float, size: float = 4.5) -> Group:
    """Draw the mark of series `index` on a piece of its line."""
    return Group([Line([(x, y), (x + wide, y)], "line"), mark(index, x + wide / 2, y, size)], series=index)


def labels(named: Sequence[tuple[str, float, float]], points: Sequence[tuple[float, float]], frame: Box) -> list[Shape]:
    """Put each name near its point, inside `frame`, over no other name and none of `points`.

    A name that has no free place within reach is left out; its point keeps its tooltip.
    """
    shapes: list[Shape] = []
    taken = [Box(x - 6, y - 6, x + 6, y + 6) for x, y in points]
    for text, x, y in named:
        for box in _places(x, y, ADVANCE * FONTS["name"].size * len(text) + 2):
            if frame.holds(box) and not any(box.meets(other) for other in taken):
                taken.append(box)
                near = (min(max(x, box.left), box.right), min(max(y, box.top), box.bottom))
                if math.dist(near, (x, y)) > 10:
                    shapes.append(Line([(x, y), near], "faint"))
                shapes.append(Text(box.left + 1, box.bottom - 3, text, "name"))
                break
    return shapes


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """List round steps (1, 2 or 5 times a power of ten) that cover low..high.

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


def log_ticks(low: float, high: float) -> list[float]:
    """List round numbers (1, 2, 5 times a power of ten; powers of ten alone over three decades) that enclose low..high.

    >>> log_ticks(0.013, 0.4)
    [0.01, 0.02, 0.05, 0.1, 0.2, 0.5]
    >>> log_ticks(3e-6, 0.4)
    [1e-06, 1e-05, 0.0001, 0.001, 0.01, 0.1, 1.0]
    """
    wide = high / low > 1000
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    marks = [float(f"{m}e{power}") for power in powers for m in ((1,) if wide else (1, 2, 5))]
    start = max(i for i, value in enumerate(marks) if value <= low)
    end = min(i for i, value in enumerate(marks) if value >= high)
    return marks[start : max(end, start + 1) + 1]


def minus(text: str) -> str:
    """Write a true minus.

    >>> minus("-1.5")
    '\u22121.5'
    """
    return text.replace("-", "\u2212")


def _places(x: float, y: float, wide: float) -> list[Box]:
    """List the boxes of a label around its point, the nearest first; beside it before above and below."""
    boxes: list[tuple[float, Box]] = []
    for away in range(8, REACH, 6):
        for turn in range(16):
            dx, dy = math.cos(turn * math.pi / 8), math.sin(turn * math.pi / 8)
            centre_x, centre_y = x + dx * away + dx * wide / 2, y + dy * (away + LINE / 2)
            box = Box(centre_x - wide / 2, centre_y - LINE / 2, centre_x + wide / 2, centre_y + LINE / 2)
            boxes.append((away + 3 * abs(dy), box))
    return [box for _, box in sorted(boxes, key=lambda one: one[0])]
