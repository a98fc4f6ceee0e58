"""The figure of scores against trained parameters: one panel for each task and model, a point for each k -> l.

The horizontal axis is the number of trained parameters. Where the adapters of a panel do not differ in it (a study of one
adapter), it is the bits that are served. Neither depends on the machine or on the order of the runs, as memory and seconds do. A
colour and a mark stand for one k -> l, a name for one adapter. The dashed line joins the points that none with fewer parameters
(or bits) reaches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from plr.report.costs import CostRow
from plr.report.figures import plot
from plr.report.figures.shapes import Figure, Group, Line, Shape, Text
from plr.report.metrics import unit_note
from plr.report.sheets import adapter_label
from plr.study.cells import NO_ADAPTER

__all__ = ["compare_figure"]

WIDTH, PANEL = 760, 460
LEFT, RIGHT, TOP, BOTTOM = 66, 24, 52, 58
HEAD, ENTRY, COLUMNS = 62, 22, 6


def compare_figure(rows: Sequence[CostRow], title: str) -> Figure | None:
    """Draw the rows that have a value and a number of trained parameters; None where there are none."""
    shown = [r for r in rows if r.value is not None and r.costs["trainable_parameters"] and r.adapter != NO_ADAPTER]
    if not shown:
        return None
    panels: dict[tuple[str, str], list[CostRow]] = {}
    for row in shown:
        panels.setdefault((row.task, row.model), []).append(row)
    places = list(dict.fromkeys(row.bits for row in sorted(shown, key=lambda r: (-r.train_bits, -r.restore_bits))))
    top = HEAD + ENTRY * math.ceil(len(places) / COLUMNS)
    shapes: list[Shape] = [
        Text(LEFT, 26, title, "head"),
        Text(LEFT, 44, "primary metric with 95 % interval; dashed: the best of those that are no larger"),
        *plot.key([_arrow(bits) for bits in places], LEFT, HEAD + 6, columns=COLUMNS, wide=110, lines=False),
    ]
    for index, ((task, model), own) in enumerate(panels.items()):
        shapes += _panel(own, f"{task}, {model}", places, top + PANEL * index)
    height = top + PANEL * len(panels)
    return Figure(WIDTH, height, f"{title}: metric against trained parameters", _described(shown), shapes)


def _panel(rows: Sequence[CostRow], name: str, places: Sequence[str], top: int) -> list[Shape]:
    metric = rows[0].measure
    scale, lower = metric.scale, not metric.higher_is_better
    foot, right = top + PANEL - BOTTOM, WIDTH - RIGHT
    y = plot.linear([scale * v for r in rows for v in (r.value, r.low, r.high) if v is not None], foot, top + TOP)
    sizes = [row.costs["trainable_parameters"] or 1.0 for row in rows]
    shapes: list[Shape] = [
        Text(LEFT, top + 20, name, "ink"),
        Text(LEFT, top + 37, metric.name + unit_note([metric]).replace("in percent", "%")),
        *plot.up(y, LEFT, right),
    ]
    one_size = len(set(sizes)) == 1
    if one_size:
        widths = sorted({row.restore_bits for row in rows})
        sizes = [float(widths.index(row.restore_bits)) for row in rows]
        x = plot.bands(len(widths), LEFT, right)
        shapes += plot.across(x, foot, [(i, str(bits)) for i, bits in enumerate(widths)], "bits served")
    else:
        x = plot.log(sizes, LEFT, right)
        marks = [(mark, _short(mark)) for mark in x.marks]
        shapes += plot.across(x, foot, marks[:: math.ceil(len(marks) / 8)], "trained parameters, log scale")
    points = [(x(size), y(scale * (row.value or 0.0))) for row, size in zip(rows, sizes, strict=True)]
    shapes.append(Line(_front(points, lower), "front"))
    for row, (px, py) in zip(rows, points, strict=True):
        ends = [] if row.low is None or row.high is None else [y(scale * row.low), y(scale * row.high)]
        bar = plot.error_bar(px, *ends, style="thin", wide=0) if ends else []
        index = places.index(row.bits)
        tip = f"{adapter_label(row.adapter)} {row.bits}: {metric.show(row.value)}"
        shapes.append(Group([*bar, plot.mark(index, px, py)], series=index, tip=tip))
    named = _named_places(rows, points) if one_size else _named_adapters(rows, points)
    return shapes + plot.labels(named, points, plot.Box(LEFT, top + TOP, right, foot))


def _named_places(rows: Sequence[CostRow], points: Sequence[tuple[float, float]]) -> list[tuple[str, float, float]]:
    """Name each point: its k -> l, behind the adapter's name where there are several."""
    several = len({row.adapter for row in rows}) > 1
    front = [f"{adapter_label(row.adapter)} " if several else "" for row in rows]
    return [(name + _arrow(row.bits), x, y) for name, row, (x, y) in zip(front, rows, points, strict=True)]


def _named_adapters(rows: Sequence[CostRow], points: Sequence[tuple[float, float]]) -> list[tuple[str, float, float]]:
    """Name each adapter, at the highest of its points."""
    highest: dict[str, tuple[float, float]] = {}
    for row, point in zip(rows, points, strict=True):
        highest[row.adapter] = min(highest.get(row.adapter, point), point, key=lambda one: one[1])
    return [(adapter_label(adapter), x, y) for adapter, (x, y) in highest.items()]


def _front(points: Sequence[tuple[float, float]], lower: bool) -> list[tuple[float, float]]:
    """Trace the Pareto front as steps: the points that none further left reaches."""
    steps: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1] if lower else point[1])):
        if not steps or (y > steps[-1][1] if lower else y < steps[-1][1]):
            steps += [(x, steps[-1][1]), (x, y)] if steps else [(x, y)]
    return [*steps, (max(x for x, _ in points), steps[-1][1])]


def _short(number: float) -> str:
    size, unit = next((size, unit) for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k"), (1, "")) if number >= size)
    return f"{number / size:g}{unit}"


def _arrow(bits: str) -> str:
    return bits.replace(" -> ", "\u2192")


def _described(rows: Sequence[CostRow]) -> str:
    lines = []
    for row in rows:
        size = f"{row.costs['trainable_parameters']:,.0f} trained parameters"
        name = f"{row.task}, {row.model}, {adapter_label(row.adapter)} {row.bits}"
        lines.append(f"{name}: {row.measure.show(row.value)}, {size}")
    return "Primary metric against trained parameters. " + "; ".join(lines) + "."
