"""The colours of pictures that stand alone: one style sheet, for light and dark surroundings."""

from __future__ import annotations

__all__ = ["SERIES", "svg_style"]

_LIGHT = ("#0b62a8", "#b85a00", "#007a5e", "#a8487f", "#6b5b00", "#45464a", "#7a4fc4", "#b3261e")
_DARK = ("#77b8f0", "#f0a04b", "#4fcaa5", "#e39ac4", "#d9c94d", "#c3c5c9", "#b9a2f2", "#f2938c")
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "1 3", "12 4", "5 2 1 2")

SERIES = len(_LIGHT)
"""Distinct styles of series: the classes s0, s1, ..."""

_RULES = (
    ("", 'color-scheme: light dark; font: 12px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif'),
    (".head", "font-size: 15px; font-weight: 600"),
    ("text", "font-size: 12px"),
    (".soft", "font-size: 12px; font-variant-numeric: tabular-nums"),
    (".line", "fill: none; stroke: currentColor; stroke-width: 1.9"),
    (".dot", "fill: currentColor"),
    (".thin", "fill: none; stroke: currentColor; stroke-width: 0.9; opacity: 0.65"),
    (".cells", "image-rendering: pixelated"),
    (".edge", "fill: none; stroke-width: 1"),
    (".chosen", "fill: none; stroke: #e5383b; stroke-width: 1"),
    (".mark", "stroke-width: 2"),
    (".aim", "stroke-width: 1.2; stroke-dasharray: 2 1.5"),
)
_COLOURS = (
    (".page", "fill", "#fcfcfa", "#131518"),
    (".head", "fill", "#1b1c1e", "#e9e9e6"),
    (".ink", "fill", "#1b1c1e", "#e9e9e6"),
    (".soft", "fill", "#5b5e64", "#a2a6ad"),
    (".more", "fill", "#b3261e", "#f2938c"),
    (".rule", "stroke", "#dcdcd6", "#31353b"),
    (".edge", "stroke", "#5b5e64", "#a2a6ad"),
    (".mark", "stroke", "#b3261e", "#f2938c"),
    (".aim", "stroke", "#1b1c1e", "#e9e9e6"),
    (".neutral", "color", "#5b5e64", "#a2a6ad"),
    *((f".s{i}", "color", light, dark) for i, (light, dark) in enumerate(zip(_LIGHT, _DARK, strict=True))),
)


def svg_style(scope: str = "svg") -> str:
    """A ``<style>`` element whose rules hold below ``scope`` (a selector: a picture inside a page needs one of its own)."""
    rules = [f"{scope} {name} {{ {text}; }}" if name else f"{scope} {{ {text}; }}" for name, text in _RULES]
    rules += [f"{scope} .s{i} .line {{ stroke-dasharray: {dash}; }}" for i, dash in enumerate(_DASHES) if dash]
    light = [f"{scope} {name} {{ {what}: {colour}; }}" for name, what, colour, _ in _COLOURS]
    dark = [f"{scope} {name} {{ {what}: {colour}; }}" for name, what, _, colour in _COLOURS]
    return "\n".join(["<style>", *rules, *light, "@media (prefers-color-scheme: dark) {", *dark, "}", "</style>"])
