"""Shapes of a figure, which `plr.report.figures.svg` and `plr.report.figures.png` write.

Coordinates are pixels from the upper left corner. A style is a name of `plr.report.figures.style`; a shape inside a `Group` of a
series takes the colour of that series.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Cells", "Dot", "Figure", "Group", "Line", "Ramp", "Rect", "Shape", "Squares", "Text"]

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A line through `points`, solid or dashed as its style says."""

    points: Sequence[Point]
    style: str = "line"


@dataclass(frozen=True)
class Dot:
    """The mark of a point: circle, square, triangle or diamond by `shape`; `size` is the radius of the circle."""

    x: float
    y: float
    shape: int = 0
    size: float = 4.5


@dataclass(frozen=True)
class Rect:
    x: float
    y: float
    width: float
    height: float
    style: str


@dataclass(frozen=True)
class Squares:
    """Outlines of equal squares, named by their upper left corners."""

    corners: Sequence[Point]
    size: float
    style: str


@dataclass(frozen=True)
class Text:
    x: float
    y: float
    text: str
    style: str = "soft"
    anchor: Literal["start", "middle", "end"] = "start"


@dataclass(frozen=True)
class Cells:
    """An image of square cells: `colours[rows, columns]` are numbers of `plr.report.figures.style.ramp`."""

    x: float
    y: float
    colours: Any
    cell: int


@dataclass(frozen=True)
class Ramp:
    """A bar of all the colours of `Cells`, from low to high: to the right, or `upright`."""

    x: float
    y: float
    width: float
    height: float
    upright: bool = False


@dataclass(frozen=True)
class Group:
    """Shapes that belong together: of one series (its number gives colour and dash), or under one tooltip."""

    shapes: Sequence[Shape]
    series: int | None = None
    tip: str = ""


Shape = Line | Dot | Rect | Squares | Text | Cells | Ramp | Group


@dataclass(frozen=True)
class Figure:
    """A whole picture; `title` and `description` are read to those who do not see it."""

    width: float
    height: float
    title: str
    description: str
    shapes: Sequence[Shape]
