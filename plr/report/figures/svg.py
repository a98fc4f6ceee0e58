"""The SVG of a figure: alone in a file, with its style sheet for light and dark surroundings, or inside the page."""

from __future__ import annotations

import base64
from html import escape

from plr.report.figures.image import palette_png
from plr.report.figures.shapes import Cells, Dot, Figure, Group, Line, Ramp, Rect, Shape, Squares, Text
from plr.report.figures.style import COLOURS, FONTS, SERIES, STROKES, Colour, dashes, ramp, series_colour

__all__ = ["shape_svg", "svg_inside", "svg_style", "svg_whole"]

RAMP = 16
"""Number of colours of `Cells`, as many as 4 bits of a PNG hold."""


def svg_whole(figure: Figure, ident: str = "figure") -> str:
    """Write a figure as a document of its own, which may also stand inside a page; `ident` is then unique in it."""
    return _document(
        figure,
        ident,
        f'xmlns="http://www.w3.org/2000/svg" class="{ident}" width="{figure.width:g}" height="{figure.height:g}"',
        svg_style(f"svg.{ident}"),
    )


def svg_inside(figure: Figure, ident: str) -> str:
    """Write a figure for a page that holds `svg_style("svg.chart")`; `ident` is unique in the page."""
    return _document(figure, ident, 'class="chart"', "")


def svg_style(scope: str) -> str:
    """Write a `<style>` element whose rules hold below `scope`, a selector."""
    rules = [
        f'{scope} {{ color-scheme: light dark; font: 12px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }}',
        f"{scope} .cells {{ image-rendering: pixelated; }}",
        f"{scope} .dot {{ fill: currentColor; stroke-width: 1; }}",
    ]
    colours: list[tuple[str, str, Colour]] = [(".page", "fill", COLOURS["page"]), (".dot", "stroke", COLOURS["page"])]
    colours += [(f".{name}", "color", colour) for name, colour in COLOURS.items() if name != "page"]
    for name, stroke in STROKES.items():
        dash = f"; stroke-dasharray: {' '.join(map(str, stroke.dash))}" if stroke.dash else ""
        faint = f"; opacity: {stroke.opacity:g}" if stroke.opacity < 1 else ""
        own = "" if stroke.colour else "; stroke: currentColor"
        rules.append(f"{scope} .{name} {{ fill: none; stroke-width: {stroke.width:g}{own}{dash}{faint}; }}")
        colours += [(f".{name}", "stroke", stroke.colour)] if stroke.colour else []
    for name, font in FONTS.items():
        bold = "; font-weight: 600" if font.bold else ""
        halo = "; paint-order: stroke; stroke-width: 4px; stroke-linejoin: round" if font.halo else ""
        text = f"font-size: {font.size:g}px; font-variant-numeric: tabular-nums{bold}{halo}"
        rules.append(f"{scope} .{name} {{ {text}; }}")
        colours.append((f".{name}", "fill", font.colour))
        colours += [(f".{name}", "stroke", COLOURS["page"])] if font.halo else []
    for series in range(SERIES):
        colours.append((f".s{series}", "color", series_colour(series)))
        if dash := dashes(series):
            rules.append(f"{scope} .s{series} .line {{ stroke-dasharray: {' '.join(map(str, dash))}; }}")
    light = [f"{scope} {name} {{ {what}: {colour[0]}; }}" for name, what, colour in colours]
    dark = [f"{scope} {name} {{ {what}: {colour[1]}; }}" for name, what, colour in colours]
    return "\n".join(["<style>", *rules, *light, "@media (prefers-color-scheme: dark) {", *dark, "}", "</style>"])


def shape_svg(shape: Shape, ident: str = "") -> str:
    """Write one shape as an element; `ident` is that of the figure, whose gradients a `Ramp` uses."""
    match shape:
        case Line([(x1, y1), (x2, y2)], style):
            return f'<line class="{style}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'
        case Line(points, style):
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            return f'<polyline class="{style}" points="{path}"/>'
        case Dot():
            return _dot(shape)
        case Rect(x, y, width, height, style):
            return f'<rect class="{style}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"/>'
        case Squares(corners, size, style):
            path = "".join(f"M{x:g} {y:g}h{size:g}v{size:g}h-{size:g}z" for x, y in corners)
            return f'<path class="{style}" d="{path}"/>'
        case Text(x, y, text, style, anchor):
            end = "" if anchor == "start" else f' text-anchor="{anchor}"'
            return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}"{end}>{escape(text)}</text>'
        case Cells(x, y, colours, cell):
            rows, columns = colours.shape
            image = base64.b64encode(palette_png(colours, cell, ramp(RAMP))).decode()
            size = f'x="{x:g}" y="{y:g}" width="{columns * cell}" height="{rows * cell}"'
            return f'<image class="cells" {size} href="data:image/png;base64,{image}"/>'
        case Ramp(x, y, width, height, upright):
            size = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
            return f'<rect {size} fill="url(#{ident}-{"up" if upright else "right"})"/>'
        case Group(shapes, series, tip):
            style = "" if series is None else f' class="s{series % SERIES}"'
            title = f"<title>{escape(tip)}</title>" if tip else ""
            return f"<g{style}>{title}{''.join(shape_svg(one, ident) for one in shapes)}</g>"


def _document(figure: Figure, ident: str, attributes: str, style: str) -> str:
    size = f'viewBox="0 0 {figure.width:g} {figure.height:g}"'
    head = f'role="img" aria-labelledby="{ident}-t {ident}-d"'
    page = f'<rect class="page" width="{figure.width:g}" height="{figure.height:g}"/>' if style else ""
    parts = [
        f"<svg {attributes} {size} {head}>",
        f'<title id="{ident}-t">{escape(figure.title)}</title>',
        f'<desc id="{ident}-d">{escape(figure.description)}</desc>',
        style,
        _gradients(ident) if _has_ramp(figure.shapes) else "",
        page,
        *(shape_svg(shape, ident) for shape in figure.shapes),
        "</svg>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _dot(dot: Dot) -> str:
    x, y, r = dot.x, dot.y, dot.size
    shapes = (
        f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="{r:g}"/>',
        f'<rect class="dot" x="{x - 0.9 * r:.1f}" y="{y - 0.9 * r:.1f}" width="{1.8 * r:.3g}" height="{1.8 * r:.3g}"/>',
        f'<path class="dot" d="M{x:.1f} {y - 1.2 * r:.1f}l{1.1 * r:.3g} {2 * r:.3g}h-{2.2 * r:.3g}z"/>',
        f'<path class="dot" d="M{x:.1f} {y - 1.3 * r:.1f}l{1.2 * r:.3g} {1.3 * r:.3g}l-{1.2 * r:.3g} {1.3 * r:.3g}'
        f'l-{1.2 * r:.3g} -{1.3 * r:.3g}z"/>',
    )
    return shapes[dot.shape % len(shapes)]


def _has_ramp(shapes: object) -> bool:
    assert isinstance(shapes, list | tuple)
    return any(isinstance(one, Ramp) or (isinstance(one, Group) and _has_ramp(one.shapes)) for one in shapes)


def _gradients(ident: str) -> str:
    colours = ramp(RAMP)
    stops = "".join(
        f'<stop offset="{i / (RAMP - 1):.3f}" stop-color="rgb{colour}"/>' for i, colour in enumerate(colours)
    )
    return (
        f'<defs><linearGradient id="{ident}-up" x1="0" x2="0" y1="1" y2="0">{stops}</linearGradient>'
        f'<linearGradient id="{ident}-right" href="#{ident}-up" x1="0" x2="1" y1="0" y2="0"/></defs>'
    )
