"""The PNG of a figure, drawn by matplotlib: the same shapes at the same places, in light colours, two pixels for one.

matplotlib draws only the PNG: its own SVG has no dark colours, no tooltips and no description, and is ten times the size.
It comes with `pip install 'plr[figures]'`.
"""

from __future__ import annotations

import io
from typing import Any

from plr.report.figures.shapes import Cells, Dot, Figure, Group, Line, Ramp, Rect, Shape, Squares, Text
from plr.report.figures.style import COLOURS, FONTS, STROKES, dashes, ramp, series_colour
from plr.report.figures.svg import RAMP

__all__ = ["can_draw", "png_bytes"]

DPI = 72
SCALE = 2
"""Pixels of the image for one of the figure."""


def can_draw() -> bool:
    """Check that matplotlib is installed."""
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None


def png_bytes(figure: Figure) -> bytes:
    """Draw a figure as PNG; `can_draw` must hold."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # pyright: ignore[reportMissingImports]
    from matplotlib.figure import Figure as Canvas  # pyright: ignore[reportMissingImports]

    canvas = Canvas(figsize=(figure.width / DPI, figure.height / DPI), dpi=SCALE * DPI, facecolor=COLOURS["page"][0])
    FigureCanvasAgg(canvas)
    axes = canvas.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.set(xlim=(0, figure.width), ylim=(figure.height, 0))
    for shape in figure.shapes:
        _draw(axes, shape, None)
    out = io.BytesIO()
    canvas.savefig(out, format="png", metadata={"Software": None, "Title": figure.title})
    return out.getvalue()


def _draw(axes: Any, shape: Shape, series: int | None) -> None:
    match shape:
        case Line(points, style):
            axes.plot(*zip(*points, strict=True), **_stroke(style, series))
        case Dot(x, y, form, size):
            marks = ("o", "s", "^", "D")
            edge = {"markeredgecolor": COLOURS["page"][0], "markeredgewidth": 1}
            width = 2 * size * (0.9, 0.85, 1.05, 0.85)[form % 4]
            axes.plot([x], [y], marks[form % 4], color=_colour(series), markersize=width, **edge)
        case Rect(x, y, width, height, style):
            corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height), (x, y)]
            axes.plot(*zip(*corners, strict=True), **_stroke(style, series))
        case Squares(corners, size, style):
            for x, y in corners:
                _draw(axes, Rect(x, y, size, size, style), series)
        case Text(x, y, text, style, anchor):
            _text(axes, x, y, text, style, anchor)
        case Cells(x, y, colours, cell):
            rows, columns = colours.shape
            _image(axes, colours, (x, x + columns * cell, y + rows * cell, y))
        case Ramp(x, y, width, height, upright):
            numbers = [[i] for i in reversed(range(RAMP))] if upright else [list(range(RAMP))]
            _image(axes, numbers, (x, x + width, y + height, y))
        case Group(shapes, own, _):
            for one in shapes:
                _draw(axes, one, series if own is None else own)


def _stroke(style: str, series: int | None) -> dict[str, Any]:
    stroke = STROKES[style]
    dash = stroke.dash or (dashes(series) if style == "line" and series is not None else ())
    how: dict[str, Any] = {"linestyle": (0, tuple(part / stroke.width for part in dash))} if dash else {}
    colour = stroke.colour[0] if stroke.colour else _colour(series)
    return {"color": colour, "linewidth": stroke.width, "alpha": stroke.opacity, "solid_capstyle": "butt", **how}


def _colour(series: int | None) -> str:
    return (COLOURS["neutral"] if series is None else series_colour(series))[0]


def _text(axes: Any, x: float, y: float, text: str, style: str, anchor: str) -> None:
    from matplotlib.patheffects import withStroke  # pyright: ignore[reportMissingImports]

    font = FONTS[style]
    side = {"start": "left", "middle": "center", "end": "right"}[anchor]
    rim = {"path_effects": [withStroke(linewidth=4, foreground=COLOURS["page"][0])]} if font.halo else {}
    weight = "bold" if font.bold else "normal"
    size = 0.92 * font.size  # DejaVu Sans, which matplotlib brings, is wider than a browser's font
    place = {"ha": side, "va": "baseline", "parse_math": False}
    axes.text(x, y, text, fontsize=size, color=font.colour[0], weight=weight, **place, **rim)


def _image(axes: Any, numbers: Any, extent: tuple[float, float, float, float]) -> None:
    from matplotlib.colors import ListedColormap  # pyright: ignore[reportMissingImports]

    colours = ListedColormap([tuple(part / 255 for part in colour) for colour in ramp(RAMP)])
    limits = axes.get_xlim(), axes.get_ylim()
    axes.imshow(numbers, cmap=colours, vmin=0, vmax=RAMP - 1, extent=extent, interpolation="nearest", aspect="auto")
    axes.set(xlim=limits[0], ylim=limits[1])
