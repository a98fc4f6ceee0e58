"""Metric against peak training memory, an SVG of its own: one panel for each task and model, a point for each k -> l.

Adapters differ by colour and marker; a point carries k -> l and its 95 % interval. Labels that would overlap move apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from plr.report.costs import CostRow
from plr.report.figures.gain import marker, ticks
from plr.report.figures.svg import SERIES, svg_style
from plr.report.metrics import is_loss, show
from plr.report.sheets import adapter_label
from plr.study.cells import NO_ADAPTER

__all__ = ["compare_figure"]

WIDTH, PANEL = 760, 330
LEFT, RIGHT, TOP, BOTTOM = 66, 24, 48, 44
HEAD, ENTRY, LINE = 56, 22, 13

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def compare_figure(rows: Sequence[CostRow], title: str) -> str | None:
    """A whole SVG document, or None where no row has both a value and a peak memory."""
    shown = [
        row for row in rows if row.value is not None and row.costs["peak_memory_bytes"] and row.adapter != NO_ADAPTER
    ]
    if not shown:
        return None
    panels: dict[tuple[str, str], list[CostRow]] = {}
    for row in shown:
        panels.setdefault((row.task, row.model), []).append(row)
    adapters = list(dict.fromkeys(row.adapter for row in shown))
    key = HEAD + ENTRY * math.ceil(len(adapters) / 4)
    height = key + PANEL * len(panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'role="img" aria-labelledby="t d">',
        f'<title id="t">{escape(title)}: metric against peak training memory</title>',
        f'<desc id="d">{escape(_described(shown))}</desc>',
        svg_style(),
        f'<rect class="page" width="{WIDTH}" height="{height}"/>',
        f'<text class="head" x="{LEFT}" y="26">{escape(title)}</text>',
        f'<text class="soft" x="{LEFT}" y="44">primary metric with 95 % interval against the peak memory of the training</text>',
    ]
    for index, adapter in enumerate(adapters):
        x, y = LEFT + 170 * (index % 4), HEAD + 10 + ENTRY * (index // 4)
        parts.append(
            f'<g class="s{index % SERIES}">{marker(index, x + 5, y)}<text class="ink" x="{x + 16}" y="{y + 4}">'
            f"{escape(adapter_label(adapter))}</text></g>"
        )
    for index, ((task, model), of) in enumerate(panels.items()):
        parts += _panel(of, f"{task}, {model}", adapters, key + PANEL * index)
    return "\n".join([*parts, "</svg>", ""])


def _panel(rows: Sequence[CostRow], name: str, adapters: Sequence[str], top: int) -> list[str]:
    metric = rows[0].metric
    scale = 1.0 if is_loss(metric) else 100.0
    memory, unit = _unit(rows)
    ends = [scale * v for row in rows for v in (row.value, row.low, row.high) if v is not None]
    across, up = ticks(min(memory), max(memory)), ticks(min(ends), max(ends))

    def x(value: float) -> float:
        return LEFT + (value - across[0]) / (across[-1] - across[0]) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return top + TOP + (up[-1] - value) / (up[-1] - up[0]) * (PANEL - TOP - BOTTOM)

    foot = top + PANEL - BOTTOM
    what = f"{metric}{', nats per token (lower is better)' if is_loss(metric) else ', %'}"
    parts = [
        f'<text class="ink" x="{LEFT}" y="{top + 20}">{escape(name)}</text>',
        f'<text class="soft" x="{LEFT}" y="{top + 37}">{escape(what)}</text>',
        f'<text class="soft" x="{WIDTH - RIGHT}" y="{foot + 34}" text-anchor="end">peak memory of the training, {unit}</text>',
    ]
    for tick in up:
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="soft" x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in across:
        parts.append(f'<line class="rule" y1="{foot}" y2="{foot + 4}" x1="{x(tick):.1f}" x2="{x(tick):.1f}"/>')
        parts.append(f'<text class="soft" x="{x(tick):.1f}" y="{foot + 18}" text-anchor="middle">{tick:g}</text>')
    placed = [(row, x(at), y(scale * (row.value or 0.0))) for row, at in zip(rows, memory, strict=True)]
    taken = [(px - 6, py - 6, px + 6, py + 6) for _, px, py in placed]
    for row, px, py in placed:
        said = f"{adapter_label(row.adapter)} {row.bits}: {show(row.metric, row.value)}"
        parts.append(f'<g class="s{adapters.index(row.adapter) % SERIES}"><title>{escape(said)}</title>')
        if row.low is not None and row.high is not None:
            parts.append(f'<path class="thin" d="M{px:.1f} {y(scale * row.low):.1f}V{y(scale * row.high):.1f}"/>')
        parts.append(marker(adapters.index(row.adapter), px, py))
        parts.append(_label(row.bits.replace(" -> ", "\u2192"), px, py, taken) + "</g>")
    return parts


def _label(text: str, px: float, py: float, taken: list[Box]) -> str:
    """The text beside its point, where it covers no point and no other label; ``taken`` learns of it."""
    wide = 7.0 * len(text)
    for step in range(40):
        away = LINE * ((step + 1) // 2) * (1 if step % 2 else -1)
        for left in (px + 9, px - 9 - wide):
            box = (left, py + away - 6, left + wide, py + away + 6)
            inside = box[0] >= 0 and box[2] <= WIDTH
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                before = left < px
                anchor = ' text-anchor="end"' if before else ""
                at = px - 9 if before else px + 9
                return f'<text class="soft" x="{at:.1f}" y="{py + away + 4:.1f}"{anchor}>{escape(text)}</text>'
    return f'<text class="soft" x="{px + 9:.1f}" y="{py + 4:.1f}">{escape(text)}</text>'  # no free place near the point


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _unit(rows: Sequence[CostRow]) -> tuple[list[float], str]:
    """Peak memory of the rows in MB or GB."""
    values = [row.costs["peak_memory_bytes"] or 0.0 for row in rows]
    size, unit = (1e9, "GB") if max(values) >= 2e9 else (1e6, "MB")
    return [value / size for value in values], unit


def _described(rows: Sequence[CostRow]) -> str:
    said = []
    for row in rows:
        memory = (row.costs["peak_memory_bytes"] or 0.0) / 1e6
        said.append(
            f"{row.task}, {row.model}, {adapter_label(row.adapter)} {row.bits}: {show(row.metric, row.value)} at {memory:.0f} MB"
        )
    return "Primary metric against peak memory. " + "; ".join(said) + "."
