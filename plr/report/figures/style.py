"""Colours, widths and dashes of figures: one table for SVG (light and dark) and PNG (light)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

__all__ = ["COLOURS", "FONTS", "SERIES", "STROKES", "Colour", "Font", "Stroke", "dashes", "ramp", "series_colour"]

Colour = tuple[str, str]
"""A colour in light and in dark surroundings."""

INK: Colour = ("#1b1c1e", "#e9e9e6")
SOFT: Colour = ("#5b5e64", "#a2a6ad")
RED: Colour = ("#b3261e", "#f2938c")
PAGE: Colour = ("#fcfcfa", "#131518")

_SERIES: tuple[Colour, ...] = (
    ("#0b62a8", "#77b8f0"),
    ("#b85a00", "#f0a04b"),
    ("#007a5e", "#4fcaa5"),
    ("#a8487f", "#e39ac4"),
    ("#6b5b00", "#d9c94d"),
    ("#45464a", "#c3c5c9"),
    ("#7a4fc4", "#b9a2f2"),
    ("#b3261e", "#f2938c"),
)
_DASHES = ((), (7, 3), (2, 3), (9, 3, 2, 3), (4, 2), (1, 3), (12, 4), (5, 2, 1, 2))

SERIES = len(_SERIES)
"""Distinct styles of series."""


@dataclass(frozen=True)
class Stroke:
    """The style of a line; without `colour` it takes that of the series, or of the text around it."""

    width: float
    colour: Colour | None = None
    opacity: float = 1.0
    dash: tuple[float, ...] = ()


@dataclass(frozen=True)
class Font:
    size: float
    colour: Colour
    bold: bool = False
    halo: bool = False
    """A rim in the colour of the page, for text over lines."""


STROKES = {
    "rule": Stroke(1, ("#dcdcd6", "#31353b")),
    "zero": Stroke(1.25, SOFT),
    "line": Stroke(1.9),
    "thin": Stroke(0.9, opacity=0.65),
    "bar": Stroke(1.25),
    "faint": Stroke(0.9, SOFT, opacity=0.6),
    "edge": Stroke(1, SOFT),
    "chosen": Stroke(1, ("#e5383b", "#e5383b")),
    "mark": Stroke(2, RED),
    "aim": Stroke(1.2, INK, dash=(2, 1.5)),
    "front": Stroke(1.3, SOFT, dash=(5, 3)),
}
FONTS = {
    "head": Font(15, INK, bold=True),
    "ink": Font(12, INK),
    "soft": Font(12, SOFT),
    "value": Font(12, INK, bold=True, halo=True),
    "name": Font(11.5, INK, halo=True),
    "more": Font(12, RED),
}
COLOURS = {"page": PAGE, "neutral": SOFT}

_STOPS = (
    (0.0, (21, 18, 45)),
    (0.3, (43, 66, 126)),
    (0.55, (33, 122, 138)),
    (0.8, (104, 187, 104)),
    (1.0, (250, 232, 92)),
)


def series_colour(series: int) -> Colour:
    """Look up the colour of a series by its number."""
    return _SERIES[series % SERIES]


def dashes(series: int) -> tuple[float, ...]:
    """Look up the dash of a series' line; empty is solid."""
    return _DASHES[series % SERIES]


def ramp(count: int) -> list[tuple[int, int, int]]:
    """List `count` colours from dark to bright, as red, green and blue of 0 to 255."""
    return [_ramp_at(index / (count - 1)) for index in range(count)]


def _ramp_at(share: float) -> tuple[int, int, int]:
    for (a, start), (b, end) in pairwise(_STOPS):
        if share <= b:
            part = (share - a) / (b - a)
            red, green, blue = (round(u + part * (v - u)) for u, v in zip(start, end, strict=True))
            return red, green, blue
    return _STOPS[-1][1]
