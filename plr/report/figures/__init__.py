"""Figures of a report: each drawn once, written as SVG (by hand, light and dark) and as PNG (by matplotlib).

A figure is a function that returns a `plr.report.figures.shapes.Figure`. It draws with `plr.report.figures.plot`: scales, axes,
series, error bars, a key, labels that do not overlap.
"""

from __future__ import annotations

from plr.report.figures import plot

__all__ = ["plot"]
