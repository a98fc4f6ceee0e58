"""Figures of the page, a section for each module of this folder: put a file here and the report has it.

A module has `TITLE` and `ABOUT` (the section's head and a sentence) and `figures(results)`, which draws its figures. Without
figures the section is left out. Sections stand in the order of their files' names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules

from plr.report.cells import ResultSet
from plr.report.figures.plot import key_mark
from plr.report.figures.shapes import Figure
from plr.report.figures.svg import shape_svg, svg_inside

__all__ = ["PageFigure", "Section", "sections"]


@dataclass(frozen=True)
class PageFigure:
    """A figure, whose title is its caption, and the names of its series for the key below it (one or none: no key)."""

    figure: Figure
    series: Sequence[str] = ()


@dataclass(frozen=True)
class Section:
    """A section of the page: each chart is its caption, its SVG and its key, a mark and a name for each series."""

    ident: str
    title: str
    about: str
    charts: Sequence[tuple[str, str, Sequence[tuple[str, str]]]]


def sections(results: ResultSet) -> list[Section]:
    """Draw the figures of every module of this folder."""
    drawn_sections: list[Section] = []
    for name in sorted(module.name for module in iter_modules(__path__)):
        module = import_module(f"{__name__}.{name}")
        drawn: Sequence[PageFigure] = module.figures(results)
        charts = [_chart(one, f"{name}{index}") for index, one in enumerate(drawn)]
        drawn_sections += [Section(name, module.TITLE, module.ABOUT, charts)] if charts else []
    return drawn_sections


def _chart(drawn: PageFigure, ident: str) -> tuple[str, str, list[tuple[str, str]]]:
    names = drawn.series if len(drawn.series) > 1 else ()
    keys = [(shape_svg(key_mark(index, 0, 7, 28)), name) for index, name in enumerate(names)]
    return drawn.figure.title, svg_inside(drawn.figure, ident), keys
