"""The gain curve of the page: the gain of restoring to 16 bits over QLoRA at each k, with 95 % intervals.

Series differ by colour, mark and dash; the numbers stand in the description, for those who do not see the picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from plr.report.cells import ResultSet
from plr.report.figures import plot
from plr.report.figures.page import PageFigure
from plr.report.figures.shapes import Figure, Shape, Text
from plr.report.metrics import LOSS, difference_unit
from plr.report.results import Contrast, gains
from plr.report.sheets import adapter_label
from plr.scoring.metric import Metric
from plr.study.cells import NO_ADAPTER

__all__ = ["ABOUT", "TITLE", "Series", "figures", "gain_figure"]

TITLE = "What restoring to 16 bits changes"
ABOUT = (
    "The same adapter, the same documents: served on 16 bits (PLR16) minus served on its own k bits (QLoRA), with paired bootstrap "
    "95 % intervals over the documents."
)

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 22, 34


@dataclass(frozen=True)
class Series:
    name: str
    points: Sequence[Contrast]


def figures(results: ResultSet) -> list[PageFigure]:
    """Draw one curve for each task and metric: every model and adapter of the task a series."""
    drawn: list[PageFigure] = []
    for task in results.tasks:
        lines = [line for line in results.lines() if line.task == task and line.adapter != NO_ADAPTER]
        for name in dict.fromkeys([*(results.primary(line) for line in lines), LOSS]):
            series = [
                Series(", ".join(dict.fromkeys([line.model, adapter_label(line.adapter)])), points)
                for line in lines
                if name in (results.primary(line), LOSS) and (points := gains(results, line, name))
            ]
            if series:
                metric = series[0].points[0].measure
                drawn.append(
                    PageFigure(gain_figure(series, metric, _label(task, metric)), [one.name for one in series])
                )
    return drawn


def _label(task: str, metric: Metric) -> str:
    kind = "gain in" if metric.higher_is_better else "change of"
    notes = [difference_unit(metric).replace("/", " per "), "" if metric.higher_is_better else "lower is better"]
    note = ", ".join(part for part in notes if part)
    return f"{task}: {kind} {metric.name} from restoring to 16 bits" + (f" ({note})" if note else "")


def gain_figure(series: Sequence[Series], metric: Metric, label: str) -> Figure:
    """Draw the differences of one metric, a line for each series that has some."""
    series = [one for one in series if one.points]
    scale = metric.scale
    widths = sorted({p.train_bits for one in series for p in one.points}, reverse=True)
    values = [scale * v for one in series for p in one.points for v in (p.difference, p.low, p.high) if v is not None]
    x = plot.bands(len(widths), LEFT, WIDTH - RIGHT)
    y = plot.linear([0.0, *values], HEIGHT - BOTTOM, TOP)
    digits = max(0, -math.floor(math.log10(y.marks[1] - y.marks[0]) + 1e-9))
    shapes = plot.up(y, LEFT, WIDTH - RIGHT, lambda v: f"{v + 0.0:+.{digits}f}" if abs(v) > 1e-12 else "0", zero=True)
    shapes += plot.across(x, HEIGHT - BOTTOM, [(i, f"k = {k}") for i, k in enumerate(widths)], notches=False)
    spread = min(16.0, 0.6 * (x(1) - x(0)) / max(1, len(series)))
    for index, one in enumerate(series):
        aside = spread * (index - (len(series) - 1) / 2)
        points = [(x(widths.index(p.train_bits)) + aside, y(scale * p.difference)) for p in one.points]
        bars = [None if p.low is None or p.high is None else (y(scale * p.low), y(scale * p.high)) for p in one.points]
        shapes.append(plot.series(index, points, bars=bars))
        if len(series) == 1:
            shapes += _values(metric, one.points, points, bars)
    return Figure(WIDTH, HEIGHT, label, _described(series, metric), shapes)


def _values(metric: Metric, contrasts: Sequence[Contrast], points, bars) -> list[Shape]:
    """Write each difference above its bar."""
    return [
        Text(x, (bar[1] if bar else y) - 7, plot.minus(metric.show_signed(one.difference)), "value", "middle")
        for one, (x, y), bar in zip(contrasts, points, bars, strict=True)
    ]


def _described(series: Sequence[Series], metric: Metric) -> str:
    lines = []
    for one in series:
        points = [
            f"k = {p.train_bits}: {metric.show_signed(p.difference)}"
            + ("" if p.low is None else f" ({metric.show_signed(p.low)} to {metric.show_signed(p.high)})")
            for p in one.points
        ]
        lines.append(f"{one.name}: {', '.join(points)}")
    unit = difference_unit(metric)
    return f"Difference{' in ' if unit else ''}{unit} with 95 % intervals. " + "; ".join(lines) + "."
